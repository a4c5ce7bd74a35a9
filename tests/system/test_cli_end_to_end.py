"""The command line on real data and on a user's own table: train, interrupt, resume, evaluate, predict, compare."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

CLI = [sys.executable, "-c", "import sys; from osmose.cli import main; sys.exit(main())"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def osmose(*words: str, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CLI, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


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


def test_train_and_evaluate_digits(tmp_path: Path) -> None:
    done = osmose("train", "digits", "--splits", "2", "--epochs", "40", folder=tmp_path)
    assert "run folder: runs/digits-difformer-s" in done.stdout
    assert "mean ± sample deviation over 2 splits" in done.stdout
    result = json.loads((tmp_path / "runs/digits-difformer-s/result.json").read_text())
    assert result["test_accuracy"]["mean"] > 0.85
    found = json.loads(osmose("eval", "runs/digits-difformer-s", "--json", folder=tmp_path).stdout)
    for name, value in found["recorded"].items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    again = osmose("train", "digits", "--splits", "1", "--epochs", "2", "--json", folder=tmp_path)
    assert json.loads(again.stdout)["run"] == "runs/digits-difformer-s-2"
    assert again.stderr == ""


def test_own_table_is_trained_on_and_new_rows_predicted(tmp_path: Path) -> None:
    table(tmp_path / "known.csv", 120, labels=True, seed=0)
    truth = table(tmp_path / "new.csv", 40, labels=False, seed=1)
    osmose("train", "known.csv", "--label", "kind", "--epochs", "60", "--out", "model", folder=tmp_path)
    done = osmose("predict", "model", "new.csv", "--json", folder=tmp_path)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "predicted", "p_long, thin", "p_round"]
    assert [row["row"] for row in rows] == [str(i) for i in range(40)]
    for row in rows:
        values = [float(value) for name, value in row.items() if name.startswith("p_")]
        assert sum(values) == pytest.approx(1, abs=1e-5)
    right = sum(row["predicted"] == kind for row, kind in zip(rows, truth, strict=True))
    assert right >= 34
    assert json.loads(done.stdout)["rows"] == 40
    osmose("predict", "model", "--out", "own.csv", folder=tmp_path)
    assert len((tmp_path / "own.csv").read_text().splitlines()) == 121
    (tmp_path / "bad.csv").write_text("width,colour\n1,red\n")
    assert "height" in osmose("predict", "model", "bad.csv", folder=tmp_path, code=2).stderr


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_says_how_to_resume_and_resumes_exactly(
    tmp_path: Path, number: signal.Signals
) -> None:
    options = ["digits", "--model", "gcn", "--splits", "1", "--epochs", "400", "--patience", "0"]
    command = [*CLI, "train", *options, "--checkpoint-seconds", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run = tmp_path / "runs/digits-gcn"
    wait_for(run / "checkpoint.safetensors", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Continue with: osmose train digits --out runs/digits-gcn --resume" in err
    assert not (run / "result.json").exists()
    blocked = osmose("train", *options, folder=tmp_path, code=2)
    assert "--resume" in blocked.stderr
    osmose("train", "digits", "--out", "runs/digits-gcn", "--resume", folder=tmp_path)
    osmose("train", *options, "--out", "whole", folder=tmp_path)
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 400


def test_compare_prints_table_figure_and_folder_and_goes_on(tmp_path: Path) -> None:
    options = ["compare", "digits", "--models", "gcn", "mlp", "--splits", "2", "--epochs", "15"]
    done = osmose(*options, folder=tmp_path)
    assert "figure: runs/compare-digits/figures/comparison.png" in done.stdout
    assert "run folder: runs/compare-digits" in done.stdout
    assert "each model's recipe" in " ".join(done.stdout.split())
    assert (tmp_path / "runs/compare-digits/figures/comparison.png").stat().st_size > 5000
    result = json.loads((tmp_path / "runs/compare-digits/result.json").read_text())
    assert [row["model"] for row in result["models"]] == ["gcn", "mlp"]
    again = json.loads(osmose(*options, "--out", "runs/compare-digits", "--json", folder=tmp_path).stdout)
    assert again["models"] == result["models"], "finished: nothing is trained again"
    (tmp_path / "runs/compare-digits/result.json").unlink()
    resumed = json.loads(osmose(*options, "--json", folder=tmp_path).stdout)
    assert resumed["run"] == "runs/compare-digits"
    assert resumed["models"] == result["models"]


def test_two_processes_train_one_run(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    script = tmp_path / "start.py"
    script.write_text("import sys\nfrom osmose.cli import main\nsys.exit(main())\n")

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launcher, str(script), "train", "digits", "--model", "difformer-s", "--device", "cpu", *words],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = start("--splits", "1", "--epochs", "12", "--batch-size", "600", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["test_accuracy"]["mean"] > 0.6
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13)), "one process writes"
    assert json.loads((tmp_path / "run/environment.json").read_text())["processes"] == 2
    full = start("--splits", "1", "--out", "full")
    assert full.returncode != 0
    assert "give --batch-size" in full.stderr


def test_list_and_doctor(tmp_path: Path) -> None:
    listed = json.loads(osmose("list", "--json", folder=tmp_path).stdout)
    assert {"cora", "digits"} <= set(listed["tasks"])
    assert list(listed["models"]) == ["difformer-s", "difformer-a", "mean", "gcn", "mlp"]
    assert "public" in osmose("list", folder=tmp_path).stdout
    found = json.loads(osmose("doctor", "--json", folder=tmp_path).stdout)
    assert found["healthy"]
    assert {entry["check"] for entry in found["findings"]} >= {"python", "packages", "data", "computation"}
    assert "ok" in osmose("doctor", folder=tmp_path).stdout
