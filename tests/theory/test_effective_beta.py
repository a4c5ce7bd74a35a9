"""The inverse temperature that an attention has: exact where it is the particle model's, silent where it is not."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from osmose.dynamics import EffectiveBeta, effective_beta

F64 = torch.float64


def sphere(n=40, d=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, d, dtype=F64, generator=draw), dim=-1)


def attention(scores, mass=None, causal=False):
    """Row softmax by its formula: weights ``m_j e^{s_ij}``, hidden sources 0."""
    w = scores.exp() * (1 if mass is None else mass)
    w = w.tril() if causal else w
    return w / w.sum(-1, keepdim=True)


def entropy(p):
    return float(-torch.xlogy(p, p).sum(-1).mean())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("beta", [1e-4, 0.3, 1.0, 4.0, 50.0])
def test_the_attention_of_the_particle_model_gives_back_its_beta(beta, causal):
    x = sphere()
    [head] = effective_beta(attention(beta * x @ x.mT, causal=causal), x, causal=causal)
    assert head.slope == pytest.approx(beta, rel=1e-9)
    assert head.matched == pytest.approx(beta, rel=1e-9)
    assert head.r2 == pytest.approx(1, abs=1e-12)
    assert head.used == 1
    assert head.reason is None


def test_repulsion_has_a_negative_slope_and_the_spread_of_attraction():
    x = sphere()
    p = attention(-3 * x @ x.mT)
    [head] = effective_beta(p, x)
    assert head.slope == pytest.approx(-3, rel=1e-9)
    assert head.r2 == pytest.approx(1)
    assert head.matched > 0
    assert entropy(attention(head.matched * x @ x.mT)) == pytest.approx(entropy(p), rel=1e-10)


def test_queries_that_are_turned_are_not_explained_and_only_the_spread_is_matched():
    x = sphere(60, 8)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=F64, generator=torch.Generator().manual_seed(3)))
    p = attention(4 * x @ turn @ x.mT)
    [head] = effective_beta(p, x)
    assert head.r2 < 0.1
    assert abs(head.slope) < 1.5
    assert entropy(attention(head.matched * x @ x.mT)) == pytest.approx(entropy(p), rel=1e-10)
    scores = 4 * x @ turn @ x.mT
    g, l = x @ x.mT, scores
    g, l = g - g.mean(1, keepdim=True), l - l.mean(1, keepdim=True)
    assert head.slope == pytest.approx(float((g * l).sum() / (g * g).sum()), rel=1e-9)
    assert head.r2 == pytest.approx(float(torch.corrcoef(torch.stack([g.flatten(), l.flatten()]))[0, 1] ** 2))


def test_every_head_has_its_own_and_scales_of_rows_and_of_points_do_not_matter():
    x = sphere()
    betas = [0.5, 2.0, 9.0]
    p = torch.stack([attention(b * x @ x.mT) for b in betas])
    lengths = torch.rand(len(x), 1, dtype=F64, generator=torch.Generator().manual_seed(1)) + 0.1
    found = effective_beta(p * lengths, 7 * lengths * x)
    assert [head.slope for head in found] == pytest.approx(betas)
    assert [head.matched for head in found] == pytest.approx(betas)


def test_masses_absent_sources_and_chosen_targets():
    x, beta = sphere(), 3.0
    mass = torch.rand(len(x), dtype=F64, generator=torch.Generator().manual_seed(2)) + 0.5
    mass[[3, 20]] = 0
    p = attention(beta * x @ x.mT, mass)
    targets = torch.tensor([0, 7, 20, 39])
    p[:, 3] = 99.0  # what stands there does not exist
    [head] = effective_beta(p[targets], x, targets=targets, mass=mass)
    assert head.slope == pytest.approx(beta)
    assert head.matched == pytest.approx(beta)
    alone = effective_beta(attention(beta * x @ x.mT, mass), x, mass=mass)[0]
    here = mass > 0
    some = effective_beta(attention(beta * x[here] @ x[here].mT, mass[here]), x[here], mass=mass[here])[0]
    assert alone.matched == pytest.approx(some.matched, rel=1e-12)


def test_inputs_are_pooled_for_the_slope_and_averaged_for_the_spread():
    fit = EffectiveBeta()
    for seed, beta in enumerate((2.0, 3.0, 4.0)):
        x = sphere(20 + seed, seed=seed)
        fit.update(attention(beta * x @ x.mT), x)
    [head] = fit.heads()
    assert head.inputs == 3
    assert head.matched == pytest.approx(3)
    assert head.matched_sd == pytest.approx(1)
    assert head.slope_sd == pytest.approx(1)
    assert 2 < head.slope < 4
    assert 0.8 < head.r2 < 1


def test_without_the_diagonal_only_weights_on_others_tell():
    x = sphere()
    p = attention(2 * x @ x.mT)
    p = p + 5 * torch.eye(len(x), dtype=F64)
    assert effective_beta(p, x, diagonal=False)[0].slope == pytest.approx(2)
    assert effective_beta(p, x)[0].slope > 2.4


def test_uniform_rows_are_beta_zero_also_in_float32():
    x = sphere().float()
    p = torch.full((40, 40), 1 / 40) * (
        1 + 1e-7 * torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    )
    [head] = effective_beta(p, x)
    assert (head.slope, head.r2, head.matched) == (0, 1, 0)
    small = effective_beta((0.01 * x @ x.mT).softmax(-1), x)[0]
    assert small.slope == pytest.approx(0.01, rel=1e-4)
    assert small.matched == pytest.approx(0.01, rel=1e-4)


def test_what_has_no_beta_says_why():
    x = sphere()
    p = attention(x @ x.mT)
    negative = p.clone()
    negative[0, 1] = -0.1
    head = effective_beta(negative, x)[0]
    assert math.isnan(head.slope)
    assert math.isnan(head.matched)
    assert "negative" in head.reason
    head = effective_beta(torch.eye(40, dtype=F64).roll(1, 0), x)[0]
    assert math.isnan(head.slope)
    assert head.matched == math.inf
    assert "more concentrated" in head.reason
    head = effective_beta(p, x[:1].expand(40, -1))[0]
    assert math.isnan(head.slope)
    assert math.isnan(head.matched)
    assert "do not vary" in head.reason
    head = effective_beta(torch.zeros(40, 40), x)[0]
    assert "no weight is positive" in head.reason


def test_weights_that_underflow_take_no_part():
    x = sphere()
    p = attention(200 * x @ x.mT)
    p[p < 1e-20] = 0
    [head] = effective_beta(p, x)
    assert head.used < 1
    assert head.slope == pytest.approx(200)


def test_shapes_that_do_not_fit_are_named():
    x = sphere()
    with pytest.raises(ValueError, match=r"weights \(1, 40, 39\) on points \(40, 6\)"):
        effective_beta(torch.ones(40, 39), x)
    fit = EffectiveBeta()
    with pytest.raises(ValueError, match="nothing was read"):
        fit.heads()
    fit.update(attention(x @ x.mT), x)
    with pytest.raises(ValueError, match="2 heads after 1"):
        fit.update(torch.ones(2, 40, 40), x)


def test_rows_without_weight_say_nothing():
    x = sphere()
    p = attention(4.0 * x @ x.mT)
    p[0] = 0.0
    assert effective_beta(p, x)[0].matched == pytest.approx(4.0, rel=1e-9)
    itself = attention(4.0 * x @ x.mT)
    itself[0] = torch.eye(len(x), dtype=F64)[0]
    assert effective_beta(itself, x, diagonal=False)[0].matched == pytest.approx(4.0, rel=1e-9)


def test_values_that_are_not_finite_are_refused():
    x = sphere()
    p = attention(x @ x.mT)
    for bad in (math.nan, math.inf):
        for weights, points in ((p.clone(), x), (p, x.clone())):
            (weights if points is x else points)[1, 1] = bad
            with pytest.raises(ValueError, match="NaN or infinite"):
                effective_beta(weights, points)
