"""What sets of symbols share: a share of each class, and sequences cut to a length."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import DataError


def thin(y: Tensor, parts: list[Tensor], size: int | None) -> list[Tensor]:
    """Of every part the same share, class by class, `size` in all; drawn with a fixed seed. None: all.

    Raises DataError for a size that leaves a class of a part without an example, or that there are not.
    """
    total = sum(len(part) for part in parts)
    if size is None:
        return parts
    if not 0 < size <= total:
        raise DataError(f"size is {size}; expected 1 to {total}")
    rng, out = np.random.default_rng(0), []
    for part in parts:
        groups = [part[y[part] == c] for c in y[part].unique()]
        counts = [round(len(group) * size / total) for group in groups]
        if not all(counts):
            raise DataError(
                f"size is {size}, too small for an example of every class; take more of the {total}"
            )
        drawn = [
            group[rng.permutation(len(group))[:count]] for group, count in zip(groups, counts, strict=True)
        ]
        out.append(torch.cat(drawn).sort().values)
    return out


def select(values: np.ndarray, ptr: np.ndarray, index: np.ndarray, most: int) -> tuple[np.ndarray, Tensor]:
    """The first `most` values of the sequences `index`, behind each other, and their bounds."""
    lengths = np.minimum(ptr[index + 1] - ptr[index], most)
    bounds = np.concatenate([[0], lengths.cumsum()])
    at = np.arange(bounds[-1]) + np.repeat(ptr[index] - bounds[:-1], lengths)
    return values[at], torch.from_numpy(bounds.astype(np.int64))
