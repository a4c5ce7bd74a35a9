"""Equal inner products: the exact curve of orthogonal starts, of layers, and how random starts in many dimensions follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..adaptive import Adaptive
from ..events import PairMerged
from ..fields import Field
from ..gram import Gram, gram_matrix
from ..pictures import COLOURS, EXACT, figure
from ..simulate import simulate
from ..starts import equiangular, seeded, uniform
from ..steppers import RK4, Layer
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = Literal["SA", "USA"]
GAP = 1e-3


def field_of(model: Model, beta: float | Tensor) -> Field:
    """SA or USA with Q = K = V = I."""
    return Field(Attention(beta, law="row" if model == "SA" else "mean"))


def pairs(gram: Tensor) -> Tensor:
    """Inner products of different tokens, ``(..., n (n - 1))``."""
    n = gram.shape[-1]
    return gram[..., ~torch.eye(n, dtype=torch.bool)]


@dataclass(frozen=True)
class EquiangularCurve(System):
    """Orthogonal tokens: all inner products stay equal and follow a scalar equation, solved by quadrature."""

    n: int = 32
    betas: tuple[float, ...] = (0.0, 1.0, 4.0)
    model: Model = "SA"
    until: float = 12.0
    steps: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0)

    title = "orthogonal tokens follow one scalar equation, and layers a little behind it"
    source = "2312.10794v5, theorem 6.8 (the scalar ODE); quadrature and layer map derived in osmose.dynamics.theory"
    time_scale = "log n to meet at beta = 0, later for larger beta; then e^{-2t} (SA)"
    invariants = ("all inner products are equal",)

    def problem(self) -> Problem:
        times = torch.linspace(0.0, self.until, 121, dtype=torch.float64)
        beta = self.betas[-1]
        return Problem(
            field_of(self.model, beta), equiangular(self.n, self.n), times, stepper=Adaptive(1e-11), beta=beta
        )

    def quick(self) -> Self:
        return replace(self, steps=tuple(h for h in self.steps if h >= 0.1))

    def measure(self, told: Told = silent) -> Findings:
        measured: dict[str, float] = {}
        problem, curves = self.problem(), []
        event = PairMerged(distance=math.sqrt(2 * GAP), terminal=False)
        for beta in self.betas:
            told(f"beta = {beta:g}")
            run = replace(problem, field=field_of(self.model, beta), events=(event,)).simulate()
            rho = pairs(run.states @ run.states.mT)
            exact = torch.from_numpy(
                np.asarray(theory.equiangular_cosine(run.times.numpy(), beta, self.n, model=self.model))
            )
            measured[_name("particles against the curve", beta)] = float((rho - exact[:, None]).abs().max())
            measured[_name("time of <x, y> = .999", beta)] = float(run.events[event.name])
            curves.append(torch.stack([exact, rho.mean(-1)]))
            for h in self.steps:
                measured[_name(f"layers of h = {h:g}: time", beta)] = self._layers(beta, h)
        return Findings(measured, {"times": problem.times, "curves": torch.stack(curves)})

    def _layers(self, beta: float, h: float) -> float:
        """The time of the first layer at which the particles' own layer map has all products at .999."""
        x = equiangular(self.n, self.n)
        field, times = field_of(self.model, beta), [0.0]
        event = PairMerged(distance=math.sqrt(2 * GAP) * (1 + 1e-9), terminal=True)
        limit = h * math.ceil(self.until / h)
        run = simulate(
            field, gram_matrix(x), [*times, limit], space=Gram(), stepper=Layer(h), events=[event], save=False
        )
        # the event is located inside its layer; the layer that holds it is counted whole
        return h * math.ceil(float(run.events[event.name]) / h - 1e-6)

    def targets(self) -> tuple[Target, ...]:
        out = []
        for beta in self.betas:
            out.append(
                Target(_name("particles against the curve", beta), 0.0, 1e-8, "theorem 6.8 at rtol 1e-11")
            )
            time = float(theory.equiangular_time(1 - GAP, beta, self.n, model=self.model))
            if time < self.until:
                out.append(
                    Target(_name("time of <x, y> = .999", beta), time, 1e-6, "quadrature T_beta(.999)")
                )
            for h in self.steps:
                # half a layer: the map is the recursion itself, so the number of layers is the same
                layers = theory.layer_times(1 - GAP, beta, self.n, h, model=self.model)
                if layers <= self.until:
                    name = _name(f"layers of h = {h:g}: time", beta)
                    out.append(Target(name, layers, h / 2, "scalar recursion of the layer map"))
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(6.4, 3.6)
        times = findings.data["times"]
        for beta, colour, (exact, rho) in zip(self.betas, COLOURS, findings.data["curves"], strict=False):
            axes.plot(times[::4], rho[::4], "o", ms=3.5, color=colour, label=f"particles, β = {beta:g}")
            axes.plot(times, exact, **EXACT, label="exact" if beta == self.betas[-1] else None)
        axes.axhline(1 - GAP, color="#999999", lw=0.6)
        axes.set(xlabel="time", ylabel="inner product of all pairs", xlim=(0, self.until), ylim=(-0.03, 1.03))
        axes.legend(loc="lower right")
        return made


@dataclass(frozen=True)
class Concentration(System):
    """Uniform random starts: in many dimensions pairs are nearly orthogonal, and follow the exact curve up to ``d^{-1/2}``."""

    n: int = 32
    dimensions: tuple[int, ...] = (128, 512, 2048, 8192)
    betas: tuple[float, ...] = (0.0, 1.0, 4.0)
    model: Model = "SA"
    until: float = 30.0
    seeds: int = 5
    h: float = 0.1

    title = "random starts in many dimensions follow the exact curve, off by a multiple of d^{-1/2}"
    source = "2312.10794v5, theorem 6.9 (concentration; its constants need d > 2^704 at n = 32); the d^{-1/2} scale is measured"
    time_scale = "as equiangular/curve; deviations are largest where products rise"

    def problem(self) -> Problem:
        start = uniform(self.n, self.dimensions[0], generator=seeded(0))
        times = torch.linspace(0.0, self.until, 121, dtype=torch.float64)
        beta = self.betas[-1]
        return Problem(field_of(self.model, beta), start, times, beta=beta)

    def quick(self) -> Self:
        # powers of 4 apart, so that each deviation is about half of the one before
        return replace(self, dimensions=self.dimensions[:3], betas=self.betas[-2:])

    def measure(self, told: Told = silent) -> Findings:
        count = round(self.until / self.h)
        times = torch.linspace(0.0, self.until, count // 2 + 1, dtype=torch.float64)
        beta = torch.tensor(self.betas, dtype=torch.float64).repeat_interleave(self.seeds)
        sup, mean = [], []
        for d in self.dimensions:
            told(f"d = {d}")
            start = torch.stack([uniform(self.n, d, generator=seeded(s)) for s in range(self.seeds)])
            gram = gram_matrix(start).repeat(len(self.betas), 1, 1)
            run = simulate(field_of(self.model, beta), gram, times, space=Gram(), stepper=RK4(self.h))
            rho = pairs(run.states).unflatten(1, (len(self.betas), self.seeds))  # (K, betas, seeds, pairs)
            exact = torch.stack(
                [
                    torch.from_numpy(
                        np.asarray(theory.equiangular_cosine(times.numpy(), b, self.n, model=self.model))
                    )
                    for b in self.betas
                ],
                -1,
            )[..., None]
            sup.append((rho - exact[..., None]).abs().amax((0, -1)))
            mean.append((rho.mean(-1) - exact).abs().amax(0))
        sup_, mean_ = torch.stack(sup), torch.stack(mean)  # (dimensions, betas, seeds)
        measured: dict[str, float] = {}
        log_d = np.log(np.array(self.dimensions, dtype=float))
        for j, b in enumerate(self.betas):
            slope = np.polyfit(log_d, np.log(sup_[:, j].mean(-1).numpy()), 1)[0]
            measured[_name("exponent of d of the largest deviation", b)] = float(slope)
            for i, d in enumerate(self.dimensions):
                measured[_name(f"d = {d}: largest deviation", b)] = float(sup_[i, j].mean())
                measured[_name(f"d = {d}: of the mean of pairs", b)] = float(mean_[i, j].mean())
        return Findings(measured, {"dimensions": np.array(self.dimensions), "largest": sup_, "mean": mean_})

    def targets(self) -> tuple[Target, ...]:
        out = [
            Target(
                _name("exponent of d of the largest deviation", b), -0.5, 0.1, "d -> 4d halves the deviation"
            )
            for b in self.betas
        ]
        stored = {
            (1.0, 128): 0.278, (1.0, 512): 0.149, (1.0, 2048): 0.078, (1.0, 8192): 0.037,
            (4.0, 128): 0.381, (4.0, 512): 0.192, (4.0, 2048): 0.103, (4.0, 8192): 0.046, (0.0, 512): 0.147,
        }  # fmt: skip
        canonical = (self.n, self.model, self.until, self.seeds) == (32, "SA", 30.0, 5)
        for (b, d), value in stored.items():
            if canonical and b in self.betas and d in self.dimensions:
                # two means over 5 seeds of maxima, whose deviation between seeds is about a tenth of them
                name = _name(f"d = {d}: largest deviation", b)
                out.append(Target(name, value, 0.25 * value, "an earlier measurement over 5 other seeds"))
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(5.6, 3.8)
        d = findings.data["dimensions"]
        for j, (b, colour) in enumerate(zip(self.betas, COLOURS, strict=False)):
            largest = findings.data["largest"][:, j]
            axes.errorbar(
                d,
                largest.mean(-1),
                largest.std(-1),
                fmt="o-",
                ms=4,
                color=colour,
                label=f"largest pair, β = {b:g}",
            )
            axes.plot(
                d,
                findings.data["mean"][:, j].mean(-1),
                "s:",
                ms=3.5,
                color=colour,
                label=f"mean of pairs, β = {b:g}",
            )
        anchor = float(findings.data["largest"][0].mean())
        axes.plot(d, anchor * (d / d[0]) ** -0.5, **EXACT, label="$d^{-1/2}$")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="dimension",
            ylabel=f"deviation from the curve, sup over t ≤ {self.until:g}",
        )
        axes.legend(fontsize=7, ncols=2)
        return made


def _name(what: str, beta: float) -> str:
    return f"{what}, beta = {beta:g}"


SYSTEMS: dict[str, System] = {
    "equiangular/curve": EquiangularCurve(),
    "equiangular/concentration": Concentration(),
}
