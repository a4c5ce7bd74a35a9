"""`osmose heads` and `osmose adaptivity` on small trained runs: text, sequences of different lengths, images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from osmose.cli import main
from osmose.data import load
from osmose.diagnostics import COMPONENTS
from osmose.inspection import capture, replacing
from osmose.models.config import ModelConfig
from osmose.tasks import sources
from osmose.tasks.config import DataConfig, RunConfig, TrainConfig
from osmose.tasks.run import run
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import evaluate_saved, open_model
from osmose.tasks.subject import open_subject

from .engine_helpers import blobs
from .engine_helpers import settings as node_settings
from .test_sequence_training import settings as wave_settings
from .test_sequence_training import waves

VERSE = "abcd efgh abcd ijkl. "
MODEL = {"hidden": 16, "layers": 2, "heads": 2, "dropout": 0.0}
TRAIN = TrainConfig(lr=0.01, optimizer="adamw", epochs=4, batch_size=8, patience=0, threads=1, splits=1)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> RunFolder:
    path = tmp_path_factory.mktemp("text")
    (path / "verse.txt").write_text(VERSE * 60, encoding="utf-8")
    data = DataConfig(str(path / "verse.txt"), task="text", length=24)
    folder = RunFolder(path / "run")
    run(RunConfig(data, ModelConfig(name="transformer", **MODEL), TRAIN), folder)
    return folder


@pytest.fixture(scope="module")
def image_run(tmp_path_factory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("images") / "run")
    model = ModelConfig(name="flowformer", hidden=8, layers=1, heads=2, stages=2, patch=2)
    train = TrainConfig(lr=0.01, epochs=1, batch_size=64, patience=0, threads=1, splits=1)
    run(RunConfig(DataConfig("digits-images"), model, train), folder)
    return folder


@pytest.fixture
def wave_run(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(sources, "load", lambda config, splits: waves())
    folder = RunFolder(tmp_path / "waves")
    run(wave_settings("transformer", epochs=2), folder)
    return folder


def told(capsys, *words) -> dict:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_heads_of_a_language_model(text_run, capsys, tmp_path):
    figure = tmp_path / "deep" / "heads.png"
    words = ["heads", text_run.path, "--sequences", "12", "--null", "19", "--out", figure]
    result = told(capsys, *words, "--replace", "mean", "shift", "--scored", "2")
    assert figure.stat().st_size > 10_000
    assert result["sequences"] == 12
    assert result["length"] == 24
    assert [(row["layer"], row["head"]) for row in result["heads"]] == [
        (f"blocks.{i}.self_attn", h) for i in range(2) for h in range(2)
    ]
    for row in result["heads"]:
        assert sum(row[part] for part in COMPONENTS) == pytest.approx(1)
        assert row["outside"] == 0, "the order is known"
        assert row["top_offset"] <= 0
        assert 0.05 <= row["p"] <= 1
        assert set(row["change"]) == {"mean", "shift"}
    every = next(row for row in result["together"] if row["heads"] == "all heads")
    assert every["number"] == 4
    assert every["change"]["shift"] != 0

    # the same by hand: a head at its mean over the same windows, on the same part
    subject = open_subject(text_run, sequences=12, length=None, scored=2, seed=0)
    assert subject.score(subject.model) == pytest.approx(result["score"]["valid_loss"])
    with torch.no_grad(), capture(subject.model) as seen:
        for batch in subject.inputs:
            subject.model(*batch)
    mean = torch.stack([one.matrix for one in seen["blocks.1.self_attn"]]).mean(0)
    with replacing(subject.model, {"blocks.1.self_attn": {1: mean[1]}}):
        change = subject.score(subject.model) - result["score"]["valid_loss"]
    assert result["heads"][3]["change"]["mean"] == pytest.approx(change, abs=1e-5)
    assert change != 0


def test_the_score_is_that_of_the_run(text_run):
    subject = open_subject(text_run, sequences=1, length=None, scored=None, seed=0)
    assert subject.score(subject.model) == pytest.approx(evaluate_saved(text_run)["valid_loss"])
    data = load(text_run.config().data.source, task="text", length=24)
    part = data.splits[0].train
    text = data.values[part.start : part.stop].long().unfold(0, 24, 1)
    assert (text == subject.inputs[0][0][0]).all(1).any(), "a window of the training part"


def test_the_tables_say_what_they_mean(text_run, capsys):
    assert (
        main(["heads", str(text_run.path), "--sequences", "4", "--null", "0", "--replace", "toeplitz"]) == 0
    )
    out = capsys.readouterr().out
    for words in (
        "block 1",
        "toeplitz",
        "replaced together",
        "change of the validation cross-entropy (nats)",
    ):
        assert words in out
    assert " p " not in out
    assert (text_run.path / "figures/heads.png").is_file()
    assert main(["adaptivity", str(text_run.path), "--sequences", "4", "--probes", "2", "--scored", "2"]) == 0
    out = capsys.readouterr().out
    for words in ("all layers", "frozen Δ", "by 2 random vectors on 4 inputs"):
        assert words in out


def test_adaptivity_of_a_language_model(text_run, capsys):
    result = told(capsys, "adaptivity", text_run.path, "--sequences", "8", "--samples", "2", "--scored", "3")
    assert (text_run.path / "figures/adaptivity.png").is_file()
    assert len(result["layers"]) == 2
    for row in result["layers"]:
        assert sum(row[part] for part in COMPONENTS) == pytest.approx(1)
        assert row["depends_on_input"] == pytest.approx(row["adaptive shift"] + row["content"])
        assert 0 < row["jacobian_gap"] < 2
    heads = told(capsys, "heads", text_run.path, "--sequences", "8", "--scored", "3", "--replace", "mean")
    every = next(row for row in heads["together"] if row["heads"] == "all heads")
    assert result["all_frozen"] == pytest.approx(every["change"]["mean"], abs=1e-6)


def test_heads_of_an_image_model_have_offsets_in_two_dimensions(image_run, capsys):
    result = told(
        capsys, "heads", image_run.path, "--sequences", "16", "--null", "9", "--replace", "toeplitz"
    )
    assert [row["layer"] for row in result["heads"][::2]] == [
        f"stages.{i}.blocks.0.self_attn" for i in range(2)
    ]
    assert all(len(row["top_offset"]) == 2 for row in result["heads"])
    assert 0 < result["score"]["valid_accuracy"] < 1
    assert told(capsys, "adaptivity", image_run.path, "--sequences", "4", "--probes", "2")["all_frozen"] <= 1
    assert main(["heads", str(image_run.path), "--length", "3"]) == 2
    assert "images are read whole" in capsys.readouterr().err


def test_sequences_of_different_lengths(wave_run, capsys):
    result = told(capsys, "heads", wave_run.path, "--sequences", "10", "--null", "9")
    assert "length" not in result
    assert sum(result["heads"][0][part] for part in COMPONENTS) == pytest.approx(1)
    assert main(["heads", str(wave_run.path), "--replace", "mean"]) == 2
    assert "different lengths, and a mean matrix has one; give --length" in capsys.readouterr().err
    result = told(
        capsys, "heads", wave_run.path, "--length", "12", "--null", "0", "--replace", "mean", "shift"
    )
    assert result["length"] == 12
    saved = open_model(wave_run)
    data = waves()
    index = data.splits[0].valid
    index = index[data.lengths[index] >= 12]
    values, _ = data.batch(index)
    right = saved.model(values[:, :12], torch.full((len(index),), 12)).argmax(1) == data.y[index]
    assert result["score"]["valid_accuracy"] == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--length", "1"], "--length is 1; expected 2 or more, and at most the 63 symbols"),
        (["--length", "64"], "at most the 63 symbols of the parts"),
        (["--sequences", "0"], "--sequences is 0; expected 1 or more"),
        (["--null", "-1"], "--null is -1; expected 0 or more"),
        (["--scored", "0"], "--scored is 0"),
    ],
)
def test_numbers_out_of_range_are_named(text_run, capsys, words, message):
    assert main(["heads", str(text_run.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_another_kind_are_refused(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "load", lambda config, splits: blobs())
    folder = RunFolder(tmp_path / "run")
    run(node_settings(epochs=1, splits=1), folder)
    assert main(["heads", str(folder.path)]) == 2
    assert "is a run on nodes; expected one on text, sequences or images" in capsys.readouterr().err
    assert main(["adaptivity", str(tmp_path / "nowhere")]) == 2
    assert "is not a run" in capsys.readouterr().err
