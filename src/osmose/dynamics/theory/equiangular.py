r"""Equiangular tokens: all inner products equal rho, and stay equal. One number, one ordinary differential equation.

.. math::
   \text{SA:}\quad  \rho' = \frac{2 e^{\beta\rho} (1-\rho)((n-1)\rho + 1)}{e^\beta + (n-1) e^{\beta\rho}}, \qquad
   \text{USA:}\quad \rho' = \frac{2}{n} e^{\beta\rho} (1-\rho)((n-1)\rho + 1).

It holds for any n >= 2 tokens on S^{d-1}, ``d >= n`` (or ``d >= n - 1`` at the simplex ``rho = -1/(n-1)``, the other
equilibrium), Q = K = V = I. Orthogonal starts (rho = 0) are exact, independent uniform ones close to it as d grows.

In the coordinate ``x = log((n-1) rho + 1) - log(1 - rho)`` the equation reads ``x' = 2n / (e^{beta (1-rho)} + n - 1)``
(SA), ``x' = 2 e^{beta rho}`` (USA): no singularity is left, so time is a quadrature, and rho its inverse.

Source: 2312.10794v5, theorem 6.8 (orthogonal start); the quadrature is derived here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Model, Numbers, check_count, check_model, check_range, floats, plain
from ._clock import Clock


def equiangular_velocity(rho: ArrayLike, beta: float, n: int, *, model: Model = "SA") -> Numbers:
    """``d rho / dt``. USA overflows to inf where ``beta rho`` is over 709.

    Args:
        rho: common inner product, from ``-1/(n-1)`` to 1.
        beta: inverse temperature, of either sign.
        n: tokens, at least 2.
        model: ``SA`` or ``USA``.
    """
    _check("equiangular_velocity", rho, n, model)
    r = floats(rho)
    with np.errstate(over="ignore"):
        pull = 2 * (1 - r) * ((n - 1) * r + 1)
        if model == "SA":
            return plain(pull * np.exp(-np.logaddexp(beta * (1 - r), np.log(n - 1))))
        return plain(pull * np.exp(beta * r) / n)


def equiangular_time(
    rho: ArrayLike, beta: float, n: int, *, start: float = 0.0, model: Model = "SA", log: bool = False
) -> Numbers:
    r"""The time at which the common inner product reaches rho, from ``start``:

    .. math:: T = \int_{start}^{\rho} \frac{e^{\beta(1-u)} + n - 1}{2 (1-u)((n-1)u+1)}\,du
              \quad\text{(SA)}, \qquad \int \frac{n e^{-\beta u}}{2(1-u)((n-1)u+1)}\,du \quad\text{(USA)}.

    ``rho = 1`` takes inf. With ``log`` the logarithm, which beta = 1000 does not overflow.

    Raises:
        ValueError: rho below the start, or a start not above ``-1/(n-1)``, where nothing moves.

    Cost: some 10 beta + 1000 evaluations of the pace, then 12 for each rho.
    """
    _check("equiangular_time", rho, n, model, start)
    r = floats(rho)
    check_range("equiangular_time", "rho", r, start, 1.0)
    clock = _clock(beta, n, start, model)
    with np.errstate(divide="ignore", over="ignore"):
        x = _logit(r, n)
        out = np.where(np.isinf(x), np.inf, clock.log_time(np.where(np.isinf(x), clock.start, x)))
        return plain(out if log else np.exp(out))


def equiangular_cosine(
    t: ArrayLike, beta: float, n: int, *, start: float = 0.0, model: Model = "SA"
) -> Numbers:
    """The common inner product rho(t), from ``rho(0) = start``. See :func:`equiangular_gap` near 1."""
    return plain(1 - floats(equiangular_gap(t, beta, n, start=start, model=model)))


def equiangular_gap(t: ArrayLike, beta: float, n: int, *, start: float = 0.0, model: Model = "SA") -> Numbers:
    """``1 - rho(t)`` with relative, not absolute precision: it falls like ``e^{-2t}`` (SA), ``e^{-2 e^beta t}`` (USA).

    Args:
        t: times >= 0, any shape.
        beta, n, model: as in :func:`equiangular_velocity`.
        start: rho(0), above ``-1/(n-1)``; the simplex itself does not move.

    Cost: as :func:`equiangular_time`, times the few Newton steps that invert it.
    """
    _check("equiangular_gap", start, n, model, start)
    check_range("equiangular_gap", "t", t, 0.0, np.inf)
    x = _clock(beta, n, start, model).position(floats(t))
    return plain(_gap(x, n))


def phase_curve(t: ArrayLike, n: int, delta: float = 1e-3, *, model: Model = "SA") -> Numbers:
    """``beta*(t)``: the inverse temperature at which orthogonal tokens reach ``rho = 1 - delta`` exactly at time t.

    Over the phase diagram of (t, beta) this is the exact curve: ``T_beta(1 - delta) = t``. For SA tokens have met below
    it (low beta), for USA above it. NaN where no beta >= 0 (and below 700) has that time: t shorter than
    ``T_0 = log((n - (n-1) delta)/delta)/2`` for SA, longer for USA.

    Source: 2312.10794v5, figure of the phase diagram and theorem 6.8; the equation is derived here.
    Errata: the overlay published with the figure is placed by hand (about 6.45 at t = 30, n = 32, delta = 1e-3; the
    curve is at 6.9065, the layer map with h = 0.1 at 6.78).

    Cost: some 15 quadratures for each t.
    """
    from scipy.optimize import brentq

    check_count("phase_curve", "n", n, 2)
    check_range("phase_curve", "delta", delta, 0.0, 1.0, open_low=True)
    check_range("phase_curve", "t", t, 0.0, np.inf, open_low=True)

    def root(time: float) -> float:
        def off(beta: float) -> float:
            return equiangular_time(1 - delta, beta, n, model=model, log=True) - np.log(time)

        top = 700.0
        if off(0.0) == 0.0:
            return 0.0
        return brentq(off, 0.0, top, xtol=1e-12) if off(0.0) * off(top) < 0 else np.nan

    times = floats(t)
    return plain(np.array([root(float(s)) for s in times.flat]).reshape(times.shape))


def _logit(rho: np.ndarray, n: int) -> np.ndarray:
    return np.log1p((n - 1) * rho) - np.log1p(-rho)


def _gap(x: np.ndarray, n: int) -> np.ndarray:
    """``1 - rho = n / (e^x + n - 1)``."""
    return np.exp(np.log(n) - np.logaddexp(x, np.log(n - 1)))


def _clock(beta: float, n: int, start: float, model: Model) -> Clock:
    def log_pace(x: np.ndarray) -> np.ndarray:
        gap = _gap(x, n)
        if model == "SA":
            return np.logaddexp(beta * gap, np.log(n - 1)) - np.log(2 * n)
        return beta * gap - beta - np.log(2)

    first = float(_logit(floats(start), n))
    flat = np.log(n * (1 + abs(beta))) + 40  # there beta (1 - rho) is below the rounding of 1
    return Clock(log_pace, first, flat, min(0.5, 4 / max(abs(beta), 1e-300)))


def _check(what: str, rho: ArrayLike, n: int, model: str, start: float | None = None) -> None:
    check_model(what, model)
    check_count(what, "n", n, 2)
    lowest = -1 / (n - 1)
    check_range(what, "rho", rho, lowest, 1.0)
    if start is not None and not lowest < start < 1:
        raise ValueError(
            f"{what}: start is {start}; expected a value between {lowest:.6g} (the simplex) and 1, both equilibria, exclusive."
        )
