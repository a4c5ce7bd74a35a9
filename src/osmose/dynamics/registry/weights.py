r"""Tokens on the sphere under random weights: what holds for any ``Q^T K``, for ``V = +-Q^T K``, for a positive V, and through redraws.

Shapes: states ``x (K, n, d)`` at K times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from ..adaptive import Adaptive
from ..fields import Field, Schedule
from ..observables import (
    Observable,
    Recorder,
    cumulative_integral,
    distance_to_dirac,
    effective_rank,
    energy_rate,
    hemisphere_pole,
    product_histogram,
)
from ..pictures import COLOURS, EXACT, MAP, draw_tokens, figure
from ..starts import seeded, uniform
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPAN = 1e-3  # eigenvalues of the Gram matrix above it are counted
BINS = 81

Product = Literal["identity", "gaussian", "goe"]
Value = Literal["identity", "product", "minus", "wishart", "gaussian"]


def gaussian(d: int, generator: torch.Generator) -> Tensor:
    """Independent entries of variance 1/d: spectral radius near 1."""
    return torch.randn(d, d, dtype=torch.float64, generator=generator) / math.sqrt(d)


def goe(d: int, generator: torch.Generator) -> Tensor:
    """A symmetric matrix of the Gaussian orthogonal ensemble, eigenvalues in about [-2, 2]."""
    g = gaussian(d, generator)
    return (g + g.mT) / math.sqrt(2)


def wishart(d: int, generator: torch.Generator) -> Tensor:
    """``G G^T``, G with entries of variance 1/d: positive, eigenvalues in about [0, 4]."""
    g = gaussian(d, generator)
    return g @ g.mT


@dataclass(frozen=True)
class Weights(System):
    """SA with random ``Q^T K`` and V, drawn once or again every ``period``."""

    n: int = 32
    d: int = 8
    beta: float = 1.0
    product: Product = "gaussian"
    value: Value = "identity"
    period: float = 0.0
    half: bool = True
    until: float = 15.0
    interval: float = 0.1
    seed: int = 0

    title = "random weights on the sphere: what still holds, and how many directions are left"
    source = (
        "weight variants of the authors' code of 2312.10794 (random, GOE, V = +-B, Wishart, redrawn; the span counts Gram eigenvalues "
        "above 1e-3); n = 32, d = 8, unit scale and period 1 are our choice"
    )
    time_scale = "tokens meet as e^{-t} where V = I"

    def __post_init__(self) -> None:
        if self.period < 0:
            raise ValueError(f"Weights: period is {self.period}; expected 0 (drawn once) or a positive time.")
        if self.value in ("product", "minus") and self.product == "gaussian":
            raise ValueError(
                f"Weights: value is {self.value} of product gaussian, which is not symmetric; take product=goe."
            )

    def quick(self) -> Self:
        return replace(self, n=min(self.n, 16))

    @property
    def law(self) -> Literal["energy", "half-sphere", "none"]:
        """What is known to hold."""
        if self.value in ("product", "minus") or (self.product, self.value) == ("identity", "identity"):
            return "energy" if not self.period else "none"
        if self.half and (self.value == "identity" or (self.value == "wishart" and not self.period)):
            return "half-sphere"
        return "none"

    def drawn(self, piece: int) -> tuple[Tensor | None, Tensor | float]:
        """``Q^T K`` and V of a stretch of time."""
        g = seeded(1000 * (self.seed + 1) + piece)
        b = {
            "identity": lambda: None,
            "gaussian": lambda: gaussian(self.d, g),
            "goe": lambda: goe(self.d, g),
        }[self.product]()
        eye = torch.eye(self.d, dtype=torch.float64)
        if self.value in ("product", "minus"):
            return b, (eye if b is None else b) * (1.0 if self.value == "product" else -1.0)
        if self.value == "identity":
            return b, 1.0
        return b, wishart(self.d, g) if self.value == "wishart" else gaussian(self.d, g)

    def field(self, turn: Tensor | None = None) -> Field:
        """The field; with an orthogonal ``turn`` U that of tokens ``U x``: weights ``U W U^T``."""
        count = max(1, math.ceil(self.until / self.period - 1e-9)) if self.period else 1
        pieces = []
        for k in range(count):
            b, v = self.drawn(k)
            if turn is not None:
                b = None if b is None else turn @ b @ turn.mT
                v = turn @ v @ turn.mT if isinstance(v, Tensor) else v
            pieces.append((k * self.period, Field(Attention(self.beta, query=b, value=v))))
        return Schedule(pieces) if self.period else pieces[0][1]

    def start(self) -> Tensor:
        """Uniform; with ``half`` in the half-sphere of the last axis, or of the leading eigenvector of a positive V."""
        x = uniform(self.n, self.d, generator=seeded(self.seed))
        if not self.half:
            return x
        below = (x @ self.pole()) < 0
        return torch.where(below.unsqueeze(-1), -x, x)

    def pole(self) -> Tensor:
        """The middle of the half-sphere."""
        v = self.drawn(0)[1]
        if self.value == "wishart" and isinstance(v, Tensor):
            return torch.linalg.eigh(v).eigenvectors[:, -1]
        return torch.eye(self.d, dtype=torch.float64)[-1]

    def problem(self) -> Problem:
        count = max(2, round(self.until / self.interval))
        return Problem(
            self.field(),
            self.start(),
            torch.linspace(0.0, self.until, count + 1, dtype=torch.float64),
            stepper=Adaptive(1e-10),
            beta=self.beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        problem = self.problem()
        told("simulating")
        watched = [
            Observable("histogram", lambda x, mass: product_histogram(x, BINS).share),
            Observable("gram", lambda x, mass: torch.linalg.svdvals(x).square()),
            Observable("dirac", distance_to_dirac),
            Observable("rank", effective_rank),
        ]
        gradient = problem.field.is_gradient
        if gradient:
            energy, part = problem.field.energy, problem.field.energy.parts[0]

            def rate(x: Tensor, v: Tensor, mass: Tensor | None) -> Tensor:
                return part.coefficient * energy_rate(x, v, part.beta, mass, bilinear=part.bilinear)

            watched += [
                Observable("energy", lambda x, mass: energy(x, mass)),
                Observable("dissipation", lambda x, v, mass: energy.rate(x, v, mass), velocity=True),
                Observable("energy_rate", rate, velocity=True),
            ]
        solution = problem.simulate(observe=Recorder(watched))
        found, times = solution.results, solution.times
        measured = {
            "gradient flow": float(gradient),
            "span at the start": float((found["gram"][0] > SPAN).sum()),
            "span at the end": float((found["gram"][-1] > SPAN).sum()),
            "effective rank at the end": float(found["rank"][-1]),
            "distance to consensus at the end": float(found["dirac"][-1]),
        }
        quarter = (3 * (len(times) - 1)) // 4
        share = float(found["dirac"][quarter] / found["dirac"][-1].clamp(min=1e-300))
        measured["rate of approach to consensus"] = math.log(share) / float(times[-1] - times[quarter])
        data = {key: found[key] for key in ("histogram", "gram", "dirac")}
        data |= {"times": times, "states": solution.states}
        if gradient:
            gained = found["energy"] - found["energy"][0]
            missed = gained - cumulative_integral(found["dissipation"], times)
            measured["largest fall of the energy"] = float(-gained.diff().min())
            apart = (found["energy_rate"] - found["dissipation"]).abs().max()
            measured["dE/dt against dissipation, relative"] = float(apart / found["dissipation"].max())
            measured["energy against dissipation integrated, relative"] = float(
                missed.abs().max() / gained[-1]
            )
            data |= {"energy": found["energy"], "predicted": found["energy"] - missed}
        if self.half:
            pole = self.pole() if self.value == "wishart" else hemisphere_pole(solution.states[0])
            least = (solution.states @ pole).amin(-1)
            measured["largest fall of min <x, w>"] = float(-least.diff().min())
            measured["min <x, w> at the end"] = float(least[-1])
            data["least"] = least
        told("turned")
        measured["turned run against run"] = self._turned(solution.final)
        return Findings(measured, data, solution)

    def _turned(self, final: Tensor) -> float:
        """How far the run of ``U x`` under turned weights, in another order of tokens, ends from U times the run."""
        g = seeded(self.seed + 77)
        turn = torch.linalg.qr(gaussian(self.d, g)).Q
        order = torch.randperm(self.n, generator=g)
        problem = self.problem()
        other = replace(
            problem, field=self.field(turn), x0=(self.start() @ turn.mT)[order], times=problem.times[[0, -1]]
        ).simulate()
        return float((other.final - (final @ turn.mT)[order]).norm(dim=-1).max())

    def targets(self) -> tuple[Target, ...]:
        out = [
            # two runs to 1e-10 in a step, on paths that may part from each other by some powers of ten
            Target(
                "turned run against run",
                0.0,
                1e-6,
                "equivariance: x -> U x with U W U^T, any order of tokens",
                "at most",
            )
        ]
        if self.law == "energy":
            out += [
                Target(
                    "largest fall of the energy",
                    0.0,
                    1e-12,
                    "2512.01868: SA with V = c Q^T K symmetric is a gradient flow",
                    "at most",
                ),
                # rounding of sums over pairs
                Target(
                    "dE/dt against dissipation, relative",
                    0.0,
                    1e-11,
                    "2312.10794v5, (3.8): dE/dt = sum Z_i |velocity|^2 / n^2",
                    "at most",
                ),
            ]
        elif self.law == "half-sphere":
            source = (
                "derived: <x, V y> <= lambda for V >= 0, w its leading eigenvector"
                if self.value == "wishart"
                else "2312.10794v5, proof of lemma 6.4: any Q, K, also redrawn"
            )
            out.append(Target("largest fall of min <x, w>", 0.0, 1e-10, source, "at most"))
            if self.value == "identity" and self.until >= 12:
                # what is left of a rate is of first order in the distance, itself e^{-t/2} if tokens have gathered by half of the time
                out.append(
                    Target(
                        "rate of approach to consensus",
                        1.0,
                        math.exp(-self.until / 2),
                        "derived: V = I, attention is uniform at consensus whatever Q and K",
                    )
                )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, grid = figure(9.6, 5.6, 2, 3)
        times, x = findings.data["times"], findings.data["states"]
        for axes, k in ((grid[0, 0], 0), (grid[0, 1], len(times) - 1)):
            draw_tokens(axes, x[k], frame=x if self.d > 3 else None, size=26)
            axes.set_title(f"t = {float(times[k]):g}")
        histogram = findings.data["histogram"]
        image = grid[0, 2].imshow(
            histogram.mT.clamp(min=1e-3).log10(),
            origin="lower",
            aspect="auto",
            extent=(0, self.until, -1, 1),
            cmap=MAP,
        )
        grid[0, 2].set(xlabel="time", ylabel="inner products")
        made.colorbar(image, ax=grid[0, 2], label="log₁₀ share of pairs")
        gram, dirac = findings.data["gram"], findings.data["dirac"]
        # below that rounding
        grid[1, 0].plot(times, torch.where(gram > 1e-13, gram, torch.nan), color=COLOURS[0], lw=0.9)
        grid[1, 0].axhline(SPAN, color="#999999", lw=0.7)
        grid[1, 0].set(xlabel="time", ylabel="Gram eigenvalues", yscale="log", xlim=(0, self.until))
        grid[1, 1].plot(times, torch.where(dirac > 1e-14, dirac, torch.nan), color=COLOURS[0], label="tokens")
        grid[1, 1].set(xlabel="time", ylabel="distance to consensus", xlim=(0, self.until))
        if float(dirac[-1]) < 0.1:
            grid[1, 1].set_yscale("log")
        else:
            grid[1, 1].set_ylim(0, None)
        if self.law == "half-sphere" and self.value == "identity":
            late = times >= self.until / 3
            grid[1, 1].plot(
                times[late], dirac[-1] * torch.exp(times[-1] - times[late]), **EXACT, label="$e^{-t}$"
            )
            grid[1, 1].legend()
        axes = grid[1, 2]
        if "energy" in findings.data:
            axes.plot(times, findings.data["energy"], color=COLOURS[0], label="energy")
            axes.plot(times, findings.data["predicted"], **EXACT, label="dissipation integrated")
            axes.set_ylabel("energy, that of the field")
            axes.legend()
        elif "least" in findings.data:
            axes.plot(times, findings.data["least"], color=COLOURS[0])
            axes.set_ylabel("min ⟨x, w⟩")
        else:
            axes.plot(times, (gram > SPAN).sum(-1), color=COLOURS[0])
            axes.set_ylabel("Gram eigenvalues above 10⁻³")
        if self.period:
            for k in range(1, math.ceil(self.until / self.period)):
                axes.axvline(k * self.period, color="#DDDDDD", lw=0.6, zorder=0)
        axes.set(xlabel="time", xlim=(0, self.until))
        return made


SYSTEMS: dict[str, System] = {
    "weights/random": Weights(),
    "weights/goe": Weights(product="goe"),
    "weights/attractive": Weights(product="goe", value="product", half=False),
    "weights/repulsive": Weights(product="goe", value="minus", half=False),
    "weights/wishart": Weights(product="identity", value="wishart"),
    "weights/redraw": Weights(period=1.0),
    "weights/redraw-all": Weights(value="gaussian", period=1.0, half=False),
}
