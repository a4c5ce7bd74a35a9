"""Operators made of operators: sum, diagonal and scalar scaling, transpose, entrywise product."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .base import Cost, Operator, refuse_past_limit

ROWS = 256  # rows of a generic entrywise product that are formed at once


def _broadcast(what: str, *parts: Operator) -> torch.Size:
    shapes = [p.shape for p in parts]
    if any(s[-2:] != shapes[0][-2:] for s in shapes):
        raise ValueError(
            f"{what}: shapes {', '.join(str(tuple(s)) for s in shapes)} differ; expected the same (n, m)."
        )
    return torch.broadcast_shapes(*shapes)


class Sum(Operator):
    """``A_1 + A_2 + ...``; costs what the terms cost together."""

    _hadamard_order = 4

    def __init__(self, *terms: Operator):
        self.terms = terms
        self.shape = _broadcast("Sum", *terms)
        self._like = torch.empty(0, dtype=_common_dtype(*terms), device=terms[0].device)

    @staticmethod
    def of(*terms: Operator) -> Sum:
        return Sum(*(t for term in terms for t in (term.terms if isinstance(term, Sum) else (term,))))

    def _matmul(self, v: Tensor) -> Tensor:
        return _total(term._matmul(v) for term in self.terms)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return _total(term._rmatmul(u) for term in self.terms)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return _total(term._entries(i, j) for term in self.terms)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        return _total(term._block(i, j) for term in self.terms)

    @property
    def is_causal(self) -> bool:
        return any(term.is_causal for term in self.terms) and self._sees_no_later

    @property
    def _sees_no_later(self) -> bool:
        return all(term._sees_no_later for term in self.terms)

    @property
    def mT(self) -> Operator:  # noqa: N802
        return Sum(*(term.mT for term in self.terms))

    def _hadamard(self, other: Operator) -> Operator | None:
        products = [hadamard(term, other) for term in self.terms]
        return None if any(p.cost().quadratic for p in products) else Sum.of(*products)

    def _row_exponent(self, present: Tensor | None) -> Tensor | None:
        known = [e for term in self.terms if (e := term._row_exponent(present)) is not None]
        if not known:
            return None
        # terms that are not exponential count as of order 1
        known = known if len(known) == len(self.terms) else [*known, torch.zeros_like(known[0])]
        return reduce(torch.maximum, known)

    def _shift_rows(self, exponent: Tensor) -> Operator:
        return Sum(*(term._shift_rows(exponent) for term in self.terms))

    def cost(self) -> Cost:
        return sum((term.cost() for term in self.terms), Cost(0, 0))

    def _entry_time(self) -> int:
        return sum(term._entry_time() for term in self.terms)

    def _name(self) -> str:
        return " + ".join(term._name() for term in self.terms)


def _total(parts) -> Tensor:
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def _common_dtype(*parts: Operator) -> torch.dtype:
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return dtype


class Scaled(Operator):
    """``scalar diag(left) A diag(right)``: every law has this form. Costs n + m more than ``A``.

    A source with ``right = 0`` is absent exactly, a target with ``left = 0`` receives exactly 0.
    """

    _hadamard_order = 1

    def __init__(
        self,
        inner: Operator,
        left: Tensor | None = None,
        right: Tensor | None = None,
        scalar: float | Tensor | None = None,
    ):
        for name, diagonal, size in (("left", left, inner.shape[-2]), ("right", right, inner.shape[-1])):
            if diagonal is not None and diagonal.shape[-1:] != (size,):
                raise ValueError(
                    f"{inner!r}.scale: {name} has shape {tuple(diagonal.shape)}; expected (..., {size})."
                )
        self.inner, self.left, self.right, self.scalar = inner, left, right, scalar
        leads = [d.shape[:-1] for d in (left, right) if d is not None]
        self.shape = torch.Size((*torch.broadcast_shapes(inner.shape[:-2], *leads), *inner.shape[-2:]))
        self._like = inner._like

    def _matmul(self, v: Tensor) -> Tensor:
        return self._times(self.left, self.inner._matmul(self._times(self.right, v)), self.scalar)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._times(self.right, self.inner._rmatmul(self._times(self.left, u)), self.scalar)

    @staticmethod
    def _times(diagonal: Tensor | None, x: Tensor, scalar: float | Tensor | None = None) -> Tensor:
        if diagonal is not None:
            # 0 * inf must be 0: what a mass of 0 hides may hold anything
            d = diagonal.unsqueeze(-1)
            x = torch.where(d != 0, x, 0.0) * d.to(x.dtype)
        return x if scalar is None else x * scalar

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self._weigh(self.inner._entries(i, j), i, j)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        return self._weigh(self.inner._block(i, j), i[:, None], j[None, :])

    def _weigh(self, out: Tensor, i: Tensor, j: Tensor) -> Tensor:
        out = out.to(self._wide)
        for diagonal, index in ((self.left, i), (self.right, j)):
            if diagonal is not None:
                d = diagonal[..., index]
                out = torch.where(d != 0, out, 0.0) * d.to(out.dtype)
        return out if self.scalar is None else out * self.scalar

    @property
    def is_causal(self) -> bool:
        return self.inner.is_causal

    @property
    def _sees_no_later(self) -> bool:
        return self.inner._sees_no_later

    @property
    def mT(self) -> Operator:  # noqa: N802
        return Scaled(self.inner.mT, self.right, self.left, self.scalar)

    def _hadamard(self, other: Operator) -> Operator:
        return self._around(hadamard(self.inner, other))

    def _around(self, op: Operator) -> Operator:
        if self.left is not None or self.right is not None:
            op = op.scale(self.left, self.right)
        return op if self.scalar is None else op * self.scalar

    def cost(self) -> Cost:
        inner = self.inner.cost()
        return Cost(inner.time + self.shape[-1] + self.shape[-2], inner.memory, inner.quadratic)

    def _row_exponent(self, present: Tensor | None) -> Tensor | None:
        if self.right is not None:
            present = self.right != 0 if present is None else present & (self.right != 0)
        return self.inner._row_exponent(present)

    def _shift_rows(self, exponent: Tensor) -> Operator:
        return self._around(self.inner._shift_rows(exponent))

    def _entry_time(self) -> int:
        return self.inner._entry_time() + 1

    def _name(self) -> str:
        return f"Scaled({self.inner._name()})"


class Transposed(Operator):
    """``A^T``: the same products, the other way round."""

    def __init__(self, inner: Operator):
        self.inner, self._like = inner, inner._like
        self.shape = torch.Size((*inner.shape[:-2], inner.shape[-1], inner.shape[-2]))

    def _matmul(self, v: Tensor) -> Tensor:
        return self.inner._rmatmul(v)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self.inner._matmul(u)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self.inner._entries(j, i)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.inner._block(j, i).mT

    def cost(self) -> Cost:
        return self.inner.cost()

    def _entry_time(self) -> int:
        return self.inner._entry_time()

    @property
    def mT(self) -> Operator:  # noqa: N802
        return self.inner

    def _name(self) -> str:
        return f"{self.inner._name()}.mT"


def hadamard(a: Operator, b: Operator) -> Operator:
    """The entrywise product, at the cheapest cost that the two kinds allow.

    With a graph: a graph of the same support, O(edges). With the identity: the diagonal. Two low-rank
    operators of ranks r and s: low rank r s. With a dense matrix: dense. Diagonals and scalars are lifted out, sums
    distributed where each term has such a form. Anything else streams over all n m pairs, says so in ``cost()``
    and is refused past :func:`~osmose.operators.dense_limit`. A kind states its forms in ``_hadamard``.
    """
    _broadcast("A * B", a, b)
    first, second = sorted((a, b), key=lambda part: part._hadamard_order)
    for one, other in ((first, second), (second, first)):
        product = one._hadamard(other)
        if product is not None:
            if (a.is_causal or b.is_causal) and type(product).is_causal is Operator.is_causal:
                product._causal = True  # a matrix or a graph under a mask
            return product
    return Hadamard(a, b)


class Hadamard(Operator):
    """An entrywise product with no structure to use. Time n m; memory of a few rows, forward and backward."""

    def __init__(self, a: Operator, b: Operator):
        self.a, self.b = a, b
        self.shape = _broadcast("A * B", a, b)
        self._like = torch.empty(0, dtype=_common_dtype(a, b), device=a.device)

    def _matmul(self, v: Tensor) -> Tensor:
        blocks = self._row_blocks()
        return torch.cat([checkpoint(self._row_product, i, v, use_reentrant=False) for i in blocks], -2)

    def _row_product(self, i: Tensor, v: Tensor) -> Tensor:
        return self._block(i, torch.arange(self.shape[-1], device=self.device)).to(v.dtype) @ v

    def _rmatmul(self, u: Tensor) -> Tensor:
        return Hadamard(self.a.mT, self.b.mT)._matmul(u)

    @property
    def is_causal(self) -> bool:
        return self.a.is_causal or self.b.is_causal

    def _row_blocks(self) -> tuple[Tensor, ...]:
        refuse_past_limit(
            self.shape.numel(),
            f"{self!r} @ v",
            "One part without structure costs n x m here; restrict it to a graph's support.",
        )
        return torch.arange(self.shape[-2], device=self.device).split(ROWS)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.a._block(i, j) * self.b._block(i, j)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self.a._entries(i, j) * self.b._entries(i, j)

    def cost(self) -> Cost:
        part = max((self.a, self.b), key=lambda p: p.cost().time)
        time = self.shape.numel() * self._entry_time()
        return Cost(time, ROWS * self.shape[-1], (f"{self._name()} through {part._name()}",))

    def _entry_time(self) -> int:
        return self.a._entry_time() + self.b._entry_time() + 1

    def up_to_row_scale(self, present: Tensor | None = None) -> Operator:
        return Hadamard(self.a.up_to_row_scale(present), self.b.up_to_row_scale(present))

    def _name(self) -> str:
        return f"({self.a._name()} * {self.b._name()})"
