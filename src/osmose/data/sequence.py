"""Sequences: real-valued series or symbols of different lengths, one class each, checked once when they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .catalog import BEST_ON_TEST
from .errors import DataError
from .node import Split, check_labels, check_split


@dataclass(repr=False)
class SequenceData:
    """N labelled sequences, one behind the other: sequence i is `values[ptr[i] : ptr[i + 1]]`.

    Shapes: `values` (total, c) float32, or (total,) symbols 0 to `vocab` - 1 of any integer type (long texts need an
    eighth of the memory in one byte); `ptr` (N + 1,) int64, rising from 0 to total; `y` (N,) int64, class index or
    -1 = unlabelled.

    Raises `DataError` when a shape, type or value is not as stated, when a sequence is empty, and for splits as
    `NodeData`. Only protocol `best-on-test` has the same sequences in valid and test.
    """

    kind: ClassVar[str] = "sequences"

    name: str
    protocol: str
    values: Tensor
    ptr: Tensor
    y: Tensor
    vocab: int | None
    """number of symbols; None: the values are real"""
    splits: list[Split]
    classes: list[str]
    preprocessing: dict[str, Any]
    """What `load_new` redoes on new sequences; JSON-serialisable."""
    notes: list[str] = field(default_factory=list)
    """What the loader did to the data that a user may want to know, one sentence each."""
    ids: list[str] | None = None
    """Names of the sequences, where the data give them."""
    refit: Callable[[Split], tuple[Tensor, dict[str, Any]]] | None = None
    """Values and preprocessing with statistics of the training part of a split; None where they have none."""

    def __post_init__(self) -> None:
        self.validate()

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        kind = f"{self.num_features} " + ("channels" if self.vocab is None else "symbols")
        return (
            f"SequenceData({self.name!r}, protocol {self.protocol!r}: {self.num_sequences} sequences of length "
            f"{low} to {high}, {kind}, {self.num_classes} classes, {len(self.splits)} splits)"
        )

    @property
    def num_sequences(self) -> int:
        return self.ptr.numel() - 1

    @property
    def num_features(self) -> int:
        """Channels of a series, or the number of symbols."""
        return self.values.shape[1] if self.vocab is None else self.vocab

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.ptr.diff()

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences `index` (B,), padded with 0 to the longest of them, and their lengths (B,).

        Gives (B, longest, c) float32, or (B, longest) int64 symbols. Padding is told from a symbol 0 by the lengths.
        """
        start, lengths = self.ptr[index], self.lengths[index]
        slot = torch.arange(int(lengths.max()) if index.numel() else 0, device=self.values.device)
        keep = slot < lengths[:, None]
        dtype = torch.float32 if self.vocab is None else torch.int64
        out = torch.zeros(*keep.shape, *self.values.shape[1:], dtype=dtype, device=self.values.device)
        out[keep] = self.values[(start[:, None] + slot)[keep]].to(dtype)
        return out, lengths

    def for_split(self, index: int) -> SequenceData:
        """The same data with values prepared for split `index` (statistics from its training part only).

        The values of the data as loaded are prepared for split 0. Data without such statistics come back as they are.
        """
        if not 0 <= index < len(self.splits):
            raise DataError(
                f"{self.name}: split {index} of {len(self.splits)}; expected 0 to {len(self.splits) - 1}"
            )
        if self.refit is None or index == 0:
            return self
        values, preprocessing = self.refit(self.splits[index])
        return replace(self, values=values, preprocessing=preprocessing)

    def validate(self) -> None:
        """Raise `DataError` on the first thing that is not as the class states."""
        _check_values(self.name, self.values, self.vocab)
        check_ptr(self.name, self.ptr, len(self.values))
        n = self.num_sequences
        if self.vocab is None:
            _check_finite(self.name, self.values, self.ptr)
        else:
            _check_symbols(self.name, self.values, self.ptr, self.vocab)
        if self.ids is not None and len(self.ids) != n:
            raise DataError(f"{self.name}: {len(self.ids)} ids for {n} sequences; expected one a sequence")
        check_labels(self.name, self.y, n, len(self.classes))
        for i, split in enumerate(self.splits):
            where = f"{self.name}: split {i}" if len(self.splits) > 1 else self.name
            check_split(
                where, split, self.y, self.classes, what="sequence", reused=self.protocol == BEST_ON_TEST
            )


def _check_values(name: str, values: Tensor, vocab: int | None) -> None:
    if vocab is None:
        if values.dim() != 2 or values.dtype != torch.float32 or not values.shape[1]:
            raise DataError(
                f"{name}: values are {tuple(values.shape)} {values.dtype}; expected (total, c) torch.float32 with "
                "c >= 1, or symbols with the size of their vocabulary"
            )
    elif values.dim() != 1 or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DataError(
            f"{name}: symbols are {tuple(values.shape)} {values.dtype}; expected (total,) integers"
        )
    elif vocab < 1:
        raise DataError(f"{name}: vocab is {vocab}; expected at least 1 symbol")


def check_ptr(name: str, ptr: Tensor, total: int, what: str = "sequence") -> None:
    """Raise `DataError` unless `ptr` (N + 1,) are bounds that rise from 0 to `total`."""
    if ptr.dim() != 1 or ptr.dtype != torch.int64 or ptr.numel() < 2:
        raise DataError(
            f"{name}: ptr is {tuple(ptr.shape)} {ptr.dtype}; expected (N + 1,) torch.int64, the bounds of at least "
            f"one {what}"
        )
    if int(ptr[0]) != 0 or int(ptr[-1]) != total:
        raise DataError(
            f"{name}: ptr goes from {int(ptr[0])} to {int(ptr[-1])}; expected 0 to {total}, the number of values"
        )
    bad = (ptr.diff() < 1).nonzero()
    if bad.numel():
        i = int(bad[0])
        raise DataError(
            f"{name}: {what} {i} runs from {int(ptr[i])} to {int(ptr[i + 1])} and is empty; expected at least one "
            f"step. Leave empty {what}s out"
        )


def place(ptr: Tensor, position: int, what: str = "sequence") -> str:
    """Where a step is, for errors."""
    i = int(torch.searchsorted(ptr, torch.tensor(position, device=ptr.device), right=True)) - 1
    return f"{what} {i}, step {position - int(ptr[i])}"


def _check_finite(name: str, values: Tensor, ptr: Tensor) -> None:
    bad = (~torch.isfinite(values)).nonzero()
    if bad.numel():
        position, channel = (int(v) for v in bad[0])
        raise DataError(
            f"{name}: values hold {bad.shape[0]} NaN or infinite numbers, the first at {place(ptr, position)}, "
            f"channel {channel} ({values[position, channel].item()}); expected finite numbers"
        )


def _check_symbols(name: str, values: Tensor, ptr: Tensor, vocab: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocab:
        position = int(((values < 0) | (values.long() >= vocab)).nonzero()[0])
        raise DataError(
            f"{name}: {place(ptr, position)} is symbol {int(values[position])}; expected 0 to {vocab - 1} "
            f"({vocab} symbols)"
        )
