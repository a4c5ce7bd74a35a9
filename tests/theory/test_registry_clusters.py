"""Named systems of metastability, invariants and rates: small ones meet their targets, broken ones do not. Seeds are theirs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from osmose.dynamics import Attention, FieldEnergy, merge_model
from osmose.dynamics.pictures import style
from osmose.dynamics.registry import (
    SYSTEMS,
    invariants,
    long_context,
    merging,
    metastable,
    named,
    pairing,
    rates,
    separation,
    symmetry,
)

SMALL = {
    "metastable/staircase": {"betas": (550.0, 4000.0)},
    "metastable/movie": {},
    "metastable/chain": {},
    "metastable/two-clusters": {"betas": (4.0,), "curve": (2.0, 40.0)},
    "metastable/pairing": {"betas": (100.0, 400.0)},
    "metastable/caps": {"betas": (6.0,)},
    "metastable/counts": {"seeds": 2, "betas": (25.0,), "times": (10.0,)},
    "invariants/energy": {"draws": 100},
    "invariants/dissipation": {"n": 5, "until": 1.0, "nodes": 16},
    "invariants/cross-ratios": {"dimensions": (2,), "n": 5, "until": 2.0},
    "invariants/equivariance": {"n": 6},
    "rates/consensus": {"betas": (1.0,), "n": 6, "tolerance": 1e-9},
    "rates/growth": {"n": 64, "harmonics": (1, 2, 4, 7)},
    "rates/three-clusters": {},
    "rates/long-context": {"sizes": (16, 128)},
}


def failed(system, findings) -> list[str]:
    return [t.name for t in system.targets() if not t.holds(float(findings.measured[t.name]))]


# the chain takes longer: it runs in osmose reproduce
@pytest.mark.parametrize("name", [name for name in SMALL if name != "metastable/chain"])
def test_small_ones_meet_their_targets_and_are_drawn(name):
    system = named(name, **SMALL[name])
    findings = system.measure()
    assert len(system.targets()) >= 1
    assert failed(system, findings) == []
    with style():
        made = system.draw(findings)
    assert all(axes.has_data() for axes in made.axes)
    for value in findings.data.values():
        assert np.asarray(value).dtype != object


@pytest.mark.parametrize("name", SMALL)
def test_one_run_of_each(name):
    problem = SYSTEMS[name].problem()
    assert len(problem.times) >= 3
    run = replace(problem, times=problem.times[:3]).simulate()
    assert bool(run.final.isfinite().all())
    assert run.final.dtype == torch.float64
    assert int(run.status.max()) == 0


def test_quick_ones_are_smaller_and_their_own():
    for name in SMALL:
        quick = SYSTEMS[name].quick()
        assert type(quick) is type(SYSTEMS[name])
        assert {t.name for t in quick.targets()} <= {t.name for t in SYSTEMS[name].targets()}


def hotter(by):
    """Attention at another temperature than the one asked for."""
    return lambda beta, **options: Attention(by(beta), **options)


BROKEN = [
    # of each: a system, what of its module is replaced, and the targets that must then fail
    ("metastable/two-clusters", merging, "Attention", hotter(lambda b: b + 1e-4), {"time of two tokens, beta = 4", "time of 2 + 2 tokens, beta = 4"}),
    ("metastable/counts", separation, "Attention", hotter(lambda b: 3 * b), {"clusters, beta = 25, t = 10"}),
    ("metastable/pairing", pairing, "merge_model", lambda x, beta, **o: merge_model(x, beta / 2, **o), {"largest error of log time, beta = 400"}),
    ("invariants/energy", invariants, "Attention", lambda beta, **o: Attention(beta, value=-1.0, **o), {"SA, layers of any h: draws whose energy falls", "USA, tangent Euler at the safe h: draws whose energy falls"}),
    ("invariants/cross-ratios", symmetry, "Attention", hotter(lambda b: b + 1e-6), {"drift of cross-ratios, d = 2"}),
    ("rates/consensus", rates, "Attention", hotter(lambda b: b + 1e-3), {"rate, USA, beta = 1"}),
    ("rates/growth", rates, "Attention", hotter(lambda b: b + 1e-4), {"rate, beta = 4, k = 2", "rate, beta = 25, k = 4"}),
    ("rates/three-clusters", rates, "Attention", hotter(lambda b: b + 1e-4), {"beta at which the largest eigenvalue is 0", "largest eigenvalue, beta = -0.66"}),
    ("rates/long-context", long_context, "Attention", hotter(lambda b: b + 1e-6), {"cosines of particles, the worst off the exact one"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "what", "wrong", "wants"), BROKEN, ids=[b[0] for b in BROKEN])
def test_a_broken_run_misses_its_targets(monkeypatch, name, module, what, wrong, wants):
    system = named(name, **SMALL[name])
    monkeypatch.setattr(module, what, wrong)
    assert wants <= set(failed(system, system.measure()))


def test_a_staircase_of_other_masses_has_other_plateaux(monkeypatch):
    def heavy(x, beta, **options):
        return merge_model(x, beta, mass=torch.tensor([2.0, 1, 1, 1, 1]), **options)

    metastable.history_of.cache_clear()
    monkeypatch.setattr(metastable, "merge_model", heavy)
    try:
        system = named("metastable/staircase", betas=(4000.0,))
        assert "plateau 1, the worst of all beta" in failed(system, system.measure())
    finally:
        metastable.history_of.cache_clear()


def test_the_metric_of_usa_is_not_that_of_sa(monkeypatch):
    rate = FieldEnergy.rate
    monkeypatch.setattr(FieldEnergy, "rate", lambda self, *a, **k: rate(replace(self, model="USA"), *a, **k))
    system = named("invariants/dissipation", **SMALL["invariants/dissipation"])
    missed = set(failed(system, system.measure()))
    assert {"SA: slope of the energy against dissipation", "SA: energy gained against dissipation"} <= missed
    assert not [name for name in missed if name.startswith("USA")]


def test_targets_follow_parameters_and_stored_numbers_do_not():
    values = {t.name: t.value for t in named("metastable/staircase", places=(0.0, 1.0, 4.0)).targets()}
    assert [values[f"plateau {k}, the worst of all beta"] for k in (1, 2, 3)] == pytest.approx(
        [1 / 3, 5 / 9, 1]
    )
    assert "plateau 4, the worst of all beta" not in values
    assert "energy by arc length, all tokens against the model" not in {
        t.name for t in named("metastable/staircase", betas=(4000.0,)).targets()
    }
    assert len(named("metastable/counts").targets()) == 6
    assert named("metastable/counts", n=128).targets() == ()
    assert len(named("metastable/counts", times=(10.0, 15.0)).targets()) == 2
    wider = {t.name for t in named("metastable/two-clusters", offset=0.1).targets()}
    assert not [name for name in wider if "2 + 2" in name]
    assert "time of two tokens, beta = 9" in wider
    at_60 = {t.name: t.value for t in named("metastable/two-clusters", start=math.pi / 3).targets()}
    assert at_60["time over its leading order, beta = 200"] == pytest.approx(1 + 2 * 0.5 / (200 * 0.75))
    growth = {t.name: t.value for t in named("rates/growth", betas="16").targets()}
    assert set(growth) == {f"rate, beta = 16, k = {k}" for k in named("rates/growth").harmonics}
    late = named("rates/long-context", rho=0.75, gammas="2,4,5").targets()
    assert [round(t.value, 6) for t in late[1:]] == [1.0, 0.923077, 0.75]
    assert "SA, tangent Euler at twice the safe h: draws whose energy falls" not in {
        t.name for t in named("invariants/energy", draws=20).targets()
    }


def test_stored_numbers_are_those_of_the_closed_forms():
    exact = {t.name: t.value for t in named("metastable/two-clusters").targets()}
    assert exact["time of two tokens, beta = 4"] == pytest.approx(12.33, abs=5e-3)
    assert exact["time of two tokens, beta = 9"] == pytest.approx(468.21, abs=5e-3)
    growth = {t.name: t.value for t in named("rates/growth").targets()}
    for beta, k, rate in ((4, 2, 0.56824), (9, 4, 0.70450), (25, 7, 0.72580)):
        assert growth[f"rate, beta = {beta}, k = {k}"] == pytest.approx(rate, abs=5e-6)
    three = {t.name: t.value for t in named("rates/three-clusters").targets()}
    assert three["largest eigenvalue, beta = -0.66"] == pytest.approx(0.00695, abs=5e-6)
    assert three["largest eigenvalue, beta = -0.667"] == pytest.approx(-0.000349, abs=5e-7)
    plateaux = [t.value for t in named("metastable/staircase").targets() if t.name.startswith("plateau")]
    assert plateaux == pytest.approx([0.2, 0.28, 0.44, 0.52, 1.0])
    consensus = {t.name: t.value for t in named("rates/consensus").targets()}
    assert consensus["rate, USA, beta = 1"] == pytest.approx(5.4362, abs=1e-3)
