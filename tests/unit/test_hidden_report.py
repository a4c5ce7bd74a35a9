"""The report on hidden states: every number by its dense formula, absent tokens absent, inputs averaged with deviation."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from osmose.dynamics import ParticleReport, particle_report
from osmose.dynamics.hidden import STATISTICS, directions, linking_scale, projected
from osmose.dynamics.observables import nearest

F64 = torch.float64


def states(layers=3, lead=(), n=12, d=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(layers, *lead, n, d, dtype=F64, generator=draw) + 1


def dense(x, beta, scale, centre=False):
    """Of one input ``(n, d)``, from its Gram matrix."""
    norm = float(x.norm(dim=-1).mean())
    u = normalize(x - x.mean(0) if centre else x, dim=-1)
    n, g = len(u), u @ u.mT
    near, seen, count, largest = (torch.cdist(u, u) <= scale), set(), 0, 0
    for i in range(n):
        if i in seen:
            continue
        group, front = {i}, [i]
        while front:
            new = {j for j in range(n) if near[front[-1], j]} - group
            front.pop()
            group |= new
            front += list(new)
        seen |= group
        count, largest = count + 1, max(largest, len(group))
    p = torch.linalg.eigvalsh(g / n).clamp(min=1e-300)
    return {
        "mean_product": float((g.sum() - g.trace()) / (n * (n - 1))),
        "order_parameter": float(u.mean(0).norm()),
        "effective_rank": float(torch.exp(-(p * p.log()).sum())),
        "clusters": count,
        "largest_cluster": largest / n,
        "normalised_energy": float((beta * (g - 1)).exp().mean()),
        "energy": float((beta * g).exp().mean()) / (2 * beta),
        "mean_norm": norm,
    }


@pytest.mark.parametrize("centre", [False, True])
def test_one_input_equals_the_dense_formulas(centre):
    x = states()
    found = particle_report(x, beta=2.5, scale=0.8, centre=centre, bins=20)
    for layer, reading in enumerate(found):
        want = dense(x[layer], 2.5, 0.8, centre)
        assert set(want) == set(STATISTICS)
        for name, value in want.items():
            assert reading[name].mean == pytest.approx(value, rel=1e-10), name
            assert reading[name].sd is None
        u = normalize(x[layer] - x[layer].mean(0) if centre else x[layer], dim=-1)
        off = (u @ u.mT)[~torch.eye(12, dtype=bool)]
        counts = torch.histc(off, 20, -1, 1)
        torch.testing.assert_close(reading.share, counts / counts.sum(), rtol=0, atol=1e-12)
        assert reading.tokens.mean == 12


def test_inputs_are_averaged_with_their_deviation_however_they_come():
    x = states(lead=(4,))
    whole = particle_report(x, beta=2.0, scale=0.8)
    report = ParticleReport(2.0, 0.8)
    for part in x.split([1, 3], dim=1):
        report.update(part)
    for layer, (a, b) in enumerate(zip(whole, report.layers(), strict=True)):
        each = [dense(x[layer, i], 2.0, 0.8) for i in range(4)]
        for name in STATISTICS:
            values = torch.tensor([one[name] for one in each], dtype=F64)
            for reading in (a, b):
                assert reading[name].mean == pytest.approx(float(values.mean()))
                assert reading[name].sd == pytest.approx(float(values.std()), abs=1e-12)
                assert reading[name].inputs == 4
        torch.testing.assert_close(a.share, b.share)


@pytest.mark.parametrize("centre", [False, True])
def test_padding_and_tokens_of_zeros_are_absent_whatever_they_hold(centre):
    x = states(lead=(2,))
    mask = torch.ones(2, 12)
    mask[0, [0, 1, 7]] = 0
    x[:, 0, [0, 1, 7]] = torch.nan
    found = particle_report(x, mask, beta=2.0, scale=0.8, centre=centre)
    alone = ParticleReport(2.0, 0.8, centre=centre)
    alone.update(x[:, 0, mask[0] > 0])
    alone.update(x[:, 1])
    for a, b in zip(found, alone.layers(), strict=True):
        for name in STATISTICS:
            assert a[name].mean == pytest.approx(b[name].mean, rel=1e-12)
        torch.testing.assert_close(a.share, b.share)
    zero = x[:, 1].clone()
    zero[:, 5] = 0
    reading = particle_report(zero, beta=2.0, scale=0.8)[0]
    assert reading.tokens.mean == 11
    if not centre:
        rest = particle_report(zero[:, torch.arange(12) != 5], beta=2.0, scale=0.8)[0]
        assert reading["mean_product"].mean == pytest.approx(rest["mean_product"].mean)


def test_layers_may_differ_and_an_input_without_tokens_is_passed_over():
    x, y = states(1, lead=(2,))[0], states(1, lead=(2,), n=3, d=7)[0]
    found = particle_report(
        [x, y], [torch.tensor([[1.0] * 12, [0.0] * 12]), torch.tensor([[1.0] * 3, [0.0] * 3])], beta=1.0
    )
    assert [reading["mean_norm"].inputs for reading in found] == [1, 1]
    assert found[1].tokens.mean == 3
    with pytest.raises(ValueError, match="no input was read"):
        particle_report([x], [torch.zeros(2, 12)], beta=1.0)
    report = ParticleReport(1.0, 1.0)
    report.update([x, y])
    with pytest.raises(ValueError, match="1 layers with 1 masses; expected 2"):
        report.update([x])
    with pytest.raises(ValueError, match="scale is 0"):
        ParticleReport(1.0, 0)
    with pytest.raises(ValueError, match="beta is nan"):
        ParticleReport(math.nan, 1.0)


def test_equal_tokens_are_one_cluster_and_have_no_direction_about_their_mean():
    x = torch.ones(1, 6, 4) / 3
    reading = particle_report(x, beta=4.0)[0]
    assert reading["clusters"].mean == 1
    assert reading["normalised_energy"].mean == pytest.approx(1)
    assert reading["effective_rank"].mean == pytest.approx(1)
    assert particle_report(x, beta=4.0, centre=True)[0].tokens.mean == 0


def test_a_single_token_has_no_pairs():
    reading = particle_report(torch.ones(1, 1, 4), beta=4.0)[0]
    assert math.isnan(reading["mean_product"].mean)
    assert reading["clusters"].mean == 1


def test_nearest_and_the_scale_at_which_half_have_a_neighbour():
    x = directions(states(1, n=600)[0])[0]  # more than a tile
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    d.fill_diagonal_(torch.inf)
    torch.testing.assert_close(nearest(x), d.amin(-1))
    assert linking_scale(x) == pytest.approx(float(d.amin(-1).median()))
    mass = torch.ones(600)
    mass[:300], mass[599] = 0, 2
    found = nearest(x, mass)
    want = d[300:, 300:].amin(-1)
    want[-1] = 0
    torch.testing.assert_close(found[300:], want)
    assert bool(found[:300].isinf().all())
    assert linking_scale(torch.ones(4, 3)) == 1e-3


def test_one_plane_for_all_layers():
    x = list(states(3))
    mass = torch.ones(12)
    mass[2] = 0
    points, masses = projected(x, [mass] * 3)
    last = directions(x[-1], mass)[0][mass > 0]
    spread = torch.linalg.svdvals(last - last.mean(0))[:2]
    got = points[-1][mass > 0]
    torch.testing.assert_close(torch.linalg.svdvals(got - got.mean(0)), spread)
    assert all(float(p.norm(dim=-1).max()) <= 1 for p in points)
    assert all(bool((m == mass).all()) for m in masses)
    circle = [x[0][:, :2], x[1][:, :2]]
    points, _ = projected(circle, [None, None])
    torch.testing.assert_close(points[0], normalize(circle[0], dim=-1))
    mixed, _ = projected([x[0], x[1][:, :3]], [None, None])
    assert [tuple(p.shape) for p in mixed] == [(12, 2), (12, 2)]


def test_states_that_are_not_finite_or_no_states_are_refused():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"layer 0 has shape \(4,\); .* in a list"):
        particle_report(x, beta=4.0, scale=0.5)
    bad = x.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match="states of layer 1 hold NaN"):
        particle_report([x, bad], beta=4.0, scale=0.5)
    absent = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    assert particle_report([bad], absent, beta=4.0, scale=0.5)[0]["clusters"].mean <= 4
