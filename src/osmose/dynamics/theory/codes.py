"""Optimal codes: configurations of the sphere that have the least energy at every beta > 0.

With V = -I attention descends the interaction energy, towards these. Cohn and Kumar (2007) prove that sharp configurations
(m inner products between different points, and a spherical design of strength 2m - 1) and the 600-cell have the least
``sum_ij e^{beta <x_i, x_j>}`` of all sets of that many points, for every beta > 0.

Source: 2312.10794v5, on general matrices (V = -I); Cohn and Kumar, J. AMS 20 (2007), table 1.
Errata: the dichotomy printed in 2312.10794 asks for m > 1 inner products and so misses m = 1: the antipodal pair and the
other simplices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ._arrays import Numbers, check_count, floats, plain

GOLDEN = (1 + math.sqrt(5)) / 2


@dataclass(frozen=True)
class Code:
    """A universally optimal configuration.

    Attributes:
        name: of it.
        points: ``() -> (n, d)`` float64 unit vectors.
        n, d: how many, in R^d.
        products: inner products between different points, rising.
        multiplicity: how many points have each of them with a given point; they sum to n - 1.
        strength: of the spherical design: polynomials up to this degree have their mean over the sphere.
    """

    name: str
    points: Callable[[], Tensor]
    n: int
    d: int
    products: tuple[float, ...]
    multiplicity: tuple[int, ...]
    strength: int

    def energy(self, beta: ArrayLike) -> Numbers:
        """``sum_ij e^{beta (<x_i, x_j> - 1)} / n^2``, the least of n points: between 1/n and 1."""
        b = floats(beta)[..., None]
        away = np.exp(b * (np.array(self.products) - 1)) * np.array(self.multiplicity)
        return plain((1 + away.sum(-1)) / self.n)


def code_energy(x: Tensor, beta: float) -> float:
    """``sum_ij e^{beta (<x_i, x_j> - 1)} / n^2`` of any ``x (n, d)``. Time and memory n^2."""
    return float(torch.exp(beta * (x @ x.mT - 1)).mean())


def polygon(n: int) -> Tensor:
    """n equally spaced points of the circle, ``(n, 2)``."""
    check_count("polygon", "n", n, 2)
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angle.cos(), angle.sin()], -1)


def simplex(d: int) -> Tensor:
    """d + 1 points of S^{d-1} with inner products -1/d; for d = 1 the antipodal pair."""
    check_count("simplex", "d", d, 1)
    centred = torch.eye(d + 1, dtype=torch.float64) - 1 / (d + 1)
    _, vectors = torch.linalg.eigh(centred)
    x = vectors[:, 1:]  # a basis of the hyperplane of sum 0
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def cross_polytope(d: int) -> Tensor:
    """The 2 d points ``+-e_k``; an octahedron for d = 3."""
    check_count("cross_polytope", "d", d, 1)
    e = torch.eye(d, dtype=torch.float64)
    return torch.cat([e, -e])


def icosahedron() -> Tensor:
    """12 points of S^2 with inner products -1, +-1/sqrt 5."""
    x = [(0.0, a, b * GOLDEN) for a in (1.0, -1.0) for b in (1.0, -1.0)]
    cycled = [p[k:] + p[:k] for k in range(3) for p in x]
    return torch.tensor(cycled, dtype=torch.float64) / math.sqrt(1 + GOLDEN**2)


def cell_600() -> Tensor:
    """The 120 vertices of the 600-cell: the unit icosians in R^4."""
    signs = list(itertools.product((1.0, -1.0), repeat=4))
    rows = [*cross_polytope(4).tolist(), *([s / 2 for s in sign] for sign in signs)]
    base = (GOLDEN / 2, 0.5, 1 / (2 * GOLDEN), 0.0)
    for order in itertools.permutations(range(4)):
        inversions = sum(order[a] > order[b] for a, b in itertools.combinations(range(4), 2))
        if inversions % 2 == 0:
            for sign in itertools.product((1.0, -1.0), repeat=3):
                p = [0.0] * 4
                for c in range(3):
                    p[order[c]] = sign[c] * base[c]
                rows.append(p)
    return torch.tensor(rows, dtype=torch.float64)


def e8_roots() -> Tensor:
    """The 240 roots of E8 in R^8: inner products -1, +-1/2, 0."""
    rows = []
    for a, b in itertools.combinations(range(8), 2):
        for s, t in itertools.product((1.0, -1.0), repeat=2):
            p = [0.0] * 8
            p[a], p[b] = s, t
            rows.append(p)
    rows += [
        [s / 2 for s in sign] for sign in itertools.product((1.0, -1.0), repeat=8) if math.prod(sign) > 0
    ]
    return torch.tensor(rows, dtype=torch.float64) / math.sqrt(2)


def nearest_neighbours(x: Tensor) -> Tensor:
    """The nearest points of the first one, seen from it: projected to its equator and normalised, in one dimension less."""
    products = x @ x[0]
    near = products[1:].max()
    others = x[(products - near).abs() < 1e-9]
    tangent = others - near * x[0]
    tangent = tangent / torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    frame = torch.linalg.svd(x[:1], full_matrices=True).Vh[1:]
    return tangent @ frame.mT


def _kissing(depth: int) -> Callable[[], Tensor]:
    def points() -> Tensor:
        x = e8_roots()
        for _ in range(depth):
            x = nearest_neighbours(x)
        return x

    return points


def _cell_600_table() -> tuple[tuple[float, ...], tuple[int, ...]]:
    half = GOLDEN / 2
    return (-1.0, -half, -0.5, 0.5 - half, 0.0, half - 0.5, 0.5, half), (1, 12, 20, 12, 30, 12, 20, 12)


CODES: dict[str, Code] = {
    code.name: code
    for code in (
        Code("antipodal", lambda: simplex(1), 2, 1, (-1.0,), (1,), 1),
        Code("tetrahedron", lambda: simplex(3), 4, 3, (-1 / 3,), (3,), 2),
        Code("octahedron", lambda: cross_polytope(3), 6, 3, (-1.0, 0.0), (1, 4), 3),
        Code("icosahedron", icosahedron, 12, 3, (-1.0, -1 / 5**0.5, 1 / 5**0.5), (1, 5, 5), 5),
        Code("600-cell", cell_600, 120, 4, *_cell_600_table(), 11),
        Code("clebsch", _kissing(3), 16, 5, (-3 / 5, 1 / 5), (5, 10), 3),
        Code("schlaefli", _kissing(2), 27, 6, (-1 / 2, 1 / 4), (10, 16), 4),
        Code("equiangular-28", _kissing(1), 56, 7, (-1.0, -1 / 3, 1 / 3), (1, 27, 27), 5),
        Code("e8", e8_roots, 240, 8, (-1.0, -0.5, 0.0, 0.5), (1, 56, 126, 56), 7),
    )
}
"""Universally optimal codes by name; the simplices, cross-polytopes and polygons of any size come from their functions."""


def simplex_energy(beta: ArrayLike, n: int) -> Numbers:
    """The least energy of n points where ``n <= d + 1``: ``(1 + (n-1) e^{-beta n/(n-1)}) / n``, the simplex."""
    check_count("simplex_energy", "n", n, 2)
    return plain((1 + (n - 1) * np.exp(-floats(beta) * n / (n - 1))) / n)


def polygon_energy(beta: ArrayLike, n: int) -> Numbers:
    """The least energy of n points of the circle, the regular polygon."""
    check_count("polygon_energy", "n", n, 2)
    cosines = np.cos(2 * np.pi * np.arange(n) / n)
    return plain(np.exp(floats(beta)[..., None] * (cosines - 1)).mean(-1))


def cross_polytope_energy(beta: ArrayLike, d: int) -> Numbers:
    """The least energy of 2 d points of S^{d-1}, the cross-polytope."""
    check_count("cross_polytope_energy", "d", d, 1)
    b = floats(beta)
    return plain((1 + np.exp(-2 * b) + (2 * d - 2) * np.exp(-b)) / (2 * d))
