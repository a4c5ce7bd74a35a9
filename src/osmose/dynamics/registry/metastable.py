"""Clusters that wait: the staircase of the energy, and a movie of five tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..adaptive import Adaptive, Stiff
from ..arc_length import ArcLength
from ..clusters import MergeHistory, merge_model
from ..events import ClustersLeft
from ..fields import Field
from ..observables import cluster_count, normalised_energy
from ..pictures import COLOURS, EXACT, draw_tokens, figure
from ..simulate import simulate
from ..spaces import Circle
from ..starts import on_circle
from ..steppers import Layer
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTACT = 1e-4  # over sqrt(1 + beta): angle at which the merge model joins two clusters
EVER = 1e300


@dataclass(frozen=True, kw_only=True)
class Left(ClustersLeft):
    """:class:`ClustersLeft` by a name of its own for every count."""

    @property
    def name(self) -> str:
        return f"{self.count} left"


@lru_cache(maxsize=64)
def history_of(
    angles: tuple[float, ...], beta: float, model: Literal["SA", "USA"] = "SA", until: float = EVER
) -> MergeHistory:
    """The merge model from angles of the circle."""
    return merge_model(torch.tensor(angles, dtype=torch.float64), beta, model=model, until=until)


def contact(beta: float) -> float:
    """The merge model's contact, as a chord."""
    return 2 * math.sin(CONTACT / math.sqrt(1 + beta) / 2)


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, filled with NaN."""
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


def token_paths(history: MergeHistory) -> tuple[np.ndarray, np.ndarray]:
    """Times ``(s,)`` of a history's steps, and there the angle of every token's cluster ``(s, n)``."""
    paths = []
    for stage in history.stages:
        cluster = {token: k for k, members in enumerate(stage.members) for token in members}
        paths.append(stage.path[:, [cluster[token] for token in sorted(cluster)]].numpy())
    return np.concatenate([stage.times.numpy() for stage in history.stages]), np.concatenate(paths)


def _curve(history: MergeHistory, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, normalised energies and lengths ``sum ds``, ``ds^2 = sum_k m_k d theta_k^2 / M``, of a history's steps."""
    times, energies, lengths, so_far = [], [], [], 0.0
    for stage in history.stages:
        share = stage.mass / stage.mass.sum()
        steps = (stage.path.diff(dim=0).square() * share).sum(-1).sqrt()
        lengths.append(so_far + np.append(0.0, steps.cumsum(0)))
        so_far = float(lengths[-1][-1])
        times.append(stage.times.numpy())
        energies.append(normalised_energy(on_circle(stage.path), beta, stage.mass).numpy())
    return np.concatenate(times), np.concatenate(energies), np.concatenate(lengths)


@dataclass(frozen=True)
class Staircase(System):
    """Five tokens at large beta: merges one by one, between them plateaux of the energy that last e^{beta (1 - c)}.

    Times are those of the clock e^beta t of USA. The published figure goes by the length of the path; by it too plateaux
    have width, since clusters move on them, however slowly.
    """

    betas: tuple[float, ...] = (500.0, 1000.0, 1500.0, 2000.0, 3000.0, 4000.0)
    places: tuple[float, ...] = (0.0, 0.5, 2.0, 4.0, 7.0)
    unit_beta: float = 2000.0

    title = "the energy climbs a staircase whose plateaux last longer than any simulation"
    source = (
        "2410.06833, the figure of the staircase; n, betas and start (.5 places log b / sqrt b at b = 2000 for every beta) from "
        "the authors' code, which steps by 1e-5 of the normalised gradient and joins tokens closer than .001. Here the merge "
        "model runs on the clock of the closest pair. All tokens by arc length reach the second merge at beta = 500 and stop soon "
        "after the third: a pair that has met contracts e^{beta (1 - c)} times faster than anything moves"
    )
    time_scale = "clock e^beta t: a pair at an inner product c waits e^{beta (1 - c)} / beta"
    invariants = ("the energy never falls",)

    @property
    def angles(self) -> tuple[float, ...]:
        """The start."""
        unit = 0.5 * math.log(self.unit_beta) / math.sqrt(self.unit_beta)
        return tuple(unit * place for place in self.places)

    @property
    def _followed(self) -> bool:
        """Whether all tokens can be followed by arc length through two merges."""
        return min(self.betas) <= 600 and len(self.places) > 2

    def quick(self) -> Self:
        return replace(self, betas=tuple(sorted({self.betas[0], self.betas[-1]})))

    def problem(self) -> Problem:
        beta = self.betas[0]
        merges = [t for t in history_of(self.angles, beta, "USA").times if t < 1e7]
        until = max(merges, default=1e6)  # past the third merge all that moves is rounding
        return Problem(
            Field(Attention(beta, law="mean", scaled=True)),
            torch.tensor(self.angles, dtype=torch.float64)[:, None],
            torch.logspace(-1, math.log10(until), 121, dtype=torch.float64),
            space=Circle(),
            stepper=Stiff(rtol=1e-9, atol=1e-12),
            log_time=True,
            beta=beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        n = len(self.places)
        curves, above, waits, falls = [], [], [], []
        plateaux = np.full((len(self.betas), n), np.nan)
        measured: dict[str, float] = {}
        for row, beta in zip(plateaux, self.betas, strict=True):
            told(f"beta = {beta:g}")
            history = history_of(self.angles, beta, "USA")
            if len(history.stages) == n:
                row[:] = [stage.energy for stage in history.stages]
            for stage in history.stages[:-1]:
                above.append(self._above(stage, beta))
            *_, last, _ = history.stages
            apart = float(last.points[1] - last.points[0])
            exact = theory.two_cluster_time(
                CONTACT / math.sqrt(1 + beta), beta, start=apart, model="USA", scaled=True, log=True
            )
            waits.append(abs(math.log(last.end - last.start) - float(exact)))
            curves.append(_curve(history, beta))
            falls.append(-np.diff(curves[-1][1]).min())
            measured[f"log10 of the time of consensus, beta = {beta:g}"] = math.log10(history.times[-1])
        exact_plateaux = np.array(self._plateaux())
        for k in range(n):
            off = plateaux[:, k] - exact_plateaux[k]
            measured[f"plateau {k + 1}, the worst of all beta"] = float(plateaux[np.abs(off).argmax(), k])
        measured["energy above a plateau, beyond e^{-beta (1 - c)}"] = max(0.0, *above)
        measured["log of the last wait, off two clusters'"] = max(waits)
        measured["largest fall of the energy"] = max(0.0, *falls)
        data: dict[str, Any] = {
            key: padded([curve[i] for curve in curves])
            for i, key in enumerate(("times", "energies", "lengths"))
        }
        if self._followed:
            told("all tokens by arc length")
            beta = min(self.betas)
            _, energies, lengths = curves[self.betas.index(beta)]
            found = self._by_length(beta)
            data |= found
            off = found["followed_energies"] - np.interp(found["followed_lengths"], lengths, energies)
            measured["energy by arc length, all tokens against the model"] = float(np.abs(off).max())
        return Findings(measured, data)

    def _above(self, stage: Any, beta: float) -> float:
        """In the middle of a plateau (of log t): by how much the energy is further above it than ``e^{-beta (1 - c)}``."""
        middle = math.sqrt((1 + stage.start) * (1 + stage.end)) - 1
        k = max(int(torch.searchsorted(stage.times, middle)) - 1, 0)
        x = on_circle(stage.path[k])
        half = (stage.path[k][:, None] - stage.path[k]) / 2
        off = -2 * half.sin().square().fill_diagonal_(math.inf).min()  # c - 1 of the closest pair
        return float(normalised_energy(x, beta, stage.mass) - stage.energy - torch.exp(beta * off))

    def _by_length(self, beta: float) -> dict[str, np.ndarray]:
        """All tokens from the start to nine tenths of the way to the second merge."""
        history = history_of(self.angles, beta, "USA")
        until = 0.9 * float(_curve(MergeHistory(history.stages[:2]), beta)[2][-1])
        space = ArcLength(Circle())
        start = space.lift(torch.tensor(self.angles, dtype=torch.float64)[:, None])
        field = Field(Attention(beta, law="mean", scaled=True))
        lengths = torch.linspace(0.0, until, 31, dtype=torch.float64)
        run = simulate(field, start, lengths, space=space, stepper=Adaptive(1e-7))
        energies = normalised_energy(space.points(run.states), beta)
        return {"followed_lengths": lengths.numpy(), "followed_energies": energies.numpy()}

    def _plateaux(self) -> list[float]:
        """From the order of merges that pairing predicts."""
        points = on_circle(torch.tensor(self.angles, dtype=torch.float64)).numpy()
        beta = max(self.betas)
        merges = theory.pairing_sequence(points, beta, contact=CONTACT / math.sqrt(1 + beta))
        return theory.staircase_plateaux([merge.pair for merge in merges], len(self.places))

    def targets(self) -> tuple[Target, ...]:
        out = [
            Target(
                f"plateau {k + 1}, the worst of all beta",
                value,
                1e-12,
                "sum (m_k / n)^2, merges by theory.pairing_sequence",
            )
            for k, value in enumerate(self._plateaux())
        ]
        out += [
            Target(
                "energy above a plateau, beyond e^{-beta (1 - c)}",
                0.0,
                2**-52 * max(self.betas),  # the rounding of beta <x, y>
                "the energy of clusters, c of the closest pair",
                "at most",
            ),
            Target(
                "log of the last wait, off two clusters'",
                0.0,
                1e-6,
                "theory.two_cluster_time, solver at 1e-9",
                "at most",
            ),
            # joined at contact, a pair gains what is left between its two: nothing falls but by the solver's error
            Target("largest fall of the energy", 0.0, 1e-8, "gradient flow, solver at 1e-9", "at most"),
        ]
        if self._followed:
            # the model's curve is read between about 100 steps of a stage, straight: h^2 / 8 of an energy of size 1
            name = "energy by arc length, all tokens against the model"
            out.append(Target(name, 0.0, 1e-3, "interpolation between 100 steps of a stage", "at most"))
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, (left, right) = figure(9.0, 3.6, 1, 2, sharey=True)
        data = findings.data
        for row, beta in enumerate(self.betas):
            colour, t = COLOURS[row % len(COLOURS)], data["times"][row]
            since = t > 0.1
            left.plot(np.log10(t[since]), data["energies"][row][since], color=colour, label=f"β = {beta:g}")
            right.plot(data["lengths"][row], data["energies"][row], color=colour)
        if "followed_lengths" in data:
            right.plot(
                data["followed_lengths"],
                data["followed_energies"],
                "o",
                ms=3,
                mfc="white",
                color=COLOURS[self.betas.index(min(self.betas))],
                label=f"all tokens, β = {min(self.betas):g}",
            )
        for k, value in enumerate(self._plateaux()):
            for axes in (left, right):
                axes.axhline(
                    value, **{**EXACT, "lw": 0.8, "zorder": 1}, label=None if k else "exact plateaux"
                )
        longest = max(history_of(self.angles, beta, "USA").times[-1] for beta in self.betas)
        left.set(
            xlabel=r"$\log_{10}$ of time, on the clock $e^\beta t$",
            xlim=(-2, 1.06 * math.log10(longest)),
            ylabel="normalised energy",
            ylim=(0.15, 1.04),
        )
        right.set(xlabel="length of the path (normalised gradient)")
        left.legend(
            loc="lower right",
            fontsize=7,
            ncols=2,
            frameon=True,
            facecolor="white",
            edgecolor="none",
            framealpha=1.0,
        )
        right.legend(loc="upper left", fontsize=7, bbox_to_anchor=(0.0, 0.97))
        return made


@dataclass(frozen=True)
class FiveTokens(System):
    """Five tokens on the circle: two meet, two others, one joins them, and then nothing for long."""

    beta: float = 4.0
    angles: tuple[float, ...] = (0.062197, 0.214323, 1.819123, 2.911071, 3.187937)
    until: float = 400.0
    h: float = 0.1

    title = "five tokens: soon two clusters, and long after one"
    source = (
        "2410.06833, the movie: n = 5, d = 2, beta = 4, T = 400, layers of h = .1 and this start, from the authors' code; times of "
        "merges from the merge model, ours"
    )
    time_scale = "e^{beta (1 - c)} / (2 beta sin^2) for two clusters at an inner product c"
    invariants = ("the energy never falls",)

    @property
    def _start(self) -> Tensor:
        return torch.tensor(self.angles, dtype=torch.float64)[:, None]

    @property
    def _history(self) -> MergeHistory:
        return history_of(self.angles, self.beta, until=self.until)

    def problem(self) -> Problem:
        # in log t, from the first step on: the start is that of t = h
        times = torch.logspace(math.log10(self.h), math.log10(self.until), 181, dtype=torch.float64)
        times[-1] = self.until
        return Problem(
            Field(Attention(self.beta)),
            self._start,
            times,
            space=Circle(),
            stepper=Adaptive(1e-9),
            log_time=True,
            beta=self.beta,
        )

    @property
    def _counts(self) -> list[int]:
        """Clusters after each merge of the model."""
        return [len(stage.mass) for stage in self._history.stages[1:]]

    def measure(self, told: Told = silent) -> Findings:
        told("all tokens")
        problem = self.problem()
        events = [Left(count=count, scale=contact(self.beta), terminal=False) for count in self._counts]
        times = torch.cat([torch.zeros(1, dtype=torch.float64), problem.times])
        run = simulate(
            problem.field, self._start, times, space=Circle(), stepper=Adaptive(1e-10), events=events
        )
        measured = {f"time of merge {k}": float(run.events[event.name]) for k, event in enumerate(events, 1)}
        told(f"layers of h = {self.h:g}")
        every = self.h * torch.arange(round(self.until / self.h) + 1, dtype=torch.float64)
        layers = simulate(problem.field, on_circle(self._start[:, 0]), every, stepper=Layer(self.h))
        if events:
            met = cluster_count(layers.states, contact(self.beta)) <= self._counts[-1]
            late = float(every[met][0]) if bool(met.any()) else math.nan
            share = late / measured[f"time of merge {len(events)}"] - 1
            measured[f"layers of h = {self.h:g}: share by which the last merge is late"] = share
        model_times, model_angles = token_paths(self._history)
        data = {
            "times": run.times,
            "angles": run.states[..., 0],
            "model_times": model_times,
            "model_angles": model_angles,
            "merges": np.array(self._history.times),
        }
        return Findings(measured, data, run)

    def targets(self) -> tuple[Target, ...]:
        out, formed = [], {}  # when a cluster of several tokens formed
        for k, (before, after) in enumerate(pairwise(self._history.stages), 1):
            (made,) = set(after.members) - set(before.members)
            parts = [members for members in before.members if set(members) <= set(made)]
            when = formed[made] = after.start
            # tokens touch before the middles of their clusters do, by the width of contact e^{-t} that these still have
            width = math.log1p(sum(math.exp(formed[part] - when) for part in parts if len(part) > 1))
            tolerance = width + 1e-6 * when
            out.append(
                Target(f"time of merge {k}", when, tolerance, "merge model; a cluster shrinks like e^{-t}")
            )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(10.4, 2.6, 1, 5, width_ratios=[1, 1, 1, 1, 2.2])
        data, merges = findings.data, findings.data["merges"]
        times = data["times"].numpy()
        shown = [0.0, 0.5 * merges[0], 1.2 * merges[-2], 0.98 * merges[-1]] if len(merges) > 1 else [0.0] * 4
        for at, t in zip(axes, shown, strict=False):
            k = int(np.abs(times - t).argmin())
            draw_tokens(
                at, data["angles"][k][:, None], trail=data["angles"][: k + 1, :, None], colours=list(range(5))
            )
            at.set_title(f"t = {0 if k == 0 else times[k]:.3g}", loc="center")
        last = axes[-1]
        for token in range(len(self.angles)):
            last.plot(times, data["angles"][:, token], color=COLOURS[token % len(COLOURS)])
            since = data["model_times"] >= self.h
            last.plot(
                data["model_times"][since],
                data["model_angles"][since, token],
                **EXACT,
                label=None if token else "merge model",
            )
        last.set(xscale="log", xlabel="time", ylabel="angle", xlim=(self.h, self.until))
        last.legend(loc="center left")
        return made


SYSTEMS: dict[str, System] = {
    "metastable/staircase": Staircase(),
    "metastable/movie": FiveTokens(),
}
