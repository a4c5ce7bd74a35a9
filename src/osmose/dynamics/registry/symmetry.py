"""What a run keeps: cross-ratios at beta = 0, the order of tokens and the axes of space."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from .. import theory
from ..adaptive import Adaptive
from ..fields import Field
from ..pictures import COLOURS, figure
from ..simulate import simulate
from ..starts import seeded, uniform
from ..steppers import RK4, Layer, Stepper
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CrossRatios(System):
    """At beta = 0 the flow moves all tokens by one Moebius map of the sphere: cross-ratios of distances stay, in every dimension."""

    n: int = 8
    dimensions: tuple[int, ...] = (2, 3, 8)
    beta: float = 1.0
    until: float = 5.0
    seed: int = 0

    title = "without temperature cross-ratios are kept, with it they are not"
    source = (
        "2312.10794v5, section 7 (Watanabe and Strogatz 1994 on the circle); every d by Moebius invariance"
    )
    time_scale = "tokens meet like e^{-t}, and errors of ratios of their distances grow by as much"
    invariants = ("cross-ratios at beta = 0",)

    def quick(self) -> Self:
        return replace(self, dimensions=self.dimensions[:2])

    def problem(self) -> Problem:
        times = torch.linspace(0.0, self.until, 26, dtype=torch.float64)
        return Problem(
            Field(Attention(0.0)),
            uniform(self.n, self.dimensions[0], generator=seeded(self.seed)),
            times,
            stepper=Adaptive(1e-12),
            beta=0.0,
        )

    def measure(self, told: Told = silent) -> Findings:
        measured, curves = {}, []
        times = self.problem().times
        for d in self.dimensions:
            told(f"d = {d}")
            start = uniform(self.n, d, generator=seeded(self.seed))
            for beta, name in ((0.0, "drift of cross-ratios"), (self.beta, f"beta = {self.beta:g}: change")):
                run = simulate(Field(Attention(beta)), start, times, stepper=Adaptive(1e-12))
                ratios = theory.cross_ratios(run.states)
                moved = (ratios / ratios[0] - 1).abs()
                curves.append(moved.amax(-1))
                measured[f"{name}, d = {d}"] = float(moved.max())
        return Findings(measured, {"times": times, "moved": torch.stack(curves)})

    def targets(self) -> tuple[Target, ...]:
        # 1e-12 in a step, and distances down to e^{-until}
        tolerance = 1e-12 * math.exp(self.until) * 0.6
        out = [
            Target(f"drift of cross-ratios, d = {d}", 0.0, tolerance, "conserved at beta = 0", "at most")
            for d in self.dimensions
        ]
        if self.beta != 0:  # the control: the same measure sees a motion that keeps no cross-ratio
            out += [
                Target(f"beta = {self.beta:g}: change, d = {d}", 1e-3, 0.0, "no invariants", "at least")
                for d in self.dimensions
            ]
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(5.6, 3.6)
        times, moved = findings.data["times"], findings.data["moved"]
        for k, d in enumerate(self.dimensions):
            colour = COLOURS[k % len(COLOURS)]
            axes.plot(times[1:], moved[2 * k, 1:].clamp(min=1e-16), color=colour, label=f"β = 0, d = {d}")
            axes.plot(times[1:], moved[2 * k + 1, 1:], ":", color=colour, label=f"β = {self.beta:g}, d = {d}")
        axes.set(yscale="log", xlabel="time", ylabel="relative change of cross-ratios", xlim=(0, self.until))
        axes.legend(fontsize=7, ncols=2)
        return made


@dataclass(frozen=True)
class Equivariance(System):
    """Tokens in another order, or turned by O(d), run the same way: for Q = K = V = I, every stepper."""

    n: int = 12
    d: int = 4
    beta: float = 3.0
    until: float = 2.0
    seed: int = 0

    title = "the order of tokens and the axes of space do not matter"
    source = "2312.10794v5, section 2 (symmetry of SA and USA); a V that is no multiple of the identity is the control"
    time_scale = "1"
    invariants = ("permutations and O(d) commute with a run",)

    def problem(self) -> Problem:
        x = uniform(self.n, self.d, generator=seeded(self.seed))
        times = torch.linspace(0.0, self.until, 41, dtype=torch.float64)
        return Problem(Field(Attention(self.beta)), x, times, stepper=Adaptive(1e-9), beta=self.beta)

    @property
    def _fields(self) -> dict[str, Field]:
        return {
            "SA": Field(Attention(self.beta)),
            "USA": Field(Attention(self.beta, law="mean", scaled=True)),
            "two heads": Field(Attention(self.beta), Attention(1.0, law="mean", value=-0.5)),
        }

    @property
    def _steppers(self) -> dict[str, Stepper]:
        return {"layers": Layer(self.until / 4), "RK4": RK4(0.1), "adaptive": Adaptive(1e-9)}

    def measure(self, told: Told = silent) -> Findings:
        problem, g = self.problem(), seeded(self.seed + 1)
        turn = torch.linalg.qr(torch.randn(self.d, self.d, dtype=torch.float64, generator=g)).Q
        turn[0] *= -torch.linalg.det(turn).sign()  # a turn with a reflection
        order = torch.randperm(self.n, generator=g)
        measured, defects = {}, []
        axes = torch.linspace(1.0, -0.5, self.d, dtype=torch.float64)
        fields = {**self._fields, "V = diag": Field(Attention(self.beta, value=torch.diag(axes)))}
        for name, field in fields.items():
            told(name)
            for way, stepper in self._steppers.items():
                one = replace(
                    problem, field=field, stepper=stepper, times=problem.times[:: len(problem.times) - 1]
                )
                final = one.simulate().final
                for what, start, want in (
                    ("permuted", problem.x0[order], final[order]),
                    ("turned", problem.x0 @ turn, final @ turn),
                ):
                    defect = float((replace(one, x0=start).simulate().final - want).abs().max())
                    measured[f"{name}, {way}, {what}"] = defect
                    defects.append(defect)
        return Findings(measured, {"defects": np.array(defects).reshape(len(fields), len(self._steppers), 2)})

    def targets(self) -> tuple[Target, ...]:
        out = []
        for name in (*self._fields, "V = diag"):
            for way in self._steppers:
                out.append(
                    Target(
                        f"{name}, {way}, permuted",
                        0.0,
                        1e-12,
                        "rounding, and steps that follow it",
                        "at most",
                    )
                )
                turned = f"{name}, {way}, turned"
                if name != "V = diag":
                    out.append(Target(turned, 0.0, 1e-12, "rounding, and steps that follow it", "at most"))
                elif self.d > 1:
                    out.append(Target(turned, 1e-3, 0.0, "control: V has axes", "at least"))
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(6.4, 3.4)
        names = [*self._fields, "V = diag"]
        defects = np.maximum(findings.data["defects"], 1e-17)
        for w, way in enumerate(self._steppers):
            for k, (what, marker) in enumerate((("permuted", "o"), ("turned", "s"))):
                place = np.arange(len(names)) + 0.18 * (w - 1) + 0.05 * (k - 0.5)
                axes.plot(
                    place,
                    defects[:, w, k],
                    marker,
                    ms=5,
                    color=COLOURS[w],
                    mfc=COLOURS[w] if k == 0 else "white",
                    label=f"{way}, {what}",
                )
        axes.axhline(2.0**-52, color="#999999", lw=0.8, ls=":")
        axes.set(yscale="log", ylabel="largest difference of a run", ylim=(3e-18, 5))
        axes.set_xticks(range(len(names)), names)
        axes.legend(fontsize=7, ncols=3, loc="upper left")
        return made


SYSTEMS: dict[str, System] = {
    "invariants/cross-ratios": CrossRatios(),
    "invariants/equivariance": Equivariance(),
}
