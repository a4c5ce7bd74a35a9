"""Exponential rates of the last approach, and of what bounds it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Model, Numbers, check_count, check_model, floats, plain


def consensus_rate(beta: ArrayLike, *, model: Model = "SA", scaled: bool = False) -> Numbers:
    """``lambda`` in ``1 - <x_i, x_j> ~ e^{-lambda t}`` near consensus: 2 (SA), ``2 e^beta`` (USA). Distances: half of it.

    ``scaled`` is USA on the clock ``e^beta t``: 2 as well. Any n, d, Q = K = V = I.
    Source: the linearisation at consensus, derived here; 2312.10794v5, 6.4, proves some rate.
    """
    check_model("consensus_rate", model)
    b = floats(beta)
    with np.errstate(over="ignore"):
        return plain(2.0 * (np.ones_like(b) if model == "SA" or scaled else np.exp(b)))


def hemisphere_rate_bound(beta: ArrayLike, n: int) -> Numbers:
    """``1 / (2 n e^{2 beta})``: the rate in the proof for tokens of an open hemisphere (SA), far below the true 2.

    Source: 2312.10794v5, statement 6.4.
    """
    check_count("hemisphere_rate_bound", "n", n, 1)
    return plain(np.exp(-2 * floats(beta)) / (2 * n))


MEAN_FIELD_RATE = 1 / 100
"""``W2(mu_t, delta) <= C e^{-t/100}`` for small |beta|, a square-integrable density and a mean that is not 0 (2504.14697)."""
