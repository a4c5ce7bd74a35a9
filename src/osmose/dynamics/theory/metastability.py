r"""Metastability: bounds of the collapse inside a cap, and the staircase of the energy.

Source: 2410.06833. The plateaux are exact: clusters that do not see each other have the normalised energy
``2 beta e^{-beta} E = sum_k (m_k / n)^2`` up to ``e^{-beta (1 - c)}``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Numbers, check_count, check_range, floats, plain


def plateau_energy(masses: ArrayLike) -> float:
    """``sum_k (m_k / sum m)^2``: the normalised energy ``2 beta e^{-beta} E`` of far clusters with these masses."""
    m = floats(masses)
    if m.ndim != 1 or not m.size or bool((m <= 0).any()):
        raise ValueError(f"plateau_energy: masses are {masses!r}; expected a list of positive numbers.")
    return float((m**2).sum() / m.sum() ** 2)


def staircase_plateaux(merges: Sequence[tuple[int, int]], n: int) -> list[float]:
    """The plateaux of the normalised energy, from n tokens through a sequence of merges.

    Args:
        merges: pairs ``(i, j)`` of tokens whose clusters meet, in order.
        n: tokens.

    Five tokens of which 0 and 1 meet, then 2, then 3 and 4, then all: .20 .28 .44 .52 1.
    """
    check_count("staircase_plateaux", "n", n, 1)
    label = list(range(n))
    out = [1 / n]
    for i, j in merges:
        if not (0 <= i < n and 0 <= j < n) or label[i] == label[j]:
            raise ValueError(
                f"staircase_plateaux: merge ({i}, {j}); expected tokens 0 to {n - 1} of two clusters that have not met."
            )
        label = [label[i] if c == label[j] else c for c in label]
        out.append(plateau_energy([label.count(c) for c in set(label)]))
    return out


def collapse_velocity(u: ArrayLike, beta: float) -> Numbers:
    """``u' = u (1-u) e^{beta (u-1)}`` for u in [0, 1]: the comparison equation of the collapse lemma."""
    check_range("collapse_velocity", "u", u, 0.0, 1.0)
    x = floats(u)
    return plain(x * (1 - x) * np.exp(beta * (x - 1)))


def collapse_time(u0: float, beta: float, c: float) -> float:
    """When the solution of :func:`collapse_velocity` from u0 reaches ``1 - e^{-c beta}``, by quadrature."""
    from scipy.integrate import quad

    _check_collapse("collapse_time", u0, beta, c)
    if 1 - u0 <= np.exp(-c * beta):
        return 0.0

    def pace(s: float) -> float:  # in s = -log(1 - u), du / (1 - u) = ds
        gap = np.exp(-s)
        return float(np.exp(beta * gap) / (1 - gap))

    return float(quad(pace, -np.log1p(-u0), c * beta, epsabs=0, epsrel=1e-11, limit=500)[0])


def collapse_time_bound(u0: float, beta: float, c: float) -> float:
    """The collapse lemma: ``1 - e^{-c beta}`` is hit before ``e^{beta(1-u0)}/u0 + beta^2 c e / (beta - 1)``, beta > 1.

    Source: 2410.06833.
    """
    _check_collapse("collapse_time_bound", u0, beta, c)
    return float(np.exp(beta * (1 - u0)) / u0 + beta**2 * c * np.e / (beta - 1))


def cap_velocity_bound(rho: ArrayLike, beta: float, n: int, alpha: float) -> Numbers:
    """A lower bound of ``d/dt`` of the least inner product rho inside a cap, with other caps at products below alpha:

    ``(2/n) rho (1-rho) e^{beta(rho-1)} - 2 n e^{-(1-alpha) beta}``. Source: 2410.06833 (SA).
    """
    check_count("cap_velocity_bound", "n", n, 1)
    r = floats(rho)
    own = 2 / n * r * (1 - r) * np.exp(beta * (r - 1))
    return plain(own - 2 * n * np.exp(-(1 - alpha) * beta))


def _check_collapse(what: str, u0: float, beta: float, c: float) -> None:
    if not (0 < u0 < 1 and beta > 1 and c > 0):
        raise ValueError(
            f"{what}: u0 is {u0}, beta {beta}, c {c}; expected u0 inside (0, 1), beta > 1 and c > 0."
        )
