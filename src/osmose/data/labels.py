"""Class names into indices: -1 is unlabelled, classes are in numeric or alphabetic order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, nearest, some
from .read import is_missing, number

_MOST_MEASURED = 20
"""More distinct fractional numbers than this are measurements, not classes."""


def encode(cells: list[str | None], where: str, classes: list[str] | None = None) -> tuple[Tensor, list[str]]:
    """Labels (n,) int64 and the class names.

    Args:
        cells: the class of every row as text, None = unlabelled.
        where: file and column or array, for errors.
        classes: the known classes of a trained model; None: find them.
    """
    present = sorted({c for c in cells if c is not None})
    if classes is None:
        values = [number(c) for c in present]
        numeric = [v for v in values if v is not None]
        if len(numeric) == len(present):
            if len(present) > _MOST_MEASURED and any(not v.is_integer() for v in numeric):
                raise DataError(
                    f"{where} holds {len(present)} different fractional numbers ({some(present, 3)}); expected "
                    "classes. Name the column that holds the class, or cut the numbers into classes"
                )
            present = [c for _, c in sorted(zip(numeric, present, strict=True))]
        if not present:
            raise DataError(f"{where} holds no label at all; expected a class for at least three rows")
        classes = present
    else:
        unknown = [c for c in present if c not in classes]
        if unknown:
            raise DataError(
                f"{where} holds classes that the model was not trained on: {some(unknown)}"
                f"{nearest(unknown[0], classes)}; expected {some(classes, 10)}, or no label"
            )
    index: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    index[None] = -1
    return torch.tensor([index[c] for c in cells], dtype=torch.int64), list(classes)


def cells_of_text(cells: list[str]) -> list[str | None]:
    """Text cells; a missing one is unlabelled."""
    return [None if is_missing(c) else c for c in cells]


def cells_of_array(values: np.ndarray, where: str) -> list[str | None]:
    """An array (n,) or (n, 1) of integers (-1 = unlabelled), floats (NaN = unlabelled), booleans or text."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"{where} has shape {values.shape}; expected (n,), the class of every row"
            + (". One-hot rows become classes with y.argmax(1)" if values.ndim == 2 else "")
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind == "U":
        return cells_of_text(values.tolist())
    if values.dtype.kind == "f":
        known = values[~np.isnan(values)]
        if not np.isfinite(known).all() or (known != np.round(known)).any():
            raise DataError(
                f"{where} is {values.dtype} with fractions or infinities; expected class numbers or names"
            )
        values = np.where(np.isnan(values), -1, values).astype(np.int64)
    elif values.dtype.kind == "b":
        values = values.astype(np.int64)
    elif values.dtype.kind not in "iu":
        raise DataError(f"{where} is of type {values.dtype}; expected integers (-1 = unlabelled) or text")
    if (values < -1).any():
        raise DataError(f"{where} holds {int(values.min())}; expected classes from 0, or -1 for unlabelled")
    if set(np.unique(values).tolist()) == {-1, 1}:
        raise DataError(
            f"{where} holds only -1 and 1, and -1 means unlabelled; write two classes as 0 and 1 "
            "(or as text), one class as 0"
        )
    return [None if v < 0 else str(v) for v in values.tolist()]
