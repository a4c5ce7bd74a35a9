"""Search and comparison: equal conditions, no test labels, and nothing finished is done twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from osmose.data import NodeData
from osmose.tasks import compare as comparing
from osmose.tasks import search as searching
from osmose.tasks import sources
from osmose.tasks.compare import Comparison, cells, compare, table
from osmose.tasks.config import DataConfig
from osmose.tasks.progress import Reporter
from osmose.tasks.run_folder import RunFolderError
from osmose.tasks.search import SPACE, describe, search, with_settings
from osmose.tasks.signals import Interrupted, StopRequest

from .engine_helpers import blobs, settings


class StopAfter(Reporter):
    """Asks for a stop after a number of lines (a line is a finished trial or split)."""

    def __init__(self, stop: StopRequest, lines: int) -> None:
        super().__init__(quiet=True)
        self.stop, self.left = stop, lines

    def line(self, text: str) -> None:
        self.left -= 1
        self.stop.asked = self.left <= 0


@pytest.fixture
def small_space(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "lr": (1e-3, 1e-2),
        "weight_decay": (0.0, 0.1),
        "dropout": (0.0, 0.5),
        "hidden": (4, 8),
        "layers": (1, 2),
    }
    monkeypatch.setattr(searching, "SPACE", small)
    monkeypatch.setattr(comparing, "SPACE", small)


@pytest.fixture
def named_blobs(monkeypatch: pytest.MonkeyPatch) -> NodeData:
    data = blobs()
    monkeypatch.setattr(sources, "load", lambda config, splits: data)
    return data


def look(path: Path, trials: int, stop: StopRequest, reporter: Reporter) -> dict[str, Any]:
    config = settings("mlp", epochs=3)
    return search(config, blobs(), path, trials=trials, splits=1, seed=3, reporter=reporter, stop=stop)


@pytest.mark.usefixtures("small_space")
def test_search_resumes_to_the_same_trials(tmp_path: Path) -> None:
    quiet = Reporter(quiet=True)
    whole = look(tmp_path / "whole.db", 6, StopRequest(), quiet)
    stop = StopRequest()
    with pytest.raises(Interrupted):
        look(tmp_path / "parts.db", 6, stop, StopAfter(stop, 3))
    parts = look(tmp_path / "parts.db", 6, StopRequest(), quiet)
    assert parts == whole
    tried = []
    for name in ("whole", "parts"):
        study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / name}.db")
        done = [entry for entry in study.trials if entry.state == optuna.trial.TrialState.COMPLETE]
        tried.append([(entry.params, entry.value) for entry in done])
    assert tried[0] == tried[1]
    assert len({tuple(params.values()) for params, _ in tried[0]}) == 6, "every trial is another setting"
    assert whole["valid_accuracy"] == max(value for _, value in tried[0])


def test_search_ends_when_every_setting_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("mlp", epochs=3)
    point = {"lr": config.train.lr, "weight_decay": config.train.weight_decay}
    point |= {name: getattr(config.model, name) for name in ("dropout", "hidden", "layers")}
    tiny = {name: (value,) for name, value in point.items()} | {"lr": (point["lr"], 0.5)}
    monkeypatch.setattr(searching, "SPACE", tiny)
    assert look(tmp_path / "a.db", 10, StopRequest(), Reporter(quiet=True))["trials"] == 2


def test_a_recipe_outside_the_space_is_the_first_trial(tmp_path: Path) -> None:
    config = settings("mlp", epochs=3)
    config = replace(config, model=replace(config.model, hidden=7))
    assert searching.search_space(config)["hidden"] == (*SPACE["hidden"], 7)
    quiet = Reporter(quiet=True)
    found = search(
        config, blobs(), tmp_path / "a.db", trials=1, splits=1, seed=0, reporter=quiet, stop=StopRequest()
    )
    assert (found["settings"]["hidden"], found["settings"]["lr"]) == (7, config.train.lr)


def test_settings_of_the_space_reach_the_run() -> None:
    chosen = {name: values[-1] for name, values in SPACE.items()}
    config = with_settings(settings(), chosen)
    assert (config.train.lr, config.train.weight_decay) == (0.01, 1.0)
    assert (config.model.dropout, config.model.hidden, config.model.layers) == (0.5, 128, 16)
    assert describe(chosen) == "lr 0.01, wd 1, drop 0.5, 16 x 128"


COMPARISON = Comparison(
    DataConfig("digits"), ("mean", "mlp"), splits=2, overrides=(("epochs", 3), ("device", "cpu"))
)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock decides."""
    rows = [{**row, "seconds": None, "search": None} for row in result["models"]]
    return {**result, "models": rows}


@pytest.mark.usefixtures("named_blobs", "small_space")
def test_comparison_resumes_and_keeps_what_is_finished(tmp_path: Path) -> None:
    searched = replace(COMPARISON, trials=2)
    whole = compare(searched, tmp_path / "whole")
    stop = StopRequest()
    with pytest.raises(Interrupted):
        compare(searched, tmp_path / "parts", stop=stop, reporter=StopAfter(stop, 5))
    assert (tmp_path / "parts" / "mean" / "result.json").exists()
    finished = (tmp_path / "parts" / "mean" / "result.json").read_bytes()
    parts = compare(searched, tmp_path / "parts")
    assert timeless(parts) == timeless(whole)
    assert (tmp_path / "parts" / "mean" / "result.json").read_bytes() == finished
    assert compare(searched, tmp_path / "parts") == parts, "a finished comparison gives its result"
    for name in (
        "table.md",
        "figures/comparison.png",
        "environment.json",
        "mlp/model.safetensors",
        "search/mlp.db",
    ):
        assert (tmp_path / "parts" / name).stat().st_size > 0
    assert json.loads((tmp_path / "parts" / "result.json").read_text()) == parts


@pytest.mark.usefixtures("named_blobs")
def test_comparison_table_says_how_it_was_made(tmp_path: Path) -> None:
    result = compare(COMPARISON, tmp_path / "c")
    text = table(result)
    assert "Mean ± sample standard deviation (ddof 1) over 2 splits" in text
    assert "each model's recipe" in text
    assert [row[0] for row in cells(result)] == ["mean", "mlp"]
    accuracies = [row["values"] for row in result["models"]]
    assert all(len(values) == 2 for values in accuracies)


@pytest.mark.usefixtures("named_blobs")
def test_models_can_be_added_and_finished_ones_are_kept(tmp_path: Path) -> None:
    compare(replace(COMPARISON, models=("mlp",)), tmp_path / "c")
    before = (tmp_path / "c/mlp/result.json").read_bytes()
    more = compare(replace(COMPARISON, models=("gcn", "mlp")), tmp_path / "c")
    assert [row["model"] for row in more["models"]] == ["gcn", "mlp"]
    assert (tmp_path / "c/mlp/result.json").read_bytes() == before


@pytest.mark.usefixtures("named_blobs")
def test_comparison_refuses_other_settings_and_foreign_folders(tmp_path: Path) -> None:
    compare(COMPARISON, tmp_path / "c")
    with pytest.raises(RunFolderError, match="other settings"):
        compare(replace(COMPARISON, seed=1), tmp_path / "c")
    assert len(compare(replace(COMPARISON, models=("mlp",)), tmp_path / "c", overwrite=True)["models"]) == 1
    with pytest.raises(RunFolderError, match="recipe of mlp"):
        compare(replace(COMPARISON, models=("mlp",), overrides=(("epochs", 4),)), tmp_path / "c")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="not a comparison"):
            compare(COMPARISON, tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "a.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ()}, "--models is empty"),
        ({"models": ("mlp", "mlp")}, "expected different names"),
        ({"models": ("mpl",)}, "did you mean 'mlp'"),
        ({"splits": 0}, "--splits is 0"),
        ({"trials": -1}, "--trials is -1"),
        ({"trials": 1, "search_splits": 3}, "--search-splits is 3"),
        ({"overrides": (("epochs", 0),)}, "--epochs is 0"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(replace(COMPARISON, **change), tmp_path / "c")
    assert not (tmp_path / "c").exists()
