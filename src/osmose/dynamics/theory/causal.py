r"""Causal attention, V = I: token k takes from tokens j <= k, so the first one stays and all go to it.

Near consensus the distances y_k to token 1 follow ``y_k' = (1/k) sum_{j <= k} y_j - y_k``: a triangular system with
eigenvalues ``-(1 - 1/k)``. The slowest, that of token 2, is 1/2 and drives all later ones.

Source: 2411.04990 (limits, for any Q and K); the rates are derived here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Numbers, check_count, plain

CAUSAL_RATE = 0.5
"""The rate at which distances to the first token fall near consensus: ``min_{k >= 2} (1 - 1/k)``."""


def causal_rate(token: ArrayLike) -> Numbers:
    """``1 - 1/k``: the rate of token k (from 1) were all earlier ones at the first; the slowest present is 1/2."""
    k = np.asarray(token, dtype=np.float64)
    if bool(((k < 1) | (k != np.round(k))).any()):
        raise ValueError(
            f"causal_rate: token is {token!r}; expected integers from 1, the place in the order."
        )
    return plain(1 - 1 / k)


def causal_linearisation(n: int) -> np.ndarray:
    """The matrix ``(n, n)`` of the distances near consensus, ``y' = M y``: lower triangular, ``M = L - I``, L_kj = 1/k."""
    check_count("causal_linearisation", "n", n, 1)
    k = np.arange(1, n + 1)[:, None]
    return np.tril(np.ones((n, n))) / k - np.eye(n)
