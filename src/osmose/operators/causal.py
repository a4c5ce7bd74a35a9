"""The causal order as an operator, and low-rank operators under it: target i takes from sources j <= i of its sequence.

Shapes: ``P`` merged leading dimensions, ``G`` chunks of ``L`` tokens, ``d`` rank, ``c`` columns of values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..tokens import Tokens, check_pair, same_sets
from .base import Cost, Operator
from .low_rank import LowRank
from .toeplitz import Toeplitz

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

    @property
    def is_causal(self) -> bool:
        return True

    def _matmul(self, v: Tensor) -> Tensor:
        return self._by_set(v, lambda part: part.cumsum(-2))

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._by_set(u, lambda part: part.flip(-2).cumsum(-2).flip(-2))

    def _by_set(self, x: Tensor, run) -> Tensor:
        if self.tokens is None or not self.tokens.num_sets:
            return run(x)
        parts = self.tokens.sort(x).split(self.tokens.sizes.tolist(), -2)
        return self.tokens.unsort(torch.cat([run(part) for part in parts], -2))

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        earlier = j <= i
        if self.tokens is not None and self.tokens.batch is not None:
            earlier = earlier & (self.tokens.batch[i] == self.tokens.batch[j])
        return earlier.to(self.dtype)

    def _hadamard(self, other: Operator) -> Operator | None:
        if not _one_order(self.tokens, other):
            return None
        if isinstance(other, Causal):
            return other if self.tokens is None else self
        if isinstance(other, CausalLowRank):
            return (
                other if self.tokens is None else CausalLowRank(other.left, other.right, tokens=self.tokens)
            )
        if isinstance(other, LowRank):
            packed = other.sources if other._packed else self.tokens
            return CausalLowRank(other.left, other.right, tokens=packed)
        if isinstance(other, Toeplitz) and self.tokens is None and other.slots is None:
            kept = [k for k, d in enumerate(other.offsets) if d <= 0]
            if kept:  # else the product is 0, and streamed
                past = [other.offsets[k] for k in kept]
                return Toeplitz(other.coefficients[..., kept], past, *self.shape)
        return None

    def cost(self) -> Cost:
        return Cost(self.shape[-1], self.shape[-1])


class CausalLowRank(Operator):
    """``tril(L R^T)`` with ``left (..., n, r)`` and ``right (..., n, r)``: causal linear attention before any law.

    Packed ``tokens`` make it block-diagonal; "earlier" is then the order of appearance inside the set.
    Time ``n r (64 + c)``, memory ``n / 64`` matrices ``r x c`` and ``64 n``, forward and backward.

    Raises:
        ValueError: left and right are not features of one sequence.
    """

    def __init__(self, left: Tensor, right: Tensor, *, tokens: Tokens | None = None):
        if left.shape[-2:] != right.shape[-2:]:
            raise ValueError(
                f"CausalLowRank: left has shape {tuple(left.shape)} and right {tuple(right.shape)}; expected the same number "
                "of tokens and the same rank: 'earlier' is defined within one sequence."
            )
        n = left.shape[-2]
        check_pair("CausalLowRank", tokens, tokens, n, n)
        self.left, self.right, self.tokens = left, right, tokens
        self.shape = torch.Size((*torch.broadcast_shapes(left.shape[:-2], right.shape[:-2]), n, n))
        self._like = torch.empty(0, dtype=torch.promote_types(left.dtype, right.dtype), device=left.device)

    @property
    def is_causal(self) -> bool:
        return True

    def _matmul(self, v: Tensor) -> Tensor:
        return self._by_set(self.left.to(v.dtype), self.right.to(v.dtype), v, reverse=False)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._by_set(self.right.to(u.dtype), self.left.to(u.dtype), u, reverse=True)

    def _by_set(self, q: Tensor, k: Tensor, v: Tensor, *, reverse: bool) -> Tensor:
        """Prefix products set by set; reversed sequences sum over later tokens."""

        def product(*parts: Tensor) -> Tensor:
            if not reverse:
                return prefix_product(*parts)
            return prefix_product(*(x.flip(-2) for x in parts)).flip(-2)

        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
        t = self.tokens
        if t is None or not t.packed or not t.num_sets:
            return product(q, k, v)
        parts = zip(*(t.sort(x).split(t.sizes.tolist(), -2) for x in (q, k, v)), strict=True)
        return t.unsort(torch.cat([product(*part) for part in parts], -2))

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        out = (self.left[..., i, :].to(self._wide) * self.right[..., j, :].to(self._wide)).sum(-1)
        return self._earlier(out, i, j)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        out = self.left[..., i, :].to(self._wide) @ self.right[..., j, :].to(self._wide).mT
        return self._earlier(out, i[:, None], j[None, :])

    def _earlier(self, values: Tensor, i: Tensor, j: Tensor) -> Tensor:
        t = self.tokens
        keep = j <= i
        if t is not None and t.batch is not None:
            keep = (t.positions[j] <= t.positions[i]) & (t.batch[i] == t.batch[j])
        return torch.where(keep, values, 0.0)

    def _hadamard(self, other: Operator) -> Operator | None:
        if not isinstance(other, LowRank | CausalLowRank) or not _one_order(self.tokens, other):
            return None
        kernel = LowRank(self.left, self.right).khatri_rao(LowRank(other.left, other.right))
        own = self.tokens is not None and self.tokens.packed
        packed = self.tokens if own else other.tokens if isinstance(other, CausalLowRank) else other.sources
        return CausalLowRank(kernel.left, kernel.right, tokens=packed)

    def cost(self) -> Cost:
        n, rank = self.left.shape[-2:]
        lead = self.shape[:-2].numel()
        return Cost(lead * n * rank * CHUNK, lead * (n * CHUNK + n * rank // CHUNK))

    def _entry_time(self) -> int:
        return self.left.shape[-1]

    def _name(self) -> str:
        return f"CausalLowRank[{self.left.shape[-1]}]"


def _one_order(tokens: Tokens | None, other: Operator) -> bool:
    """Whether the sets of an operator are those of ``tokens`` on both of its sides."""
    if isinstance(other, LowRank):
        return same_sets(tokens, other.targets, other.sources)
    return not isinstance(other, Causal | CausalLowRank) or same_sets(tokens, other.tokens)


def prefix_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``sum_{j <= i} (q_i . k_j) v_j`` for ``(..., n, d)``, ``(..., n, d)``, ``(..., n, c)``.

    Inside a chunk the triangle of weights is formed; what comes from earlier chunks goes through the running sum of their
    moments.
    """
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
