"""What a fixed shift may be by chance: its expected share in noise, and a permutation test.

Shapes: H heads, n targets, m sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .pairs import PairClasses


def expected_by_chance(classes: PairClasses, rows: Tensor | None = None) -> Tensor:
    """``nu = E|Pi D|² / E|D|²`` for ``D = (1 - P1) X`` whose entries are in random order within each row, ``(...)``.

    Args:
        classes: of the pairs.
        rows: ``|D_i|²`` of every target, ``(..., n)``; None: those of noise of one variance, where
            ``nu = (K - tr P1 Pi) / (pairs - rows)``, the share of dimensions: ``(2 n - 1) / n²`` for all pairs of n x n.

    In causal order the rows matter: the first targets have few sources, far from uniform, at offsets of few pairs.
    """
    n, m = classes.shape
    cells, count = torch.stack([classes.flat.div(m, rounding_mode="floor"), classes.of_pair]).unique(
        dim=1, return_counts=True
    )
    count, size = count.double(), classes.row_sizes
    # a row's entries of mean 0 and energy e, in random order: k of r sum to variance e (k - k²/r) / (r - 1)
    spread = (count - count.square() / size[cells[0]]) / classes.sizes[cells[1]]
    factor = torch.zeros(n, dtype=torch.float64).index_add(0, cells[0], spread) / (size - 1).clamp_min(1.0)
    rows = size - 1 if rows is None else rows.double()
    total = rows.sum(-1)
    return (rows * factor).sum(-1) / torch.where(total > 0, total, 1.0)


def permutation_p(
    parts: Sequence[tuple[float, Tensor, PairClasses]],
    permutations: int = 199,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """P-values of the fixed shift, ``(H,)``: ``(1 + how often |Pi D'|² >= |Pi D|²) / (1 + permutations)``.

    D' is D with its columns in a random order, the same for all rows; where pairs are not valid, every row's valid entries
    are put in the order that the random one gives them. It keeps what a row gives away and to how many, and that some
    sources are used by all: what is destroyed is only at which offset.

    Args:
        parts: weight, ``D (H, n, m)`` and classes of every length; their statistics are added by weight.
        permutations: their number; the smallest possible p is ``1 / (1 + permutations)``.
        generator: of the random orders; None: one of seed 0.

    Cost: ``H n m`` for each permutation.
    """
    if permutations < 1:
        raise ValueError(f"permutation_p: permutations is {permutations}; expected 1 or more.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    observed = torch.stack([w * _shift(d.flatten(-2)[..., c.flat], c) for w, d, c in parts]).sum(0)
    reached = torch.zeros_like(observed)
    for _ in range(permutations):
        found = torch.stack([w * _shift(_permuted(d, c, generator), c) for w, d, c in parts]).sum(0)
        reached += found >= observed * (1 - 1e-12)
    return (1 + reached) / (1 + permutations)


def _shift(pairs: Tensor, classes: PairClasses) -> Tensor:
    """``|Pi D|²`` of the valid pairs' values ``(H, pairs)``."""
    return (classes.sums(pairs).square() / classes.sizes).sum(-1)


def _permuted(d: Tensor, classes: PairClasses, generator: torch.Generator) -> Tensor:
    """The valid pairs' values ``(H, pairs)``, in every row in another order."""
    order = torch.randperm(d.shape[-1], generator=generator)
    rows, place = (classes.index[:, order] >= 0).nonzero().unbind(1)  # row by row, as the valid pairs are
    return d.flatten(-2)[..., rows * d.shape[-1] + order[place]]
