"""The causal order as an operator, and its products with kernels: target i takes from sources j <= i of its set.

Shapes: ``P`` merged leading dimensions, ``G`` chunks of ``L`` tokens, ``d`` score and ``c`` value channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..tokens import Tokens
from .base import Cost, Operator
from .low_rank import LowRank

CHUNK = 64


class Causal(Operator):
    """``L[i, j] = 1`` for ``j <= i`` in the same set, else 0. ``kernel * Causal(n)`` is that kernel under a causal mask.

    Args:
        n: tokens.
        tokens: packed sets; the order is that in which the tokens of a set come.
        dtype, device: of the entries.

    Time n a column. With a low-rank kernel the product stays linear (:class:`CausalLowRank`). A law that uses column
    sums refuses it: what a target takes would depend on later targets.
    """

    is_causal = True
    _hadamard_order = 3

    def __init__(
        self,
        n: int,
        *,
        tokens: Tokens | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.tokens = tokens if tokens is not None and tokens.packed else None
        self.shape = torch.Size((n, n))
        self._like = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=device)

    def _matmul(self, v: Tensor) -> Tensor:
        return self._by_set(v, lambda part: part.cumsum(-2))

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._by_set(u, lambda part: part.flip(-2).cumsum(-2).flip(-2))

    def _by_set(self, x: Tensor, run) -> Tensor:
        if self.tokens is None:
            return run(x)
        parts = self.tokens.sort(x).split(self.tokens.sizes.tolist(), -2)
        return self.tokens.unsort(torch.cat([run(part) for part in parts], -2))

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        earlier = j <= i
        if self.tokens is not None and self.tokens.batch is not None:
            earlier = earlier & (self.tokens.batch[i] == self.tokens.batch[j])
        return earlier.to(self.dtype)

    def _hadamard(self, other: Operator) -> Operator | None:
        if isinstance(other, Causal):
            return self if self.tokens is not None else other
        return CausalLowRank(other, self) if isinstance(other, LowRank) else None

    def cost(self) -> Cost:
        return Cost(self.shape[-1], self.shape[-1])


class CausalLowRank(Operator):
    """``(L R^T) * Causal``: linear attention in causal order, by prefix sums over chunks of 64 tokens.

    Time ``n (64 + d) d`` a column, memory ``n / 64`` moments of d numbers a column.
    """

    is_causal = True
    _hadamard_order = 5

    def __init__(self, kernel: LowRank, order: Causal):
        self.kernel, self.order = kernel, order
        self.shape, self._like = kernel.shape, kernel._like

    def _matmul(self, v: Tensor) -> Tensor:
        return self._prefix(self.kernel.left, self.kernel.right, v, reverse=False)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._prefix(self.kernel.right, self.kernel.left, u, reverse=True)

    def _prefix(self, q: Tensor, k: Tensor, v: Tensor, reverse: bool) -> Tensor:
        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        q, k, v = (x.to(v.dtype).expand(*lead, *x.shape[-2:]) for x in (q, k, v))
        tokens = self.order.tokens or self.kernel.sources
        if tokens is None or not tokens.packed:
            return self._one(q, k, v, reverse)
        sizes = tokens.sizes.tolist()
        sets = zip(*(tokens.sort(x).split(sizes, -2) for x in (q, k, v)), strict=True)
        return tokens.unsort(torch.cat([self._one(q, k, v, reverse) for q, k, v in sets], -2))

    @staticmethod
    def _one(q: Tensor, k: Tensor, v: Tensor, reverse: bool) -> Tensor:
        if not reverse:
            return prefix_product(q, k, v)
        return prefix_product(q.flip(-2), k.flip(-2), v.flip(-2)).flip(-2)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self.kernel._entries(i, j) * self.order._entries(i, j)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.kernel._block(i, j) * self.order._block(i, j)

    def _hadamard(self, other: Operator) -> Operator | None:
        from .algebra import hadamard

        if isinstance(other, Causal | CausalLowRank):
            order = self.order * (other if isinstance(other, Causal) else other.order)
            kernel = self.kernel if isinstance(other, Causal) else self.kernel.khatri_rao(other.kernel)
            return hadamard(kernel, order)
        return (
            CausalLowRank(self.kernel.khatri_rao(other), self.order) if isinstance(other, LowRank) else None
        )

    def cost(self) -> Cost:
        n, d = self.shape[-1], self.kernel.left.shape[-1]
        lead = self.shape[:-2].numel()
        return Cost(lead * n * (CHUNK + d) * d, lead * (n // CHUNK + 1) * d)

    def _entry_time(self) -> int:
        return self.kernel._entry_time() + 1


def prefix_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``sum_{j <= i} (q_i . k_j) v_j`` for ``(..., n, d)``, ``(..., n, d)``, ``(..., n, c)``."""
    lead, n, c = q.shape[:-2], q.shape[-2], v.shape[-1]
    if n == 0 or lead.numel() == 0:
        return q.new_zeros(*lead, n, c)
    chunk = min(CHUNK, n)
    fill = -n % chunk
    q_PGLd, k_PGLd, v_PGLc = (
        pad(x, (0, 0, 0, fill)).reshape(-1, (n + fill) // chunk, chunk, x.shape[-1]) for x in (q, k, v)
    )
    inside = (q_PGLd @ k_PGLd.mT).tril_() @ v_PGLc
    moments = k_PGLd.mT @ v_PGLc
    before = pad(moments.cumsum(1)[:, :-1], (0, 0, 0, 0, 1, 0))
    out = inside + q_PGLd @ before
    return out.reshape(-1, n + fill, c)[:, :n].reshape(*lead, n, c)
