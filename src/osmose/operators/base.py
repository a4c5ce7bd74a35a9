"""The lazy matrix: what every operator can do, and what it costs.

Shapes: ``(..., n, m)``, rows = targets, columns = sources; ``c`` columns of values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Cost", "DenseLimitError", "Operator", "dense_limit"]

Index = Tensor | slice | int | None

_limit: ContextVar[int] = ContextVar("dense_limit", default=2**26)


class DenseLimitError(ValueError):
    """A composition would form or visit more n x m entries than :func:`dense_limit` allows."""


@contextmanager
def dense_limit(entries: int) -> Iterator[None]:
    """Let compositions form up to ``entries`` entries of an n x m matrix (default 2^26, 8192 squared).

    >>> with dense_limit(10**9):
    ...     pass
    """
    before = _limit.set(entries)
    try:
        yield
    finally:
        _limit.reset(before)


def within_limit(entries: int) -> bool:
    """Whether :func:`dense_limit` allows so many entries."""
    return entries <= _limit.get()


def refuse_past_limit(entries: int, part: str, advice: str) -> None:
    if not within_limit(entries):
        raise DenseLimitError(
            f"{part} would need {entries:,} matrix entries; the limit is {_limit.get():,}. {advice} "
            f"Or allow it: with osmose.operators.dense_limit({entries}): ..."
        )


@dataclass(frozen=True)
class Cost:
    """What one product ``A @ v`` with a single column takes.

    Attributes:
        time: multiply-adds.
        memory: numbers held at once besides operands and result.
        quadratic: the parts that visit every (target, source) pair; empty means linear.
    """

    time: int
    memory: int
    quadratic: tuple[str, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.time + other.time,
            max(self.memory, other.memory),
            tuple(dict.fromkeys(self.quadratic + other.quadratic)),
        )


class Operator(ABC):
    """A matrix ``(..., n, m)`` that is never formed: row i says what target i takes from each source.

    A kind implements five things: ``shape``, ``dtype`` and ``device`` (through ``_like``, a tensor that has
    them), the products ``_matmul`` and ``_rmatmul``, ``_entries`` and ``cost``. All are differentiable
    with respect to the tensors that the operator was made from.

    Types: a product has the common type of operator and values, sums over tokens and what laws divide by are
    float32 or better, under autocast too. Values reach ``_matmul`` wide (float32 or better), and it returns wide.
    """

    shape: torch.Size
    _like: Tensor
    _causal: bool = False
    _hadamard_order: ClassVar[int] = 9

    @abstractmethod
    def _matmul(self, v: Tensor) -> Tensor:
        """``A v`` for wide ``v (..., m, c)``: ``(..., n, c)``, wide."""

    @abstractmethod
    def _rmatmul(self, u: Tensor) -> Tensor:
        """``A^T u`` for wide ``u (..., n, c)``: ``(..., m, c)``, wide."""

    @abstractmethod
    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        """``A[..., i, j]`` for index tensors that broadcast to ``(e...)``: ``(..., e...)``."""

    @abstractmethod
    def cost(self) -> Cost:
        """What a product with one column takes."""

    # ---- what follows from them ---------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def is_causal(self) -> bool:
        """Whether, by its kind, a target takes from no later source; laws that use columns refuse it."""
        return self._causal

    @property
    def _sees_no_later(self) -> bool:
        """Whether it leaves a causal operator causal when it is added to it; the identity does, and is none itself."""
        return self.is_causal

    @property
    def mT(self) -> Operator:  # noqa: N802, torch's name
        """The transpose of the last two dimensions."""
        from .algebra import Transposed

        return Transposed(self)

    def __matmul__(self, v: Tensor) -> Tensor:
        """``A @ v`` for ``v (..., m, c)`` or a vector ``(m,)``."""
        if not v.is_floating_point():
            raise TypeError(
                f"{self!r}: A @ v got values of dtype {v.dtype}; expected a float type, e.g. v.to({self.dtype})."
            )
        size = self.shape[-1]
        if v.shape[:1] != (size,) if v.ndim < 2 else v.shape[-2] != size:
            raise ValueError(
                f"{self!r}: A @ v got values of shape {tuple(v.shape)}; expected (..., {size}, c), one row for each source."
            )
        dtype = torch.promote_types(self.dtype, v.dtype)
        with self._exactly():
            wide = v.to(torch.promote_types(dtype, torch.float32))
            out = self._matmul(wide if v.ndim > 1 else wide.unsqueeze(-1)).to(dtype)
        return out if v.ndim > 1 else out.squeeze(-1)

    def row_sum(self) -> Tensor:
        """What each target takes in all: ``A 1``, shape ``(..., n)``, float32 or better."""
        return self @ torch.ones(self.shape[-1], dtype=self._wide, device=self.device)

    def col_sum(self) -> Tensor:
        """What each source gives in all: ``A^T 1``, shape ``(..., m)``, float32 or better."""
        return self.mT.row_sum()

    @property
    def _wide(self) -> torch.dtype:
        """The type of sums and scores: that of the operator, float32 at least."""
        return torch.promote_types(self.dtype, torch.float32)

    def _exactly(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=False)

    def block(self, rows: Index = None, cols: Index = None) -> Tensor:
        """The dense block ``A[..., rows, cols]``; an index is an int64 tensor, a slice, an int or None for all.

        Raises:
            DenseLimitError: the block is larger than :func:`dense_limit`.
        """
        i, j = self._index(rows, self.shape[-2], "rows"), self._index(cols, self.shape[-1], "cols")
        lead = self.shape[:-2].numel()
        refuse_past_limit(
            lead * i.numel() * j.numel(), f"{self!r}.block", "Ask for fewer rows, e.g. A.rows(i)."
        )
        with self._exactly():
            return self._block(i, j).to(self.dtype)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        """``A[..., i, j]`` for all pairs of ``i`` and ``j``; of any float type."""
        return self._entries(i[:, None], j[None, :])

    def rows(self, i: Index) -> Tensor:
        """The rows of chosen targets, ``(..., len(i), m)``: their attention map."""
        return self.block(i, None)

    def to_dense(self) -> Tensor:
        """The whole matrix, ``(..., n, m)``. Time and memory n m.

        Raises:
            DenseLimitError: it is larger than :func:`dense_limit`.
        """
        return self.block(None, None)

    def entries(self, i: Tensor, j: Tensor) -> Tensor:
        """Single entries ``A[..., i, j]``, for index tensors of one shape ``(e,)``."""
        i, j = self._index(i, self.shape[-2], "i"), self._index(j, self.shape[-1], "j")
        with self._exactly():
            return self._entries(i, j).to(self.dtype)

    def up_to_row_scale(self, present: Tensor | None = None) -> Operator:
        """``diag(a) A`` with some positive ``a`` that keeps its numbers in range; laws that normalise rows use it.

        ``present`` ``(..., m)`` bool tells the sources that matter.
        """
        exponent = self._row_exponent(present)
        return self if exponent is None else self._shift_rows(exponent)

    def _row_exponent(self, present: Tensor | None) -> Tensor | None:
        """The logarithm of every row's largest present entry, ``(..., n)``, for kinds that know it; a constant."""
        return None

    def _shift_rows(self, exponent: Tensor) -> Operator:
        """``diag(exp(-exponent)) A`` for an exponent that bounds :meth:`_row_exponent`."""
        return self.scale(left=torch.exp(-exponent))

    def _index(self, index: Index, size: int, name: str) -> Tensor:
        if index is None or isinstance(index, slice):
            return torch.arange(size, device=self.device)[index or slice(None)]
        index = torch.as_tensor(index, device=self.device).reshape(-1)
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(-1)
        if index.is_floating_point() or (
            index.numel() and not -size <= int(index.min()) <= int(index.max()) < size
        ):
            raise IndexError(
                f"{self!r}: {name} holds {index.tolist()[:5]}...; expected integers from {-size} to {size - 1}."
            )
        return torch.where(index < 0, index + size, index).long()

    # ---- algebra ------------------------------------------------------------------------------------

    def __add__(self, other: Operator) -> Operator:
        from .algebra import Sum

        return Sum.of(self, other) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, other: float | Tensor | Operator) -> Operator:
        """A scalar multiple, or the entrywise (Hadamard) product with another operator."""
        from .algebra import hadamard

        if isinstance(other, Operator):
            return hadamard(self, other)
        if isinstance(other, Tensor) and other.ndim:
            raise TypeError(
                f"{self!r} * tensor of shape {tuple(other.shape)} is ambiguous; use A.scale(left=..., right=...) for diagonals "
                "or A * Dense(matrix) for an entrywise product."
            )
        return self._multiple(other)

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return self * -1.0

    def __sub__(self, other: Operator) -> Operator:
        return self + -other

    def _multiple(self, scalar: float | Tensor) -> Operator:
        from .algebra import Scaled

        return Scaled(self, scalar=scalar)

    def _hadamard(self, other: Operator) -> Operator | None:
        """The entrywise product with ``other`` where this kind knows a form with structure; None where not.

        Of two factors the one with the lower ``_hadamard_order`` is asked first.
        """
        return None

    def _entry_time(self) -> int:
        """Multiply-adds for one entry of a block."""
        return 1

    def scale(self, left: Tensor | None = None, right: Tensor | None = None) -> Operator:
        """``diag(left) A diag(right)`` with ``left (..., n)`` and ``right (..., m)``."""
        from .algebra import Scaled

        return Scaled(self, left, right)

    def __repr__(self) -> str:
        return f"{self._name()}{tuple(self.shape)}"

    def _name(self) -> str:
        return type(self).__name__
