"""Pairs of target and source, in classes: by offset in a sequence or an image, by distance in a graph.

Shapes: n targets, m sources, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..operators.base import refuse_past_limit
from ..operators.graph import Graph


@dataclass(frozen=True, eq=False)
class PairClasses:
    """A partition of the valid pairs ``(i, j)`` into K classes; the others are no pairs, such as the future.

    The 0-1 matrices S_k of the classes are orthogonal: a matrix is projected on their span by taking class means.

    Attributes:
        index: ``(n, m)`` int64, the class of every pair, -1 where it is none.
        labels: what each class is called: an offset ``d = source - target``, ``(dy, dx)``, or a distance.
    """

    index: Tensor
    labels: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.index.ndim != 2 or self.index.dtype != torch.int64:
            raise ValueError(
                f"PairClasses: index is {tuple(self.index.shape)} {self.index.dtype}; expected (n, m) torch.int64."
            )
        if self.index.numel() and not -1 <= int(self.index.min()) <= int(self.index.max()) < len(self.labels):
            raise ValueError(
                f"PairClasses: index goes from {int(self.index.min())} to {int(self.index.max())} with {len(self.labels)} "
                "labels; expected -1 (no pair) to the number of labels less one."
            )

    @classmethod
    def sequence(cls, n: int, m: int | None = None, *, causal: bool = False) -> PairClasses:
        """By the offset ``d = j - i``, from ``-(n - 1)`` to ``m - 1``; ``causal``: only ``j <= i``, so d <= 0."""
        m = n if m is None else m
        _check_size(n, m)
        d = torch.arange(m) - torch.arange(n).unsqueeze(1)
        low, high = 1 - n, 0 if causal else m - 1
        return cls(torch.where(d <= high, d - low, -1), tuple(range(low, high + 1)))

    @classmethod
    def grid(cls, height: int, width: int) -> PairClasses:
        """By the offset ``(dy, dx)`` of the tokens of an image, row by row; ``n = m = height * width``."""
        _check_size(height * width, height * width)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = y.flatten(), x.flatten()
        dy, dx = (a.unsqueeze(0) - a.unsqueeze(1) for a in (y, x))
        index = (dy + height - 1) * (2 * width - 1) + dx + width - 1
        labels = tuple((a, b) for a in range(1 - height, height) for b in range(1 - width, width))
        return cls(index, labels)

    @classmethod
    def graph(cls, edge_index: Tensor, num_nodes: int, *, farthest: int | None = None) -> PairClasses:
        """By the number of edges on the shortest way from source to target.

        Args:
            edge_index: ``(2, e)``, sources and targets.
            num_nodes: n.
            farthest: the largest distance with a class of its own; None: all.

        What lies beyond, or is not connected, is the class with the label ``inf``. Time ``e n`` for each distance.
        """
        _check_size(num_nodes, num_nodes)
        away = torch.full((num_nodes, num_nodes), -1)
        adjacency = Graph(edge_index.cpu(), None, num_nodes)
        front, distance = torch.eye(num_nodes), 0
        while bool(front.any()):
            away[front > 0] = distance
            if distance == farthest:
                break
            distance += 1
            front = ((adjacency @ front) > 0).float() * (away < 0)
        known = int(away.max()) + 1
        labels: tuple[float, ...] = tuple(range(known))
        if bool((away < 0).any()):
            labels = (*labels, math.inf)
        return cls(torch.where(away < 0, known, away), labels)

    def without(self, sources: Sequence[int] = (), *, diagonal: bool = False) -> PairClasses:
        """The same classes without the pairs of some sources (a token that serves as a sink), or of ``i = j``."""
        index = self.index.clone()
        outside = [j for j in sources if not -index.shape[1] <= j < index.shape[1]]
        if outside:
            raise ValueError(
                f"PairClasses.without: sources {outside} of {index.shape[1]}; expected indices below that number."
            )
        index[:, list(sources)] = -1
        if diagonal:
            index.fill_diagonal_(-1)
        return PairClasses(index, self.labels)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.index.shape[0], self.index.shape[1]

    @cached_property
    def flat(self) -> Tensor:
        """Places of the valid pairs in a flattened ``(n, m)`` matrix, ``(pairs,)``, row by row."""
        return (self.index.flatten() >= 0).nonzero().squeeze(1)

    @cached_property
    def of_pair(self) -> Tensor:
        """The class of every valid pair, ``(pairs,)``."""
        return self.index.flatten()[self.flat]

    @cached_property
    def sizes(self) -> Tensor:
        """Pairs of every class, ``(K,)`` float64; 1 for a class without any."""
        return torch.bincount(self.of_pair, minlength=len(self.labels)).double().clamp_min(1.0)

    @cached_property
    def row_sizes(self) -> Tensor:
        """Valid pairs of every target, ``(n,)`` float64; 1 for a target without any."""
        return (self.index >= 0).sum(1).double().clamp_min(1.0)

    def sums(self, pairs: Tensor) -> Tensor:
        """Sums over the classes, ``(..., pairs)`` to ``(..., K)``."""
        out = pairs.new_zeros(*pairs.shape[:-1], len(self.labels))
        return out.index_add_(-1, self.of_pair, pairs)

    def means(self, matrix: Tensor) -> Tensor:
        """Class means ``c_k`` of ``(..., n, m)``: ``(..., K)``."""
        return self.sums(matrix.flatten(-2)[..., self.flat]) / self.sizes.to(matrix.dtype)

    def matrix(self, c: Tensor) -> Tensor:
        """``sum_k c_k S_k`` of ``(..., K)``: ``(..., n, m)``, 0 where there is no pair."""
        return torch.where(self.index >= 0, c[..., self.index.clamp_min(0)], 0.0)

    def project(self, matrix: Tensor) -> Tensor:
        """The nearest combination of the S_k (for offsets: the nearest Toeplitz matrix) on the valid pairs."""
        return self.matrix(self.means(matrix))

    def row_means(self, matrix: Tensor) -> Tensor:
        """Every valid entry replaced by the mean of its row's valid entries."""
        valid = self.index >= 0
        mean = torch.where(valid, matrix, 0.0).sum(-1) / self.row_sizes.to(matrix.dtype)
        return torch.where(valid, mean.unsqueeze(-1), 0.0)

    def centred(self, matrix: Tensor) -> Tensor:
        """``(1 - P1) A`` on the valid pairs: every valid entry less the mean of its row's, 0 elsewhere."""
        return torch.where(self.index >= 0, matrix - self.row_means(matrix), 0.0)

    def one(self, label: Any) -> Tensor:
        """S_k of one label as rows that sum to 1, ``(n, m)`` float64: an offset has one source for a target, or none.

        Raises:
            ValueError: no such label: an offset outside the length.
        """
        if label not in self.labels:
            n, m = self.shape
            raise ValueError(
                f"PairClasses: offset {label} lies outside {n} targets and {m} sources; expected one of {self.labels[0]} to "
                f"{self.labels[-1]}."
            )
        chosen = (self.index == self.labels.index(label)).double()
        return chosen / chosen.sum(-1, keepdim=True).clamp_min(1.0)


def _check_size(n: int, m: int) -> None:
    if n < 1 or m < 1:
        raise ValueError(f"PairClasses: {n} targets and {m} sources; expected 1 or more of each.")
    refuse_past_limit(
        n * m,
        f"PairClasses of {n} targets and {m} sources",
        "Read a few rows instead: structure(module, x).rows(i).",
    )
