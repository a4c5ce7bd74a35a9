"""Inner products of all pairs, as counts: nothing of size n x n is kept.

A mass counts tokens that are at one place: mass 2 is two tokens, mass 0 none. A pair of a token with itself is counted
where ``diagonal`` is set.

Shapes: ``x (..., n, d)``, ``mass (..., n)``. Time ``n^2 d / 2``, memory a tile of 512 x 512 and the bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._points import distances, tiles, weighted


@dataclass(frozen=True, eq=False)
class Histogram:
    """Shares of pairs by inner product.

    Attributes:
        edges: ``(bins + 1,)``; the last bin holds its upper edge, and what rounding puts outside goes to the end bins.
        share: ``(..., bins)``, which sum to 1; 0 for a state without pairs.
        pairs: ``(...)``, how many ordered pairs there are.
    """

    edges: Tensor
    share: Tensor
    pairs: Tensor

    @property
    def centres(self) -> Tensor:
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def density(self) -> Tensor:
        """Shares over bin widths."""
        return self.share / self.edges.diff()


def product_histogram(
    x: Tensor,
    bins: int = 100,
    *,
    low: float = -1.0,
    high: float = 1.0,
    mass: Tensor | None = None,
    diagonal: bool = False,
) -> Histogram:
    """The histogram of ``<x_i, x_j>`` over all pairs, in ``bins`` equal bins from ``low`` to ``high``.

    Raises:
        ValueError: no bins, an empty range; without the diagonal, a mass between 0 and 1.
    """
    if bins < 1 or not low < high:
        raise ValueError(
            f"product_histogram: bins is {bins} from {low} to {high}; expected at least one bin and low < high."
        )

    def count(products: Tensor, weight: Tensor) -> Tensor:
        slot = ((products - low) * (bins / (high - low))).floor_().clamp_(0, bins - 1).long()
        states = products.shape[0]
        slot += bins * torch.arange(states, device=x.device).view(-1, 1, 1)
        return torch.bincount(slot.flatten(), weight.flatten(), states * bins).view(states, bins)

    counts = _over_pairs("product_histogram", x, mass, diagonal, bins, count, exact=False)
    pairs = counts.sum(-1)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64, device=x.device)
    return Histogram(edges, counts / torch.where(pairs > 0, pairs, 1.0).unsqueeze(-1), pairs)


def close_share(
    x: Tensor, gap: float = 1e-3, *, mass: Tensor | None = None, diagonal: bool = False
) -> Tensor:
    """The share of pairs with ``1 - <x_i, x_j> <= gap`` on the sphere, ``(...)``: what phase diagrams show.

    Below ``1e4`` times the precision of the type it is decided by ``|x_i - x_j|^2 / 2``, which has no floor.
    """
    exact = gap < 1e4 * torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps

    def count(value: Tensor, weight: Tensor) -> Tensor:
        close = value <= gap if exact else value >= 1 - gap
        weight = weight.expand(close.shape)
        return torch.stack([torch.where(close, weight, 0.0).sum((-1, -2)), weight.sum((-1, -2))], -1)

    close, pairs = _over_pairs("close_share", x, mass, diagonal, 2, count, exact=exact).unbind(-1)
    return close / torch.where(pairs > 0, pairs, 1.0)


def mean_product(x: Tensor, mass: Tensor | None = None, *, diagonal: bool = False) -> Tensor:
    r"""The mean of ``<x_i, x_j>`` over pairs, ``(...)``; 0 for a state without pairs. Time n d, no pair is formed.

    ``(|sum m_i x_i|^2 - sum m_i |x_i|^2) / (M^2 - M)``, with the diagonal ``|sum m_i x_i|^2 / M^2``: there the square of
    ``order_parameter``. Of independent uniform tokens on the sphere it has mean 0 and deviation ``sqrt(2 / (n (n - 1) d))``.
    """
    x, m = weighted("mean_product", x, mass)
    _refuse_parts("mean_product", m, diagonal)
    sums = (m.unsqueeze(-1) * x).sum(-2).square().sum(-1)
    pairs = m.sum(-1).square()
    if not diagonal:
        sums = sums - (m * x.square().sum(-1)).sum(-1)
        pairs = pairs - m.sum(-1)
    return sums / torch.where(pairs > 0, pairs, 1.0)


def _refuse_parts(what: str, m: Tensor, diagonal: bool) -> None:
    if not diagonal and bool(((m > 0) & (m < 1)).any()):
        raise ValueError(
            f"{what}: mass holds {float(m[(m > 0) & (m < 1)].min()):.4g}; without the diagonal masses count tokens, expected 0 or "
            "at least 1. Pass diagonal=True for weights."
        )


def _over_pairs(
    what: str,
    x: Tensor,
    mass: Tensor | None,
    diagonal: bool,
    width: int,
    count: Callable[[Tensor, Tensor], Tensor],
    *,
    exact: bool,
) -> Tensor:
    """Sums of ``count(values, weights)`` over tiles, float64 ``(..., width)``; each unordered pair is visited once."""
    lead, n = x.shape[:-2], x.shape[-2]
    x, m = weighted(what, x, mass)
    _refuse_parts(what, m, diagonal)
    x_PNd, m_PN = x.reshape(-1, n, x.shape[-1]), m.reshape(-1, n).double()
    out = torch.zeros(x_PNd.shape[0], width, dtype=torch.float64, device=x.device)
    for p, i, j in tiles(x_PNd.shape[0], n, n, x.device, upper=True):
        a, b = x_PNd[p, i], x_PNd[p, j]
        values = distances(a, b).square() / 2 if exact else a @ b.mT
        weight = m_PN[p, i].unsqueeze(-1) * m_PN[p, j].unsqueeze(-2)
        if i.start != j.start:
            weight = 2 * weight
        elif not diagonal:
            weight = weight - torch.diag_embed(m_PN[p, i])
        out[p] += count(values, weight)
    return out.view(*lead, width)
