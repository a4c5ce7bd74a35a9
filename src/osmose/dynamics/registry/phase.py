r"""Phase diagrams: the share of pairs that have met, over time and inverse temperature, and the exact curve of orthogonal tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..adaptive import Adaptive
from ..observables import Observable, close_share, mean_product
from ..pictures import COLOURS, EXACT, MAP, figure, outlined
from ..starts import seeded, uniform
from ..steppers import RK4, Stepper
from ..sweep import sweep
from .base import Findings, Problem, System, Target, Told, silent
from .equiangular import Model, field_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STORED = {
    (4.0, 10.0): 0.571, (4.0, 20.0): 0.774, (4.0, 30.0): 0.863,
    (6.0, 10.0): 0.253, (6.0, 20.0): 0.369, (6.0, 30.0): 0.401,
}  # fmt: skip
CONTOUR = (1.0, 2.0, 4.0)  # inverse temperatures at which the contour is read


@dataclass(frozen=True)
class PhaseDiagram(System):
    """Independent uniform starts, Q = K = V = I: ``P(<x_i, x_j> >= 1 - delta)`` over pairs i != j and realisations."""

    n: int = 32
    d: int = 128
    model: Model = "SA"
    highest: float = 9.0
    betas: int = 90
    until: float = 30.0
    times: int = 200
    seeds: int = 24
    delta: float = 1e-3

    title = "which pairs have met, over time and inverse temperature, and the exact curve"
    source = (
        "2312.10794v5, figure of the phase diagram: n = 32, beta 0.1 to 9 (90), t 0 to 30 (200), P(>= .999); the authors draw 2048 "
        "systems by Euler steps of 0.1. Curve: theory.phase_curve"
    )
    time_scale = "T_beta(1 - delta) of theory.equiangular_time"

    @property
    def beta(self) -> Tensor:
        """The inverse temperatures, 0.1 to the highest."""
        return torch.linspace(0.1, self.highest, self.betas, dtype=torch.float64)

    @property
    def grid(self) -> Tensor:
        """The output times, with that of the start."""
        return torch.linspace(0.0, self.until, self.times + 1, dtype=torch.float64)

    @property
    def stepper(self) -> Stepper:
        """Of the differential equation: the fastest rate of inner products is 2 (SA), ``2 e^beta`` (USA)."""
        return RK4(0.15) if self.model == "SA" else Adaptive(1e-6)

    def quick(self) -> Self:
        if self.d < 4 * self.n:  # shares differ from draw to draw there: all seeds, on a coarser grid
            return replace(self, betas=(self.betas + 8) // 9, times=self.times // 2)
        return replace(self, betas=(self.betas + 2) // 3, times=self.times // 2, seeds=8)

    def problem(self) -> Problem:
        start = uniform(self.n, self.d, generator=seeded(0))
        return Problem(field_of(self.model, 4.0), start, self.grid, beta=4.0)

    def measure(self, told: Told = silent) -> Findings:
        watched = [
            Observable("share", partial(close_share, gap=self.delta)),
            Observable("mean", mean_product),
        ]
        found = sweep(
            partial(field_of, self.model),
            beta=self.beta,
            n=self.n,
            d=self.d,
            seeds=self.seeds,
            times=self.grid,
            observe=watched,
            stepper=self.stepper,
            told=lambda done, of: told(f"{done} of {of} chunks"),
        ).select(n=self.n, d=self.d)
        share, mean = found["share"], found["mean"]
        half = crossing(share.mean, self.grid)
        measured: dict[str, float] = {
            "runs that failed": float(found.failed.sum()),
            "largest half-width of the intervals of the share": float((share.high - share.low).max() / 2),
        }
        for beta in CONTOUR:
            j = int((self.beta - beta).abs().argmin())
            measured[_contour(beta)] = float(half[j]) / self._time(float(self.beta[j])) - 1
        for (beta, t), _ in self._stored().items():
            j, k = (int((grid - v).abs().argmin()) for grid, v in ((self.beta, beta), (self.grid, t)))
            measured[_share(beta, t)] = float(share.mean[j, k])
        data = {
            "times": self.grid,
            "beta": self.beta,
            "share": share.mean,
            "low": share.low,
            "high": share.high,
            "mean": mean.mean,
            "half": half,
        }
        return Findings(measured, data)

    def _time(self, beta: float) -> float:
        return float(theory.equiangular_time(1 - self.delta, beta, self.n, model=self.model))

    def _stored(self) -> dict[tuple[float, float], float]:
        """Shares that were measured before, where these parameters are theirs."""
        same = (self.n, self.d, self.model, self.until, self.delta) == (32, 8, "SA", 30.0, 1e-3)
        return STORED if same and self.seeds >= 24 and self.highest == 9.0 else {}

    def targets(self) -> tuple[Target, ...]:
        out = [Target("runs that failed", 0.0, 0.0, "every run reaches its end")]
        if self.d >= 4 * self.n and self.highest >= max(CONTOUR):
            # random pairs are off the curve by a multiple of d^{-1/2} (equiangular/concentration), and so is their time
            width = 1 / math.sqrt(self.d)
            why = "T_beta(1 - delta) of orthogonal tokens; deviation of order d^{-1/2}, allowed d^{-1/2}"
            out += [Target(_contour(b), 0.0, width, why) for b in CONTOUR if self._time(b) < self.until]
        for (beta, t), value in self._stored().items():
            out.append(
                Target(
                    _share(beta, t), value, 0.12, "an earlier measurement with 24 other seeds, RK4 h = 0.1"
                )
            )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        data = findings.data
        made, axes = figure(6.4, 4.2)
        mesh = axes.pcolormesh(
            np.asarray(data["times"]), np.asarray(data["beta"]), np.asarray(data["share"]), cmap=MAP, vmin=0, vmax=1,
            shading="nearest", rasterized=True,
        )  # fmt: skip
        made.colorbar(
            mesh, ax=axes, label=rf"share of pairs with $\langle x_i, x_j\rangle \geq {1 - self.delta:g}$"
        )
        betas = np.linspace(0.0, float(self.highest), 200)
        exact = np.array([self._time(b) for b in betas])
        label = r"exact: $T_\beta(1-\delta) = t$, orthogonal tokens"
        axes.plot(exact, betas, **EXACT, **outlined(), label=label)
        axes.plot(
            np.asarray(data["half"]), np.asarray(data["beta"]), color=COLOURS[4], lw=1.4, label="share 1/2"
        )
        axes.set(
            xlabel="time", ylabel="β", xlim=(0, self.until), ylim=(float(self.beta[0]), self.highest),
            title=f"{self.model}, n = {self.n}, d = {self.d}, {self.seeds} realisations",
        )  # fmt: skip
        place = "lower right" if self.model == "SA" else "upper right"
        axes.legend(loc=place, frameon=True, facecolor="white", edgecolor="none", framealpha=0.9)
        return made


def crossing(share: Tensor, times: Tensor, level: float = 0.5) -> Tensor:
    """The first time at which ``share (beta, K)`` reaches a level, by linear interpolation; NaN where it never does."""
    above = share >= level
    k = above.to(torch.int8).argmax(-1)
    before = (k - 1).clamp(min=0)
    a, b = (share.gather(-1, i[:, None]).squeeze(-1) for i in (before, k))
    part = torch.where(b > a, (level - a) / torch.where(b > a, b - a, 1.0), 1.0)
    when = times[before] + part * (times[k] - times[before])
    return torch.where(above.any(-1), when, torch.nan)


def _contour(beta: float) -> str:
    return f"time of share 1/2 against the curve, relative, beta near {beta:g}"


def _share(beta: float, t: float) -> str:
    return f"share at beta = {beta:g}, t = {t:g}"


SYSTEMS: dict[str, System] = {
    "phase/sa/d=8": PhaseDiagram(d=8),
    "phase/sa/d=128": PhaseDiagram(),
    "phase/sa/d=1024": PhaseDiagram(d=1024),
    "phase/usa/d=128": PhaseDiagram(model="USA", highest=4.5, betas=45, until=6.0, seeds=12),
}
