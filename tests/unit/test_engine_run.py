"""A run continues bit for bit after an interruption, and refuses what would harm it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from osmose.cli.errors import reporting
from osmose.data import NodeData
from osmose.tasks.checkpoint import CheckpointError
from osmose.tasks.config import RunConfig
from osmose.tasks.evaluate import final_metrics
from osmose.tasks.loop import TrainingDivergedError
from osmose.tasks.progress import Reporter
from osmose.tasks.run import run
from osmose.tasks.run_folder import RunFolder, RunFolderError
from osmose.tasks.saved import open_model
from osmose.tasks.signals import Interrupted, StopRequest
from osmose.tasks.trainers import NodeTrainer

from .engine_helpers import blobs, limit_files, settings


class StopAt(Reporter):
    """Asks for a stop when a given epoch of a split has been evaluated."""

    def __init__(self, stop: StopRequest, split: int, epoch: int) -> None:
        super().__init__(quiet=True)
        self.stop, self.place = stop, (split, epoch)

    def epoch(self, record: dict[str, Any]) -> None:
        if (record["split"], record["epoch"]) == self.place:
            self.stop.asked = True


def interrupt(
    config: RunConfig, folder: RunFolder, data: NodeData, split: int, epoch: int, **how: Any
) -> None:
    stop = StopRequest()
    with pytest.raises(Interrupted, match=f"epoch {epoch} of split {split}"):
        run(config, folder, data=data, stop=stop, reporter=StopAt(stop, split, epoch), **how)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """The result without what a clock decides."""
    splits = [
        {key: value for key, value in record.items() if key != "seconds"} for record in result["splits"]
    ]
    return {**result, "seconds": None, "splits": splits}


@pytest.mark.parametrize("model", ["difformer-s", "mlp"])
@pytest.mark.parametrize("batch_size", [None, 17])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, model: str, batch_size: int | None
) -> None:
    data, config = blobs(), settings(model, batch_size=batch_size)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    expected = run(config, whole, data=data)
    interrupt(config, parts, data, 0, 5)
    torch.manual_seed(99)  # whatever happens in between
    interrupt(config, parts, data, 1, 7, resume=True)
    torch.rand(3)
    result = run(config, parts, data=data, resume=True)
    assert timeless(result) == timeless(expected)
    assert parts.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert parts.model_file.read_bytes() == whole.model_file.read_bytes()
    assert len(whole.metrics()) == 24
    assert not parts.checkpoint_file.exists()


def test_epochs_after_the_checkpoint_are_trained_again_without_duplicate_lines(tmp_path: Path) -> None:
    data, config = blobs(), settings()
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    run(config, whole, data=data)
    interrupt(config, parts, data, 1, 3)
    lines = whole.metrics_file.read_text().splitlines(keepends=True)
    parts.metrics_file.write_text(
        "".join(lines[:20]) + lines[20][:9]
    )  # killed later, in the middle of a line
    run(config, parts, data=data, resume=True)
    assert parts.metrics_file.read_bytes() == whole.metrics_file.read_bytes()


def test_resume_before_the_first_checkpoint_starts_again(tmp_path: Path) -> None:
    data, config = blobs(), settings()
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    expected = run(config, whole, data=data)
    interrupt(config, parts, data, 0, 4)
    parts.checkpoint_file.unlink()
    assert timeless(run(config, parts, data=data, resume=True)) == timeless(expected)


def test_interrupted_between_splits(tmp_path: Path) -> None:
    data, config = blobs(), settings(epochs=6)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    expected = run(config, whole, data=data)
    interrupt(config, parts, data, 0, 6)
    assert timeless(run(config, parts, data=data, resume=True)) == timeless(expected)
    assert parts.metrics_file.read_bytes() == whole.metrics_file.read_bytes()


def test_run_folder_holds_what_it_promises(tmp_path: Path) -> None:
    data, folder = blobs(), RunFolder(tmp_path / "deep" / "run")
    config = settings(patience=3)
    result = run(config, folder, data=data)
    names = {entry.name for entry in folder.path.iterdir()}
    assert names == {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
        "figures",
    }
    assert folder.config() == config
    assert (folder.figures / "learning_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        json.loads((folder.path / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    )
    for record in result["splits"]:
        mine = [row for row in folder.metrics() if row["split"] == record["split"]]
        best = max(mine, key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
        assert record["best_epoch"] == best["epoch"]
        assert record["valid_accuracy"] == pytest.approx(best["valid_accuracy"])
        assert record["epochs"] in (12, best["epoch"] + 3)
    tests = torch.tensor([record["test_accuracy"] for record in result["splits"]])
    assert result["test_accuracy"]["mean"] == pytest.approx(tests.mean().item())
    assert result["test_accuracy"]["sd"] == pytest.approx(tests.std().item()), "ddof 1"


def test_more_splits_than_the_data_have_are_new_seeds(tmp_path: Path) -> None:
    result = run(settings(splits=3, epochs=3), RunFolder(tmp_path / "run"), data=blobs(splits=1))
    assert [record["seed"] for record in result["splits"]] == [0, 1, 2]
    assert len({record["test_loss"] for record in result["splits"]}) == 3


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    data, folder = blobs(), RunFolder(tmp_path / "run")
    run(settings(epochs=2), folder, data=data)
    before = folder.model_file.read_bytes()
    with pytest.raises(RunFolderError, match=r"--resume.*--overwrite.*--out"):
        run(settings(epochs=3), folder, data=data)
    assert folder.model_file.read_bytes() == before
    assert len(run(settings(epochs=3), folder, data=data, overwrite=True)["splits"]) == 2
    assert len(folder.metrics()) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mlp", "dropout": 2.0}, "dropout is 2.0"),
        ({"alpha": 7.0}, "alpha is 7.0"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_settings_that_cannot_be_trained_with_cost_no_earlier_run(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data, folder = blobs(), RunFolder(tmp_path / "run")
    run(settings(epochs=2), folder, data=data)
    before = {entry.name: entry.read_bytes() for entry in folder.path.iterdir() if entry.is_file()}
    bad = replace(settings(), model=replace(settings().model, **change))
    with pytest.raises(ValueError, match=message):
        run(bad, folder, data=data, overwrite=True)
    assert {entry.name: entry.read_bytes() for entry in folder.path.iterdir() if entry.is_file()} == before
    with pytest.raises(ValueError, match=message):
        run(bad, RunFolder(tmp_path / "new"), data=data)
    assert not (tmp_path / "new").exists()


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    data, folder = blobs(), RunFolder(tmp_path / "run")
    run(settings(epochs=2), folder, data=data)
    good = folder.config_file.read_text()
    folder.result_file.write_text('{"splits": [')
    with pytest.raises(RunFolderError, match=r"result\.json is damaged.*--out"):
        run(settings(epochs=2), folder, data=data, resume=True)
    folder.result_file.unlink()
    folder.metrics_file.write_text("nonsense\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is damaged.*--out"):
        run(settings(epochs=2), folder, data=data, resume=True)
    folder.config_file.write_text(good.replace("epochs = 2", 'epochs = "many"'))
    with pytest.raises(RunFolderError, match=r"config\.toml.*TrainConfig epochs is 'many'; expected int"):
        folder.config()


def test_the_model_of_another_run_is_refused(tmp_path: Path) -> None:
    data, folder, other = blobs(), RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    run(settings(epochs=2), folder, data=data)
    run(settings("mlp", epochs=2), other, data=data)
    mine = folder.model_file.read_bytes()
    folder.model_file.write_bytes(other.model_file.read_bytes())
    with pytest.raises(CheckpointError, match=r"model of another run.*model.name: difformer-s, not mlp"):
        open_model(folder)
    folder.model_file.write_bytes(mine)
    folder.config_file.unlink()
    assert open_model(folder).shape.in_channels == 5, "a model on its own can be used"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match="cannot be made: Not a directory; choose another one with --out"
    ):
        run(settings(), RunFolder(tmp_path / "file" / "run"), data=blobs())


def test_overwrite_leaves_a_folder_alone_that_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="not a run; --overwrite leaves it alone"):
        run(settings(), RunFolder(tmp_path), data=blobs(), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_resume_refuses_other_settings_other_data_and_damaged_files(tmp_path: Path) -> None:
    data, config, folder = blobs(), settings(), RunFolder(tmp_path / "run")
    interrupt(config, folder, data, 0, 5)
    saved = folder.checkpoint_file.read_bytes()
    other = replace(config, model=replace(config.model, name="gcn"))
    with pytest.raises(RunFolderError, match=r"model.name: difformer-s, not gcn"):
        run(other, folder, data=data, resume=True)
    with pytest.raises(CheckpointError, match="the data have changed"):
        run(config, folder, data=blobs(seed=1), resume=True)
    folder.checkpoint_file.write_bytes(saved[:1000])
    metrics = folder.metrics_file.read_bytes()
    with pytest.raises(CheckpointError, match="truncated"):
        run(config, folder, data=data, resume=True)
    assert folder.metrics_file.read_bytes() == metrics
    folder.checkpoint_file.write_bytes(saved)
    assert len(run(config, folder, data=data, resume=True)["splits"]) == 2


def test_resume_of_a_finished_run_gives_its_result_or_adds_splits(tmp_path: Path) -> None:
    data, folder = blobs(), RunFolder(tmp_path / "run")
    first = run(settings(epochs=3, splits=1), folder, data=data)
    assert run(settings(epochs=3, splits=1), folder, data=data, resume=True) == first
    more = run(settings(epochs=3, splits=2), folder, data=data, resume=True)
    assert more["splits"][0] == first["splits"][0]
    assert timeless(more) == timeless(
        run(settings(epochs=3, splits=2), RunFolder(tmp_path / "new"), data=data)
    )
    with pytest.raises(RunFolderError, match="more splits"):
        run(settings(epochs=3, splits=1), folder, data=data, resume=True)


def test_a_loss_that_is_not_finite_stops_with_advice_and_keeps_the_best_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingDivergedError, match=r"at epoch \d+ of split 0: lower --lr \(now 1e\+38\)"):
        run(settings("mlp", lr=1e38), folder, data=blobs())
    assert folder.config_file.exists()


def test_divergence_later_on_keeps_the_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = NodeTrainer._train_epoch
    monkeypatch.setattr(
        NodeTrainer, "_train_epoch", lambda self: math.nan if self.epoch == 6 else train(self)
    )
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingDivergedError, match=r"training loss is nan at epoch 7 of split 0.*is kept"):
        run(settings(), folder, data=blobs())
    best = max(folder.metrics(), key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    saved = open_model(folder)
    assert saved.epoch == best["epoch"]
    found = final_metrics(saved.logits(blobs()), blobs().y, blobs().splits[0])
    assert found["valid_loss"] == pytest.approx(best["valid_loss"], rel=1e-5)


class FillDisk(Reporter):
    """From epoch 5 on no file can grow beyond 3000 bytes."""

    def epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] == 5:
            limit_files(3000)


def test_a_full_disk_stops_training_and_the_run_resumes_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    try:
        with reporting() as outcome:
            run(settings(checkpoint_seconds=0.0), folder, data=blobs(), reporter=FillDisk(quiet=True))
    finally:
        limit_files(None)
    assert outcome.code == 2
    assert re.search("cannot save .* unchanged. Free some space", capsys.readouterr().err)
    config = settings(checkpoint_seconds=0.0)
    assert timeless(run(config, folder, data=blobs(), resume=True)) == timeless(
        run(config, whole, data=blobs())
    )
    assert folder.metrics_file.read_bytes() == whole.metrics_file.read_bytes()


def test_unknown_tracker_and_missing_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        run(settings(trackers=("tensorbord",)), RunFolder(tmp_path / "run"), data=blobs())
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        run(settings(precision="fp16"), RunFolder(tmp_path / "run"), data=blobs())
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_tensorboard_and_bf16(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    result = run(settings("mlp", precision="bf16", trackers=("tensorboard",), epochs=3), folder, data=blobs())
    assert list(folder.trackers.rglob("events.out.tfevents*"))
    assert result["test_accuracy"]["n"] == 2
