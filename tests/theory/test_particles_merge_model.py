"""The merge model: against all tokens, against closed forms, and out to times that no particle run spans."""

import math
import time

import numpy as np
import pytest
import torch

from osmose.dynamics import Attention, Circle, ClustersLeft, Field, Stiff, merge_model, simulate, theory

F64 = torch.float64
CENTRES = torch.tensor([0.0, 0.9, 2.0, 3.4], dtype=F64)
CHAIN = (CENTRES[:, None] + torch.tensor([-0.05, 0.0, 0.05], dtype=F64)).flatten()


def test_metastable_chain_to_1e12():
    start = time.perf_counter()
    history = merge_model(CHAIN, 20.0, until=1e12)
    assert time.perf_counter() - start < 5
    assert [len(s.mass) for s in history.stages] == [*range(12, 3, -1), 3, 2]
    assert history.stages[-1].end == 1e12
    # groups of 3, then the two closest, then the two others
    assert [round(s.energy, 12) for s in history.stages[8:]] == [0.25, 0.375, 0.5]
    assert history.stages[8].members == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))
    # to the end: the last two meet far beyond, and the time is the exact one of two clusters
    whole = merge_model(CHAIN, 20.0, until=1e40)
    two = whole.stages[-2]
    apart = float((two.points[1] - two.points[0]).abs())
    contact = 1e-4 / math.sqrt(21)
    want = theory.two_cluster_time(contact, 20.0, *two.mass.tolist(), start=apart)
    assert two.end - two.start == pytest.approx(want, rel=1e-4)
    assert two.end > 1e12
    assert whole.count(1e40) == 1


def test_first_merge_is_that_of_all_tokens():
    first = merge_model(CHAIN, 20.0, until=1e3).stages[8].end
    full = simulate(
        Field(Attention(20.0)), CHAIN[:, None], [0, 2000.0], space=Circle(), stepper=Stiff(rtol=1e-9, atol=1e-12),
        events=[ClustersLeft(count=3, scale=1e-4 / math.sqrt(21))],
    )  # fmt: skip
    assert first == pytest.approx(float(full.events["clusters_left"]), rel=1e-4)


@pytest.mark.parametrize("model", ["SA", "USA"])
@pytest.mark.parametrize("masses", [(1.0, 1.0), (1.0, 3.0)])
def test_two_clusters_take_the_exact_time(model, masses):
    got = merge_model(
        torch.tensor([0.3, 1.5]), 9.0, mass=torch.tensor(masses), model=model, contact=0.01
    ).times
    want = theory.two_cluster_time(0.01, 9.0, *masses, start=1.2, model=model, scaled=True)
    assert got == [pytest.approx(want, rel=1e-6)]


def test_points_and_angles_are_one():
    on_circle = merge_model(CHAIN, 20.0)
    on_sphere = merge_model(Circle().points(CHAIN[:, None]), 20.0)
    np.testing.assert_allclose(on_circle.times, on_sphere.times, rtol=1e-5)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, dtype=F64, generator=g)
    history = merge_model(x / x.norm(dim=-1, keepdim=True), 6.0, until=1e30)
    assert [len(s.mass) for s in history.stages] == list(range(8, 0, -1))
    assert float(history.stages[-1].mass) == 8
    for stage in history.stages:
        torch.testing.assert_close(stage.last.norm(dim=-1), torch.ones(len(stage.mass), dtype=F64))


def test_consensus_and_contact_at_the_start():
    together = merge_model(torch.tensor([1.0, 1.0, 2 * math.pi + 1.0], dtype=F64), 5.0)
    assert len(together.stages) == 1
    assert float(together.stages[0].mass) == 3
    assert together.times == []
    across = merge_model(torch.tensor([0.1, 2 * math.pi - 0.1], dtype=F64), 5.0).stages[-1].points
    assert abs(math.sin(float(across))) < 1e-9  # the centre of a pair is between them, not opposite
    with pytest.raises(ValueError, match="t is 2e"):
        together.at(2e12)


@pytest.mark.parametrize(
    ("x", "options", "reason"),
    [
        (torch.zeros(2, 2, 2), {}, "shape"),
        (torch.ones(3, 2), {}, "lengths"),
        (torch.tensor([0.0, math.nan]), {}, "NaN"),
        (torch.zeros(2), {"mass": torch.tensor([1.0, 0.0])}, "mass"),
        (torch.zeros(2), {"beta": -1.0}, "beta"),
        (torch.zeros(2), {"contact": 2.0}, "contact"),
        (torch.zeros(2), {"model": "CSA"}, "model"),
    ],
)
def test_refusals(x, options, reason):
    with pytest.raises(ValueError, match=reason):
        merge_model(x, **({"beta": 1.0} | options))


@pytest.mark.parametrize("model", ["SA", "USA"])
def test_times_past_those_that_a_clock_of_floats_resolves(model):
    """The last approach takes some tens of more than 1e90 units of time, far below the spacing of floats there."""
    beta, angles = 1500.0, torch.tensor([0.0, 0.1, 0.65], dtype=F64)
    history = merge_model(angles, beta, model=model, until=1e300)
    assert [stage.members for stage in history.stages] == [((0,), (1,), (2,)), ((0, 1), (2,)), ((0, 1, 2),)]
    contact = 1e-4 / math.sqrt(beta + 1)
    for stage in history.stages[:2]:
        gap = float(stage.points.diff().min())
        m1, m2 = stage.mass[:2].tolist()
        wait = theory.two_cluster_time(contact, beta, m1, m2, start=gap, model=model, scaled=True, log=True)
        share = 1.0 if model == "SA" or len(stage.mass) == 2 else 2 / 3  # USA: the two are part of the whole
        # of three, the third is out of sight: e^{-beta} of its distance
        assert math.log(stage.end - stage.start) == pytest.approx(wait - math.log(share), abs=1e-6)
    assert history.times[1] > 1e90


def test_a_stage_keeps_its_path():
    beta = 100.0  # the third is out of sight
    history = merge_model(torch.tensor([0.0, 0.5, 1.3]), beta, model="USA", until=1e100)
    for stage in history.stages[:-1]:
        assert len(stage.times) == len(stage.clock) == len(stage.path) > 10
        assert bool((stage.times.diff() >= 0).all())
        # the model's clock: the closest pair obeys tan(theta / 2) = tan(theta_0 / 2) e^{-(m1 + m2) tau / M}
        gap = stage.path[:, 1] - stage.path[:, 0]
        want = theory.paired_angle(stage.clock.numpy(), float(gap[0]), *stage.mass[:2].tolist(), total=3.0)
        np.testing.assert_allclose(gap, want, rtol=1e-6, atol=1e-9)
    middle = history.at(math.sqrt(history.times[0] * history.times[1]))
    assert len(middle.mass) == 2


def test_opposite_clusters_wait_for_ever():
    for until in (1.0, 1e12, 1e300):
        history = merge_model(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64), 1.0, until=until)
        assert [len(stage.mass) for stage in history.stages] == [2]
        assert history.stages[0].end == until


def test_a_wait_far_longer_than_the_run():
    history = merge_model(torch.tensor([0.0, 0.02, 1.5]), 900.0, until=1e300)  # the last wait is e^{830}
    assert [len(stage.mass) for stage in history.stages] == [3, 2]
    assert history.stages[-1].end == 1e300
    assert float(history.stages[-1].last[1]) == pytest.approx(1.5, abs=1e-9)
