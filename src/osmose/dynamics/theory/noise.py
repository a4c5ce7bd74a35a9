r"""Noise against attraction: where the uniform measure is stable, and how the transition goes.

Noisy USA, ``dX = proj(USA) dt + sqrt(2/kappa) dW`` on S^{d-1}; its law follows
``d_t mu = Laplacian mu / kappa - div(mu v)``. A harmonic of degree l grows at ``l (l+d-2) (a_l/beta - 1/kappa)``, and
``a_1`` is the largest, so that

.. math:: \text{uniform is stable} \iff \kappa \le \kappa_c = \frac{\beta}{a_1(\beta)},
   \qquad a_1 = \Gamma(d/2)(2/\beta)^{d/2-1} I_{d/2}(\beta).

Source: 2606.05140 (threshold and kind of the transition); for d = 2 also derived here.
Convention: their ``K_# = beta^{d/2} / (2^{d/2} Gamma(d/2) I_{d/2}(beta))`` is half of kappa_c.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Model, Numbers, check_count, floats, plain
from ._bessel import log_eigenvalue, log_iv
from .spectrum import growth_rate


def critical_kappa(beta: ArrayLike, d: int) -> Numbers:
    """``beta / a_1(beta)``, for beta of either sign; d at beta = 0, ``beta / I_1(beta)`` on the circle."""
    check_count("critical_kappa", "d", d, 2)
    b = np.abs(floats(beta))
    safe = np.where(b > 0, b, 1.0)
    return plain(np.where(b > 0, np.exp(np.log(safe) - log_eigenvalue(np.ones_like(b), safe, d)), float(d)))


def critical_coupling(beta: ArrayLike, d: int) -> Numbers:
    """``K_#`` of 2606.05140: half of :func:`critical_kappa`."""
    return plain(floats(critical_kappa(beta, d)) / 2)


def noisy_growth_rate(
    degree: ArrayLike, beta: ArrayLike, d: int, kappa: float, *, model: Model = "USA"
) -> Numbers:
    """``g_l - l (l+d-2)/kappa``: the growth rate of :func:`growth_rate` less what diffusion takes."""
    if not kappa > 0:
        raise ValueError(
            f"noisy_growth_rate: kappa is {kappa}; expected a positive number (inf is no noise)."
        )
    l = floats(degree)
    return plain(floats(growth_rate(degree, beta, d, model=model)) - l * (l + d - 2) / kappa)


def transition_slope(beta: ArrayLike, d: int) -> Numbers:
    r"""A in ``r^2 = A (kappa / kappa_c - 1) + ...``: how the order parameter ``r = |mean|`` of the states that branch off uniform begins.

    .. math:: A = \frac{(d + 2)(1 - q)}{d (1 - d q)}, \qquad q = \frac{a_2}{a_1} = \frac{I_{d/2+1}(\beta)}{I_{d/2}(\beta)}.

    Positive below :func:`continuous_transition_beta`, where q = 1/d: clusters grow from nothing above kappa_c. Negative beyond:
    the branch goes back to ``kappa < kappa_c``, its states repel, and the transition is a jump. Any beta >= 0; at 0 it is
    ``(d+2)/d``.

    Derived from the two first harmonics, the second following the first: ``f_2' = 0`` at order ``r^2``.
    """
    check_count("transition_slope", "d", d, 2)
    b = floats(beta)
    if bool((b < 0).any()):
        raise ValueError(f"transition_slope: beta is {beta!r}; expected numbers from 0.")
    safe = np.where(b > 0, b, 1.0)
    two, one = (log_eigenvalue(np.full_like(safe, l), safe, d) for l in (2.0, 1.0))
    q = np.where(b > 0, np.exp(two - one), 0.0)
    with np.errstate(divide="ignore"):
        return plain((d + 2) * (1 - q) / (d * (1 - d * q)))


def continuous_transition_beta(d: int) -> float:
    """``beta*_d``: the transition at kappa_c is continuous for beta up to it, and jumps beyond.

    The root of ``I_{d/2+1}(beta) / I_{d/2}(beta) = 1/d``: 2.446918 for d = 2, 1.816155 for d = 3.
    """
    from scipy.optimize import brentq

    check_count("continuous_transition_beta", "d", d, 2)

    def off(beta: float) -> float:
        return float(
            log_iv(np.array(d / 2 + 1), np.array(beta)) - log_iv(np.array(d / 2), np.array(beta))
        ) + float(np.log(d))

    # the ratio lies between beta / (d + 2 + beta) and beta / (d + 2), so the root between these
    return float(brentq(off, (d + 2) / d * 0.999, (d + 2) / (d - 1) * 1.001, xtol=1e-14, rtol=1e-14))
