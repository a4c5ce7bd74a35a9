"""The energy of a run: it never falls, and gains what the flow dissipates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from ...tokens import Tokens
from ..adaptive import Adaptive
from ..fields import Field
from ..observables import log_interaction
from ..pictures import COLOURS, EXACT, figure
from ..spaces import Sphere
from ..starts import seeded, uniform
from ..steppers import Layer
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = 2.0**-52


@dataclass(frozen=True)
class EnergyMonotone(System):
    """No layer lowers the energy, however long its step: random draws of temperature, step, numbers and dimensions.

    ``layer``: normalise(x + h A), any h >= 0. ``tokens``: h for each token another. ``tangent``: normalise(x + h proj A) at
    the largest safe h, 2 (SA) and 2 e^{-beta} (USA). ``control``: the same at twice that h, where it may fall.
    """

    draws: int = 1000
    beta_max: float = 100.0
    h_max: float = 1e6
    n_max: int = 12
    d_max: int = 12
    seed: int = 0

    title = "no layer lowers the energy, however long its step"
    source = (
        "derived: E is convex in the measure (a positive definite kernel), and the step turns tokens towards the gradient of a "
        "convex potential; theory.monotone_step_bound. The flow's own monotonicity: 2312.10794v5, section 3"
    )
    time_scale = "single layers"
    invariants = ("the energy never falls, Q = K = V = I, beta >= 0",)

    def quick(self) -> Self:
        return replace(self, draws=200)

    def problem(self) -> Problem:
        beta, h = 4.0, 10.0
        return Problem(
            Field(Attention(beta)),
            uniform(self.n_max, self.d_max, generator=seeded(self.seed)),
            h * torch.arange(21, dtype=torch.float64),
            stepper=Layer(h),
            beta=beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        g = seeded(self.seed)
        ways = ("layer", "tokens", "tangent", "control")
        rise = np.full((self.draws, 2, len(ways)), np.nan)
        steps, betas = np.zeros(self.draws), np.zeros(self.draws)
        noise = np.zeros(self.draws)
        for k in range(self.draws):
            if k % 250 == 0:
                told(f"draw {k} of {self.draws}")
            n, d = (int(torch.randint(2, top + 1, (), generator=g)) for top in (self.n_max, self.d_max))
            beta = self._log_uniform(1e-2, self.beta_max, g)
            betas[k], steps[k] = beta, self._log_uniform(1e-3, self.h_max, g)
            each = torch.tensor([self._log_uniform(1e-3, self.h_max, g) for _ in range(n)])
            x = uniform(n, d, generator=g)
            before = log_interaction(x, beta)
            # exponents beta <x, y> are rounded, and sums of n^2 of them
            noise[k] = 8 * ROUNDING * (beta + n)
            for m, model in enumerate(("SA", "USA")):
                field = Field(Attention(beta, law="row" if model == "SA" else "mean", scaled=model == "USA"))
                # on the clock e^beta t the bound 2 e^{-beta} of USA is 2
                for w, way in enumerate(ways):
                    after = self._stepped(field, x, way, steps[k], each)
                    rise[k, m, w] = float(log_interaction(after, beta) - before)
        falls = rise < -noise[:, None, None]
        measured = {"draws": float(self.draws)}
        for m, model in enumerate(("SA", "USA")):
            for w, way in enumerate(ways):
                name = f"{model}, {_WAYS[way]}: draws whose energy falls"
                measured[name] = float(falls[:, m, w].sum())
        measured["layers that raise the energy, share"] = float((rise[:, :, 0] > noise[:, None]).mean())
        return Findings(measured, {"rise": rise, "steps": steps, "betas": betas, "noise": noise})

    @staticmethod
    def _log_uniform(low: float, high: float, g: torch.Generator) -> float:
        share = float(torch.rand((), dtype=torch.float64, generator=g))
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))

    @staticmethod
    def _stepped(field: Field, x: Tensor, way: str, h: float, each: Tensor) -> Tensor:
        sphere = Sphere()
        if way == "layer":
            return sphere.layer(field, x, None, 0.0, h)
        if way == "tokens":
            return sphere.layer(field, x, None, 0.0, each[:, None].to(x))
        return sphere.euler(field, x, None, 0.0, 2.0 if way == "tangent" else 4.0)

    def targets(self) -> tuple[Target, ...]:
        out = [
            Target(f"{model}, {_WAYS[way]}: draws whose energy falls", 0.0, 0.0, "theory.monotone_step_bound")
            for model in ("SA", "USA")
            for way in ("layer", "tokens", "tangent")
        ]
        # the control sees falls where the proof ends; that some are among so many draws was measured
        name = f"SA, {_WAYS['control']}: draws whose energy falls"
        if self.draws >= 100:
            out.append(Target(name, 1.0, 0.0, "control: the proof ends at h = 2", "at least"))
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, (left, right) = figure(8.8, 3.6, 1, 2, sharey=True)
        data = findings.data
        for axes, way, title in ((left, 0, "layers"), (right, 3, "tangent Euler at twice the safe step")):
            across = data["steps"] if way == 0 else data["betas"]
            for m, model in enumerate(("SA", "USA")):
                axes.plot(across, data["rise"][:, m, way], ".", ms=3, color=COLOURS[m], label=model)
            axes.axhline(0.0, color="#111111", lw=0.8)
            axes.set(xscale="log", yscale="symlog", title=title)
            axes.set_yscale("symlog", linthresh=1e-3)
        left.set(xlabel="step h", ylabel="log E after − log E before")
        right.set(xlabel="β")
        left.legend(loc="upper left")
        return made


_WAYS = {
    "layer": "layers of any h",
    "tokens": "layers of another h for each token",
    "tangent": "tangent Euler at the safe h",
    "control": "tangent Euler at twice the safe h",
}


@dataclass(frozen=True)
class Dissipation(System):
    """What a gradient flow's energy gains is the squared length of its velocity in the flow's metric: SA, USA, symmetric Q^T K = V."""

    n: int = 8
    d: int = 3
    beta: float = 2.0
    until: float = 2.0
    nodes: int = 32
    seed: int = 0

    title = "the energy gains what the flow dissipates"
    source = (
        "2312.10794v5, section 3: dE/dt = sum m_i |x_i'|^2 / M (USA), sum m_i Z_i |x_i'|^2 / M^2 (SA); Q^T K = V symmetric: survey "
        "2512.01868"
    )
    time_scale = "1 (SA), e^{-beta} (USA)"
    invariants = ("dE/dt is the dissipation",)

    def quick(self) -> Self:
        return replace(self, until=min(self.until, 1.0), nodes=16)

    @property
    def _fields(self) -> dict[str, Field]:
        g = seeded(self.seed + 1)
        s = torch.randn(self.d, self.d, dtype=torch.float64, generator=g)
        s = s + s.mT  # of both signs
        s = s / torch.linalg.matrix_norm(s, 2)
        return {
            "SA": Field(Attention(self.beta)),
            "USA": Field(Attention(self.beta, law="mean", scaled=True)),
            "SA, beta < 0": Field(Attention(-self.beta)),
            "SA, Q^T K = V": Field(Attention(self.beta, key=s, value=s)),
            "USA, Q^T K = V": Field(Attention(self.beta, law="mean", key=s, value=s)),
        }

    @property
    def _mass(self) -> Tensor:
        return 0.2 + torch.rand(self.n, dtype=torch.float64, generator=seeded(self.seed + 2))

    def problem(self) -> Problem:
        # Gauss-Legendre nodes between the ends: the integral of the dissipation is then as exact as the run
        nodes = torch.from_numpy(np.polynomial.legendre.leggauss(self.nodes)[0])
        times = self.until * torch.cat([torch.tensor([0.0]), (nodes + 1) / 2, torch.tensor([1.0])])
        x = uniform(self.n, self.d, generator=seeded(self.seed))
        return Problem(
            self._fields["SA"],
            x,
            times,
            stepper=Adaptive(1e-12),
            tokens=Tokens.of(x, mass=self._mass),
            beta=self.beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        problem, mass = self.problem(), self._mass
        weights = self.until / 2 * torch.from_numpy(np.polynomial.legendre.leggauss(self.nodes)[1])
        measured, slopes, rates = {}, [], []
        h = 1e-3
        for name, field in self._fields.items():
            told(name)
            run = replace(problem, field=field).simulate()
            x, energy = run.states, field.energy
            v = Sphere().velocity(field, x, problem.tokens, 0.0)
            rate = energy.rate(x, v, mass)
            # a five-point difference along geodesics that start with the velocity
            e = [energy(Sphere().exp(x, k * h * v), mass) for k in (-2, -1, 1, 2)]
            slope = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * h)
            gained = energy(x[-1], mass) - energy(x[0], mass)
            measured[f"{name}: slope of the energy against dissipation"] = float(
                (slope - rate).abs().max() / rate.abs().max()
            )
            measured[f"{name}: energy gained against dissipation"] = float(
                ((weights * rate[1:-1]).sum() - gained).abs() / gained.abs()
            )
            slopes.append(slope)
            rates.append(rate)
        data = {"times": problem.times, "slopes": torch.stack(slopes), "rates": torch.stack(rates)}
        return Findings(measured, data)

    def targets(self) -> tuple[Target, ...]:
        out = []
        for name in self._fields:
            # h^4 of the difference, and rounding over h: 1e-12 each, times derivatives of order beta^5
            out.append(
                Target(
                    f"{name}: slope of the energy against dissipation",
                    0.0,
                    1e-9,
                    "five-point difference, h = 1e-3",
                    "at most",
                )
            )
            out.append(
                Target(
                    f"{name}: energy gained against dissipation",
                    0.0,
                    1e-10,
                    "run at 1e-12, Gauss-Legendre",
                    "at most",
                )
            )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(5.8, 3.6)
        times = findings.data["times"]
        for k, (name, slope, rate) in enumerate(
            zip(self._fields, findings.data["slopes"], findings.data["rates"], strict=True)
        ):
            axes.plot(times, slope, "o", ms=3.5, color=COLOURS[k % len(COLOURS)], label=name)
            axes.plot(times, rate, **EXACT, label="dissipation" if k == len(self._fields) - 1 else None)
        axes.set(yscale="log", xlabel="time", ylabel="slope of the energy", xlim=(0, self.until))
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return made


SYSTEMS: dict[str, System] = {"invariants/energy": EnergyMonotone(), "invariants/dissipation": Dissipation()}
