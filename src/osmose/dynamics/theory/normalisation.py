r"""Normalisation schemes: where the LayerNorm sits decides how fast tokens agree.

With ``x_i = r theta_i``, theta_i on the sphere and A_i the attention output (V = I), ``theta_i' = proj A_i / s`` and r moves
with ``<theta_i, A_i>``. For equiangular tokens this is the equation of rho with its time slowed by s:

    ==========  ===================  ======================  ==============================================
    scheme      s                    r'                      1 - rho for large t
    ==========  ===================  ======================  ==============================================
    post-ln     1                    0                       ``e^{-2t}``
    pre-ln      r                    ``<theta, A>``          ``t^{-2}``
    mix-ln      1 until tau, then r  0 until tau, then       ``t^{-2}``
                                     ``<theta, A>``
    peri-ln     ``r |A|``            ``<theta, A> / |A|``    ``t^{-2}``
    ngpt        ``|A| / alpha``      0                       ``e^{-2 alpha t}``
    sqrt-ln     ``sqrt(t + 1)``      0                       ``e^{-4 sqrt(t+1)}``, the scaling of CoD (1/sqrt depth)
    ==========  ===================  ======================  ==============================================

Source: 2510.22026. Errata (reported): theorem 4.3(ii) needs its delta small independently of beta; the row of nGPT should
read ``alpha_t Var``. The equiangular decay laws are checked here by integration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from ._arrays import check_count, check_range, floats
from .equiangular import _gap, _logit
from .layer_map import attention_weights


@dataclass(frozen=True)
class Scheme:
    """A normalisation scheme, as what it does to one token.

    Attributes:
        name: of it.
        slowness: ``s(r, |A|, t, alpha)``.
        radius_velocity: ``r'(<theta, A>, |A|)``.
        rate: ``1 - rho ~ exp(-rate clock(t))`` for large t (times alpha for ngpt).
        clock: t, ``log t`` or ``sqrt(t + 1)``.
    """

    name: str
    slowness: Callable[[float, float, float, float], float]
    radius_velocity: Callable[[float, float], float]
    rate: float
    clock: Callable[[np.ndarray], np.ndarray]


def _still(along: float, size: float) -> float:
    return 0.0


def _identity(t: np.ndarray) -> np.ndarray:
    return t


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("post-ln", lambda r, size, t, alpha: 1.0, _still, 2.0, _identity),
        Scheme("pre-ln", lambda r, size, t, alpha: r, lambda along, size: along, 2.0, np.log),
        Scheme("peri-ln", lambda r, size, t, alpha: r * size, lambda along, size: along / size, 2.0, np.log),
        Scheme("ngpt", lambda r, size, t, alpha: size / alpha, _still, 2.0, _identity),
        Scheme("sqrt-ln", lambda r, size, t, alpha: (t + 1) ** 0.5, _still, 4.0, lambda t: np.sqrt(t + 1)),
    )
}
"""Schemes by name; ``mix-ln`` is post-ln up to a time, then pre-ln."""


def normalised_equiangular(
    t: ArrayLike,
    scheme: str,
    beta: float,
    n: int,
    *,
    start: float = 0.0,
    radius: float = 1.0,
    alpha: float = 1.0,
    switch: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """``1 - rho(t)`` and ``r(t)`` of equiangular tokens under a scheme, by integration to 11 digits (SA).

    Args:
        t: rising times from 0, ``(k,)``.
        scheme: a name of ``SCHEMES``, or ``mix-ln``.
        beta, n: inverse temperature and tokens.
        start, radius: rho(0), above ``-1/(n-1)``, and r(0) > 0.
        alpha: the step scale of ngpt.
        switch: of mix-ln: post-ln until this time.

    Returns:
        Two arrays ``(k,)``. Gaps have relative precision.
    """
    times = np.atleast_1d(floats(t))
    check_count("normalised_equiangular", "n", n, 2)
    check_range("normalised_equiangular", "t", times, 0.0, np.inf)
    names = [*SCHEMES, "mix-ln"]
    if scheme not in names:
        raise ValueError(f"normalised_equiangular: scheme is {scheme!r}; expected one of {', '.join(names)}.")
    if not (-1 / (n - 1) < start < 1 and radius > 0 and alpha > 0 and bool((np.diff(times) >= 0).all())):
        raise ValueError(
            f"normalised_equiangular: start {start}, radius {radius}, alpha {alpha}; expected start inside "
            f"({-1 / (n - 1):.4g}, 1), positive radius and alpha, and times in rising order."
        )
    legs = [(SCHEMES.get(scheme, SCHEMES["pre-ln"]), 0.0)]
    if scheme == "mix-ln" and switch > 0:
        legs = [(SCHEMES["post-ln"], 0.0), (SCHEMES["pre-ln"], switch)]
    state = np.array([float(_logit(floats(start), n)), radius])
    rows = np.empty((len(times), 2))
    for index, (law, begin) in enumerate(legs):
        end = legs[index + 1][1] if index + 1 < len(legs) else np.inf
        inside = (times >= begin) & (times < end)
        stop = end if np.isfinite(end) else max(begin, float(times.max(initial=0.0)))
        path, state = _integrate(law, state, begin, stop, times[inside], beta, n, alpha)
        rows[inside] = path
    return _gap(rows[:, 0], n), rows[:, 1]


def _integrate(
    law: Scheme,
    state: np.ndarray,
    begin: float,
    end: float,
    at: np.ndarray,
    beta: float,
    n: int,
    alpha: float,
) -> tuple[np.ndarray, np.ndarray]:
    if end <= begin:
        return np.tile(state, (len(at), 1)), state

    def velocity(t: float, y: np.ndarray) -> list[float]:
        gap = _gap(y[0], n)
        own, other = attention_weights(gap, beta, n, "SA")
        rho = 1 - gap
        along = own + (n - 1) * other * rho
        across = own * rho + other + (n - 2) * other * rho
        size = float(np.sqrt(own * along + (n - 1) * other * across))
        # x' of the equation of rho is 2 n q, q the weight on another token
        return [
            float(2 * n * other / law.slowness(float(y[1]), size, t, alpha)),
            law.radius_velocity(float(along), size),
        ]

    ask = np.append(at, end)
    solved = solve_ivp(
        velocity, (begin, end), state, method="LSODA", t_eval=np.unique(ask), rtol=1e-12, atol=1e-12
    )
    if not solved.success:
        raise RuntimeError(f"normalised_equiangular: the integration stopped: {solved.message}")
    path = solved.y.T[np.searchsorted(solved.t, ask)]
    return path[:-1], path[-1]
