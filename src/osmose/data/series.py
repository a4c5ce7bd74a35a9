"""Real-valued series as data: missing values filled, every channel standardised by the training part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .node import Split

Refit = Callable[[Split], tuple[Tensor, dict[str, Any]]]


def join(series: list[np.ndarray]) -> tuple[np.ndarray, Tensor]:
    """Series (length, c) behind each other, (total, c), and their bounds."""
    lengths = torch.tensor([len(one) for one in series], dtype=torch.int64)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return np.concatenate(series), ptr


def interpolate(values: np.ndarray, ptr: Tensor) -> tuple[np.ndarray, list[str]]:
    """Missing values (NaN) by straight lines between their neighbours in the same series and channel.

    Beyond the first and last known value that value holds. A channel that a series lacks altogether stays NaN;
    `standardise` makes it 0. Gives the values and what was done, one sentence each.
    """
    missing = np.isnan(values)
    if not missing.any():
        return values, []
    values = values.copy()
    bounds, absent = ptr.tolist(), 0
    for i in np.unique(np.searchsorted(ptr.numpy(), np.flatnonzero(missing.any(1)), side="right") - 1):
        one, gaps = (a[bounds[i] : bounds[i + 1]] for a in (values, missing))
        for channel in np.flatnonzero(gaps.any(0)):
            gap = gaps[:, channel]
            if gap.all():
                absent += 1
                continue
            at = np.arange(len(one))
            one[gap, channel] = np.interp(at[gap], at[~gap], one[~gap, channel])
    notes = [f"{int(missing.sum())} missing values: interpolated in a line within their series and dimension"]
    if absent:
        notes.append(f"{absent} times a series lacks a whole dimension: 0 after standardisation")
    return values, notes


def standardise(values: np.ndarray, mean: list[float], scale: list[float]) -> Tensor:
    """`(values - mean) / scale` channel by channel, (total, c) float32; NaN becomes 0."""
    out = (values - np.asarray(mean)) / np.asarray(scale)
    return torch.from_numpy(np.nan_to_num(out, nan=0.0).astype(np.float32))


def refit_of(values: np.ndarray, ptr: Tensor, fixed: dict[str, Any]) -> Refit:
    """The function that standardises by the training part of a split; `fixed` is the rest of the preprocessing."""
    sequence = np.repeat(np.arange(len(ptr) - 1), ptr.diff().numpy())

    def refit(split: Split) -> tuple[Tensor, dict[str, Any]]:
        chosen = np.zeros(len(ptr) - 1, dtype=bool)
        chosen[split.train.numpy()] = True
        mean, scale = _statistics(values[chosen[sequence]])
        return standardise(values, mean, scale), fixed | {"mean": mean, "scale": scale}

    return refit


def _statistics(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation of every channel over all steps that have it; a constant channel has scale 1."""
    means, scales = [], []
    for channel in values.T:
        known = channel[~np.isnan(channel)]
        size = float(np.abs(known).max(initial=0.0)) or 1.0  # else squares of large numbers overflow
        mean = float((known / size).mean()) * size if known.size else 0.0
        scale = float((known / size).std()) * size if known.size else 0.0
        means.append(mean)
        scales.append(1.0 if scale <= 1e-12 * size else scale)
    return means, scales
