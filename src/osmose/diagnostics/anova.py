"""Structure ANOVA: how much of a head's matrix is uniform, a fixed shift, fixed otherwise, an adaptive shift, content.

Over inputs, with the mean ``Ā = E A``, the rest ``R = A - Ā``, P1 the row mean over valid sources, ``D = (1 - P1) Ā`` and
Pi the projection on the classes of pairs (for offsets: on Toeplitz matrices), in the Frobenius norm

    E|A|² = |P1 Ā|²  +  |Pi D|²     +  |(1 - Pi) D|²   +  E|Pi R|²        +  E|(1 - Pi) R|²
            uniform     fixed shift    fixed absolute     adaptive shift     content

Each line of the sum is a theorem of Pythagoras, so the shares sum to 1 for any A. The split is sequential, uniform first:
Pi and P1 do not commute. |Pi A|² / |A|² alone would tell nothing: a uniform matrix is exactly Toeplitz.

Shapes: H heads, n targets, m sources; ``...`` inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..operators.base import refuse_past_limit
from .heads import HeadStatistics, head_statistics
from .null import expected_by_chance, permutation_p
from .pairs import PairClasses
from .replacements import replacement

COMPONENTS = ("uniform", "fixed shift", "fixed absolute", "adaptive shift", "content")
"""The parts, in the order of the sum."""


@dataclass(frozen=True, eq=False)
class Shares:
    """What :meth:`StructureAnova.shares` found, for H heads, in float64.

    Attributes:
        shares: ``(H, 5)`` in the order of ``COMPONENTS``; rows sum to 1, or are 0 for a head that was 0 everywhere.
        outside: ``(H,)``, energy at places that are no valid pair, as a share of all energy; it is in no component.
        chance: ``(H,)``, nu: the fixed shift as a share of what is not uniform, were every row of the mean matrix in random
            order (:func:`expected_by_chance`). Where A depends on no input it is that of D alone, ``(2 n - 1) / n²``
            for rows of one energy.
        energy: ``(H,)``, ``E|A|²`` on the valid pairs.
        samples: the number of matrices.
    """

    shares: Tensor
    outside: Tensor
    chance: Tensor
    energy: Tensor
    samples: int

    def __getitem__(self, component: str) -> Tensor:
        """One component of all heads, ``(H,)``."""
        return self.shares[:, COMPONENTS.index(component)]

    @property
    def together(self) -> Tensor:
        """The shares of all heads as one, by energy, ``(5,)``."""
        total = self.energy.sum()
        return (self.shares * self.energy.unsqueeze(-1)).sum(0) / torch.where(total > 0, total, 1.0)

    @property
    def dominant(self) -> list[str]:
        """The largest component of every head."""
        return [COMPONENTS[i] for i in self.shares.argmax(1).tolist()]

    @property
    def shift_score(self) -> Tensor:
        """The fixed shift among what is not uniform, above chance: ``(s - nu) / (1 - nu)``, 1 for a shift."""
        rest = 1 - self["uniform"]
        s = torch.where(rest > 0, self["fixed shift"] / torch.where(rest > 0, rest, 1.0), 0.0)
        return (s - self.chance) / (1 - self.chance)


class _Sums:
    """Sums over the matrices of one shape."""

    def __init__(self, classes: PairClasses, heads: int):
        self.classes, self.count = classes, 0
        self.total = torch.zeros(heads, *classes.shape, dtype=torch.float64)
        self.square, self.projected, self.outside = torch.zeros(3, heads, dtype=torch.float64).unbind()

    def add(self, matrix_HNM: Tensor) -> None:
        wide = matrix_HNM.to("cpu", torch.float64)
        pairs = wide.flatten(1)[:, self.classes.flat]
        inside = pairs.square().sum(-1)
        self.count += 1
        self.total += wide
        self.square += inside
        if pairs.shape[-1] < wide[0].numel():
            self.outside += _energy(wide.masked_fill(self.classes.index >= 0, 0.0))
        self.projected += (self.classes.sums(pairs).square() / self.classes.sizes).sum(-1)

    @property
    def mean(self) -> Tensor:
        """Ā ``(H, n, m)``, at all places."""
        return self.total / self.count

    @property
    def centred(self) -> Tensor:
        """D ``(H, n, m)``, on the valid pairs."""
        return self.classes.centred(self.mean)

    def energies(self) -> Tensor:
        """The five terms, ``(H, 5)``."""
        classes, d = self.classes, self.centred
        uniform = classes.row_means(self.mean)
        mean = d + uniform  # on the valid pairs
        shift = _energy(classes.project(d))
        fixed, fixed_projected = _energy(mean), _energy(classes.project(mean))
        adaptive = (self.projected / self.count - fixed_projected).clamp_min(0.0)
        varying = (self.square / self.count - fixed).clamp_min(0.0)
        rest = [_energy(uniform), shift, (_energy(d) - shift).clamp_min(0.0)]
        return torch.stack([*rest, adaptive, (varying - adaptive).clamp_min(0.0)], -1)


class StructureAnova:
    """The decomposition of one layer's matrices, accumulated over inputs in one pass.

    Args:
        classes: the pairs ``(n, m)``, or a function that gives them for a length; None: offsets of a sequence, both ways.
            :meth:`PairClasses.sequence`, ``grid`` and ``graph`` make them.

    What is kept for each shape: the sum of A, in float64 ``8 H n m`` bytes (17 MB for 8 heads of length 512), and of
    ``|A|²`` and of the class means' squares, ``H`` numbers each. So memory does not grow with the number of inputs.
    Inputs of different lengths are kept apart and combined by energy. With B inputs of one length the two components of R
    are low by the factor ``(B - 1) / B`` in expectation, and the fixed ones take what they lose.

    Raises:
        DenseLimitError: the sums would exceed :func:`~osmose.operators.dense_limit`.
    """

    def __init__(self, classes: PairClasses | Callable[[int, int], PairClasses] | None = None):
        self._classes = PairClasses.sequence if classes is None else classes
        self._sums: dict[tuple[int, int], _Sums] = {}
        self._heads: int | None = None

    def update(self, matrices: Tensor) -> None:
        """Take in ``(..., H, n, m)``: every leading index is an input.

        Raises:
            ValueError: another number of heads than before, a shape that the classes do not have, or no finite numbers.
        """
        if matrices.ndim < 3 or self._heads not in (None, matrices.shape[-3]):
            heads = "H" if self._heads is None else self._heads
            raise ValueError(
                f"StructureAnova: matrices have shape {tuple(matrices.shape)}; expected (..., {heads}, n, m)."
            )
        if not bool(torch.isfinite(matrices).all()):
            raise ValueError("StructureAnova: matrices hold NaN or infinity; expected finite numbers.")
        self._heads, (n, m) = matrices.shape[-3], matrices.shape[-2:]
        if (n, m) not in self._sums:
            classes = self._classes if isinstance(self._classes, PairClasses) else self._classes(n, m)
            if classes.shape != (n, m):
                raise ValueError(
                    f"StructureAnova: matrices are {n} x {m} but the classes are of {classes.shape[0]} x {classes.shape[1]} "
                    "pairs; pass a function (n, m) -> PairClasses for inputs of different lengths."
                )
            held = sum(s.total.numel() for s in self._sums.values()) + matrices.shape[-3] * n * m
            refuse_past_limit(
                held,
                f"StructureAnova with sums of {len(self._sums) + 1} shapes",
                "Cut the inputs to one length; or read single rows, structure(module, x).rows(i).",
            )
            self._sums[n, m] = _Sums(classes, matrices.shape[-3])
        for matrix in matrices.detach().flatten(0, -4) if matrices.ndim > 3 else [matrices.detach()]:
            self._sums[n, m].add(matrix)

    @property
    def samples(self) -> int:
        """Matrices taken in."""
        return sum(sums.count for sums in self._sums.values())

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """The shapes ``(n, m)`` that came."""
        return sorted(self._sums)

    def _weighted(self) -> list[tuple[float, _Sums]]:
        if not self._sums:
            raise ValueError("StructureAnova: no matrix was taken in yet; call update first.")
        return [(sums.count / self.samples, sums) for sums in self._sums.values()]

    def shares(self) -> Shares:
        """The shares of the five components in ``E|A|²``."""
        weighted = self._weighted()
        energies = torch.stack([w * sums.energies() for w, sums in weighted]).sum(0)
        total = energies.sum(-1)
        outside = torch.stack([w * sums.outside / sums.count for w, sums in weighted]).sum(0)
        rows = [(w, s.centred.square().sum(-1), s.classes) for w, s in weighted]
        chance = torch.stack([w * row.sum(-1) * expected_by_chance(classes, row) for w, row, classes in rows])
        around = total - energies[:, 0]
        everything = total + outside
        return Shares(
            energies / torch.where(total > 0, total, 1.0).unsqueeze(-1),
            outside / torch.where(everything > 0, everything, 1.0),
            torch.where(around > 0, chance.sum(0) / torch.where(around > 0, around, 1.0), 0.0),
            total,
            self.samples,
        )

    def permutation_p(self, permutations: int = 199, *, generator: torch.Generator | None = None) -> Tensor:
        """How often columns in another order have as large a fixed shift, ``(H,)``; see :func:`permutation_p`."""
        parts = [(w, sums.centred, sums.classes) for w, sums in self._weighted()]
        return permutation_p(parts, permutations, generator=generator)

    def heads(self) -> HeadStatistics:
        """Top offset, its mass, effective offsets, sinks, and the stable rank of ``(1 - Pi) D``."""
        return head_statistics([(w, sums.mean, sums.classes) for w, sums in self._weighted()])

    def mean(self, n: int, m: int) -> Tensor:
        """The input mean Ā of one shape, ``(H, n, m)`` float64. Raises ValueError for one that did not come."""
        return self._of(n, m).mean

    def replacement(self, kind: str, n: int, m: int, *, top: list[Any] | None = None) -> Tensor:
        """What may stand in the place of the heads' matrices at one shape, ``(H, n, m)``; see :func:`replacement`.

        ``mean`` and ``toeplitz`` need a shape that came; ``shift`` any that the offset fits in. ``top`` are offsets
        to take in place of each head's own.

        Raises:
            ValueError: an unknown kind, a shape that did not come, an offset outside the length.
        """
        if kind != "shift":
            sums = self._of(n, m)
            return replacement(kind, sums.mean, sums.classes)
        top = self.heads().top_offset if top is None else top
        known = self._sums.get((n, m))
        if known is None and isinstance(self._classes, PairClasses):
            known = self._of(n, m)
        classes = known.classes if known is not None else self._classes(n, m)  # type: ignore[operator]
        return torch.stack([classes.one(label) for label in top])

    def _of(self, n: int, m: int) -> _Sums:
        if (n, m) not in self._sums:
            came = ", ".join(f"{a} x {b}" for a, b in self.lengths[:5]) or "none"
            raise ValueError(
                f"StructureAnova: a matrix of {n} x {m} is asked for, but means are known for {came} only; take in inputs "
                "of that length too, or cut all to one. A hard shift fits any length."
            )
        return self._sums[n, m]


def _energy(x: Tensor) -> Tensor:
    return x.square().sum((-2, -1))
