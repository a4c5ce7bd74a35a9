"""`osmose simulate` and `osmose reproduce`, end to end in the process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osmose.cli import main
from osmose.dynamics.registry import SYSTEMS

SMALL = ["--set", "n=6", "until=2"]


def test_simulate_writes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["simulate", "movie/sphere", *SMALL, "--out", str(out), "--payload", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"]["n"] == 6
    assert told["status"] == {"done": 1}
    arrays = np.load(told["files"]["states"])
    assert arrays["states"].shape == (21, 6, 3)
    assert told["observables"][0]["t"] == 0
    assert told["observables"][-1]["t"] == 2
    assert told["observables"][-1]["normalised_energy"] == pytest.approx(arrays["normalised_energy"][-1])
    with Image.open(told["files"]["figure"]) as image:
        assert image.width > 600
    assert json.loads(Path(told["files"]["payload"]).read_text())["schema"] == "osmose.particles"


def test_simulate_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "movie/sphere", *SMALL]) == 0
    text = capsys.readouterr().out
    assert "normalised energy" in text
    assert "status: 1 done" in text
    assert (tmp_path / "runs/simulate/movie/sphere/figure.png").exists()


def test_simulate_lists_the_systems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["systems"]
    assert [entry["name"] for entry in told] == list(SYSTEMS)
    assert main(["simulate", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SYSTEMS)


def test_reproduce_a_family_gives_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "movie/half-sphere", "movie/usa", "--quick", "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["holds"]
    assert told["quick"]
    assert [row["name"] for row in told["systems"]] == ["movie/half-sphere", "movie/usa"]
    for row in told["systems"]:
        assert Path(row["figure"]).exists()
        assert all(check["holds"] for check in row["checks"])
    table = (tmp_path / "reproduce.md").read_text().splitlines()
    assert len(table) == 2 + sum(len(row["checks"]) for row in told["systems"])
    assert {line.count("|") for line in table} == {7}


def test_a_missed_target_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = SYSTEMS["movie/half-sphere"].changed(n=8, until=2.0, value=-1.0)

    class Backwards(type(away)):  # type: ignore[misc]
        def measure(self, told=None):
            return away.measure()

        def targets(self):
            return tuple(t for t in super().targets() if "min" in t.name)

    monkeypatch.setitem(SYSTEMS, "movie/half-sphere", Backwards(half=True, until=2.0))
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", "movie/half-sphere", "--quick", "--out", str(tmp_path)])
    assert stop.value.code == 1
    text = capsys.readouterr().out
    assert "missed" in text
    assert "0 of 1 targets" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simulate"], "which system?"),
        (["simulate", "movie/spere"], "did you mean 'movie/sphere'"),
        (["simulate", "movie/sphere", "--set", "beta"], "expected KEY=VALUE"),
        (["simulate", "movie/sphere", "--set", "bta=1"], "'bta' is no parameter"),
        (["simulate", "movie/sphere", "--set", "n=0"], "n is 0; expected a positive number"),
        (["simulate", "movie/sphere", "--set", "interval=0"], "interval is 0.0; expected a positive number"),
        (["simulate", "movie/sphere", "--set", "n=6", "--set", "until=1"], "--set is given twice"),
        (["reproduce"], "name one or more systems"),
        (["reproduce", "movie/sphere", "--all"], "name one or more systems"),
        (["reproduce", "phas"], "unknown system 'phas'"),
    ],
)
def test_mistakes_get_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
