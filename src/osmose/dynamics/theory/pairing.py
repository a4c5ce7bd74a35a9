r"""Pairing: at large beta the closest pair merges while all others stand still.

USA, two clusters theta apart with masses m1, m2 of a total M, nothing else in reach:
``theta' = -((m1 + m2)/M) e^{beta cos theta} sin theta``. On the clock ``tau``, ``d tau = e^{beta rho(t)} dt`` with the
*current* inner product rho of the pair, ``theta = 2 arctan(tan(theta_0/2) e^{-(m1+m2) tau / M})`` whatever beta.

Source: Bruno, Pasqualotto and Agazzi, as told in 2512.01868.
Errata: the survey prints the rescaling with the *initial* inner product rho_0. On that clock the whole merge takes
``e^{beta rho_0} T -> M / ((m1 + m2) beta sin^2 theta_0)``, which goes to 0 like 1/beta: the limit printed is not met. The
current one is used here (measured; the original paper was not consulted).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Numbers, floats, plain
from .two_clusters import two_cluster_time


@dataclass(frozen=True)
class Merge:
    """One merge: when (the logarithm, since the start), which tokens' clusters, and the masses then left."""

    log_time: float
    pair: tuple[int, int]
    masses: tuple[float, ...]


def paired_angle(
    tau: ArrayLike, start: float, m1: float = 1.0, m2: float = 1.0, total: float = 2.0
) -> Numbers:
    """The angle of the pair at rescaled time tau: ``2 arctan(tan(start/2) e^{-(m1+m2) tau / total})``."""
    _check("paired_angle", m1, m2, total)
    return plain(2 * np.arctan(np.tan(start / 2) * np.exp(-(m1 + m2) / total * floats(tau))))


def pairing_log_time(
    start: float, beta: float, m1: float = 1.0, m2: float = 1.0, total: float = 2.0, *, contact: float = 1e-3
) -> float:
    """log of the time that a pair takes from the angle ``start`` to ``contact``, USA on the clock ``e^beta t``."""
    _check("pairing_log_time", m1, m2, total)
    alone = two_cluster_time(contact, beta, start=start, model="USA", scaled=True, log=True)
    return float(alone + np.log(total / (m1 + m2)))


def pairing_sequence(
    x: ArrayLike, beta: float, masses: ArrayLike | None = None, *, contact: float = 1e-3
) -> list[Merge]:
    """The merges that pairing predicts for points ``x (n, d)`` of the sphere, n - 1 of them.

    The closest pair moves along its great circle and meets at the place that its masses weigh; then the next closest.
    Times are on the clock ``e^beta t`` and added up. An estimate for large beta: others move a little meanwhile.

    Raises:
        ValueError: points off the sphere, or an antipodal pair with nothing closer left.

    Cost: n^3.
    """
    points = floats(x)
    if points.ndim != 2 or not np.allclose(np.linalg.norm(points, axis=-1), 1, atol=1e-6):
        raise ValueError(
            f"pairing_sequence: x has shape {points.shape}; expected (n, d) unit vectors, x / |x|."
        )
    n = len(points)
    m = np.ones(n) if masses is None else floats(masses).copy()
    if m.shape != (n,) or bool((m <= 0).any()):
        raise ValueError(f"pairing_sequence: masses are {masses!r}; expected {n} positive numbers.")
    points, alive, log_time, out = points.copy(), list(range(n)), -np.inf, []
    while len(alive) > 1:
        live = points[alive]
        chord = np.linalg.norm(live[:, None] - live[None], axis=-1)
        np.fill_diagonal(chord, np.inf)
        a, b = np.unravel_index(int(chord.argmin()), chord.shape)
        i, j = sorted((alive[int(a)], alive[int(b)]))
        angle = 2 * np.arcsin(min(float(chord.min()) / 2, 1.0))
        if angle > contact:
            if angle > np.pi - 1e-9:
                raise ValueError(
                    "pairing_sequence: the last two clusters are antipodal, an equilibrium; move one a little."
                )
            took = pairing_log_time(angle, beta, m[i], m[j], float(m[alive].sum()), contact=contact)
            log_time = float(np.logaddexp(log_time, took))
        points[i] = _between(points[i], points[j], m[j] / (m[i] + m[j]), angle)
        m[i] += m[j]
        alive.remove(j)
        out.append(Merge(log_time, (i, j), tuple(float(m[k]) for k in alive)))
    return out


def _between(x: np.ndarray, y: np.ndarray, share: float, angle: float) -> np.ndarray:
    """The point of the great arc from x at this share of the angle."""
    if angle < 1e-8:
        out = (1 - share) * x + share * y
    else:
        out = np.sin((1 - share) * angle) * x + np.sin(share * angle) * y
    return out / np.linalg.norm(out)


def _check(what: str, m1: float, m2: float, total: float) -> None:
    if not (m1 > 0 and m2 > 0 and total >= (m1 + m2) * (1 - 1e-12)):
        raise ValueError(
            f"{what}: masses are {m1} and {m2} of a total {total}; expected positive masses within the total."
        )
