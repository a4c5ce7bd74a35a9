"""Equiangular tokens, energies and growth rates against integrators, quadrature and Jacobians."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import eval_gegenbauer, gamma

from osmose.dynamics import theory
from osmose.dynamics.observables import energy

from .particles import F64, MODELS, field, flow, sphere


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("beta", [-1.5, 0.0, 3.0])
def test_particles_follow_the_equiangular_curve(beta, model):
    n, t = 6, np.array([0.3, 1.0, 2.0])
    path = flow(np.eye(n), beta, t, model)
    want = theory.equiangular_cosine(t, beta, n, model=model)
    for x, rho in zip(path, want, strict=True):
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        off = (x @ x.T)[~np.eye(n, dtype=bool)]
        assert abs(off - rho).max() < 1e-7


@pytest.mark.parametrize("model", MODELS)
def test_velocity_is_that_of_the_particles(model):
    n, beta, rho = 5, 2.0, 0.4
    gram = (1 - rho) * np.eye(n) + rho
    x = np.linalg.cholesky(gram)
    v = field(x, beta, model)
    assert 2 * (v[0] @ x[1]) == pytest.approx(
        theory.equiangular_velocity(rho, beta, n, model=model), rel=1e-12
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("beta", [-2.0, 0.0, 1.0, 40.0])
@pytest.mark.parametrize("start", [-0.12, 0.0, 0.5])
def test_time_is_the_integral_and_the_curve_its_inverse(model, beta, start):
    n, stop = 8, 0.95
    want, _ = quad(
        lambda u: 1 / theory.equiangular_velocity(u, beta, n, model=model),
        start,
        stop,
        epsrel=1e-11,
        limit=300,
    )
    t = theory.equiangular_time(stop, beta, n, start=start, model=model)
    assert t == pytest.approx(want, rel=1e-8)
    rho = np.array([start, 0.6, 0.9, 1 - 1e-9])
    times = theory.equiangular_time(rho, beta, n, start=start, model=model)
    back = theory.equiangular_gap(times, beta, n, start=start, model=model)
    again = theory.equiangular_time(1 - back, beta, n, start=start, model=model)
    assert np.allclose(again[:2], times[:2], rtol=1e-10, atol=1e-12 * times[-1])
    if beta < 10:  # else what follows the long wait is below the spacing of the times
        assert np.allclose(back, 1 - rho, rtol=1e-7, atol=0)


def test_without_attention_it_is_the_hyperbolic_tangent():
    t = np.linspace(0, 5, 7)
    assert theory.equiangular_cosine(t, 0.0, 2) == pytest.approx(np.tanh(t), abs=1e-14)
    assert theory.equiangular_gap(200.0, 3.0, 16) == pytest.approx(
        theory.equiangular_gap(100.0, 3.0, 16) * math.exp(-200), rel=1e-11
    )


def test_large_beta_neither_overflows_nor_loses_the_time():
    log_time = theory.equiangular_time(0.5, 2000.0, 32, log=True)
    # Laplace: the wait is at rho = 0, T ~ e^beta / (2 beta)
    assert log_time == pytest.approx(2000 - math.log(2 * 2000), abs=0.02)
    assert theory.equiangular_gap(1e12, 20.0, 32) == 0.0
    assert theory.equiangular_velocity(0.0, 2000.0, 32) == 0.0


@pytest.mark.parametrize("model", MODELS)
def test_the_phase_curve_solves_its_equation(model):
    t = 10.0 if model == "SA" else 0.5
    beta = theory.phase_curve(t, 12, 1e-2, model=model)
    assert theory.equiangular_time(0.99, beta, 12, model=model) == pytest.approx(t, rel=1e-9)
    assert math.isnan(theory.phase_curve(0.1 if model == "SA" else 1e3, 12, 1e-2, model=model))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("h", [0.1, 1.0, math.inf])
def test_the_layer_map_is_a_layer(model, h):
    n, beta, rho = 5, 1.3, 0.35
    x = np.linalg.cholesky((1 - rho) * np.eye(n) + rho)
    w = np.exp(beta * x @ x.T)
    w = w / (w.sum(-1, keepdims=True) if model == "SA" else n)
    y = w @ x if math.isinf(h) else x + h * (w @ x)
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    assert theory.layer_gap(1 - rho, beta, n, h, model=model) == pytest.approx(1 - y[0] @ y[1], rel=1e-12)


@pytest.mark.parametrize("d", [2, 3, 8])
@pytest.mark.parametrize("beta", [-3.0, 0.7, 12.0])
def test_uniform_energy_is_an_integral_over_the_sphere(d, beta):
    norm = gamma(d / 2) / (math.sqrt(math.pi) * gamma((d - 1) / 2))
    mean, _ = quad(lambda a: math.exp(beta * math.cos(a)) * math.sin(a) ** (d - 2) * norm, 0, math.pi)
    assert theory.uniform_energy(beta, d) == pytest.approx(mean / (2 * beta), rel=1e-10)


def test_energies_are_ordered_and_in_logarithms():
    for beta in (0.1, 5.0, 300.0):
        low, high = theory.uniform_energy(beta, 3, log=True), theory.dirac_energy(beta, log=True)
        assert low < theory.equiangular_energy(0.0, beta, 4, log=True) < high
        assert math.exp(high - beta) == pytest.approx(1 / (2 * beta))
    assert theory.uniform_energy(1.0, 4096) == pytest.approx(0.5 * (1 + 1 / 8192), rel=1e-7)  # 0F1(d/2, 1/4)
    assert math.isfinite(theory.uniform_energy(1e5, 3, log=True))
    x = torch.eye(6, dtype=F64)
    assert float(energy(x, 2.0)) == pytest.approx(theory.equiangular_energy(0.0, 2.0, 6))


@pytest.mark.parametrize("model", MODELS)
def test_no_step_within_the_bound_lowers_the_energy(model):
    g = torch.Generator().manual_seed(3)
    for trial in range(60):
        n, d, beta = 2 + trial % 7, 2 + trial % 4, float(4 * torch.rand((), generator=g))
        x = sphere(n, d, trial)
        w = torch.exp(beta * x @ x.T)
        a = (w / (w.sum(-1, keepdim=True) if model == "SA" else n)) @ x
        for stepper in ("layer", "tangent"):
            bound = theory.monotone_step_bound(beta, stepper=stepper, model=model)
            h = torch.rand(n, 1, dtype=F64, generator=g) * min(bound, 1e3)
            move = a if stepper == "layer" else a - (a * x).sum(-1, keepdim=True) * x
            y = x + h * move
            y = y / y.norm(dim=-1, keepdim=True)
            assert energy(y, beta) >= energy(x, beta) * (1 - 1e-14)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("beta", [-2.0, 0.0, 5.0])
def test_growth_rates_are_eigenvalues_of_the_jacobian(beta, model):
    """A ring of many tokens is the uniform measure up to e^{-n}: the field's derivative along cos(k theta)."""
    n = 64
    theta = 2 * math.pi * torch.arange(n, dtype=F64) / n

    def velocity(a):
        away = a[:, None] - a[None]
        w = torch.exp(beta * away.cos())
        w = w / (w.sum(-1, keepdim=True) if model == "SA" else n)
        return -(w * away.sin()).sum(-1)

    jacobian = torch.autograd.functional.jacobian(velocity, theta)
    for k in (1, 2, 5):
        mode = torch.sin(k * theta)
        rate = float((jacobian @ mode) @ mode / (mode @ mode))
        assert theory.growth_rate(k, beta, 2, model=model) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("d", [3, 5])
@pytest.mark.parametrize("beta", [-1.5, 3.0])
def test_growth_rates_by_funk_and_hecke(d, beta):
    """a_l from its integral: l (l+d-2) times the mean of e^{beta s} against the Gegenbauer polynomial."""
    nu, norm = d / 2 - 1, gamma(d / 2) / (math.sqrt(math.pi) * gamma((d - 1) / 2))

    def eigenvalue(l):
        return quad(
            lambda s: norm * math.exp(beta * s) * eval_gegenbauer(l, nu, s) / eval_gegenbauer(l, nu, 1.0)
            * (1 - s * s) ** ((d - 3) / 2), -1, 1,
        )[0]  # fmt: skip

    for l in (1, 2, 4):
        usa = l * (l + d - 2) * eigenvalue(l) / beta
        assert theory.growth_rate(l, beta, d, model="USA") == pytest.approx(usa, rel=1e-8)
        assert theory.growth_rate(l, beta, d) == pytest.approx(usa / eigenvalue(0), rel=1e-8)
        scaled = theory.growth_rate(l, beta, d, model="USA", scaled=True)
        assert scaled == pytest.approx(usa * math.exp(-beta), rel=1e-8)


def test_growth_at_extreme_arguments():
    assert theory.growth_rate(1, 1e-9, 1024, model="USA") == pytest.approx(1023 / 1024, rel=1e-9)
    assert np.isfinite(theory.growth_rate([1, 10, 400], 1e5, 3)).all()
    # degree 40 at beta = 1 in 64 dimensions: far below what a Bessel function of floats can hold
    assert theory.growth_rate(400, 1.0, 64) == 0.0
    log_ratio = math.log(theory.growth_rate(40, 1.0, 64) / (40 * 102))
    series = (
        40 * math.log(0.5) + math.lgamma(32) - math.lgamma(72)
    )  # (beta/2)^l Gamma(nu+1)/Gamma(l+nu+1), to O(beta^2/d)
    assert log_ratio == pytest.approx(series, abs=0.01)


def test_uniform_loses_stability_at_kappa_c():
    for d, beta in ((2, 1.0), (3, -2.0), (7, 6.0)):
        kappa = theory.critical_kappa(beta, d)
        degrees = np.arange(1, 20)
        assert theory.noisy_growth_rate(degrees, beta, d, kappa * (1 - 1e-9)).max() < 0
        assert theory.noisy_growth_rate(1, beta, d, kappa * (1 + 1e-9)) > 0
    for d in (2, 3, 50):
        from scipy.special import iv

        root = theory.continuous_transition_beta(d)
        assert iv(d / 2 + 1, root) / iv(d / 2, root) == pytest.approx(1 / d, rel=1e-10)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("k", "beta"), [(1, 2.0), (2, 1.0), (3, -0.8), (4, 3.0)])
def test_ring_spectrum_is_that_of_the_jacobian(k, beta, model):
    each = 2
    theta = 2 * math.pi * torch.arange(k, dtype=F64).repeat_interleave(each) / k

    def velocity(a):
        away = a[:, None] - a[None]
        w = torch.exp(beta * away.cos())
        w = w / (w.sum(-1, keepdim=True) if model == "SA" else len(a))
        return -(w * away.sin()).sum(-1)

    values = torch.linalg.eigvals(torch.autograd.functional.jacobian(velocity, theta)).real.numpy()
    values = np.sort(np.delete(values, np.abs(values).argmin()))[::-1]  # the rotation
    got = theory.ring_spectrum(k, beta, model=model)
    # the last kind, spreading inside a cluster, appears once for each of the k clusters
    for value in got:
        assert np.abs(values - value).min() < 1e-12
    assert got[0] == pytest.approx(values[0], abs=1e-12)


@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_cross_ratios_are_conserved_at_beta_zero_alone(d, model):
    x = sphere(6, d, 1).numpy()
    start = theory.cross_ratios(torch.tensor(x))
    assert start.shape == (3,)
    still = theory.cross_ratios(torch.tensor(flow(x, 0.0, [1.0], model)[0]))
    moved = theory.cross_ratios(torch.tensor(flow(x, 1.0, [1.0], model)[0]))
    assert float((still / start - 1).abs().max()) < 1e-7
    assert float((moved / start - 1).abs().max()) > 1e-3
