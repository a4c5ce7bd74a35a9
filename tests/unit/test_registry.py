"""Named systems: parameters, targets, and reports that are whole or not there. Seeds are those of the systems."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from osmose.dynamics.pictures import figure
from osmose.dynamics.registry import SYSTEMS, Findings, Problem, System, Target, named, reproduce
from osmose.dynamics.registry.report import plain
from osmose.files import whole


@dataclass(frozen=True)
class Toy(System):
    n: int = 3
    beta: float = 1.0
    model: Literal["SA", "USA"] = "SA"
    causal: bool = False
    sizes: tuple[int, ...] = (1, 2)

    title = "a toy"
    source = "none"

    def problem(self) -> Problem:
        raise AssertionError("not run here")

    def measure(self, told=None) -> Findings:
        return Findings({"root": math.sqrt(self.beta), "other": math.nan}, {"values": torch.arange(self.n)})

    def targets(self) -> tuple[Target, ...]:
        return (Target("root", 1.0, 1e-9, "arithmetic"),)

    def draw(self, findings: Findings):
        made, axes = figure(2, 2)
        axes.plot(findings.data["values"])
        return made


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    system = Toy()
    monkeypatch.setitem(SYSTEMS, "toy", system)
    return system


@pytest.mark.parametrize(
    ("sense", "measured", "holds"),
    [
        ("equal", 1.05, True),
        ("equal", 0.85, False),
        ("equal", 1.15, False),
        ("at most", 1.05, True),
        ("at most", -50.0, True),
        ("at most", 1.15, False),
        ("at least", 0.95, True),
        ("at least", 0.85, False),
        ("at least", 50.0, True),
        ("equal", math.nan, False),
        ("at most", math.nan, False),
        ("at most", math.inf, False),
        ("at least", -math.inf, False),
    ],
)
def test_a_target_holds_on_its_side(sense, measured: float, holds: bool) -> None:
    assert Target("x", 1.0, 0.1, "", sense).holds(measured) is holds


def test_parameters_are_read_from_values_and_from_texts(toy: Toy) -> None:
    changed = named("toy", n="5", beta="2.5", model="USA", causal="true", sizes="3,4,5")
    assert changed == Toy(5, 2.5, "USA", True, (3, 4, 5))
    assert named("toy", n=5, causal=True, sizes=(7,)) == Toy(5, causal=True, sizes=(7,))
    assert SYSTEMS["toy"] == Toy(), "the canonical one stays as it is"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bata": 1}, "'bata' is no parameter; expected one of n, beta"),
        ({"n": "five"}, "n is 'five'; expected a whole number"),
        ({"n": 2.5}, "n is 2.5; expected a whole number"),
        ({"n": None}, "n is None; expected a whole number"),
        ({"beta": "nan"}, "beta is 'nan'; expected a finite number"),
        ({"model": "SAA"}, "model is 'SAA'; expected one of SA, USA"),
        ({"causal": "perhaps"}, "causal is 'perhaps'; expected true or false"),
        ({"sizes": "1,b"}, "sizes is 'b'; expected a whole number"),
    ],
)
def test_wrong_parameters_are_named(toy: Toy, parameters, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named("toy", **parameters)


def test_an_unknown_system_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'movie/sphere'"):
        named("movie/spere")


def test_a_report_is_on_disk_with_its_figure_and_arrays(toy: Toy, tmp_path: Path) -> None:
    report = reproduce("toy", folder=tmp_path / "a" / "b", about={"device": "cpu"})
    assert report.holds
    assert (tmp_path / "a" / "b" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert np.load(tmp_path / "a" / "b" / "data.npz")["values"].tolist() == [0, 1, 2]
    told = json.loads((tmp_path / "a" / "b" / "report.json").read_text())
    assert told["checks"][0] | {"source": ""} == {
        "name": "root", "value": 1.0, "tolerance": 1e-9, "source": "", "sense": "equal", "measured": 1.0, "holds": True,
    }  # fmt: skip
    assert told["measured"]["other"] is None, "JSON has no NaN"
    assert told["made"]["device"] == "cpu"
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "data.npz",
        "figure.png",
        "report.json",
    ]


def test_a_missed_target_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "toy", Toy(beta=4.0))
    report = reproduce("toy")
    assert not report.holds
    assert [c.measured for c in report.checks] == [2.0]


def test_a_target_that_is_not_measured_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Toy):
        def targets(self) -> tuple[Target, ...]:
            return (Target("ruut", 1.0, 1e-9, ""),)

    monkeypatch.setitem(SYSTEMS, "toy", Forgetful())
    with pytest.raises(RuntimeError, match="does not measure: ruut"):
        reproduce("toy")


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def stopped() -> None:
        with whole(path) as part:
            part.write_text("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "before"


def test_plain_types() -> None:
    assert plain({"a": (1, math.inf), "b": np.float64(2.0), "c": np.int64(3)}) == {
        "a": [1, None],
        "b": 2.0,
        "c": 3,
    }


def test_every_system_says_what_it_is() -> None:
    for name, system in SYSTEMS.items():
        assert system.title, name
        assert system.source, name
        assert system.time_scale, name
        assert named(name) == system, "its parameters can be given"
        assert type(system.quick()) is type(system), name
        for target in (*system.targets(), *system.quick().targets()):
            assert target.source, (name, target.name)
            assert target.tolerance >= 0, (name, target.name)


@pytest.mark.parametrize(
    "name", [name for name in SYSTEMS if name.startswith(("movie", "equiangular", "layers"))]
)
def test_the_first_families_meet_their_targets(name: str) -> None:
    report = reproduce(name, quick=True)
    assert report.holds, [c for c in report.checks if not c.holds]


def test_targets_of_the_movies_fail_for_another_motion() -> None:
    """Repulsion lowers the energy, and drives tokens out of their half-sphere."""
    system = named("movie/half-sphere", n=12, until=3.0)
    away = named("movie/half-sphere", n=12, until=3.0, value=-1.0)
    measured = away.measure().measured
    target = {t.name: t for t in system.targets()}["largest fall of min <x, w>"]
    assert not target.holds(measured[target.name])
