"""Long contexts: one layer on n equiangular tokens as n grows, with ``beta_n = gamma log n``.

Attention alone (no residual branch) sends inner products rho to

    ======================  ==================
    gamma                   limit for n -> inf
    ======================  ==================
    ``< 1/(1 - rho)``       1: rank collapse in a single layer
    ``= 1/(1 - rho)``       ``4 rho / (1 + 3 rho)``
    ``> 1/(1 - rho)``       rho: attention is the identity
    ======================  ==================

Source: 2510.05554 (critical scaling); the value at the threshold checked here against the exact finite n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Model, Numbers, check_count, check_model, check_range, floats, plain
from .layer_map import layer_gap


def critical_gamma(rho: ArrayLike) -> Numbers:
    """``1 / (1 - rho)``, where the limit jumps."""
    check_range("critical_gamma", "rho", rho, 0.0, 1 - 1e-16)
    return plain(1 / (1 - floats(rho)))


def long_context_cosine(rho: ArrayLike, gamma: ArrayLike) -> Numbers:
    """The limit of the output inner product for n -> inf; rho in [0, 1), ``gamma = beta_n / log n``.

    The threshold itself is met to 12 digits.
    """
    critical = floats(critical_gamma(rho))
    r, g = np.broadcast_arrays(floats(rho), floats(gamma))
    at = np.isclose(g, critical, rtol=1e-12, atol=0)
    return plain(np.where(at, 4 * r / (1 + 3 * r), np.where(g < critical, 1.0, r)))


def attention_cosine(rho: ArrayLike, beta: float, n: int, *, model: Model = "SA") -> Numbers:
    """The output inner product of attention without a residual branch at finite n, exactly."""
    check_model("attention_cosine", model)
    check_count("attention_cosine", "n", n, 2)
    return plain(1 - floats(layer_gap(1 - floats(rho), beta, n, np.inf, model=model)))
