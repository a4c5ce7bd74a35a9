r"""Two clusters on a great circle, theta apart: the slow motion of a metastable state, exactly.

With masses m1, m2 and ``w = e^{beta (cos theta - 1)}``,

.. math::
   \text{SA:}\quad \theta' = -\sin\theta \left[ \frac{m_2 w}{m_1 + m_2 w} + \frac{m_1 w}{m_2 + m_1 w} \right], \qquad
   \text{USA:}\quad \theta' = -e^{\beta \cos\theta} \sin\theta.

In ``y = log tan(theta/2)`` the sine disappears and time is a quadrature.

Source: derived here from the equations of 2312.10794v5, section 2; the setting is that of 2410.06833.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Model, Numbers, check_model, floats, plain
from ._clock import Clock


def two_cluster_velocity(
    theta: ArrayLike,
    beta: float,
    m1: float = 1.0,
    m2: float = 1.0,
    *,
    model: Model = "SA",
    scaled: bool = False,
) -> Numbers:
    """``d theta / dt`` for theta in [0, pi]; ``scaled`` is USA on the clock ``e^beta t``."""
    _check("two_cluster_velocity", m1, m2, model)
    t = floats(theta)
    with np.errstate(over="ignore"):
        return plain(-np.sin(t) * np.exp(_log_rate(np.cos(t) - 1, beta, m1, m2, model, scaled)))


def two_cluster_time(
    theta: ArrayLike,
    beta: float,
    m1: float = 1.0,
    m2: float = 1.0,
    *,
    start: float = np.pi / 2,
    model: Model = "SA",
    scaled: bool = False,
    log: bool = False,
) -> Numbers:
    """How long the angle takes from ``start`` down to theta; inf for theta = 0. With ``log``, its logarithm.

    Raises:
        ValueError: a start outside (0, pi), theta above it, masses that are not positive.
    """
    _check("two_cluster_time", m1, m2, model)
    end = _angles("two_cluster_time", theta, start)
    clock = _clock(start, beta, m1, m2, model, scaled)
    with np.errstate(divide="ignore", over="ignore"):
        x = -np.log(np.tan(end / 2))
        out = np.where(np.isinf(x), np.inf, clock.log_time(np.where(np.isinf(x), clock.start, x)))
        return plain(out if log else np.exp(out))


def two_cluster_angle(
    t: ArrayLike,
    beta: float,
    m1: float = 1.0,
    m2: float = 1.0,
    *,
    start: float = np.pi / 2,
    model: Model = "SA",
    scaled: bool = False,
) -> Numbers:
    """The angle at time t >= 0, with relative precision as it goes to 0."""
    _check("two_cluster_angle", m1, m2, model)
    _angles("two_cluster_angle", start, start)
    times = floats(t)
    if bool((times < 0).any()):
        raise ValueError(f"two_cluster_angle: t holds {float(times.min())}; expected times >= 0.")
    x = _clock(start, beta, m1, m2, model, scaled).position(times)
    return plain(2 * np.arctan(np.exp(-x)))


def two_cluster_time_asymptotic(
    cosine: ArrayLike, beta: float, m1: float = 1.0, m2: float = 1.0, *, log: bool = False
) -> Numbers:
    """The leading order of the SA merge time for large beta, from an angle with this cosine:

    ``e^{beta (1-c)} / (beta (1 - c^2) (m1/m2 + m2/m1))``, for equal masses ``e^{beta(1-c)} / (2 beta sin^2)``. Derived.
    """
    _check("two_cluster_time_asymptotic", m1, m2, "SA")
    c = floats(cosine)
    if beta <= 0 or bool((np.abs(c) >= 1).any()):
        raise ValueError(
            f"two_cluster_time_asymptotic: beta is {beta}, cosine {cosine!r}; expected beta > 0, cosines inside (-1, 1)."
        )
    out = beta * (1 - c) - np.log(beta * (1 - c**2) * (m1 / m2 + m2 / m1))
    with np.errstate(over="ignore"):
        return plain(out if log else np.exp(out))


def _log_rate(off: np.ndarray, beta: float, m1: float, m2: float, model: Model, scaled: bool) -> np.ndarray:
    """Logarithm of what multiplies ``-sin theta``, for ``off = cos theta - 1``."""
    log_w = beta * off
    if model == "USA":
        return log_w if scaled else log_w + beta
    a, b = np.log(m1), np.log(m2)
    first = b + log_w - np.logaddexp(a, b + log_w)
    return np.logaddexp(first, a + log_w - np.logaddexp(b, a + log_w))


def _clock(start: float, beta: float, m1: float, m2: float, model: Model, scaled: bool) -> Clock:
    def log_pace(x: np.ndarray) -> np.ndarray:  # x = -log tan(theta/2) rises as theta falls
        off = -2 / (1 + np.exp(np.minimum(2 * x, 700.0)))  # cos theta - 1
        return -_log_rate(off, beta, m1, m2, model, scaled)

    first = -float(np.log(np.tan(start / 2)))
    flat = 0.5 * np.log(2 * (1 + abs(beta))) + 20  # there beta (1 - cos theta) is below the rounding of 1
    return Clock(log_pace, first, flat, min(0.25, 2 / max(abs(beta), 1e-300)))


def _angles(what: str, theta: ArrayLike, start: float) -> np.ndarray:
    end = floats(theta)
    if not 0 < start < np.pi or bool(((end < 0) | (end > start)).any()):
        raise ValueError(
            f"{what}: start is {start} and theta {theta!r}; expected 0 <= theta <= start and start inside (0, pi), "
            "where two opposite clusters do not move."
        )
    return end


def _check(what: str, m1: float, m2: float, model: str) -> None:
    check_model(what, model)
    if not (m1 > 0 and m2 > 0):
        raise ValueError(f"{what}: masses are {m1} and {m2}; expected positive numbers.")
