"""Renyi centres: a packing of the tokens in their order, which causal attention keeps in place.

Shapes: ``x (..., n, d)`` on the sphere, ``mass (..., n)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._points import distances, tiles, weighted


def renyi_centres(x: Tensor, delta: float, mass: Tensor | None = None, *, strong: bool = False) -> Tensor:
    """Which tokens are centres: farther than the angle delta from every earlier centre (``strong``: earlier token).

    Args:
        delta: geodesic angle in (0, pi]; for attention of order ``1/sqrt(beta)``.
        mass: tokens of mass 0 are passed over.

    Returns:
        ``(..., n)`` bool. Strong centres are centres.

    Cost: ``K n d`` time for K centres; strong ``n^2 d / 2`` and a tile.
    Source: 2411.04990; the expected number of strong ones is ``theory.expected_strong_centres``.
    """
    if not 0 < delta <= math.pi:
        raise ValueError(f"renyi_centres: delta is {delta}; expected an angle in (0, pi].")
    x, m = weighted("renyi_centres", x.detach(), mass)
    lead, n, d = x.shape[:-2], x.shape[-2], x.shape[-1]
    x_PNd, here_PN = x.reshape(-1, n, d), (m > 0).reshape(-1, n)
    chord = 2 * math.sin(delta / 2)
    if strong:
        return (here_PN & ~_has_close_predecessor(x_PNd, here_PN, chord)).view(*lead, n)
    out = torch.zeros_like(here_PN)
    free = here_PN.clone()  # not yet near a centre
    state = torch.arange(len(x_PNd), device=x.device)
    while bool(free.any()):
        some, first = free.max(-1)  # the first free token of every state that has one
        out[state[some], first[some]] = True
        centre = x_PNd[state, first].unsqueeze(-2)
        free &= ~((distances(x_PNd, centre).squeeze(-1) <= chord) & some.unsqueeze(-1))
        free[state[some], first[some]] = False
    return out.view(*lead, n)


def _has_close_predecessor(x: Tensor, here: Tensor, chord: float) -> Tensor:
    out = torch.zeros_like(here)
    n = x.shape[-2]
    order = torch.arange(n, device=x.device)
    for p, i, j in tiles(len(x), n, n, x.device, upper=True):  # sources i come before targets j
        near = distances(x[p, i], x[p, j]) <= chord
        near &= here[p, i].unsqueeze(-1) & (order[i].unsqueeze(-1) < order[j])
        out[p, j] |= near.any(-2)
    return out
