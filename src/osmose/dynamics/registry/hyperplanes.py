"""Tokens without a sphere under a V of simple leading eigenvalue: they go to at most three parallel hyperplanes.

Shapes: states ``z (K, n, d)`` at K times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..observables import cluster_count, clusters
from ..pictures import COLOURS, EXACT
from ..simulate import Solution
from ._figures import decay, moments, page
from .base import Findings, System, Target, Told, silent
from .unprojected import LINKAGE, PAPER, READ, Unprojected

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# row after row, by the authors' code: simple leading eigenvalue and a complex pair; two positive eigenvalues, one negative
COMPLEX = (0.2362413, 0.0599536, 0.40506019, 0.81321448, 0.49948705, 0.33754772, 0.2160645, 0.38505272, 0.14588075)  # fmt: skip
SYMMETRIC = (0.92761287, 0.94333073, 0.3827744, 0.94333073, 0.59991396, 0.47825472, 0.3827744, 0.47825472, 0.46668605)  # fmt: skip


class GoodTriple(Unprojected):
    """A simple leading eigenvalue: ``<phi, z_i>`` takes at most three values in the end."""

    invariants = ("the range of <phi_k, z> is nested for every real eigenvalue >= 0",)

    @property
    def rate(self) -> float:
        return theory.leading_functional(self.value().numpy())[0]

    @property
    def read(self) -> bool:
        # who leads a hyperplane is settled as e^{2 (lambda_1 - |lambda_2|) t}
        sizes = np.sort(np.abs(np.linalg.eigvals(self.value().numpy())))
        return super().read and bool(2 * (sizes[-1] - sizes[-2]) * self.until >= READ[0])

    @property
    def resolution(self) -> float:
        """Of a rate, over lambda: what hesitation leaves, the stepper (at 1e-4), rounding of 1e-15 in a width of e^{-lambda t}."""
        span = self.rate * self.until
        return max(self.left, 1e-4, 1e-15 * math.exp(span) * 4 / span)

    def measure(self, told: Told = silent) -> Findings:
        told("simulating")
        solution = self.problem().simulate()
        phi = torch.from_numpy(theory.leading_functional(self.value().numpy())[1])
        c = solution.states @ phi  # (K, n)
        spread = float(c[0].max() - c[0].min())
        groups = clusters(c[-1].unsqueeze(-1), LINKAGE * spread)
        members = [groups.labels == g for g in range(int(groups.count))]
        width = torch.stack([c[:, m].amax(-1) - c[:, m].amin(-1) for m in members]).amax(0) / spread
        values = sorted(float(c[-1, m].mean()) for m in members)
        y = solution.states @ self._functionals(growing=False)
        growth = torch.maximum(y.amax(-2).diff(dim=0), -y.amin(-2).diff(dim=0))
        measured = {
            "largest growth of a range": float(growth.max()),
            "hyperplanes at the end": float(groups.count),
            "middle hyperplane, off the origin": max((abs(v) for v in values[1:-1]), default=0.0) / spread,
            "width of a hyperplane at the end, relative": float(width[-1]),
            "rate at which hyperplanes thin, over lambda": self.approach(width),
            "layers against their recursion in z, relative": self.recursion(),
            "points in all growing coordinates": self._points(solution),
        }
        measured |= {f"hyperplane {k + 1} at": v for k, v in enumerate(values[:3])}
        data = {
            "times": solution.times, "states": solution.states, "leading": c, "width": width,
            "groups": groups.labels, "values": torch.tensor(values),
        }  # fmt: skip
        return Findings(measured, data, solution)

    def _functionals(self, *, growing: bool) -> Tensor:
        """Left eigenvectors ``(d, k)``: real ones of eigenvalues >= 0, or real and imaginary parts of those with a positive real part."""
        rates, vectors = np.linalg.eig(self.value().numpy().T)
        if growing:
            vectors = np.concatenate([vectors.real, vectors.imag], 1)[:, np.tile(rates.real > 0, 2)]
        else:
            vectors = vectors[:, (rates.imag == 0) & (rates.real >= 0)].real
        return torch.from_numpy(np.ascontiguousarray(vectors))

    def _points(self, solution: Solution) -> float:
        """Places that tokens take in all growing coordinates (conjecture 4.3: at most three)."""
        y = solution.states[[0, -1]] @ self._functionals(growing=True)
        spread = float((y[0] - y[0].mean(0)).norm(dim=-1).max())
        return float(cluster_count(y[-1], 0.1 * spread))

    def targets(self) -> tuple[Target, ...]:
        theorem = f"{PAPER}, theorem 4.2"
        out = [
            # an error of RTOL |z| in each of some hundred steps
            Target(
                "largest growth of a range",
                0.0,
                1e-8 * self.width,
                f"{PAPER}, section 9: ranges of <phi_k, z> are nested, for every real eigenvalue >= 0",
                "at most",
            ),
            *self.shared_targets(),
        ]
        if self.read:
            out += [
                Target(
                    "hyperplanes at the end",
                    3.0,
                    0.0,
                    f"{theorem}; single linkage at {LINKAGE:g} of the range",
                    "at most",
                ),
                Target(
                    "width of a hyperplane at the end, relative",
                    0.0,
                    self.left,
                    f"{theorem}; e^(-lambda t/2) may be left",
                    "at most",
                ),
                # see resolution
                Target(
                    "rate at which hyperplanes thin, over lambda",
                    1.0,
                    self.resolution,
                    "derived: <phi, z> of a token that listens to one other follows it as e^(-lambda t)",
                ),
            ]
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        assert findings.solution is not None
        made, top, bottom = page(4, 2)
        self.draw_top(top, findings)
        self.draw_leading(bottom[0], findings)
        decay(
            bottom[1],
            findings.data["times"],
            findings.data["width"],
            self.rate,
            "hyperplane width, share",
        )
        return made

    def draw_top(self, top: list[Axes], findings: Findings) -> None:
        """Tokens at four times, the leading functional to the right."""
        times, z, c = (findings.data[key] for key in ("times", "states", "leading"))
        colours = [COLOURS[int(g) % len(COLOURS)] for g in findings.data["groups"]]
        phi = torch.from_numpy(theory.leading_functional(self.value().numpy())[1])
        across = z - c.unsqueeze(-1) * phi
        flat = across[0] - across[0].mean(0)
        direction = torch.linalg.eigh(flat.mT @ flat).eigenvectors[:, -1]
        for axes, t in zip(top, moments(self.until), strict=True):
            k = int((times - t).abs().argmin())
            for value in findings.data["values"]:
                axes.axvline(value, **EXACT)
            axes.scatter(
                c[k], across[k] @ direction, s=22, c=colours, edgecolors="white", linewidths=0.5, zorder=6
            )
            axes.set_title(f"t = {float(times[k]):g}")
            axes.set_xlabel("⟨φ, z⟩")
            reach = 1.08 * float(c[0].abs().max())
            axes.set_xlim(-reach, reach)
        top[0].set_ylabel("a coordinate across")

    def draw_leading(self, axes: Axes, findings: Findings) -> None:
        """``<phi, z_i>`` over time."""
        times, c = findings.data["times"], findings.data["leading"]
        for i, g in enumerate(findings.data["groups"]):
            axes.plot(times, c[:, i], color=COLOURS[int(g) % len(COLOURS)], lw=0.9)
        for k, value in enumerate(findings.data["values"]):
            axes.axhline(value, **EXACT, label="hyperplanes" if k == 0 else None)
        axes.set(xlabel="time", ylabel="leading functional ⟨φ, z⟩", xlim=(0, self.until))
        axes.legend(loc="best")


@dataclass(frozen=True)
class Hyperplanes(GoodTriple):
    """V by its numbers."""

    matrix: tuple[float, ...] = (0.64709742, 0.81911926, 0.61210449, 0.63263484)

    title = "a simple leading eigenvalue: tokens go to at most three parallel hyperplanes"
    source = (
        f"{PAPER}, theorem 4.2 (V, n = 20, start in [-5, 5]^d by the authors' code; limits read at t = 12)"
    )

    def __post_init__(self) -> None:
        if math.isqrt(len(self.matrix)) ** 2 != len(self.matrix) or len(self.matrix) < 4:
            raise ValueError(
                f"{type(self).__name__}: matrix holds {len(self.matrix)} numbers; expected d x d of them, row after row."
            )
        theory.leading_functional(self.value().numpy())

    def value(self) -> Tensor:
        d = math.isqrt(len(self.matrix))
        return torch.tensor(self.matrix, dtype=torch.float64).view(d, d)


@dataclass(frozen=True)
class Codimension(Hyperplanes):
    """Two eigenvalues of positive real part: hyperplanes, and on them fewer points than tokens."""

    matrix: tuple[float, ...] = SYMMETRIC

    title = "two growing directions: hyperplanes, and by a conjecture at most three parallel lines"
    source = (
        f"{PAPER}, conjecture 4.3 (V of two positive eigenvalues and one negative, n = 20, start in [-5, 5]^3 by the authors' code); "
        "targets are those of theorem 4.2 alone, the points of the conjecture are measured"
    )


SYSTEMS: dict[str, System] = {
    "unprojected/hyperplanes": Hyperplanes(),
    "unprojected/hyperplanes-3d": Hyperplanes(matrix=COMPLEX),
    "unprojected/codimension": Codimension(),
}
