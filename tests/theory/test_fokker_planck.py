"""The mean field of noisy USA: against Fourier modes with Bessel functions, differences, Gibbs states, and theory."""

import math

import numpy as np
import pytest
from scipy.special import iv

from osmose.dynamics import theory
from osmose.dynamics.fokker_planck import FokkerPlanck


def random_state(field, seed=0, size=0.3):
    return np.random.default_rng(seed).normal(size=field.modes) * size / np.arange(1, field.modes + 1) ** 3


def test_circle_is_the_equation_of_fourier_modes():
    # m_k = E cos(k theta): m_k' = -k^2 m_k / kappa + (k / beta) sum_l l I_l m_l m_{k-l}, over all integers l
    beta, kappa, top = 2.0, 1.3, 12
    field = FokkerPlanck(beta, 2, top)
    c = random_state(field)
    m = {0: 1.0} | {s * k: c[k - 1] / math.sqrt(2) for k in range(1, top + 1) for s in (1, -1)}
    expected = [
        -(k**2) / kappa * m[k]
        + k / beta * sum(l * iv(l, beta) * m[l] * m[k - l] for l in range(-top, top + 1) if abs(k - l) <= top)
        for k in range(1, top + 1)
    ]
    # the product of two densities of 12 modes has 24, and both formulas leave out what is above
    assert field.velocity(c, kappa) / math.sqrt(2) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("d", "beta"), [(2, 0.0), (2, 3.0), (3, 1.0), (5, -2.0)])
def test_jacobian_and_growth_rates(d, beta):
    field = FokkerPlanck(beta, d, 10)
    c, kappa, h = random_state(field), 2.0, 1e-6
    steps = h * np.eye(10)
    differences = [(field.velocity(c + s, kappa) - field.velocity(c - s, kappa)) / (2 * h) for s in steps]
    assert field.jacobian(c, kappa) == pytest.approx(np.array(differences).T, abs=1e-7)
    at_uniform = field.jacobian(np.zeros(10), kappa)
    rates = theory.noisy_growth_rate(np.arange(1, 11), beta, d, kappa)
    assert at_uniform == pytest.approx(np.diag(rates), abs=1e-11)


@pytest.mark.parametrize("d", [2, 3])
def test_states_at_rest_are_gibbs_states(d):
    field = FokkerPlanck(2.0, d)
    kappa = 1.5 * theory.critical_kappa(2.0, d)
    c, t = field.settle(field.peaked(3.0), kappa)
    assert 0 < t < 1e4
    assert field.off_gibbs(c, kappa) < 1e-9
    assert field.off_gibbs(c, 1.01 * kappa) > 1e-3
    assert field.density(c).min() > 0
    r = float(field.order_parameter(c))
    (found,), states = field.branch([r])
    assert found == pytest.approx(kappa, rel=1e-9)
    assert states[0] == pytest.approx(c, abs=1e-9)


def test_starts_have_their_order_parameter():
    field = FokkerPlanck(1.0, 3)
    assert field.order_parameter(field.tilted(0.2)) == pytest.approx(0.2)
    assert field.order_parameter(field.peaked(5.0)) == pytest.approx(1 / math.tanh(5) - 1 / 5)  # Langevin


@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_slope_of_the_transition(d, beta):
    orders = np.array([0.01, 0.02, 0.03])
    kappa, _ = FokkerPlanck(beta, d, 20).branch(orders)
    fit = np.polynomial.Polynomial.fit(orders**2, kappa, 2).convert().coef
    assert fit[0] == pytest.approx(theory.critical_kappa(beta, d), rel=1e-8)
    assert fit[1] / fit[0] == pytest.approx(1 / theory.transition_slope(beta, d), rel=1e-4)


def test_slope_changes_its_sign_where_the_transition_becomes_a_jump():
    for d in (2, 3, 10):
        star = theory.continuous_transition_beta(d)
        assert theory.transition_slope(0.999 * star, d) > 0 > theory.transition_slope(1.001 * star, d)
    assert theory.transition_slope(0.0, 3) == pytest.approx(5 / 3)
    with pytest.raises(ValueError, match="transition_slope: beta"):
        theory.transition_slope(-1.0, 2)


def test_bad_input():
    with pytest.raises(ValueError, match="FokkerPlanck: beta"):
        FokkerPlanck(1.0, 1)
    with pytest.raises(ValueError, match="FokkerPlanck: beta"):
        FokkerPlanck(400.0, 2)
    with pytest.raises(RuntimeError, match="smaller steps of r"):
        FokkerPlanck(40.0, 2, 6).branch([5.0])
