"""Random points of the sphere: hemispheres and centres."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, gammaln, logsumexp

from ._arrays import Numbers, check_count, floats, plain


def hemisphere_probability(n: int, d: int, *, log: bool = False) -> float:
    """Wendel's theorem: n independent uniform points of S^{d-1} lie in one open hemisphere with probability

    ``2^{-(n-1)} sum_{k < d} C(n-1, k)``; 1 for n <= d.

    Holds for any distribution symmetric about 0 that puts points in general position. Source: Wendel (1962); used with
    2312.10794v5, statement 6.4 (a hemisphere is enough for exponential clustering).
    """
    check_count("hemisphere_probability", "n", n, 1)
    check_count("hemisphere_probability", "d", d, 1)
    if n <= d:
        return 0.0 if log else 1.0
    if n <= 500 and not log:
        return float(sum(math.comb(n - 1, k) for k in range(d)) / 2 ** (n - 1))
    k = np.arange(d)
    terms = gammaln(n) - gammaln(k + 1) - gammaln(n - k)
    value = float(logsumexp(terms)) - (n - 1) * math.log(2)
    return min(value, 0.0) if log else min(math.exp(value), 1.0)


def cap_measure(angle: ArrayLike, d: int) -> Numbers:
    """Share of S^{d-1} within a geodesic angle in [0, pi] of a point: ``angle/pi`` (d = 2), ``(1 - cos angle)/2`` (d = 3)."""
    check_count("cap_measure", "d", d, 2)
    a = floats(angle)
    if bool(((a < 0) | (a > np.pi)).any()):
        raise ValueError(f"cap_measure: angle is {angle!r}; expected radians from 0 to pi.")
    half = betainc((d - 1) / 2, 0.5, np.sin(a) ** 2) / 2
    return plain(np.where(a <= np.pi / 2, half, 1 - half))


def expected_strong_centres(n: int, delta: ArrayLike, d: int) -> Numbers:
    """``(1 - (1-p)^n) / p``: expected number of strong Renyi centres of n independent uniform tokens.

    A strong centre is farther than the angle delta from every earlier token; p is the measure of the cap of radius delta.
    The centres of causal attention, with ``delta ~ c / sqrt beta``. Source: 2411.04990; the expectation is derived here.
    Errata: 2411.04990 has a sign to correct in its condition for fixed centres (reported).
    """
    check_count("expected_strong_centres", "n", n, 0)
    p = floats(cap_measure(delta, d))
    some = np.where(p > 0, p, 1.0)
    return plain(np.where(p > 0, -np.expm1(n * np.log1p(-np.minimum(some, 1 - 1e-16))) / some, float(n)))


def merging_dimension_log2(n: int) -> float:
    """log2 of the dimension from which theorem 6.9 says something: ``d > (2 n^2)^64``, 704 bits for n = 32.

    The theorem holds with probability at least ``1 - 2 n^2 d^{-1/64}``: vacuous at any dimension in use, though the
    ``d^{-1/2}`` scaling that it states is seen. Source: 2312.10794v5, theorem 6.9.
    """
    check_count("merging_dimension_log2", "n", n, 1)
    return 64 * (1 + 2 * math.log2(n))


def equiangular_deviation_bound(t: ArrayLike, n: int, d: ArrayLike, beta: float) -> Numbers:
    """The growing half of theorem 6.9: ``|<x_i, x_j> - rho(t)| <= 2 c^{n t} sqrt(log d / d)``, ``c = e^{10 max(1, beta)}``.

    inf where it overflows: it is vacuous but for ``t`` of order ``log d / (n beta)``. The other half is
    ``C e^{-lambda t}`` with constants that are not explicit. Source: 2312.10794v5, theorem 6.9.
    """
    check_count("equiangular_deviation_bound", "n", n, 2)
    size = floats(d)
    with np.errstate(over="ignore"):
        return plain(2 * np.exp(10 * max(1.0, beta) * n * floats(t)) * np.sqrt(np.log(size) / size))
