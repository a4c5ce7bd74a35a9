"""Low-rank operators: feature maps of targets times feature maps of sources, at linear cost."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens, check_pair
from .base import Cost, Operator


class LowRank(Operator):
    """``L R^T`` with ``left (..., n, r)`` and ``right (..., m, r)``: linear attention before any law.

    Packed ``targets`` and ``sources`` make it block-diagonal: tokens meet inside their set only.
    Time ``(n + m) r`` a column, memory ``r`` a column and set, forward and backward.

    Raises:
        ValueError: the ranks or the tokens on the two sides do not match.
    """

    def __init__(
        self, left: Tensor, right: Tensor, *, targets: Tokens | None = None, sources: Tokens | None = None
    ):
        if left.shape[-1] != right.shape[-1]:
            raise ValueError(
                f"LowRank: left has shape {tuple(left.shape)} and right {tuple(right.shape)}; expected the same last dimension (rank)."
            )
        n, m = left.shape[-2], right.shape[-2]
        check_pair("LowRank", targets, sources, n, m)
        self.left, self.right, self.targets, self.sources = left, right, targets, sources
        self.shape = torch.Size((*torch.broadcast_shapes(left.shape[:-2], right.shape[:-2]), n, m))
        self._like = left

    def _matmul(self, v: Tensor) -> Tensor:
        return _low_rank_product(self.left, self.right, v, self.targets, self.sources)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return _low_rank_product(self.right, self.left, u, self.sources, self.targets)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        out = (self.left[..., i, :] * self.right[..., j, :]).sum(-1)
        return _inside_sets(out, i, j, self.targets, self.sources)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        out = self.left[..., i, :] @ self.right[..., j, :].mT
        return _inside_sets(out, i[:, None], j[None, :], self.targets, self.sources)

    def khatri_rao(self, other: LowRank) -> LowRank:
        """The entrywise product of two low-rank operators: rank r s, features are products of features."""
        left = (self.left.unsqueeze(-1) * other.left.unsqueeze(-2)).flatten(-2)
        right = (self.right.unsqueeze(-1) * other.right.unsqueeze(-2)).flatten(-2)
        targets, sources = (self.targets, self.sources) if self._packed else (other.targets, other.sources)
        return LowRank(left, right, targets=targets, sources=sources)

    @property
    def _packed(self) -> bool:
        return self.targets is not None and self.targets.packed

    def cost(self) -> Cost:
        rank = self.left.shape[-1]
        sets = self.sources.num_sets if self.sources is not None else 1
        lead = self.shape[:-2].numel()
        return Cost(lead * (self.shape[-2] + self.shape[-1]) * rank, lead * rank * sets)

    def _name(self) -> str:
        return f"LowRank[{self.left.shape[-1]}]"


def _inside_sets(
    values: Tensor, i: Tensor, j: Tensor, targets: Tokens | None, sources: Tokens | None
) -> Tensor:
    if targets is None or sources is None or targets.batch is None or sources.batch is None:
        return values
    return torch.where(targets.batch[i] == sources.batch[j], values, 0.0)


def _low_rank_product(
    left: Tensor, right: Tensor, v: Tensor, targets: Tokens | None, sources: Tokens | None
) -> Tensor:
    """``L R^T v`` (per set where packed); sums in float32 or better, the result in the type of ``left``."""
    wide = torch.promote_types(left.dtype, torch.float32)
    left_w, right_w, v = left.to(wide), right.to(wide), v.to(wide)
    if targets is None or sources is None or not targets.packed:
        return (left_w @ (right_w.mT @ v)).to(left.dtype)
    out = [
        l_s @ (r_s.mT @ v_s)
        for l_s, r_s, v_s in zip(
            targets.sort(left_w).split(targets.sizes.tolist(), -2),
            sources.sort(right_w).split(sources.sizes.tolist(), -2),
            sources.sort(v).split(sources.sizes.tolist(), -2),
            strict=True,
        )
    ]
    return targets.unsort(torch.cat(out, -2)).to(left.dtype)
