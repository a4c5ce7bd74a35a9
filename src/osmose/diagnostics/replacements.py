"""What may stand in the place of a head's matrix to see whether it needs its input at all."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairs import PairClasses

REPLACEMENTS = ("mean", "toeplitz", "shift")
"""From the mildest to the hardest."""


def replacement(kind: str, mean: Tensor, classes: PairClasses) -> Tensor:
    """The matrix for each head that depends on no input, ``(H, n, m)`` float64.

    Args:
        kind: ``mean``: the input mean Ā itself. ``toeplitz``: its projection ``Pi Ā = sum_d c_d S_d`` (what is
            no valid pair keeps its mean). ``shift``:
            ``S_d*`` with the offset of the largest mass, which reads 0 beyond the border.
        mean: Ā ``(H, n, m)``.
        classes: of the pairs; the projection and shifts are on them.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in REPLACEMENTS:
        raise ValueError(f"replacement: kind is {kind!r}; expected one of {', '.join(REPLACEMENTS)}.")
    if kind == "mean":
        return mean
    if kind == "toeplitz":
        return torch.where(classes.index >= 0, classes.project(mean), mean)
    top = classes.sums(mean.flatten(-2)[..., classes.flat]).argmax(-1).tolist()
    return torch.stack([classes.one(classes.labels[k]) for k in top])
