"""Sweeps against what is known: the equiangular curve as d grows, and the phase values of the published figure. Seeded."""

import numpy as np
import pytest
import torch

from osmose.dynamics import RK4, Attention, Field, sweep
from osmose.dynamics.observables import Observable, close_share, mean_product
from osmose.dynamics.theory import equiangular_cosine


@pytest.mark.parametrize(
    ("model", "law", "beta"), [("SA", "row", [0.0, 1.0, 3.0]), ("USA", "mean", [0.0, 0.5, 1.0])]
)
def test_mean_products_approach_the_equiangular_curve(model, law, beta):
    """Independent starts: the mean over pairs is near the curve of orthogonal ones, apart like 1/sqrt(d)."""
    times = [0.0, 0.5, 1.0, 2.0]
    found = sweep(
        lambda b: Field(Attention(b, law=law)),
        beta=beta, n=12, d=[32, 128, 512], seeds=200, times=times, observe=[Observable("p", mean_product)], stepper=RK4(0.05),
    )  # fmt: skip
    exact = torch.tensor(np.stack([equiangular_cosine(times, b, 12, model=model) for b in beta]))
    x = found.select(n=12)
    apart = (x.values["p"] - exact[:, None]).square().mean((-1, -2)).sqrt()  # (d, beta), over seeds and times
    assert bool((apart[-1] < 0.02).all())
    ratios = apart[:-1] / apart[1:]  # d -> 4d halves; the sampling error of a ratio is some 7 %
    assert bool((ratios > 1.6).all() and (ratios < 2.4).all())
    start = x.values["p"][..., 0]
    for k, d in enumerate((32, 128, 512)):  # iid starts: deviation sqrt(2 / (n (n - 1) d))
        assert float(start[k, 0].std()) == pytest.approx((2 / (12 * 11 * d)) ** 0.5, rel=0.2)


def test_phase_values_of_the_figure():
    """P(<x_i, x_j> >= .999) off the diagonal at d = 8, n = 32, measured before by another implementation, 24 draws."""
    times = [0.0, 5.0, 10.0, 20.0, 30.0]
    found = sweep(
        lambda beta: Field(Attention(beta)),
        beta=[4.0, 6.0], n=32, d=8, seeds=24, times=times, observe=[Observable("close", close_share)], stepper=RK4(0.2),
    ).select(n=32, d=8)  # fmt: skip
    assert found.settings["spaces"] == ["sphere"]
    close = found["close"]
    published = torch.tensor([[0.031, 0.571, 0.774, 0.863], [0.028, 0.253, 0.369, 0.401]])
    error = close.deviation[:, 1:] / 24**0.5
    # both are means of 24 draws
    assert bool(((close.mean[:, 1:] - published).abs() < 3 * 2**0.5 * error + 0.002).all())
