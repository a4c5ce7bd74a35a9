"""One layer of attention on long contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..fields import Field
from ..pictures import COLOURS, EXACT, figure
from ..steppers import Layer
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LongContext(System):
    """One layer of attention on n equal inner products, beta = gamma log n: collapse, a threshold, or nothing at all."""

    rho: float = 0.5
    gammas: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    sizes: tuple[int, ...] = (16, 128, 1024, 2048)
    far: float = 1e300

    title = "one layer on a long context collapses below gamma = 1 / (1 - rho), and is the identity above"
    source = "2510.05554 (critical scaling); the threshold value 4 rho / (1 + 3 rho) from the exact finite n, theory.attention_cosine"
    time_scale = "one layer"

    def quick(self) -> Self:
        return replace(self, sizes=self.sizes[:3])

    def _tokens(self, n: int) -> Tensor:
        """``(n, n + 1)``: ``sqrt(rho) e_0 + sqrt(1 - rho) e_i``."""
        x = torch.zeros(n, n + 1, dtype=torch.float64)
        x[:, 0] = math.sqrt(self.rho)
        x[:, 1:].fill_diagonal_(math.sqrt(1 - self.rho))
        return x

    def problem(self) -> Problem:
        n = min(self.sizes)
        beta = float(theory.critical_gamma(self.rho)) * math.log(n)
        # with its residual a layer of a long step is attention alone
        return Problem(
            Field(Attention(beta)),
            self._tokens(n),
            torch.tensor([0.0, 1e9, 2e9]),
            stepper=Layer(1e9),
            beta=beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        measured: dict[str, float] = {}
        cosines = np.full((len(self.sizes), len(self.gammas)), np.nan)
        worst = 0.0
        for row, n in enumerate(self.sizes):
            told(f"n = {n}")
            x = self._tokens(n)
            for column, gamma in enumerate(self.gammas):
                a = Attention(gamma * math.log(n))(x)[:64]
                a = a / a.norm(dim=-1, keepdim=True)
                gram = a @ a.mT
                pairs = gram[~torch.eye(len(a), dtype=torch.bool)]
                cosines[row, column] = float(pairs.mean())
                exact = float(theory.attention_cosine(self.rho, gamma * math.log(n), n))
                worst = max(worst, float((pairs - exact).abs().max()))
        measured["cosines of particles, the worst off the exact one"] = worst
        for gamma in self.gammas:
            measured[f"cosine at n = {self.far:g}, gamma = {gamma:g}"] = self._far(gamma)
        return Findings(measured, {"cosines": cosines, "far": np.array([self._far(g) for g in self.gammas])})

    def _far(self, gamma: float) -> float:
        """At the size ``far``, by the exact finite n."""
        return float(theory.attention_cosine(self.rho, gamma * math.log(self.far), int(self.far)))

    def targets(self) -> tuple[Target, ...]:
        out = [
            Target(
                "cosines of particles, the worst off the exact one",
                0.0,
                1e-12,
                "theory.attention_cosine",
                "at most",
            )
        ]
        for gamma in self.gammas:
            # towards the limit like a power of n: n^{-|1 - gamma (1 - rho)|}, at the threshold 1 / n
            off = abs(1 - gamma * (1 - self.rho))
            rate = self.far ** -(off or 1.0)
            out.append(
                Target(
                    f"cosine at n = {self.far:g}, gamma = {gamma:g}",
                    float(theory.long_context_cosine(self.rho, gamma)),
                    10 * rate + 1e-12,
                    "theory.long_context_cosine",
                )
            )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(5.8, 3.6)
        dense = np.linspace(0.02, max(self.gammas) * 1.05, 400)
        for row, n in enumerate(self.sizes):
            exact = [float(theory.attention_cosine(self.rho, float(g) * math.log(n), n)) for g in dense]
            axes.plot(dense, exact, color=COLOURS[row % len(COLOURS)], lw=0.9)
            axes.plot(
                self.gammas,
                findings.data["cosines"][row],
                "o",
                ms=4,
                color=COLOURS[row % len(COLOURS)],
                label=f"n = {n}: particles, line exact",
            )
        critical = float(theory.critical_gamma(self.rho))
        axes.plot([0, critical, critical, dense[-1]], [1, 1, self.rho, self.rho], **EXACT, label="n → ∞")
        at = float(theory.long_context_cosine(self.rho, critical))
        axes.plot(critical, at, "D", ms=5, color="#111111", label="threshold, n → ∞", zorder=6)
        axes.set(xlabel="γ = β / log n", ylabel="cosine of two outputs", xlim=(0, dense[-1]))
        axes.legend(fontsize=7)
        return made


SYSTEMS: dict[str, System] = {"rates/long-context": LongContext()}
