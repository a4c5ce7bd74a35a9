"""What the observables share: points with masses, and pairs visited tile by tile.

Shapes: ``...`` leading dimensions (a batch of states), flattened to ``P``; ``n`` tokens, ``d`` coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...tokens import Tokens

TILE = 512  # tokens on a side of a tile on a CPU
TILE_GPU = 4096
ENTRIES = 2**22  # numbers in all tiles that are formed at once


def weighted(what: str, x: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
    """Wide points ``(..., n, d)`` and masses ``(..., n)`` of the same leading shape; absent tokens are put to 0."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(
            f"{what}: x is {x.dtype} of shape {tuple(x.shape)}; expected floats (..., n, d), n tokens in R^d."
        )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if mass is None:
        return x, x.new_ones(x.shape[:-1])
    m = Tokens.of(x, mass=mass).mass
    assert m is not None
    m = m.to(device=x.device, dtype=x.dtype).expand(x.shape[:-1])
    return torch.where((m > 0).unsqueeze(-1), x, 0.0), m


def inverse_temperature(what: str, beta: float | Tensor, x: Tensor) -> Tensor:
    """beta as a tensor that broadcasts with the leading dimensions of ``x (..., n, d)``."""
    b = torch.as_tensor(beta, dtype=x.dtype, device=x.device)
    try:
        fits = torch.broadcast_shapes(b.shape, x.shape[:-2]) == x.shape[:-2]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{what}: beta has shape {tuple(b.shape)}; expected one number, or one for each of the states "
            f"{tuple(x.shape[:-2])}."
        )
    return b


def total(m: Tensor) -> Tensor:
    """Total mass ``(...)``, 1 where there is none (what it divides is 0 then)."""
    s = m.sum(-1)
    return torch.where(s > 0, s, 1.0)


def mean(x: Tensor, m: Tensor) -> Tensor:
    """Mean over tokens of ``(..., n)`` or ``(..., n, c)`` under the mass."""
    if x.ndim == m.ndim:
        return (m * x).sum(-1) / total(m)
    return (m.unsqueeze(-1) * x).sum(-2) / total(m).unsqueeze(-1)


def tiles(
    states: int, rows: int, columns: int, device: torch.device, *, upper: bool = False
) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of states, rows and columns that cover all pairs; with ``upper`` only tiles on and above the diagonal."""
    side = TILE if device.type == "cpu" else TILE_GPU
    height, width = min(side, max(rows, 1)), min(side, max(columns, 1))
    depth = max(1, ENTRIES // (height * width))
    for p in range(0, states, depth):
        for i in range(0, rows, height):
            for j in range(i if upper else 0, columns, width):
                yield slice(p, p + depth), slice(i, i + height), slice(j, j + width)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|`` by differences: relative, not absolute precision. ``(..., n, m)``."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
