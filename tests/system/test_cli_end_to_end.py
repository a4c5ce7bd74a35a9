"""The command line on real data and on a user's own table: train, interrupt, resume, evaluate, predict, compare."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks import reproduce

from osmose.cli import main
from osmose.tasks import sources
from osmose.tasks.batches import Batch, mini_batches
from osmose.tasks.devices import make_accelerator
from osmose.tasks.recipes import MODELS
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.trainers import NodeTrainer

CLI = [sys.executable, "-m", "osmose.cli"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@dataclass
class Shell:
    """Calls verbs in this process, in a folder of its own."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *words: str, code: int = 0) -> tuple[str, str]:
        """Standard output and error of `osmose WORDS`, which must end with `code`."""
        got = main(list(words))
        captured = self.capture.readouterr()
        assert got == code, f"{words}: {got}\n{captured.out}\n{captured.err}"
        return captured.out, captured.err


@pytest.fixture
def osmose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def table(path: Path, rows: int, *, labels: bool, seed: int) -> list[str]:
    """A CSV of two numeric columns and a category; gives the true labels."""
    draw = np.random.default_rng(seed)
    truth = []
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["width", "height", "colour", *(["kind"] if labels else [])])
        for i in range(rows):
            kind = ("round", "long, thin")[i % 2]
            truth.append(kind)
            row = [draw.normal(3 * (i % 2)), draw.normal(100, 5), draw.choice(["red", "blue"])]
            writer.writerow([*row, kind] if labels else row)
    return truth


def test_train_and_evaluate_digits(osmose: Shell, tmp_path: Path) -> None:
    out, err = osmose("train", "digits", "--splits", "2", "--epochs", "40")
    assert "run folder: runs/digits-difformer-s" in out
    assert "mean ± sample deviation over 2 splits" in out
    assert "split 1: test" in err
    result = json.loads((tmp_path / "runs/digits-difformer-s/result.json").read_text())
    assert result["test_accuracy"]["mean"] > 0.85
    found = json.loads(osmose("eval", "runs/digits-difformer-s", "--json")[0])
    for name, value in found["recorded"].items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert "(the run recorded" in osmose("eval", "runs/digits-difformer-s")[0]
    out, err = osmose("train", "digits", "--splits", "1", "--epochs", "2", "--json")
    assert json.loads(out)["run"] == "runs/digits-difformer-s-2"
    assert err == ""


@pytest.mark.parametrize("protocol", ["random", "public"])
def test_train_cora(
    osmose: Shell, benchmark_data: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("OSMOSE_DATA", str(benchmark_data))
    out, _ = osmose(
        "train", "cora", "--protocol", protocol, "--model", "gcn", "--splits", "1", "--epochs", "30", "--json"
    )
    result = json.loads(out)
    assert result["protocol"] == protocol
    assert result["test_accuracy"]["mean"] > 0.7


def test_own_table_is_trained_on_and_new_rows_predicted(osmose: Shell, tmp_path: Path) -> None:
    table(tmp_path / "known.csv", 120, labels=True, seed=0)
    truth = table(tmp_path / "new.csv", 40, labels=False, seed=1)
    osmose("train", "known.csv", "--label", "kind", "--epochs", "60", "--out", "model")
    out, _ = osmose("predict", "model", "new.csv", "--json")
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "predicted", "p_long, thin", "p_round"]
    assert [row["row"] for row in rows] == [str(i) for i in range(40)]
    for row in rows:
        values = [float(value) for name, value in row.items() if name.startswith("p_")]
        assert sum(values) == pytest.approx(1, abs=1e-5)
    right = sum(row["predicted"] == kind for row, kind in zip(rows, truth, strict=True))
    assert right >= 34
    assert json.loads(out)["rows"] == 40
    osmose("predict", "model", "--out", "own.csv")
    assert len((tmp_path / "own.csv").read_text().splitlines()) == 121
    header, *lines = (tmp_path / "new.csv").read_text().splitlines()
    named = [f"item{i},{line}" for i, line in enumerate(lines)]
    (tmp_path / "named.csv").write_text("\n".join([f"id,{header}", *named]) + "\n")
    assert "not in the training rows" not in osmose("predict", "model", "named.csv")[0]
    assert "id" not in (tmp_path / "predictions.csv").read_text().splitlines()[0].split(","), (
        "no ids in training"
    )
    before = (tmp_path / "new.csv").read_bytes()
    assert "is left alone" in osmose("predict", "model", "new.csv", "--out", "new.csv", code=2)[1]
    assert (tmp_path / "new.csv").read_bytes() == before
    (tmp_path / "bad.csv").write_text("width,colour\n1,red\n")
    assert "height" in osmose("predict", "model", "bad.csv", code=2)[1]


def test_nodes_with_names_and_edges_are_predicted_under_their_names(osmose: Shell, tmp_path: Path) -> None:
    for name, rows, seed in (("known", 60, 0), ("new", 6, 1)):
        table(tmp_path / f"{name}.csv", rows, labels=name == "known", seed=seed)
        header, *lines = (tmp_path / f"{name}.csv").read_text().splitlines()
        content = [f"id,{header}", *(f'"{name}, {i}",{line}' for i, line in enumerate(lines))]
        (tmp_path / f"{name}.csv").write_text("\n".join(content) + "\n")
        links = [f'"{name}, {i}","{name}, {i + 2}"' for i in range(rows - 2)]
        (tmp_path / f"{name}-edges.csv").write_text("\n".join(["source,target", *links]) + "\n")
    osmose(
        "train",
        "known.csv",
        "--label",
        "kind",
        "--edges",
        "known-edges.csv",
        "--epochs",
        "5",
        "--out",
        "model",
    )
    linked = json.loads(osmose("predict", "model", "new.csv", "--edges", "new-edges.csv", "--json")[0])
    assert not any("no edges came" in note for note in linked["notes"])
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"new, {i}" for i in range(6)]
    out, _ = osmose("predict", "model", "new.csv", "--out", "alone.csv")
    assert "note: no edges came with the new rows" in out
    assert (tmp_path / "alone.csv").read_text() != (tmp_path / "predictions.csv").read_text()


def series(path: Path, rows: int, *, labels: bool, seed: int) -> list[str]:
    """A `.ts` file of slow and fast waves of different lengths in two dimensions; gives the true classes."""
    draw = np.random.default_rng(seed)
    lines, truth = [f"@dimensions 2\n@classLabel {'true slow fast' if labels else 'false'}\n@data"], []
    for i in range(rows):
        at = np.arange(draw.integers(8, 20)) * (0.4 + i % 2) + draw.uniform(0, 6)
        truth.append(("slow", "fast")[i % 2])
        cells = [",".join(f"{value:.4f}" for value in wave) for wave in (np.sin(at), 30 + 5 * np.cos(at))]
        lines.append(":".join([*cells, truth[-1]] if labels else cells))
    path.write_text("\n".join(lines) + "\n")
    return truth


def test_own_series_are_trained_on_and_new_ones_predicted(osmose: Shell, tmp_path: Path) -> None:
    series(tmp_path / "W_TRAIN.ts", 60, labels=True, seed=0)
    series(tmp_path / "W_TEST.ts", 40, labels=True, seed=1)
    truth = series(tmp_path / "new.ts", 30, labels=False, seed=2)
    options = ["--hidden", "16", "--heads", "2", "--layers", "1", "--epochs", "60", "--lr", "5e-3"]
    options += ["--batch-size", "8", "--patch", "2"]
    result = json.loads(osmose("train", "W_TRAIN.ts", *options, "--out", "run", "--json")[0])
    assert (result["model"], result["protocol"]) == ("flowformer", "holdout")
    assert result["test_accuracy"]["mean"] > 0.85
    found = json.loads(osmose("eval", "run", "--json")[0])
    for name, value in found["recorded"].items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    predicted = json.loads(osmose("predict", "run", "new.ts", "--json")[0])
    assert predicted["rows"] == 30
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["predicted"] == name for row, name in zip(rows, truth, strict=True)) >= 25
    assert json.loads(osmose("predict", "run", "W_TEST.ts", "--json")[0])["accuracy"] == pytest.approx(
        result["test_accuracy"]["mean"]
    )
    text = (tmp_path / "new.ts").read_text().splitlines()
    (tmp_path / "bad.ts").write_text("\n".join([*text[:5], "1,2:3"]) + "\n")
    assert "bad.ts, line 6: dimension 2 has 1 values" in osmose("predict", "run", "bad.ts", code=2)[1]
    assert "is for tables and graphs" in osmose("train", "W_TRAIN.ts", "--knn", "3", code=2)[1]


def test_generated_expressions_of_a_given_number(osmose: Shell) -> None:
    options = ["--size", "100", "--epochs", "1", "--hidden", "8", "--heads", "1", "--layers", "1"]
    result = json.loads(osmose("train", "listops", *options, "--json")[0])
    assert result["notes"] == ["100 expressions, generated with seed 0"]
    assert "size is for listops" in osmose("train", "digits", "--size", "9", code=2)[1]


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_saves_says_how_to_resume_and_resumes_exactly(osmose: Shell, tmp_path: Path) -> None:
    options = ["digits", "--model", "gcn", "--splits", "1", "--epochs", "120", "--patience", "0"]
    process = subprocess.Popen(
        [*CLI, "train", *options, "--checkpoint-seconds", "0"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "runs/digits-gcn"
    wait_for(run / "checkpoint.safetensors", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Continue with: osmose train digits --out runs/digits-gcn --resume" in err
    assert not (run / "result.json").exists()
    assert "--resume" in osmose("train", *options, code=2)[1]
    osmose("train", "digits", "--out", "runs/digits-gcn", "--resume", "--checkpoint-seconds", "30")
    osmose("train", *options, "--out", "whole")
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 120


def test_compare_prints_table_figure_and_folder_and_goes_on(osmose: Shell, tmp_path: Path) -> None:
    options = ["compare", "digits", "--models", "gcn", "mlp", "--splits", "2", "--epochs", "15"]
    options += ["--normalization", "none"]
    out, _ = osmose(*options)
    assert "figure: runs/compare-digits/figures/comparison.png" in out
    assert "run folder: runs/compare-digits" in out
    assert "each model's recipe" in " ".join(out.split())
    assert (tmp_path / "runs/compare-digits/figures/comparison.png").stat().st_size > 5000
    result = json.loads((tmp_path / "runs/compare-digits/result.json").read_text())
    assert [row["model"] for row in result["models"]] == ["gcn", "mlp"]
    assert result["comparison"]["overrides"] == {"normalization": "none", "epochs": 15}
    again = json.loads(osmose(*options, "--out", "runs/compare-digits", "--json")[0])
    assert again["models"] == result["models"], "finished: nothing is trained again"
    (tmp_path / "runs/compare-digits/result.json").unlink()
    resumed = json.loads(osmose(*options, "--json")[0])
    assert resumed["run"] == "runs/compare-digits"
    assert resumed["models"] == result["models"]


# an interpreter that exits beside threads of a process group may abort: none is left when the verb is done
VERB_WITHOUT_THREADS = """
import pathlib, runpy, sys
try:
    runpy.run_module("osmose.cli", run_name="__main__")
except SystemExit as end:
    threads = [file.read_text() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
    sys.exit(end.code or "\\n".join(name for name in threads if "gloo" in name) or None)
"""


def test_two_processes_train_as_one_that_sums_their_batches(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "verb.py").write_text(VERB_WITHOUT_THREADS)
    options = [
        "--device",
        "cpu",
        "--splits",
        "1",
        "--epochs",
        "8",
        "--batch-size",
        "600",
        "--dropout",
        "0",
        "--weight-decay",
        "0.05",
        "--out",
        "run",
        "--json",
    ]
    done = subprocess.run(
        [*launcher, "verb.py", "train", "digits", *options],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["test_accuracy"]["mean"] > 0.6
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 9)), "one process writes"
    assert json.loads((tmp_path / "run/environment.json").read_text())["processes"] == 2
    config = RunFolder(
        tmp_path / "run"
    ).config()  # dropout 0; the L2 penalty makes the gradient's scale matter
    data = sources.load(config.data, 1)
    trainer = NodeTrainer(data, config, 0, make_accelerator(config.train))
    trainer.model.train()
    for line in lines:
        ranks = [list(batches_of(trainer, line["epoch"], rank)) for rank in range(2)]
        for step in zip(*ranks, strict=True):
            trainer.optimizer.zero_grad()
            (sum(loss_of(trainer, batch) for batch in step) / 2).backward()
            trainer.optimizer.step()
        valid = trainer.split.valid
        loss = F.cross_entropy(trainer.logits()[valid], data.y[valid]).item()
        trainer.model.train()
        assert loss == pytest.approx(line["valid_loss"], rel=1e-3), line["epoch"]


def batches_of(trainer: NodeTrainer, epoch: int, rank: int) -> Iterator[Batch]:
    """The mini-batches of one of two processes."""
    return mini_batches(
        num_nodes=len(trainer.data.x),
        edge_index=trainer.data.edge_index,
        edge_weight=trainer.data.edge_weight,
        train=trainer.split.train,
        batch_size=600,
        generator=torch.Generator().manual_seed(trainer.seed * 1_000_003 + epoch - 1),
        rank=rank,
        world=2,
    )


def loss_of(trainer: NodeTrainer, batch: Batch) -> torch.Tensor:
    """The scaled loss of one process's batch."""
    logits = trainer.model(trainer.data.x[batch.nodes], batch.edge_index)[batch.labelled]
    target = trainer.data.y[batch.nodes[batch.labelled]]
    return batch.scale * F.cross_entropy(logits, target, reduction="sum")


def test_list_and_doctor(osmose: Shell) -> None:
    listed = json.loads(osmose("list", "--json")[0])
    assert {"cora", "digits"} <= set(listed["tasks"])
    assert list(listed["models"]) == list(MODELS)
    assert "public" in osmose("list")[0]
    found = json.loads(osmose("doctor", "--json")[0])
    assert found["healthy"], found
    assert {entry["check"] for entry in found["findings"]} >= {"python", "packages", "data", "computation"}
    assert osmose("doctor")[0].startswith("ok")


def test_the_reproduction_writes_its_page_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = reproduce.SETS["digits"]
    monkeypatch.setitem(reproduce.SETS, "digits", replace(entry, splits=2, published=(("mlp", "12.3"),)))
    words = ["--sets", "digits", "--models", "mlp", "--modes", "recipe"]
    words += ["--runs", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    assert reproduce.main(words) == 0
    page = (tmp_path / "docs/results.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| mlp")]
    assert row.endswith("| 12.3 |")
    result = json.loads((tmp_path / "docs/results.json").read_text())["digits-recipe"]
    mean = 100 * result["models"][0]["test_accuracy"]["mean"]
    assert f"| {mean:.1f} ± " in row
    assert (tmp_path / "docs/figures/digits-recipe.png").exists()
    assert reproduce.main(words) == 0
    assert (tmp_path / "docs/results.md").read_text() == page, "nothing is trained again"
    with pytest.raises(ValueError, match="did you mean 'cora'"):
        reproduce.main(["--sets", "coar"])
    capsys.readouterr()
