"""One line for each head: where it looks on the average, how sharply, and what is left beside the shifts.

Shapes: H heads, n targets, m sources, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .pairs import PairClasses


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """Of the input mean Ā of H heads, in float64.

    Attributes:
        offsets: labels of the classes of pairs, in the order of ``profile``.
        profile: ``(H, K)``, ``(1/n) sum of Ā over the pairs of a class``: the mass that a target takes from it on the average.
            Targets at a border have no source there, so a shift by d has mass ``(n - |d|) / n``.
        top_offset: the class with the largest mass, by its label.
        top_mass: ``(H,)``, that mass.
        effective_offsets: ``(H,)``, ``e^entropy`` of the profile: 1 for a shift, K where all classes have the same mass.
        first_source: ``(H,)``, the share of all mass that source 0 gives.
        sink: the source that gives most.
        sink_share: ``(H,)``, the share of it.
        stable_rank: ``(H,)``, ``|X|² / |X|_2²`` of ``X = (1 - Pi) D``; 1 for one source that all use, 0 where X is 0.
    """

    offsets: list[Any]
    profile: Tensor
    top_offset: list[Any]
    top_mass: Tensor
    effective_offsets: Tensor
    first_source: Tensor
    sink: list[int]
    sink_share: Tensor
    stable_rank: Tensor


def head_statistics(parts: Sequence[tuple[float, Tensor, PairClasses]]) -> HeadStatistics:
    """Statistics of the means ``(H, n, m)`` of every length, with their weights; profiles are added offset by offset.

    Cost: a singular value decomposition of every head's mean.
    """
    heads = parts[0][1].shape[0]
    labels = sorted({label for _, _, classes in parts for label in classes.labels})
    place = {label: i for i, label in enumerate(labels)}
    profile = torch.zeros(heads, len(labels), dtype=torch.float64)
    given = torch.zeros(heads, max(mean.shape[-1] for _, mean, _ in parts), dtype=torch.float64)
    rank = torch.zeros(heads, dtype=torch.float64)
    for weight, mean, classes in parts:
        n, m = classes.shape
        at = torch.tensor([place[label] for label in classes.labels])
        profile[:, at] += weight * classes.sums(mean.flatten(-2)[..., classes.flat]) / n
        given[:, :m] += weight * mean.sum(-2) / n
        d = classes.centred(mean)
        rank += weight * _stable_rank(d - classes.project(d), mean)
    top = profile.argmax(-1)
    mass = profile.clamp_min(0.0)
    p = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    share = given / torch.where(given.sum(-1, keepdim=True) != 0, given.sum(-1, keepdim=True), 1.0)
    sink = share.argmax(-1)
    return HeadStatistics(
        offsets=labels,
        profile=profile,
        top_offset=[labels[i] for i in top.tolist()],
        top_mass=profile.gather(-1, top.unsqueeze(-1)).squeeze(-1),
        effective_offsets=torch.special.entr(p).sum(-1).exp(),
        first_source=share[:, 0],
        sink=sink.tolist(),
        sink_share=share.gather(-1, sink.unsqueeze(-1)).squeeze(-1),
        stable_rank=rank,
    )


def _stable_rank(x: Tensor, mean: Tensor) -> Tensor:
    """0 where x is nothing but the rounding of the mean."""
    largest = torch.linalg.matrix_norm(x, 2).square()
    noise = 1e-24 * mean.square().sum((-2, -1))
    total = x.square().sum((-2, -1))
    return torch.where(total > noise, total / torch.where(largest > 0, largest, 1.0), 0.0)
