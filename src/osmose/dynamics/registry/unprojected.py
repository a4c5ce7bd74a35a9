r"""Tokens without a sphere, rescaled, ``z = e^{-tV} x``: what they share, and V = I, where they go to the corners of a polytope.

Shapes: states ``z (K, n, d)`` at K times.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import theory
from ..adaptive import Adaptive
from ..fields import Field
from ..observables import cluster_count, clusters, hull_volume
from ..pictures import COLOURS, draw_tokens
from ..simulate import simulate
from ..spaces import Euclidean, Rescaled
from ..starts import box, seeded, uniform
from ..steppers import Layer
from ..terms import Attention
from ._figures import decay, depth, moments, outline, page, place_of
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RTOL = 1e-10
LINKAGE = 0.01  # clusters: single linkage at this share of the spread of the start
# what is left of a distance to a limit, e^{-lambda t}: read late enough to be small, and before it is rounding (2^-52 = e^-36)
READ = (8.0, 32.0)
PAPER = "2305.05465v6"


@dataclass(frozen=True)
class Unprojected(System):
    r"""``z_i' = sum_j P_ij(e^{tV} z) V (z_j - z_i)``, P the softmax of plain scores."""

    n: int = 20
    width: float = 5.0
    until: float = 12.0
    interval: float = 0.1
    seed: int = 0

    time_scale = (
        "z comes to its limit as e^{-lambda t}, lambda the leading eigenvalue of V, once a token has chosen"
    )

    @abstractmethod
    def value(self) -> Tensor:
        """V ``(d, d)``."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """The leading eigenvalue of V."""

    def query(self) -> Tensor | None:
        """``Q^T K``; None is the identity."""
        return None

    def start(self) -> Tensor:
        """Tokens at time 0."""
        return box(self.n, len(self.value()), width=self.width, generator=seeded(self.seed))

    def problem(self) -> Problem:
        v = self.value()
        count = max(4, round(self.until / self.interval))
        return Problem(
            Field(Attention(1.0, query=self.query(), value=v)),
            self.start(),
            torch.linspace(0.0, self.until, count + 1, dtype=torch.float64),
            space=Rescaled(v),
            stepper=Adaptive(RTOL),
        )

    @property
    def read(self) -> bool:
        """Whether limits can be read off the last state."""
        return READ[0] <= self.rate * self.until <= READ[1]

    @property
    def left(self) -> float:
        """What may be left of a distance at the end, if its token has chosen by half of the time."""
        return math.exp(-self.rate * self.until / 2)

    def recursion(self, h: float = 0.1, layers: int = 50) -> float:
        """How far residual layers ``x + h A``, seen as ``R^{-k} x``, are from their recursion in z, ``R = I + h V``; relative."""
        v, x0 = self.value(), self.start()
        term = Attention(1.0, query=self.query(), value=v)
        times = h * torch.arange(layers + 1, dtype=torch.float64)
        run = simulate(Field(term), x0, times, space=Euclidean(), stepper=Layer(h))
        r = torch.eye(len(v), dtype=torch.float64) + h * v
        step, power, z = torch.linalg.solve(r, v), torch.eye(len(v), dtype=torch.float64), x0
        for _ in range(layers):
            mean = Attention(1.0, query=self.query()).carry(z @ power.mT, z)
            z = z + h * (mean - z) @ step.mT
            power = r @ power
        seen = torch.linalg.solve(power, run.final.mT).mT
        return float((seen - z).abs().max() / z.abs().max())

    def approach(self, distance: Tensor) -> float:
        """The rate at which a distance ``(K,)`` falls over the last quarter of the time, over the leading eigenvalue."""
        k = (3 * (len(distance) - 1)) // 4
        share, span = float(distance[-1] / distance[k]), self.until * (1 - k / (len(distance) - 1))
        return -math.log(share) / (self.rate * span) if share > 0 else math.nan

    def shared_targets(self) -> tuple[Target, ...]:
        """Of every one of them."""
        # rounding of 50 layers, made larger where a token hesitates between two others
        return (
            Target(
                "layers against their recursion in z, relative", 0.0, 1e-9, f"{PAPER}, (1.5): an identity"
            ),
        )


@dataclass(frozen=True)
class Polytope(Unprojected):
    """V is the identity on F (of dimension ``multiplicity``), and ``others`` on the rest."""

    multiplicity: int = 2
    others: tuple[float, ...] = ()

    title = "the hull of the tokens shrinks to a polytope, and they go to its corners"
    source = (
        f"{PAPER}, theorem 3.1 and section 8 (n = 20, start in [-5, 5]^d and the pictures up to t = 5 by the authors' code; "
        "limits are read at t = 12, our choice: the theorem gives no time)"
    )
    invariants = ("hulls are nested",)

    def __post_init__(self) -> None:
        if not 2 <= self.multiplicity <= 6 or any(abs(rate) >= 1 for rate in self.others):
            raise ValueError(
                f"{type(self).__name__}: multiplicity is {self.multiplicity} and others {self.others}; expected 2 to 6, and "
                "eigenvalues smaller than 1 in size."
            )

    @property
    def rate(self) -> float:
        return 1.0

    def value(self) -> Tensor:
        return torch.diag(torch.tensor([1.0] * self.multiplicity + [*self.others], dtype=torch.float64))

    def measure(self, told: Told = silent) -> Findings:
        told("simulating")
        solution = self.problem().simulate()
        z = solution.states[..., : self.multiplicity]
        ways = uniform(256, self.multiplicity, generator=seeded(0))
        reach = (z @ ways.mT).amax(-2)  # (K, 256): how far the hull goes in every direction
        content = hull_volume(z)
        gap = theory.polytope_gap(z, z).amax(-1) / z[-1].square().sum(-1).max()
        inside = torch.minimum(depth(z[-1]), z[-1].norm(dim=-1)).max() / self.width
        measured = {
            "largest growth of the hull": float(reach.diff(dim=0).max()),
            "farthest token from boundary and origin, in widths": float(inside),
            "gap max <x, v> - |x|^2 at the end, relative": float(gap[-1]),
            "rate at which the gap closes": self.approach(gap),
            "layers against their recursion in z, relative": self.recursion(),
            "limit points": float(cluster_count(z[-1], LINKAGE * self.width)),
            "volume of the hull at the end, share": float(content[-1] / content[0]),
        }
        if self.others:
            measured["largest other coordinate at the end"] = float(
                solution.final[:, self.multiplicity :].abs().max()
            )
        data = {"times": solution.times, "states": solution.states, "gap": gap, "volume": content}
        return Findings(measured, data, solution)

    def targets(self) -> tuple[Target, ...]:
        out = [
            # an error of RTOL |z| in each of about a hundred steps
            Target(
                "largest growth of the hull",
                0.0,
                1e-8 * self.width,
                f"{PAPER}, section 8: hulls are nested (on F)",
                "at most",
            ),
            *self.shared_targets(),
        ]
        if self.read:
            theorem = f"{PAPER}, theorem {'5.2' if self.others else '3.1'}"
            out += [
                Target(
                    "farthest token from boundary and origin, in widths",
                    0.0,
                    self.left,
                    f"{theorem}: limits at 0 or on the boundary; e^(-t/2) may be left",
                    "at most",
                ),
                Target(
                    "gap max <x, v> - |x|^2 at the end, relative",
                    0.0,
                    self.left,
                    f"{theorem}, |x|^2 = max <x, v_j> at limits; e^(-t/2) may be left",
                    "at most",
                ),
                # chosen by half of the time: 1 + O(e^(-t/2)) in the last quarter
                Target(
                    "rate at which the gap closes",
                    1.0,
                    self.left,
                    "derived: a token that listens to one other follows it as e^(-t)",
                ),
            ]
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        assert findings.solution is not None
        times, k = findings.data["times"], self.multiplicity
        made, top, bottom = page(4, 3 if self.others else 2)
        z = findings.data["states"]
        last = clusters(z[-1, :, :k], LINKAGE * self.width).labels
        for axes, t in zip(top, moments(self.until), strict=True):
            index = int((times - t).abs().argmin())
            draw_tokens(
                axes,
                z[index, :, :k],
                trail=z[: index + 1, :, :k] if index else None,
                colours=last,
                frame=z[0, :, :k],
                size=24,
                on=place_of(k),
            )
            outline(axes, z[index, :, :k])
            axes.set_title(f"t = {float(times[index]):g}")
            axes.set(xlabel="", ylabel="")
        bottom[0].plot(times, findings.data["volume"] / findings.data["volume"][0], color=COLOURS[0])
        bottom[0].set(xlabel="time", ylabel="volume of the hull, share", xlim=(0, self.until))
        decay(bottom[1], times, findings.data["gap"], 1.0, "gap max ⟨x, v⟩ − |x|²")
        if self.others:
            for j, (rate, colour) in enumerate(zip(self.others, COLOURS, strict=False)):
                bottom[2].plot(times, z[:, :, k + j], color=colour, lw=0.6)
                bottom[2].plot([], [], color=colour, label=f"eigenvalue {rate:g}")
            bottom[2].set(xlabel="time", ylabel="coordinates on G", xlim=(0, self.until))
            bottom[2].set_yscale("symlog")
            bottom[2].legend()
        return made


@dataclass(frozen=True)
class Mixed(Polytope):
    """A polytope on F, and no limit on G."""

    others: tuple[float, ...] = (-0.5,)

    title = "a leading eigenvalue with multiplicity: tokens go to a polytope times a line"
    source = f"{PAPER}, theorem 5.2 (V = diag(1, 1, -1/2), n = 20, start in [-5, 5]^3 by the authors' code; limits read at t = 12)"
    invariants = ("hulls of the projections to F are nested",)


SYSTEMS: dict[str, System] = {
    "unprojected/polytope": Polytope(),
    "unprojected/polytope-3d": Polytope(multiplicity=3),
    "unprojected/mixed": Mixed(),
}
