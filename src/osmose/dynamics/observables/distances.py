"""How far tokens are from each other, without the floor of ``1 - <x, y>`` near consensus.

On the sphere ``1 - <x, y> = |x - y|^2 / 2``. The left side cannot be told from 0 below 1.8e-7 in float32; the right one,
from differences, keeps its relative precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._points import distances, tiles, weighted


def gap(x: Tensor, y: Tensor) -> Tensor:
    """``1 - <x, y>`` of unit vectors ``(..., d)``, as ``|x - y|^2 / 2``: ``(...)``."""
    return (x - y).square().sum(-1) / 2


def gaps(x: Tensor, y: Tensor | None = None) -> Tensor:
    """``1 - <x_i, y_j>`` of all pairs of unit vectors, ``(..., n, m)``; y None is x. Time and memory n m (d)."""
    return distances(x, x if y is None else y).square() / 2


def diameter(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """``max_ij |x_i - x_j|`` over present tokens, ``(...)``; 0 for none. Time ``n^2 d / 2``, memory a tile."""
    return _extreme(x, mass, largest=True)


def closest(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """``min_{i != j} |x_i - x_j|`` over present tokens, ``(...)``; inf for fewer than two. Cost as :func:`diameter`.

    A mass of 2 or more is two tokens at one place, so 0.
    """
    out = _extreme(x, mass, largest=False)
    if mass is None:
        return out
    return torch.where((weighted("closest", x, mass)[1] >= 2).any(-1), 0.0, out)


def nearest(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """``min_{j != i} |x_i - x_j|`` of every token over the others, ``(..., n)``; inf for a lone or absent one.

    A mass of 2 or more is two tokens at one place, so 0. Time ``n^2 d``, memory a tile.
    """
    lead, n = x.shape[:-2], x.shape[-2]
    x, m = weighted("nearest", x, mass)
    x_PNd, m_PN = x.reshape(-1, n, x.shape[-1]), m.reshape(-1, n)
    out = x.new_full(m_PN.shape, torch.inf)
    for p, i, j in tiles(x_PNd.shape[0], n, n, x.device):
        away = distances(x_PNd[p, i], x_PNd[p, j])
        absent = ~((m_PN[p, i] > 0).unsqueeze(-1) & (m_PN[p, j] > 0).unsqueeze(-2))
        if i.start == j.start:
            absent = absent | torch.eye(away.shape[-1], dtype=torch.bool, device=x.device)
        out[p, i] = torch.minimum(out[p, i], away.masked_fill(absent, torch.inf).amin(-1))
    return torch.where(m_PN >= 2, 0.0, out).view(*lead, n)


def _extreme(x: Tensor, mass: Tensor | None, *, largest: bool) -> Tensor:
    lead, n = x.shape[:-2], x.shape[-2]
    x, m = weighted("diameter" if largest else "closest", x, mass)
    x_PNd, here_PN = x.reshape(-1, n, x.shape[-1]), (m > 0).reshape(-1, n)
    out = x.new_full(x_PNd.shape[:1], 0.0 if largest else torch.inf)
    for p, i, j in tiles(x_PNd.shape[0], n, n, x.device, upper=True):
        away = distances(x_PNd[p, i], x_PNd[p, j])
        valid = here_PN[p, i].unsqueeze(-1) & here_PN[p, j].unsqueeze(-2)
        if largest:
            out[p] = torch.maximum(out[p], away.masked_fill(~valid, 0.0).amax((-1, -2)))
            continue
        if i.start == j.start:
            valid = valid & ~torch.eye(away.shape[-1], dtype=torch.bool, device=x.device)
        out[p] = torch.minimum(out[p], away.masked_fill(~valid, torch.inf).amin((-1, -2)))
    return out.view(lead)
