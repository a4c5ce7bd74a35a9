"""The user's own sequences as arrays of an `.npz`: series or symbols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import Arrays, read_npz, splits_of
from .errors import DataError
from .labels import cells_of_array, encode
from .node import check_split
from .own import own_splits
from .sequence import SequenceData
from .series import interpolate, refit_of, standardise

_WANTED = "expected x (n, L, c), or sequences behind each other, x (total, c) or symbols (total,), with their bounds ptr (n + 1,)"


def load_sequence_arrays(
    path: Path, *, protocol: str | None, splits: int | None, seed: int, labels_per_class: int | None
) -> SequenceData:
    """Series `x` (n, L, c), or `x` (total, c) with `ptr`, standardised; or integers `x` (total,) with `ptr`: symbols.

    `y` (n,) and masks as in an `.npz` of nodes.
    """
    arrays = read_npz(path)
    if "y" not in arrays.found:
        raise DataError(f"{path} holds no labels; expected an array y, with -1 where unknown")
    x, ptr = _x_and_ptr(arrays)
    n = len(ptr) - 1
    y, classes = _labels(arrays, n, None)
    protocol, drawn = own_splits(path, y, splits_of(arrays, n), protocol, splits, seed, labels_per_class)
    for split in drawn:
        check_split(str(path), split, y, classes, what="sequence")
    unlabelled = int((y < 0).sum())
    notes = (
        [f"{unlabelled} sequences without label: in no split, predicted all the same"] if unlabelled else []
    )
    common: dict[str, Any] = {"name": path.stem, "protocol": protocol, "ptr": ptr, "y": y}
    common |= {"splits": drawn, "classes": classes}
    fixed: dict[str, Any] = {"kind": "sequences", "classes": classes}
    if x.ndim == 1:
        vocab = int(x.max()) + 1
        notes.append(f"{vocab} symbols: the largest is {vocab - 1}")
        fixed |= {"form": "symbols", "vocab": vocab}
        return SequenceData(
            values=torch.from_numpy(x), vocab=vocab, preprocessing=fixed, notes=notes, **common
        )
    x, filled = interpolate(x, ptr)
    refit = refit_of(x, ptr, fixed | {"form": "series", "channels": x.shape[1]})
    values, preprocessing = refit(drawn[0])
    return SequenceData(
        values=values, vocab=None, preprocessing=preprocessing, notes=notes + filled, refit=refit, **common
    )


def new_sequence_arrays(path: Path, preprocessing: dict[str, Any]) -> SequenceData:
    """Sequences for a trained model from an `.npz`; labels may be missing."""
    arrays = read_npz(path)
    x, ptr = _x_and_ptr(arrays)
    y, classes = _labels(arrays, len(ptr) - 1, preprocessing["classes"])
    common: dict[str, Any] = {"name": path.stem, "protocol": "new", "ptr": ptr, "y": y, "splits": []}
    common |= {"classes": classes, "preprocessing": preprocessing}
    if (x.ndim == 1) != ("vocab" in preprocessing):
        came, was = ("symbols", "series") if x.ndim == 1 else ("series", "symbols")
        raise DataError(f"{arrays.origin['x']} holds {came}; the model was trained on {was}")
    if x.ndim == 1:
        return SequenceData(values=torch.from_numpy(x), vocab=preprocessing["vocab"], **common)
    if x.shape[1] != preprocessing["channels"]:
        raise DataError(
            f"{arrays.origin['x']} has {x.shape[1]} channels; the model was trained on {preprocessing['channels']}"
        )
    x, notes = interpolate(x, ptr)
    values = standardise(x, preprocessing["mean"], preprocessing["scale"])
    return SequenceData(values=values, vocab=None, notes=notes, **common)


def _x_and_ptr(arrays: Arrays) -> tuple[np.ndarray, Tensor]:
    """Series (total, c) float64, NaN where missing, or symbols (total,) integers; and the bounds."""
    x, where = arrays.found["x"], arrays.origin["x"]
    if x.dtype.kind not in "iufb":
        raise DataError(f"{where} is of type {x.dtype}; expected numbers")
    if "ptr" in arrays.found:
        ptr = arrays.found["ptr"]
        if ptr.ndim != 1 or ptr.dtype.kind not in "iu":
            raise DataError(f"{arrays.origin['ptr']} is {ptr.shape} {ptr.dtype}; expected (n + 1,) integers")
        bounds = torch.from_numpy(ptr.astype(np.int64))
        shaped = x.ndim in (1, 2)
    else:
        shaped = x.ndim == 3
        bounds = torch.arange(len(x) + 1) * (x.shape[1] if shaped else 0)
        x = x.reshape(-1, x.shape[-1]) if shaped else x
    if not shaped or not x.size:
        raise DataError(f"{where} has shape {arrays.found['x'].shape}; {_WANTED}")
    _check_bounds(arrays, bounds, len(x))
    if x.ndim == 1 and x.dtype.kind in "iu":
        return x.astype(np.int64), bounds
    values = x.astype(np.float64).reshape(len(x), -1)
    if np.isinf(values).any():
        raise DataError(
            f"{where} holds infinite values; expected finite numbers, or NaN where one is missing"
        )
    return values, bounds


def _check_bounds(arrays: Arrays, ptr: Tensor, total: int) -> None:
    if ptr.numel() < 2 or int(ptr[0]) != 0 or int(ptr[-1]) != total or bool((ptr.diff() < 1).any()):
        raise DataError(
            f"{arrays.place}: ptr is {ptr[:3].tolist()} ... {ptr[-1:].tolist()}; expected bounds that rise from 0 to "
            f"{total}, the length of x, with at least one step a sequence"
        )


def _labels(arrays: Arrays, n: int, classes: list[str] | None) -> tuple[Tensor, list[str]]:
    if "y" not in arrays.found:
        return torch.full((n,), -1), list(classes or [])
    where = arrays.origin["y"]
    cells = cells_of_array(arrays.found["y"], where)
    if len(cells) != n:
        raise DataError(f"{where} has {len(cells)} labels for {n} sequences; expected {n}")
    return encode(cells, where, classes)
