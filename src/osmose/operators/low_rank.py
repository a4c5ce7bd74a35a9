"""Low-rank operators: feature maps of targets times feature maps of sources, at linear cost."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens, check_pair, same_sets
from .base import Cost, Operator


class LowRank(Operator):
    """``L R^T`` with ``left (..., n, r)`` and ``right (..., m, r)``: linear attention before any law.

    Packed ``targets`` and ``sources`` make it block-diagonal: tokens meet inside their set only.
    Time ``(n + m) r`` a column, memory ``r`` a column and set, forward and backward.

    Raises:
        ValueError: the ranks or the tokens on the two sides do not match.
    """

    _hadamard_order = 5

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
        self._like = torch.empty(0, dtype=torch.promote_types(left.dtype, right.dtype), device=left.device)

    @property
    def mT(self) -> LowRank:  # noqa: N802
        return LowRank(self.right, self.left, targets=self.sources, sources=self.targets)

    def _matmul(self, v: Tensor) -> Tensor:
        return low_rank_product(self.left, self.right, v, self.targets, self.sources)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return low_rank_product(self.right, self.left, u, self.sources, self.targets)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        wide = self._wide
        out = (self.left[..., i, :].to(wide) * self.right[..., j, :].to(wide)).sum(-1)
        return _inside_sets(out, i, j, self.targets, self.sources)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        wide = self._wide
        out = self.left[..., i, :].to(wide) @ self.right[..., j, :].to(wide).mT
        return _inside_sets(out, i[:, None], j[None, :], self.targets, self.sources)

    def _hadamard(self, other: Operator) -> Operator | None:
        if not isinstance(other, LowRank):
            return None
        alike = same_sets(self.targets, other.targets) and same_sets(self.sources, other.sources)
        return self.khatri_rao(other) if alike else None

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

    def _entry_time(self) -> int:
        return self.left.shape[-1]

    def _name(self) -> str:
        return f"LowRank[{self.left.shape[-1]}]"


def _inside_sets(
    values: Tensor, i: Tensor, j: Tensor, targets: Tokens | None, sources: Tokens | None
) -> Tensor:
    if targets is None or sources is None or targets.batch is None or sources.batch is None:
        return values
    return torch.where(targets.batch[i] == sources.batch[j], values, 0.0)


def low_rank_product(
    left: Tensor, right: Tensor, v: Tensor, targets: Tokens | None, sources: Tokens | None
) -> Tensor:
    """``L R^T v`` (per set where packed) in the type of ``v``."""
    left, right = left.to(v.dtype), right.to(v.dtype)
    if targets is None or sources is None or targets.num_sets < 2:
        return left @ (right.mT @ v)
    out = [
        l_s @ (r_s.mT @ v_s)
        for l_s, r_s, v_s in zip(
            targets.sort(left).split(targets.sizes.tolist(), -2),
            sources.sort(right).split(sources.sizes.tolist(), -2),
            sources.sort(v).split(sources.sizes.tolist(), -2),
            strict=True,
        )
    ]
    return targets.unsort(torch.cat(out, -2))
