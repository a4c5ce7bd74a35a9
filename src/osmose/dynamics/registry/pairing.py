"""Large beta: the closest pair meets while all others stand still, then the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..clusters import merge_model
from ..fields import Field
from ..pictures import COLOURS, EXACT, figure
from ..starts import seeded, uniform
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent
from .metastable import CONTACT, EVER, padded

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pairing(System):
    """Large beta: the closest pair merges while all others stand still, then the next; on its own clock by one law for any beta."""

    n: int = 8
    d: int = 3
    betas: tuple[float, ...] = (25.0, 50.0, 100.0, 200.0, 400.0)
    seed: int = 0

    title = "the closest pair merges, all others wait"
    source = (
        "Bruno, Pasqualotto and Agazzi, as told in 2512.01868; on the clock of the current inner product (with the initial one, as "
        "printed in the survey, the rescaled time of a merge goes to 0). n, d, betas and seed are ours"
    )
    time_scale = "clock e^beta t: M / ((m1 + m2) beta sin^2) e^{beta (1 - c)} for a pair at inner product c"

    @property
    def _start(self) -> Tensor:
        return uniform(self.n, self.d, generator=seeded(self.seed))

    def problem(self) -> Problem:
        beta = self.betas[0]
        times = torch.logspace(-1, 3.5, 121, dtype=torch.float64)
        return Problem(
            Field(Attention(beta, law="mean", scaled=True)), self._start, times, log_time=True, beta=beta
        )

    def quick(self) -> Self:
        return replace(self, betas=self.betas[-3:])

    def measure(self, told: Told = silent) -> Findings:
        measured: dict[str, float] = {}
        model, predicted, clocks, angles = [], [], [], []
        x = self._start
        for beta in self.betas:
            told(f"beta = {beta:g}")
            history = merge_model(x, beta, model="USA", until=EVER)
            merges = theory.pairing_sequence(x.numpy(), beta, contact=CONTACT / math.sqrt(1 + beta))
            times = np.array([math.log(t) for t in history.times])
            want = np.array([merge.log_time for merge in merges])
            same = [
                [sorted(m) for m in stage.members] == partition
                for stage, partition in zip(history.stages[1:], _partitions(self.n, merges), strict=False)
            ]
            measured[f"merges of other clusters than predicted, beta = {beta:g}"] = float(
                len(merges) - sum(same)
            )
            off = np.abs(times - want).max() if len(times) == len(want) else math.nan
            measured[f"largest error of log time, beta = {beta:g}"] = float(off)
            model.append(times)
            predicted.append(want)
            first = history.stages[0]
            i, j = merges[0].pair
            chord = (first.path[:, i] - first.path[:, j]).norm(dim=-1)
            clocks.append(first.clock.numpy())
            angles.append(2 * np.arcsin(chord.numpy() / 2))
        top = max(range(len(self.betas)), key=lambda k: self.betas[k])
        exact = theory.paired_angle(clocks[top], float(angles[top][0]), total=float(self.n))
        measured["angle of the closest pair on its clock, off the law"] = float(
            np.abs(angles[top] - exact).max()
        )
        beta, apart = self.betas[top], float(angles[top][0])
        scaled = math.exp(model[top][0] - beta * (1 - math.cos(apart)))
        measured["first merge on the initial clock, times beta sin^2"] = scaled * beta * math.sin(apart) ** 2
        data = {
            "model": padded(model),
            "predicted": padded(predicted),
            "clocks": padded(clocks),
            "angles": padded(angles),
        }
        return Findings(measured, data)

    def targets(self) -> tuple[Target, ...]:
        top, x = max(self.betas), self._start.numpy()
        merges = theory.pairing_sequence(x, top, contact=CONTACT / math.sqrt(1 + top))
        # pairing lets a pair start when the one before has met; in truth both move at once, so a time t_k that is a sum is
        # late by at most t_{k-1}. How others are moved is a power of e^{-beta}, 1e-3 of log time here
        order = max(-math.log1p(-math.exp(a.log_time - b.log_time)) for a, b in pairwise(merges))
        # the first merge alone by Laplace's method, as for two clusters
        c = float((self._start @ self._start.mT).fill_diagonal_(-1.0).max())
        first = 1 / (top * (1 - c * c))
        return (
            Target(
                f"merges of other clusters than predicted, beta = {top:g}",
                0.0,
                0.0,
                "theory.pairing_sequence",
            ),
            Target(
                f"largest error of log time, beta = {top:g}",
                0.0,
                order + 1e-3,
                "theory.pairing_sequence, whose pairs move one after another",
                "at most",
            ),
            Target(
                "angle of the closest pair on its clock, off the law",
                0.0,
                1e-6,
                "theory.paired_angle; solver at 1e-9",
                "at most",
            ),
            Target(
                "first merge on the initial clock, times beta sin^2",
                self.n / 2 * (1 + 2 * c * first),
                self.n / 2 * 10 * first**2,
                "on the clock that the survey prints a merge takes M / (2 beta sin^2), which goes to 0",
            ),
        )

    def draw(self, findings: Findings) -> Figure:
        made, (left, right) = figure(8.6, 3.5, 1, 2)
        data, clock_end = findings.data, 0.0
        for row, beta in enumerate(self.betas):
            colour = COLOURS[row % len(COLOURS)]
            times = data["model"][row]
            times = times[np.isfinite(times)]
            left.plot(
                np.arange(1, len(times) + 1),
                times / beta,
                "o",
                ms=4,
                color=colour,
                label=f"merge model, β = {beta:g}",
            )
            want = data["predicted"][row]
            left.plot(np.arange(1, len(want) + 1), want / beta, **EXACT, label=None if row else "pairing")
            right.plot(data["clocks"][row], data["angles"][row], color=colour, label=f"β = {beta:g}")
            clock_end = max(clock_end, float(np.nanmax(data["clocks"][row])))
        tau = np.linspace(0.0, clock_end, 300)
        start = float(data["angles"][0][0])
        right.plot(tau, theory.paired_angle(tau, start, total=float(self.n)), **EXACT, label="exact, any β")
        left.set(xlabel="merge", ylabel="log time / β")
        left.legend(fontsize=7)
        right.set(
            yscale="log",
            xlabel=r"clock of the closest pair, $\int e^{\beta(\rho - 1)} dt$",
            ylabel="its angle",
            xlim=(0, clock_end),
        )
        right.legend(fontsize=7)
        return made


def _partitions(n: int, merges: list[theory.Merge]) -> list[list[list[int]]]:
    """The clusters after each merge, as the merge model orders them."""
    parts = {i: [i] for i in range(n)}
    out = []
    for merge in merges:
        i, j = merge.pair
        parts[i] = sorted(parts[i] + parts.pop(j))
        out.append([parts[k] for k in sorted(parts)])
    return out


SYSTEMS: dict[str, System] = {"metastable/pairing": Pairing()}
