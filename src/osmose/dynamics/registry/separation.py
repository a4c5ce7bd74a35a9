"""Separated caps that tokens do not leave for times like e^beta, and how many clusters form on the circle."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..adaptive import Adaptive
from ..clusters import MergeHistory, merge_model
from ..fields import Field
from ..observables import cluster_count, cluster_scale
from ..pictures import COLOURS, EXACT, figure
from ..simulate import simulate
from ..spaces import Circle, Sphere
from ..starts import cap, seeded, uniform
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent
from .metastable import EVER

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Caps(System):
    """Caps around orthogonal centres: tokens meet in each within a time like beta and leave it after one like e^beta."""

    betas: tuple[float, ...] = (10.0, 15.0, 20.0, 25.0, 30.0)
    caps: int = 3
    each: int = 4
    d: int = 3
    width: float = 0.1
    seed: int = 0

    title = "tokens stay in separated caps for a time like e^beta"
    source = (
        "2410.06833, the theorem on (beta, eps)-separated starts: S_q(2 eps) is left at log T2 ~ beta, and the least product rho "
        "in a cap has rho' >= (2/n) rho (1 - rho) e^{b (rho - 1)} - 2 n e^{-(1 - alpha) b}. Centres, numbers and eps (an angle here) "
        "are ours, and so is the bound of T2 that the same argument gives: eps e^{(1 - alpha) beta} / (tokens of other caps), alpha "
        "the largest product between caps of radius 2 eps"
    )
    time_scale = (
        "a cap collapses like e^{-t} after a time of order beta; it is left after e^{beta (1 - alpha)}"
    )
    invariants = ("tokens stay in their caps",)

    @property
    def _centres(self) -> Tensor:
        return torch.eye(self.d, dtype=torch.float64)[: self.caps]

    @property
    def _labels(self) -> Tensor:
        return torch.arange(self.caps).repeat_interleave(self.each)

    @property
    def _start(self) -> Tensor:
        generator, parts = seeded(self.seed), []
        pole = torch.eye(self.d, dtype=torch.float64)[-1]
        for centre in self._centres:
            x = cap(self.each, self.d, angle=self.width, generator=generator)
            across = pole - centre  # the reflection that takes the pole to the centre
            size = across.square().sum()
            parts.append(x if size == 0 else x - 2 * (x @ across)[:, None] * across / size)
        return torch.cat(parts)

    @property
    def _alpha(self) -> float:
        """The largest product of tokens in two caps of radius 2 eps."""
        return math.cos(math.pi / 2 - 4 * self.width)

    def _floor(self, beta: float) -> float:
        """The time before which no token is further than 2 eps from its centre."""
        others = self.each * (self.caps - 1)
        return self.width * math.exp(beta * (1 - self._alpha)) / others

    def quick(self) -> Self:
        return replace(self, betas=self.betas[::2])

    def problem(self) -> Problem:
        beta = self.betas[0]
        times = torch.logspace(-1, math.log10(4 * beta), 121, dtype=torch.float64)
        return Problem(Field(Attention(beta)), self._start, times, log_time=True, beta=beta)

    def measure(self, told: Told = silent) -> Findings:
        measured: dict[str, float] = {}
        collapse, leave, rates, bounds = [], [], [], []
        for beta in self.betas:
            told(f"beta = {beta:g}")
            times, rho, rate, bound = self._inside(beta)
            rates.append(rate)
            bounds.append(bound)
            measured[f"least slack of the bound of rho', beta = {beta:g}"] = float((rate - bound).min())
            # |x_i - x_j|^2 <= 2 e^{-beta / 2}
            met = (1 - rho).amax(-1) <= math.exp(-beta / 2)
            collapse.append(float(times[met][0]) if bool(met.any()) else math.nan)
            measured[f"time by which caps have collapsed to e^(-beta/2), beta = {beta:g}"] = collapse[-1]
            history = merge_model(self._start, beta, until=EVER)
            leave.append(self._left(history))
            name = f"time in the caps, over its lower bound, beta = {beta:g}"
            measured[name] = leave[-1] / self._floor(beta)
        slope = np.polyfit(self.betas, np.log(leave), 1)[0] if len(self.betas) > 1 else math.nan
        measured["slope of log T2 in beta"] = float(slope)
        data = {
            "betas": np.array(self.betas),
            "collapsed": np.array(collapse),
            "left": np.array(leave),
            "times": times,
            "rates": torch.stack(rates),
            "bounds": torch.stack(bounds),
        }
        return Findings(measured, data)

    def _inside(self, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Along a run of all tokens: times, least products of the caps ``(K, caps)``, their rates and the bounds of these."""
        field = Field(Attention(beta))
        times = torch.linspace(0.0, 2 * max(self.betas), 121, dtype=torch.float64)
        x = simulate(field, self._start, times, stepper=Adaptive(1e-10)).states
        v = Sphere().velocity(field, x, None, 0.0)
        gram, slope = x @ x.mT, x @ v.mT + v @ x.mT
        outside = self._labels[:, None] != self._labels
        alpha = gram[:, outside].amax(-1)
        rho, rate = [], []
        for q in range(self.caps):
            inside = (self._labels == q)[:, None] & (self._labels == q)
            least = gram[:, inside].min(-1)
            rho.append(least.values)
            rate.append(slope[:, inside].gather(-1, least.indices[:, None])[:, 0])
        rho_, n = torch.stack(rho, -1), self.caps * self.each
        bound = [
            theory.cap_velocity_bound(r.clamp(max=1.0).numpy(), beta, n, float(a))
            for r, a in zip(rho_, alpha, strict=True)
        ]
        return times, rho_, torch.stack(rate, -1), torch.from_numpy(np.array(bound))

    def _left(self, history: MergeHistory) -> float:
        """When a cluster is first further than 2 eps from the centre of one of its tokens' caps."""
        for stage in history.stages:
            far = torch.zeros(len(stage.times), dtype=torch.float64)
            for k, members in enumerate(stage.members):
                for q in {int(self._labels[i]) for i in members}:
                    far = torch.maximum(far, Sphere().distance(stage.path[:, k], self._centres[q]))
            out = (far > 2 * self.width).nonzero()
            if len(out):
                b = int(out[0])
                if b == 0:
                    return stage.start
                # between two steps of the solver, straight in log t
                share = float((2 * self.width - far[b - 1]) / (far[b] - far[b - 1]))
                lower, upper = (math.log(max(float(t), 1e-300)) for t in stage.times[b - 1 : b + 1])
                return math.exp(lower + share * (upper - lower))
        return math.inf

    def targets(self) -> tuple[Target, ...]:
        out = []
        for beta in self.betas:
            out.append(
                Target(
                    f"least slack of the bound of rho', beta = {beta:g}",
                    0.0,
                    1e-12,
                    "theory.cap_velocity_bound",
                    "at least",
                )
            )
            out.append(
                Target(
                    f"time in the caps, over its lower bound, beta = {beta:g}",
                    1.0,
                    0.0,
                    "log T2 ~ beta; see source",
                    "at least",
                )
            )
        if len(self.betas) > 1:
            out.append(
                Target(
                    "slope of log T2 in beta",
                    1 - self._alpha,
                    0.0,
                    "T2 >= C e^{(1 - alpha) beta}",
                    "at least",
                )
            )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, (left, right) = figure(8.8, 3.5, 1, 2)
        data = findings.data
        row = 0
        times, beta = data["times"], self.betas[row]
        for q in range(self.caps):
            left.plot(times, data["rates"][row, :, q], color=COLOURS[q % len(COLOURS)], label=f"cap {q + 1}")
            left.plot(times, data["bounds"][row, :, q], **EXACT, label=None if q else "lower bounds")
        left.axhline(0.0, color="#999999", lw=0.6)
        left.set(
            xlabel="time",
            ylabel=r"$\rho'$, ρ the least product in a cap",
            xlim=(0, beta / 2),
            title=f"β = {beta:g}",
        )
        left.legend()
        b = data["betas"]
        right.plot(b, data["left"], "o-", ms=4, color=COLOURS[0], label="$T_2$: a cap is left")
        right.plot(b, [self._floor(beta) for beta in self.betas], **EXACT, label="lower bound of $T_2$")
        right.plot(
            b,
            data["collapsed"],
            "s-",
            ms=4,
            color=COLOURS[1],
            label=r"$T_1$: caps narrower than $e^{-\beta/2}$",
        )
        right.set(yscale="log", xlabel="β", ylabel="time")
        right.legend()
        return made


@dataclass(frozen=True)
class Counts(System):
    """How many clusters form on the circle from random starts: somewhat fewer than sqrt(2 beta), falling like log t."""

    betas: tuple[float, ...] = (25.0, 100.0)
    times: tuple[float, ...] = (10.0, 20.0, 40.0)
    n: int = 256
    seeds: int = 48
    scale: float = 0.3

    title = "random tokens on the circle form fewer clusters than the fastest growing harmonic has"
    source = (
        "means over 6 seeds measured before, deviations between seeds .6 to 1.3 (n = 256, SA, gaps over .3 / sqrt(beta)); the line "
        "sqrt(2 beta) is the fastest harmonic, theory.fastest_degree. Theory: Theta(sqrt beta) linearised, sqrt(beta log beta) modes "
        "of a density on the line (2412.09080)"
    )
    time_scale = "clusters form by t = 10 and then merge like log t"

    def quick(self) -> Self:
        return replace(self, seeds=6)

    def problem(self) -> Problem:
        beta = self.betas[-1]
        start = Circle.angles(uniform(self.n, 2, generator=seeded(0)))
        times = torch.logspace(-1, math.log10(max(self.times)), 121, dtype=torch.float64)
        return Problem(
            Field(Attention(beta)),
            start,
            times,
            space=Circle(),
            stepper=Adaptive(1e-6),
            log_time=True,
            beta=beta,
        )

    @property
    def _outputs(self) -> Tensor:
        dense = torch.logspace(0, math.log10(max(self.times)), 13, dtype=torch.float64)
        return torch.tensor(sorted({0.0, *dense.tolist()[:-1], *self.times}), dtype=torch.float64)

    def measure(self, told: Told = silent) -> Findings:
        start = torch.stack(
            [Circle.angles(uniform(self.n, 2, generator=seeded(s))) for s in range(self.seeds)]
        )
        times, measured, counts = self._outputs, {}, []
        for beta in self.betas:
            told(f"beta = {beta:g}")
            run = simulate(Field(Attention(beta)), start, times, space=Circle(), stepper=Adaptive(1e-6))
            count = cluster_count(Circle().points(run.states), cluster_scale(beta, self.scale)).double()
            counts.append(count)
            for t in self.times:
                at = count[int((times == t).nonzero()[0])]
                measured[f"clusters, beta = {beta:g}, t = {t:g}"] = float(at.mean())
                if self.seeds > 1:
                    measured[f"deviation between seeds, beta = {beta:g}, t = {t:g}"] = float(at.std())
        data = {"times": times, "counts": torch.stack(counts), "angles": run.states[:, 0, :, 0]}
        return Findings(measured, data)

    def targets(self) -> tuple[Target, ...]:
        stored = {
            (25.0, 10.0): 6.33, (25.0, 20.0): 6.0, (25.0, 40.0): 5.67,
            (100.0, 10.0): 12.5, (100.0, 20.0): 11.67, (100.0, 40.0): 11.0,
        }  # fmt: skip
        # 4 standard errors of the difference of two means over seeds, with the largest deviation stated for each beta
        deviation = {25.0: 0.8, 100.0: 1.3}
        out = []
        for (beta, t), value in stored.items():
            if (self.n, self.scale) == (256, 0.3) and beta in self.betas and t in self.times:
                error = deviation[beta] * math.sqrt(1 / 6 + 1 / self.seeds)
                out.append(
                    Target(f"clusters, beta = {beta:g}, t = {t:g}", value, 4 * error, "mean of 6 other seeds")
                )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, (left, right) = figure(8.8, 3.6, 1, 2)
        times, counts = findings.data["times"], findings.data["counts"]
        for row, beta in enumerate(self.betas):
            colour = COLOURS[row % len(COLOURS)]
            mean, spread = counts[row, 1:].mean(-1), counts[row, 1:].std(-1, correction=0)
            left.plot(times[1:], mean, color=colour, label=f"β = {beta:g}, mean of {self.seeds} seeds")
            left.fill_between(times[1:], mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
            left.axhline(math.sqrt(2 * beta), **EXACT, label=None if row else r"$\sqrt{2\beta}$")
        for index, target in enumerate(self.targets()):
            t = float(target.name.rsplit("= ", 1)[1])
            left.plot(
                t,
                target.value,
                "D",
                ms=4,
                color="#111111",
                label=None if index else "stored, 6 seeds",
                zorder=6,
            )
        left.set(
            xscale="log",
            xlabel="time",
            ylabel="clusters",
            xlim=(1, max(self.times) * 1.05),
            ylim=(0, 3 * math.sqrt(2 * max(self.betas))),
        )
        left.legend(fontsize=7)
        right.plot(
            times[1:],
            findings.data["angles"][1:],
            color=COLOURS[(len(self.betas) - 1) % len(COLOURS)],
            lw=0.4,
        )
        right.set(
            xscale="log",
            xlabel="time",
            ylabel="angles of the tokens of one seed",
            title=f"β = {self.betas[-1]:g}",
            xlim=(1, max(self.times)),
        )
        return made


SYSTEMS: dict[str, System] = {"metastable/caps": Caps(), "metastable/counts": Counts()}
