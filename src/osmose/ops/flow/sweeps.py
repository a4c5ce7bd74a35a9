"""The sweeps of Flow-Attention: sums over tokens, block by block, with the feature map made anew in every sweep.

A block is some rows of one side, targets or sources, of a group of sets. What a sweep finds is a vector for every set
and head, a matrix ``T``, or a number for every token. Letters as in README.md; all sums are means.

Shapes: ``H`` heads, ``L`` rows of a block, ``d`` key and ``c`` value channels, ``G`` sets of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..blocks import Block, Workspace, add_product, pieces
from .features import Feature


class Rows:
    """One block of a side: its features, and what passes between its tokens and their sets."""

    def __init__(self, side: Side, block: Block):
        self.side, self.block, self.span = side, block, slice(block.start, block.stop)
        self.ids: Tensor | None = None
        if len(block.sizes) > 1:
            sets = torch.tensor(block.sets, device=side.x.device)
            sizes = torch.tensor(block.sizes, device=side.x.device)
            self.ids = sets.repeat_interleave(sizes, output_size=block.stop - block.start)
        self.mass = None if side.mass is None else side.mass[self.span]

    def load(self, name: str, x: Tensor) -> Tensor:
        """Rows ``(H, L, width)`` in the type of the sums; those of mass 0 hold zeros."""
        rows, absent = x[:, self.span], self.side.absent
        if absent is None and rows.dtype == self.side.work.dtype:
            return rows
        rows = self.side.work.get(name, *rows.shape[-2:]).copy_(rows)
        return rows if absent is None else rows.masked_fill_(absent[self.span].unsqueeze(-1), 0.0)

    def features(self) -> tuple[Tensor, Tensor]:
        """Points and their features, ``(H, L, d)``; the features are in a buffer that may be overwritten."""
        x = self.load("points", self.side.x)
        y = self.side.work.get("features", *x.shape[-2:])
        self.side.feature.write(x, y)
        return x, y

    def new_features(self) -> Tensor:
        """Features to read only, kept for :meth:`known_features` where there is room."""
        room = self.side.room
        if room is None:
            return self.features()[1]
        self.side.feature.write(self.load("points", self.side.x), room[:, self.span])
        return room[:, self.span]

    def known_features(self) -> Tensor:
        """What :meth:`new_features` of this block gave, or the same again."""
        return self.features()[1] if self.side.room is None else self.side.room[:, self.span]

    def slot(self, name: str, x: Tensor) -> Tensor:
        """Where to compute rows of a result: in place, or in a buffer if the result is in half precision."""
        rows = x[:, self.span]
        return rows if rows.dtype == self.side.work.dtype else self.side.work.get(name, *rows.shape[-2:])

    def store(self, rows: Tensor, x: Tensor) -> None:
        if x.dtype != rows.dtype:
            x[:, self.span] = rows

    def weigh(self, w: Tensor) -> Tensor:
        """A number of every token ``(H, L)`` times its mass."""
        return w if self.mass is None else w * self.mass

    def present(self, w: Tensor) -> Tensor:
        """``(H, L)`` with 0 at tokens of mass 0."""
        return w if self.side.absent is None else w.masked_fill(self.side.absent[self.span], 0.0)

    def at(self, of_sets: Tensor) -> Tensor:
        """Numbers of the sets ``(G, H or 1)`` at their tokens, ``(H or 1, L or 1)``."""
        return of_sets[self.block.sets[0]].unsqueeze(-1) if self.ids is None else of_sets[self.ids].mT

    def dot(self, y: Tensor, vectors: Tensor) -> Tensor:
        """``y_i . u`` with the vector ``u`` of the token's set, ``(G, H, d)`` to ``(H, L)``."""
        s = self.block.sets[0]
        u = vectors[s].unsqueeze(-2) if self.ids is None else vectors[self.ids].transpose(0, 1)
        # faster than a product with a column
        return torch.mul(y, u, out=self.side.work.get("products", *y.shape[-2:])).sum(-1)

    def add_sum(self, y: Tensor, weight: Tensor | None, out: Tensor, shift: float = 0.0) -> None:
        """``out (G, H, d) += sum_i w_i (y_i + shift)`` for every set; ``weight (H, L)`` or ``(L,)``."""
        if self.ids is None:
            s = self.block.sets[0]
            if weight is None:
                out[s] += y.sum(-2)
                return
            weight = weight.expand(y.shape[:-1])
            out[s] += torch.bmm(weight.unsqueeze(-2), y).squeeze(-2)
            if shift:
                out[s] += shift * weight.sum(-1, keepdim=True)
        else:
            y = y + shift if shift else y
            y = y if weight is None else y * weight.unsqueeze(-1)
            out.index_add_(0, self.ids, y.transpose(0, 1))

    def sums(self, w: Tensor, like: Tensor) -> Tensor:
        """Sums of ``(H, L)`` over every set, ``(G, H)``."""
        if self.ids is None:
            out = torch.zeros_like(like)
            out[self.block.sets[0]] = w.sum(-1)
            return out
        return torch.zeros_like(like).index_add_(0, self.ids, w.mT)

    def peaks(self, w: Tensor, like: Tensor) -> Tensor:
        """Largest of ``(H, L)`` in every set, ``(G, H)``; -inf where the block has no token of it."""
        out = torch.full_like(like, -torch.inf)
        if self.ids is None:
            out[self.block.sets[0]] = w.amax(-1)
            return out
        return out.scatter_reduce(0, self.ids.unsqueeze(-1).expand(w.mT.shape), w.mT, "amax")

    def add_outer(self, out: Tensor, *terms: tuple[Tensor, Tensor]) -> None:
        """``out_i += sum_t w_ti u_t`` for pairs of numbers ``(H, L)`` and vectors of the sets ``(G, H, d)``."""
        if self.ids is None:
            s = self.block.sets[0]
            weights = torch.stack([w.expand(out.shape[:-1]) for w, _ in terms], -1)
            add_product(out, weights, torch.stack([u[s] for _, u in terms], -2))
        else:
            for w, u in terms:
                out.addcmul_(w.unsqueeze(-1), u[self.ids].transpose(0, 1))

    def by_set(self, *tensors: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """The pieces of every set of the block: which set, and the rows of each tensor."""
        parts = (pieces(x, self.block) for x in tensors)
        return zip(self.block.sets, zip(*parts, strict=True), strict=True)


class Side:
    """Targets or sources: points ``(H, N, d)``, masses ``(N,)`` or None, the feature map, and room for features."""

    def __init__(
        self, x: Tensor, mass: Tensor | None, feature: Feature, work: Workspace, room: Tensor | None = None
    ):
        self.x, self.feature, self.work, self.room = x, feature, work, room
        self.mass = None if mass is None else mass.clamp(min=0).to(work.dtype)
        absent = None if mass is None else mass <= 0
        self.absent = absent if absent is not None and bool(absent.any()) else None

    def total(self, ptr: Tensor) -> Tensor:
        """Masses of all sets, ``(S, 1)``."""
        if self.mass is None:
            total = ptr.diff().to(self.x.device, self.work.dtype)
        else:
            sizes = ptr.diff().to(self.x.device)
            ids = torch.arange(len(sizes), device=self.x.device).repeat_interleave(
                sizes, output_size=self.x.shape[1]
            )
            total = self.mass.new_zeros(len(sizes)).index_add_(0, ids, self.mass)
        return total.unsqueeze(-1)


def safe_inverse(x: Tensor) -> Tensor:
    """``1 / x``, and 0 with gradient 0 where x is not positive or too small for the inverse to be finite."""
    some = x > torch.finfo(x.dtype).tiny
    return torch.where(some, torch.where(some, x, 1.0).reciprocal(), 0.0)
