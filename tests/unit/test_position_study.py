"""The study of positions: the tasks are what they say, cells are kept and gone on with, intervals are Student's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from osmose.cli import main
from osmose.nn import POSITIONS
from osmose.tasks import position_study
from osmose.tasks.position_study import PositionStudy, interval, run_study, summary
from osmose.tasks.positions import OPTIONS, TASKS, ToyModel, accuracy, settings_for
from osmose.tasks.run_folder import RunFolderError
from osmose.tasks.signals import Interrupted, StopRequest

SMALL = PositionStudy(("B",), ("none", "shift"), ("flow",), seeds=2, steps=2)


def test_targets_are_those_of_the_rule_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    for task, rule in (
        (TASKS["A"], lambda x, j: (x(j - 1) + x(j + 2)) % 12),
        (TASKS["B"], lambda x, j: x(j - 1)),
    ):
        inputs, targets = task.draw(3, 9, generator)
        for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            assert wanted == [rule(lambda i, row=row: row[i] if 0 <= i < 9 else 0, j) for j in range(9)]
        assert int(inputs.max()) < task.symbols


def test_every_option_is_a_model_that_takes_the_longer_test() -> None:
    assert ("none", *POSITIONS) == OPTIONS
    for task in TASKS.values():
        for option in OPTIONS:
            model = ToyModel(task, "diffusion", settings_for(option, task))
            assert model(torch.zeros(2, task.longer, dtype=torch.int64)).shape == (
                2,
                task.longer,
                task.symbols,
            )
    assert settings_for("shift", TASKS["A"]).radius == 8
    assert settings_for("shift-score", TASKS["B"]).radius == 6


def test_a_shift_learns_the_copy_that_content_cannot_tell(tmp_path: Path) -> None:
    """A diffusion layer of B after a tenth of its steps: solved with a shift, at the counts of symbols without."""
    found = position_study.run_study(
        PositionStudy(("B",), ("none", "shift"), ("diffusion",), seeds=1, steps=150), tmp_path / "learns"
    )
    none, shift = (row["accuracy"]["mean"] for row in found["rows"])
    assert none < 0.35
    assert shift > 0.95


def test_accuracy_counts_tokens() -> None:
    class Copy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            previous = torch.nn.functional.pad(x, (1, 0))[:, :-1]
            previous[:, 0] += 1  # wrong at the first of ten tokens
            return torch.nn.functional.one_hot(previous, 9).float()

    assert accuracy(Copy(), TASKS["B"], 10, torch.Generator().manual_seed(0)) == pytest.approx(0.9)


def test_finished_cells_are_kept_and_others_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study"
    first = run_study(SMALL, path)
    assert len(first["rows"]) == 2
    assert first["rows"][0]["accuracy"]["ci95"] is not None
    trained = []
    real = position_study.train_cell
    monkeypatch.setattr(
        position_study, "train_cell", lambda *cell: trained.append((cell[0].name, *cell[1:4])) or real(*cell)
    )
    again = run_study(SMALL, path)
    assert trained == []
    assert again == first
    run_study(PositionStudy(("B",), ("none", "shift", "rope"), ("flow",), seeds=2, steps=2), path)
    assert trained == [("B", "flow", "rope", 0), ("B", "flow", "rope", 1)]
    with pytest.raises(RunFolderError, match="cells with --steps 2, not 3"):
        run_study(PositionStudy(("B",), ("none",), ("flow",), seeds=1, steps=3), path)
    run_study(PositionStudy(("B",), ("none",), ("flow",), seeds=1, steps=3), path, overwrite=True)
    assert len(list((path / "cells").iterdir())) == 1
    assert (path / "figures" / "positions.png").stat().st_size > 10_000
    (tmp_path / "other" / "x").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="is not a study of positions"):
        run_study(SMALL, tmp_path / "other", overwrite=True)


def test_a_stop_request_ends_after_the_cell_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, real = StopRequest(), position_study.train_cell

    def train(*cell):
        stop.asked = True
        return real(*cell)

    monkeypatch.setattr(position_study, "train_cell", train)
    with pytest.raises(Interrupted, match="after 1 of 4 cells"):
        run_study(SMALL, tmp_path / "stopped", stop=stop)
    monkeypatch.undo()
    assert len(list((tmp_path / "stopped" / "cells").iterdir())) == 1
    assert len(run_study(SMALL, tmp_path / "stopped")["rows"]) == 2


def test_several_processes_give_the_same_cells(tmp_path: Path) -> None:
    one, two = run_study(SMALL, tmp_path / "one"), run_study(SMALL, tmp_path / "two", jobs=2)
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a["accuracy"] == b["accuracy"]
        assert a["longer"] == b["longer"]


def test_intervals_are_those_of_student() -> None:
    assert interval([0.5]) == {"mean": 0.5, "ci95": None, "values": [0.5]}
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5
    assert found["ci95"] == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-5)  # t table, 3 degrees of freedom
    rows = [
        {
            "task": "A",
            "mixer": "flow",
            "option": "none",
            "accuracy": x,
            "longer": 0.0,
            "parameters": 3,
            "seconds": 1.0,
        }
        for x in (0.0, 1.0)
    ]
    assert (
        summary(PositionStudy(("A",), ("none",), ("flow",), seeds=2), rows)["rows"][0]["accuracy"]["mean"]
        == 0.5
    )


def test_the_verb_prints_a_table_and_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "positions",
        "--tasks",
        "A",
        "--options",
        "none",
        "t5",
        "--mixers",
        "softmax",
        "--seeds",
        "1",
        "--steps",
        "1",
    ]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "(x[j-1] + x[j+2]) mod 12" in told
    assert "29,660" in told
    assert main([*words, "--json", "--out", "runs/positions"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["option"] for row in found["rows"]] == ["none", "t5"]
    assert Path(found["figure"]).is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--options", "shfit"], "unknown option 'shfit'; did you mean 'shift'"),
        (["--mixers", "flwo"], "did you mean 'flow'"),
        (["--tasks", "C"], "unknown task 'C'"),
        (["--options", "t5", "t5"], "expected different names of options"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--mixers", "mean", "--options", "rope"], "looks at no query"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["positions", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
