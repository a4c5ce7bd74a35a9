r"""Eigenvalues of the kernel ``e^{beta <x, y>}`` on the sphere, in logarithms: no beta overflows, no dimension underflows.

By Funk and Hecke a spherical harmonic of degree l on S^{d-1} is an eigenfunction of the kernel under the uniform
probability measure, with eigenvalue

.. math:: a_l = \Gamma(d/2) (2/\beta)^{d/2-1} I_{l + d/2 - 1}(\beta), \qquad a_l(-\beta) = (-1)^l a_l(\beta).
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, ive, logsumexp

TINY = 1e-280  # below it ive has lost digits, or is 0


def log_iv(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``log I_order(x)`` for x >= 0 and order >= 0 (-inf at x = 0 for order > 0), relative error of I near 1e-13."""
    order, x = np.broadcast_arrays(np.asarray(order, float), np.asarray(x, float))
    scaled = ive(order, x)
    out = np.array(np.log(np.where(scaled > TINY, scaled, 1.0)) + x)
    small = ~(scaled > TINY)
    if small.any():
        out[small] = _log_series(order[small], x[small])
    return out


def _log_series(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The power series, whose terms are all positive; it is short where the order is large beside x."""
    with np.errstate(divide="ignore"):
        half = np.log(x / 2)
    # the terms (x/2)^{2k} / (k! (order+1)_k) peak at k (k + order) = x^2/4 and then fall fast
    peak = (np.sqrt(order**2 + x**2) - order) / 2
    count = int(np.max(peak + 12 * np.sqrt(peak + 1) + 30, initial=30.0))
    k = np.arange(count)[:, None]
    with np.errstate(invalid="ignore"):
        terms = np.where(k > 0, 2 * k * half, 0.0) - gammaln(k + 1) - gammaln(order + k + 1)
    return np.where(order > 0, order, 0.0) * np.where(order > 0, half, 0.0) + logsumexp(terms, axis=0)


def log_eigenvalue(degree: np.ndarray, beta: np.ndarray, d: int) -> np.ndarray:
    """``log |a_l(beta)|``; at beta = 0 it is 0 for l = 0, else -inf."""
    degree, beta = np.broadcast_arrays(np.asarray(degree, float), np.abs(np.asarray(beta, float)))
    nu = d / 2 - 1
    safe = np.where(beta > 0, beta, 1.0)
    out = gammaln(d / 2) + nu * np.log(2 / safe) + log_iv(degree + nu, safe)
    return np.where(beta > 0, out, np.where(degree == 0, 0.0, -np.inf))
