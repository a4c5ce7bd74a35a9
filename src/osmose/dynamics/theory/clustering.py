"""Which inverse temperatures provably bring almost every start to one cluster, and which do not."""

from __future__ import annotations

from typing import Literal

from ._arrays import check_count

CIRCLE_PROVED_FROM, CIRCLE_FALSE_BELOW = -0.16, -2 / 3


def clustering_status(beta: float, d: int) -> Literal["theorem", "false", "open"]:
    """Whether almost every start of SA or USA (Q = K = V = I) ends in a single cluster.

    ``theorem``: d >= 3 and beta >= 0 (Markdahl et al. 2017; Criscitiello et al. 2024; supersedes 2312.10794v5, theorems 4.1
    to 5.1), d = 2 and beta >= -0.16 (2507.22857). ``false``: d = 2 and beta < -2/3, where three equal clusters 120 degrees
    apart are stable (derived: :func:`~osmose.dynamics.theory.ring_spectrum`). ``open``: everything else, as of 2025.
    """
    check_count("clustering_status", "d", d, 2)
    if d == 2:
        if beta < CIRCLE_FALSE_BELOW:
            return "false"
        return "theorem" if beta >= CIRCLE_PROVED_FROM else "open"
    return "theorem" if beta >= 0 else "open"
