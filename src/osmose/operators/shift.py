"""Shifts on a line or a grid: every target reads one place, or nothing.

Shapes: sources on a grid ``size = (m_1, ..., m_D)``, targets on ``out = (n_1, ..., n_D)``, both flattened row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..tokens import Tokens
from .base import Cost, Operator

Border = Literal["zeros", "circular", "reflect", "replicate"]
BORDERS: tuple[Border, ...] = ("zeros", "circular", "reflect", "replicate")


class Shift(Operator):
    """``S[i, j] = 1`` where target i reads source ``j = stride i + offset``, on every axis of a grid.

    With stride 1 an offset is source minus target: -1 reads the token before. ``(S x)_i = x_{stride i + offset}``.

    Args:
        size: sources on each axis, an int for a line.
        offset: one for each axis.
        stride: one for each axis, or one for all.
        out: targets on each axis; None means ``ceil(size / stride)``.
        border: what is read outside the grid: nothing (``zeros``; the row is empty), the other end (``circular``), the
            mirrored place (``reflect``, without the edge itself) or the edge (``replicate``), as in torch's convolutions.
        tokens: packed tokens of a line: a shift then stays inside its set, in the order in which tokens come.
        allow_empty: do not refuse an offset with which no target reads anything.
        dtype, device: of the entries.

    Time n a column, nothing held but n indices. The entrywise product with any operator is as cheap as a product.

    Raises:
        ValueError: numbers of axes that differ, an unknown border, a stride below 1, an offset so far out that no target reads anything.

    The opposite sign, offset = target minus source, is that of 1905.01289.
    """

    _hadamard_order = 2

    def __init__(
        self,
        size: int | Sequence[int],
        offset: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        out: int | Sequence[int] | None = None,
        border: Border = "zeros",
        tokens: Tokens | None = None,
        allow_empty: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        sizes, offsets = _axes(size), _axes(offset)
        strides = _axes(stride) * (len(sizes) if isinstance(stride, int) else 1)
        if border not in BORDERS:
            raise ValueError(f"Shift: border is {border!r}; expected one of {', '.join(BORDERS)}.")
        if not len(sizes) == len(offsets) == len(strides):
            raise ValueError(
                f"Shift: size {sizes}, offset {offsets} and stride {strides} have different numbers of axes; expected one "
                "entry of each for every axis."
            )
        if min(strides) < 1:
            raise ValueError(f"Shift: stride is {strides}; expected 1 or more on every axis.")
        outs = tuple(-(-m // s) for m, s in zip(sizes, strides, strict=True)) if out is None else _axes(out)
        device = tokens.batch.device if tokens is not None and tokens.batch is not None else device
        reads = torch.zeros((), dtype=torch.int64, device=device)
        for n, m, d, s in zip(outs, sizes, offsets, strides, strict=True):
            axis = _read(torch.arange(n, device=device) * s + d, m, border)
            if n and m and not allow_empty and not bool((axis >= 0).any()):
                raise ValueError(
                    f"Shift: with offset {d} no target reads any of the {m} sources; expected an offset inside the length, "
                    f"{1 - m if s == 1 else -s * (n - 1)} to {m - 1}."
                )
            reads = _joined(reads.unsqueeze(-1), axis, m)
        reads = reads.reshape(-1)
        if tokens is not None and tokens.batch is not None:
            if len(sizes) > 1 or strides != (1,) or border != "zeros":
                raise ValueError(
                    f"Shift: packed tokens go with a line, stride 1 and border 'zeros'; got size {sizes}, stride {strides} "
                    f"and border {border!r}. Pad the sets instead."
                )
            reads = _inside_sets(reads, tokens)
        self.index, self.offset = reads, offsets
        self.size, self.out = sizes, outs
        self._back = border == "zeros" and max(strides) == 1 and outs == sizes and max(offsets) <= 0
        self.shape = torch.Size((len(reads), torch.Size(sizes).numel()))
        self._like = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=reads.device)

    @property
    def _sees_no_later(self) -> bool:
        return self._back

    def _matmul(self, v: Tensor) -> Tensor:
        read = v.index_select(-2, self.index.clamp(min=0))
        return read if self._full else torch.where(self._there, read, 0.0)

    def _rmatmul(self, u: Tensor) -> Tensor:
        kept = u if self._full else torch.where(self._there, u, 0.0)
        out = u.new_zeros(*u.shape[:-2], self.shape[-1], u.shape[-1])
        return out.index_add(-2, self.index.clamp(min=0), kept)

    @property
    def _there(self) -> Tensor:
        return (self.index >= 0).unsqueeze(-1)

    @property
    def _full(self) -> bool:
        if not hasattr(self, "_all_there"):
            self._all_there = bool((self.index >= 0).all())
        return self._all_there

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return (self.index[i] == j).to(self.dtype)

    def _hadamard(self, other: Operator) -> Operator:
        """Every target keeps one entry of the other: ``diag(B[i, j(i)]) S``."""
        target = torch.arange(self.shape[-2], device=self.device)
        kept = other.entries(target, self.index.clamp(min=0))
        return self.scale(left=torch.where(self.index >= 0, kept, 0.0))

    def cost(self) -> Cost:
        return Cost(self.shape[-2], 0)

    def _name(self) -> str:
        return f"Shift[{', '.join(f'{d:+d}' for d in self.offset)}]"


def _axes(of: int | Sequence[int]) -> tuple[int, ...]:
    return (of,) if isinstance(of, int) else tuple(of)


def _read(place: Tensor, m: int, border: Border) -> Tensor:
    """Where places off an axis of ``m`` are read; -1 for nothing."""
    if border == "circular":
        return place % m
    if border == "replicate":
        return place.clamp(0, m - 1)
    if border == "reflect":
        period = max(2 * (m - 1), 1)
        folded = place % period
        return torch.where(folded < m, folded, period - folded)
    return torch.where((place >= 0) & (place < m), place, -1)


def _joined(rows: Tensor, columns: Tensor, m: int) -> Tensor:
    return torch.where((rows >= 0) & (columns >= 0), rows * m + columns, -1)


def _inside_sets(reads: Tensor, tokens: Tokens) -> Tensor:
    order = tokens.order if tokens.order is not None else torch.arange(tokens.n, device=reads.device)
    there = reads >= 0
    source = order[reads.clamp(min=0)]
    assert tokens.batch is not None
    sets = tokens.batch
    there = there & (sets[source] == sets[order])
    out = torch.empty_like(reads)
    out[order] = torch.where(there, source, -1)
    return out
