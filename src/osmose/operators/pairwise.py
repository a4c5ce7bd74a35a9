"""Pairwise operators: an elementwise function of every score, streamed and never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens, check_pair
from .base import Cost, Operator
from .low_rank import _inside_sets
from .streaming import EXP, SIGMOID, ScoreKernel, pairwise_product

# exp(min(s, 0)): what exp is under a shift by the row maximum, whatever an absent token holds
CAPPED_EXP = ScoreKernel(
    "exp",
    lambda s: s.clamp(max=0).exp(),
    lambda s, w: w,
    lambda s: s.clamp_(max=0).exp_(),
    lambda grad, w: grad.mul_(w),
)
ROWS = 512  # rows of scores formed at once where only their maximum is asked for


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
        self._like = q

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
        if self.shift is None:
            return Pairwise(self.k, self.q, self.kernel, targets=self.sources, sources=self.targets)._matmul(
                u
            )
        # the shift of a row is one more score coordinate
        q = torch.cat([self.q, -self.shift.to(self.q.dtype).unsqueeze(-1).expand(*self.q.shape[:-1], 1)], -1)
        k = torch.cat([self.k, self.k.new_ones(*self.k.shape[:-1], 1)], -1)
        return Pairwise(k, q, CAPPED_EXP, targets=self.sources, sources=self.targets)._matmul(u)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self._weights((self.q[..., i, :] * self.k[..., j, :]).sum(-1), i, j)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        return self._weights(self.q[..., i, :] @ self.k[..., j, :].mT, i[:, None], j[None, :])

    def _weights(self, scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.shift is not None:
            scores = (scores - self.shift[..., i].to(scores.dtype)).clamp(max=0)
        return _inside_sets(self.kernel.f(scores), i, j, self.targets, self.sources)

    def up_to_row_scale(self, present: Tensor | None = None) -> Operator:
        """For the exponential kernel, the same operator with every row's largest present entry at 1."""
        if self.kernel is not EXP or self.shift is not None:
            return self
        return Pairwise(
            self.q,
            self.k,
            self.kernel,
            targets=self.targets,
            sources=self.sources,
            shift=self._row_max(present),
        )

    @torch.no_grad()
    def _row_max(self, present: Tensor | None) -> Tensor:
        parts = []
        for i in torch.arange(self.shape[-2], device=self.device).split(ROWS):
            scores = self.q[..., i, :] @ self.k.mT
            if present is not None:
                scores = scores.masked_fill(~present.unsqueeze(-2), -torch.inf)
            if self.targets is not None and self.sources is not None:
                same = self.targets.same_set(self.sources, rows=i)
                scores = scores if same is None else scores.masked_fill(~same, -torch.inf)
            parts.append(scores.amax(-1) if self.shape[-1] else scores.new_zeros(scores.shape[:-1]))
        top = torch.cat(parts, -1) if parts else self.q.new_zeros(self.shape[:-1])
        return torch.where(torch.isfinite(top), top, 0.0)

    def cost(self) -> Cost:
        pairs = self.shape.numel()
        if self.targets is not None and self.sources is not None and self.targets.packed:
            pairs = self.shape[:-2].numel() * int((self.targets.sizes * self.sources.sizes).sum())
        return Cost(pairs * self.q.shape[-1], self.shape[-2] + self.shape[-1], (self._name(),))

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
    x2, y2 = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    q = torch.cat([-2 * scale * x, offset + scale * x2, torch.ones_like(x2)], -1)
    return q, torch.cat([y, torch.ones_like(y2), scale * y2], -1)
