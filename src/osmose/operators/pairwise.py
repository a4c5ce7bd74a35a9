"""Pairwise operators: an elementwise function of every score, streamed and never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens, check_pair
from .base import Cost, Operator
from .exponential_graph import ExponentialGraph
from .graph import Graph
from .low_rank import _inside_sets
from .streaming import EXP, SIGMOID, ScoreKernel, pairwise_product, row_max

# exp(min(s, 0)): what exp is under a shift by the row maximum, whatever an absent token holds
CAPPED_EXP = ScoreKernel(
    "exp",
    lambda s: s.clamp(max=0).exp(),
    lambda s, w: w,
    lambda s: s.clamp_(max=0).exp_(),
    lambda grad, w: grad.mul_(w),
)


class Pairwise(Operator):
    """``f(q_i . k_j)`` for all pairs of targets and sources.

    Args:
        q: ``(..., n, r)``; scale it before (1/sqrt r, beta): the kernel sees the plain dot product.
        k: ``(..., m, r)``.
        kernel: ``"exp"`` (softmax attention before its law), ``"sigmoid"``, or a :class:`ScoreKernel`.
        targets, sources: packed tokens make it block-diagonal.
        shift: ``(..., n)`` subtracted from the scores of a row of the exponential kernel, a constant for
            gradients. Entries are capped at 1; laws that normalise rows choose it (:meth:`up_to_row_scale`).

    Time n m r, memory O(n + m), forward and backward.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        kernel: str | ScoreKernel = "exp",
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
        shift: Tensor | None = None,
    ):
        if q.shape[-1] != k.shape[-1]:
            raise ValueError(
                f"Pairwise: q has shape {tuple(q.shape)} and k {tuple(k.shape)}; expected the same last dimension."
            )
        n, m = q.shape[-2], k.shape[-2]
        check_pair("Pairwise", targets, sources, n, m)
        self.q, self.k, self.kernel = q, k, score_kernel(kernel)
        if shift is not None and self.kernel is not EXP:
            raise ValueError(
                f"Pairwise: a shift goes with the kernel exp, not {self.kernel.name}; leave it out."
            )
        self.targets, self.sources, self.shift = targets, sources, shift
        self.shape = torch.Size((*torch.broadcast_shapes(q.shape[:-2], k.shape[:-2]), n, m))
        self._like = torch.empty(0, dtype=torch.promote_types(q.dtype, k.dtype), device=q.device)

    _hadamard_order = 0  # before a graph, whose form would lose the scores

    @classmethod
    def gaussian(
        cls,
        x: Tensor,
        y: Tensor,
        beta: float = 1.0,
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
    ) -> Pairwise:
        """``exp(-beta |x_i - y_j|^2 / 2)``. On unit vectors it is ``exp(beta x . y)`` up to a factor."""
        q, k = squared_distance_scores(x, y, -beta / 2)
        return cls(q, k, "exp", targets=targets, sources=sources)

    @property
    def mT(self) -> Operator:  # noqa: N802
        q, k, kernel = self.q, self.k, self.kernel
        if self.shift is not None:  # the shift of a row is one more score coordinate
            q, k, shift = q.to(self._wide), k.to(self._wide), self.shift.to(self._wide).unsqueeze(-1)
            lead = torch.broadcast_shapes(q.shape[:-2], shift.shape[:-2])
            q = torch.cat([q.expand(*lead, *q.shape[-2:]), -shift.expand(*lead, *shift.shape[-2:])], -1)
            k, kernel = torch.cat([k, torch.ones_like(k[..., :1])], -1), CAPPED_EXP
        out = Pairwise(k, q, kernel, targets=self.sources, sources=self.targets)
        out._like = self._like
        return out

    def _matmul(self, v: Tensor) -> Tensor:
        t, s = self.targets, self.sources
        if t is None or s is None or not t.packed:
            return pairwise_product(self.q, self.k, v, self.kernel, shift=self.shift)
        out = pairwise_product(
            t.sort(self.q),
            s.sort(self.k),
            s.sort(v),
            self.kernel,
            q_ptr=t.ptr,
            k_ptr=s.ptr,
            shift=None if self.shift is None else t.sort(self.shift, -1),
        )
        return t.unsort(out)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self.mT._matmul(u)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self._weights(self._scores(i, j), i, j)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        scores = self.q[..., i, :].to(self._wide) @ self.k[..., j, :].to(self._wide).mT
        return self._weights(scores, i[:, None], j[None, :])

    def _scores(self, i: Tensor, j: Tensor) -> Tensor:
        return (self.q[..., i, :].to(self._wide) * self.k[..., j, :].to(self._wide)).sum(-1)

    def _weights(self, scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.shift is not None:
            scores = (scores - self.shift[..., i].to(scores.dtype)).clamp(max=0)
        return _inside_sets(self.kernel.f(scores), i, j, self.targets, self.sources)

    def _hadamard(self, other: Operator) -> Operator | None:
        if not isinstance(other, Graph) or self.kernel is not EXP or self.shift is not None:
            return None
        i, j = other.target, other.source
        inside = _inside_sets(other.weight, i, j, self.targets, self.sources)
        dtype = torch.promote_types(self.dtype, other.dtype)
        return ExponentialGraph(other.with_weight(inside.to(dtype)), self._scores(i, j))

    def _row_exponent(self, present: Tensor | None) -> Tensor | None:
        if self.kernel is not EXP or self.shift is not None:
            return None
        t, s = self.targets, self.sources
        if t is None or s is None or not t.packed:
            top = row_max(self.q, self.k, present=present)
        else:
            present = None if present is None else s.sort(present, -1)
            top = t.unsort(
                row_max(t.sort(self.q), s.sort(self.k), q_ptr=t.ptr, k_ptr=s.ptr, present=present), -1
            )
        return torch.where(torch.isfinite(top), top, 0.0)

    def _shift_rows(self, exponent: Tensor) -> Operator:
        if self.kernel is not EXP or self.shift is not None:
            return super()._shift_rows(exponent)
        return Pairwise(
            self.q, self.k, self.kernel, targets=self.targets, sources=self.sources, shift=exponent
        )

    def cost(self) -> Cost:
        pairs = self.shape.numel()
        if self.targets is not None and self.sources is not None and self.targets.packed:
            pairs = self.shape[:-2].numel() * int((self.targets.sizes * self.sources.sizes).sum())
        return Cost(pairs * self._entry_time(), self.shape[-2] + self.shape[-1], (self._name(),))

    def _entry_time(self) -> int:
        return self.q.shape[-1]

    def _name(self) -> str:
        return f"Pairwise[{self.kernel.name}]"


def score_kernel(kernel: str | ScoreKernel) -> ScoreKernel:
    """A kernel by name (``exp``, ``sigmoid``), or itself."""
    known = {"exp": EXP, "sigmoid": SIGMOID}
    if isinstance(kernel, ScoreKernel):
        return kernel
    if kernel not in known:
        raise ValueError(
            f"Pairwise: kernel {kernel!r} is not known; expected one of {', '.join(known)} or a ScoreKernel."
        )
    return known[kernel]


def squared_distance_scores(x: Tensor, y: Tensor, scale: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Features whose dot product is ``offset + scale |x_i - y_j|^2``: ``(..., n, d + 2)``, ``(..., m, d + 2)``."""
    if y.shape[-2]:
        # distances do not see a common shift; the median is one that a few hidden tokens cannot spoil
        centre = y.detach().flatten(0, -2).nanmedian(0).values.nan_to_num(0.0, 0.0, 0.0)
        x, y = x - centre, y - centre
    x2, y2 = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    q = torch.cat([-2 * scale * x, offset + scale * x2, torch.ones_like(x2)], -1)
    return q, torch.cat([y, torch.ones_like(y2), scale * y2], -1)
