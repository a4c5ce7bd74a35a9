"""Named systems without a sphere, leaders, many dimensions, random weights. Seeds are those of the systems."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from osmose.dynamics import Euclidean, Field, Layer, Rescaled, Sphere, simulate
from osmose.dynamics.registry import SYSTEMS, Problem, System, named, unprojected
from osmose.dynamics.registry.hyperplanes import Hyperplanes
from osmose.dynamics.registry.leaders import Leaders
from osmose.dynamics.registry.one_dimension import BooleanAttention, ToTheOrigin
from osmose.dynamics.registry.unprojected import Polytope
from osmose.dynamics.registry.weights import Weights

NAMES = [
    name
    for name in SYSTEMS
    if name.startswith(("unprojected/", "leaders", "low-rank", "high-dimension", "weights/"))
]
# those of several seconds, and those that differ from another one by a number, run in `osmose reproduce`
QUICK = [
    "unprojected/polytope-3d", "unprojected/mixed", "unprojected/codimension", "unprojected/boolean", "leaders",
    "leaders/softmax",
]  # fmt: skip
SMALL = {"n": 8, "d": 4}


def missed(system: System, of: System | None = None) -> set[str]:
    """Targets of a system that a measurement (of another one) does not meet."""
    measured = (of or system).measure().measured
    return {t.name for t in system.targets() if not t.holds(measured[t.name])}


@pytest.mark.parametrize("name", QUICK)
def test_targets_are_met(name: str) -> None:
    system = SYSTEMS[name].quick()
    assert len(system.targets()) > 1
    assert not missed(system)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("high-dimension", {"n": 8, "d": 64, "until": 5.0}),
        ("low-rank", {"n": 10, "d": 12, "until": 6.0}),
        ("weights/attractive", {**SMALL, "until": 4.0}),
        ("weights/repulsive", {**SMALL, "until": 4.0}),
        ("weights/wishart", {**SMALL, "until": 4.0}),
        ("weights/redraw", {**SMALL, "until": 12.0, "interval": 0.5}),
        ("weights/redraw-all", {**SMALL, "until": 4.0}),
    ],
)
def test_targets_are_met_in_small(name: str, parameters) -> None:
    system = named(name, **parameters)
    assert system.targets()
    assert not missed(system)


def test_the_origin_is_approached_with_covariance_over_2t() -> None:
    system = named("unprojected/negative", until=200.0)
    assert {t.name for t in system.targets()} >= {"2 t x least eigenvalue of the covariance"}
    assert not missed(system)
    assert "2 t x largest eigenvalue of the covariance" in missed(system, ToTheOrigin(until=2.0))


@pytest.mark.parametrize("name", NAMES)
def test_problems_start(name: str) -> None:
    problem = SYSTEMS[name].quick().problem()
    run = replace(problem, times=problem.times[:2]).simulate()
    assert run.status.max() == 0
    assert torch.isfinite(run.final).all()
    if isinstance(problem.space, Sphere):
        assert float((run.final.norm(dim=-1) - 1).abs().max()) < 1e-12


def test_rescaled_and_plain_tokens_are_one() -> None:
    """An independent formulation: ``x' = sum P V x`` in R^d, brought back by ``e^{-tV}``."""
    problem = named("unprojected/mixed").problem()
    times = problem.times[:21]
    rescaled = replace(problem, times=times).simulate()
    plain = replace(problem, times=times, space=Euclidean()).simulate()
    back = Rescaled(-named("unprojected/mixed").value()).unscale(plain.final, float(times[-1]))
    torch.testing.assert_close(rescaled.final, back, rtol=1e-6, atol=1e-6)
    assert float((rescaled.final - rescaled.states[0]).abs().max()) > 1


# ---- targets that must be able to fail --------------------------------------------------------------


def test_a_run_cut_short_misses_its_limits() -> None:
    assert missed(Polytope(), Polytope(until=2.0)) >= {"gap max <x, v> - |x|^2 at the end, relative"}
    assert missed(BooleanAttention(), BooleanAttention(until=1.0)) >= {
        "distance from Boolean rows, all but one row",
        "rank of the attention at the end",
    }
    assert missed(Hyperplanes(), Hyperplanes(until=1.0)) >= {
        "hyperplanes at the end",
        "width of a hyperplane at the end, relative",
    }


def test_layers_of_another_size_are_not_the_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Polytope().recursion() < 1e-12
    monkeypatch.setattr(unprojected, "Layer", lambda h: Layer(h / 2))
    assert Polytope().recursion() > 1e-3


@dataclass(frozen=True)
class Away(Polytope):
    """z' reversed: hulls grow."""

    def problem(self) -> Problem:
        class Reversed(Rescaled):
            def velocity(self, field, x, tokens, t):
                return -super().velocity(field, x, tokens, t)

        problem = super().problem()
        return replace(problem, space=Reversed(self.value()), times=problem.times[:11])


def test_a_hull_that_grows_is_seen() -> None:
    assert "largest growth of the hull" in missed(Polytope(), Away())


@dataclass(frozen=True)
class Slow(Leaders):
    """Layers of half the size that is told."""

    def problem(self) -> Problem:
        return replace(super().problem(), stepper=Layer(self.h / 2))


@dataclass(frozen=True)
class Contrary(Leaders):
    """Tokens listen to whom they should listen to least."""

    def problem(self) -> Problem:
        problem = super().problem()
        return replace(problem, field=Field(replace(problem.field.terms[0], query=-self.matrix())))


def test_leaders_that_are_not_followed_are_seen() -> None:
    assert missed(Leaders(), Slow()) == {"followers against the straight way, largest"}
    assert missed(Leaders(), Contrary()) >= {
        "largest move of a leader",
        "largest fall of |A^(1/2) x|^2",
    }


def test_other_weights_break_the_laws_of_weights() -> None:
    kept = Weights(**SMALL, until=12.0, interval=0.5)
    away = replace(kept, product="goe", value="minus")
    assert missed(kept, away) == {"largest fall of min <x, w>", "rate of approach to consensus"}
    # the same weights in another basis than the tokens
    turned = Weights(**SMALL, until=3.0, period=1.0, value="gaussian", half=False)
    other = replace(turned.problem(), field=replace(turned, seed=1).field()).simulate()
    assert float((other.final - turned.problem().simulate().final).norm(dim=-1).max()) > 1e-3


# ---- parameters --------------------------------------------------------------------------------------


def test_targets_follow_parameters_or_go() -> None:
    limits = {t.name for t in Polytope().targets()} - {t.name for t in Polytope(until=2.0).targets()}
    assert "rate at which the gap closes" in limits
    fast = named("unprojected/hyperplanes", matrix="2,0,0,0.5", until=8.0)
    assert fast.rate == pytest.approx(2.0)
    assert not missed(fast)
    past = named("unprojected/hyperplanes", until=100.0)
    assert "hyperplanes at the end" not in {t.name for t in past.targets()}, "rounding by then"
    # eigenvalues close to the leading one: which token leads is open for long
    assert "hyperplanes at the end" not in {t.name for t in SYSTEMS["low-rank"].targets()}
    assert Weights().law == "half-sphere"
    assert Weights(half=False).law == Weights(product="goe", value="product", period=1.0).law == "none"
    assert Weights(product="identity").law == Weights(product="goe", value="minus").law == "energy"
    assert len(named("unprojected/negative", until=10.0).targets()) == 2


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("unprojected/hyperplanes", {"matrix": "1,2,3"}, "holds 3 numbers; expected d x d"),
        ("unprojected/hyperplanes", {"matrix": "1,0,0,1"}, "expected one real, positive"),
        ("unprojected/mixed", {"others": "2"}, "eigenvalues smaller than 1"),
        ("unprojected/polytope", {"multiplicity": 1}, "expected 2 to 6"),
        ("unprojected/boolean", {"value": -1.0}, "expected positive numbers"),
        ("leaders", {"h": 1.5}, "expected a step between 0 and 1"),
        ("weights/random", {"period": -1.0}, "a positive time"),
        ("weights/random", {"value": "product"}, "not symmetric"),
        ("weights/random", {"value": "positive"}, "expected one of identity"),
    ],
)
def test_parameters_without_meaning_are_refused(name: str, parameters, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named(name, **parameters)


def test_a_value_matrix_has_no_known_stability_bound() -> None:
    problem = replace(named("weights/wishart", n=4).problem(), stepper=Layer(0.1))
    run = simulate(problem.field, problem.x0, [0.0, 0.1], stepper=problem.stepper)
    assert run.notes == ()
