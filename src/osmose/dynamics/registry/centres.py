r"""Renyi centres: causal tokens that nothing before them pulls, and how long they hold.

Shapes: ``K`` times, ``n`` tokens of the circle, states ``(K, n, 2)``.

Source: 2411.04990.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from ..adaptive import Adaptive
from ..fields import Field
from ..observables import cluster_count, renyi_centres
from ..pictures import COLOURS, EXACT, figure, style
from ..spaces import Sphere
from ..starts import seeded, uniform
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Centres(System):
    """Renyi centres on the circle: how many of random tokens are strong, and how a run at ``beta = (reach / delta)^2`` keeps them.

    A centre is farther than delta from every earlier centre, a strong one from every earlier token: nothing it sees is near.
    """

    n: int = 400
    delta: float = 0.2
    reach: float = 4.0
    draws: int = 4000
    until: float = 1000.0
    seed: int = 0

    title = "Renyi centres: tokens that nothing before them pulls hold their place for long"
    source = (
        "2411.04990, on metastable states (its figure has n = 200, beta = 64, d = 2, delta = 4 / sqrt beta); n = 400, delta = .2 "
        "are those of the stored count; expectation and variance derived"
    )
    time_scale = "tokens reach a centre in a time of order 1 to 100; a centre drifts at e^{-beta (1 - cos delta)} and less"
    invariants = ("the first token does not move",)

    def quick(self) -> Self:
        return replace(self, draws=min(self.draws, 500), until=min(self.until, 100.0), n=min(self.n, 200))

    @property
    def beta(self) -> float:
        """The inverse temperature whose kernel is ``delta / reach`` wide."""
        return (self.reach / self.delta) ** 2

    def problem(self) -> Problem:
        times = torch.logspace(-1, math.log10(self.until), 120, dtype=torch.float64)
        return Problem(
            Field(Attention(self.beta, causal=True)),
            uniform(self.n, 2, generator=seeded(self.seed)),
            torch.cat([times.new_zeros(1), times]),
            stepper=Adaptive(1e-7),
            beta=self.beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        told("counting centres")
        counts = []
        generator = seeded(self.seed + 1)
        for part in torch.arange(self.draws).split(250):
            x = uniform(len(part), self.n, 2, generator=generator)
            counts.append(renyi_centres(x, self.delta, strong=True).sum(-1))
        count = torch.cat(counts).double()
        told("simulating")
        problem = self.problem()
        run = problem.simulate()
        x = run.states
        centre = renyi_centres(x[0], self.delta)
        strong = renyi_centres(x[0], self.delta, strong=True)
        moved = Sphere().distance(x, x[0].expand_as(x))
        # within the width of the kernel of where a strong centre began, or of where a centre is now
        near = self.delta / self.reach
        held = torch.cdist(x, x[:1, strong].expand(len(x), -1, -1)).amin(-1) < near
        kept = torch.cdist(x, x[:, centre]).amin(-1) < near
        speed = Sphere().velocity(problem.field, x[0], None, 0.0).norm(dim=-1)
        bound = self._pull * torch.arange(self.n, dtype=torch.float64)
        later = strong.clone()
        later[0] = False  # the bound of the first is 0
        measured = {
            "strong centres, mean over draws": float(count.mean()),
            "strong centres, standard deviation": float(count.std()),
            "largest speed of a strong centre at the start, over its bound": float(
                (speed / bound)[later].max()
            ),
            "centres of the run": float(centre.sum()),
            "strong centres of the run": float(strong.sum()),
            "largest drift of a strong centre at the end": float(moved[-1, strong].max()),
            "median drift of a strong centre at the end": float(moved[-1, strong].median()),
            "median drift of other tokens at the end": float(moved[-1, ~strong].median()),
            "share of tokens near a moving centre at the end": float(kept[-1].double().mean()),
            "share of tokens near the place of a strong centre at the end": float(held[-1].double().mean()),
            "clusters at the end": float(cluster_count(x[-1], 0.1 / math.sqrt(self.beta))),
        }
        data = {
            "times": run.times,
            "angles": torch.atan2(x[..., 1], x[..., 0]),
            "centre": centre,
            "strong": strong,
            "counts": torch.bincount(count.long()).double() / self.draws,
            "near moving": kept.double().mean(-1),
            "near strong": held.double().mean(-1),
            "drift": moved[:, strong].amax(-1),
        }
        return Findings(measured, data, run)

    @property
    def _pull(self) -> float:
        """The most that a token farther than delta may pull, against its own weight of 1."""
        return math.exp(-self.beta * (1 - math.cos(self.delta))) * math.sin(self.delta)

    def targets(self) -> tuple[Target, ...]:
        from ..theory import expected_strong_centres

        expected = expected_strong_centres(self.n, self.delta, 2)
        deviation = math.sqrt(variance_of_strong_centres(self.n, self.delta))
        out = [
            Target(
                "strong centres, mean over draws",
                expected,
                4 * deviation / math.sqrt(self.draws),
                "theory.expected_strong_centres; four standard errors of the exact variance",
            )
        ]
        if math.cos(self.delta) <= self.beta * math.sin(self.delta) ** 2 and self.delta < math.pi / 2:
            # beyond its maximum the pull falls with the angle
            out.append(
                Target(
                    "largest speed of a strong centre at the start, over its bound",
                    1.0,
                    1e-12,
                    "(k - 1) e^{-beta (1 - cos delta)} sin delta for token k; derived",
                    "at most",
                )
            )
        return tuple(out)

    @style()
    def draw(self, findings: Findings) -> Figure:
        from ..theory import expected_strong_centres

        data = findings.data
        made, (left, middle, right) = figure(11.0, 3.7, 1, 3, width_ratios=[1, 1.5, 1.1])
        share = data["counts"].numpy()
        left.bar(np.arange(len(share)), share, color=COLOURS[0], width=0.8, label=f"{self.draws} draws")
        expected = expected_strong_centres(self.n, self.delta, 2)
        left.axvline(expected, ymax=0.76, **EXACT, label=f"expected: {expected:.2f}")
        filled = share.nonzero()[0]
        left.set(xlabel="strong centres", ylabel="share of draws", ylim=(0, 1.35 * float(share.max())))
        left.set_xlim(float(filled.min()) - 1, float(filled.max()) + 1)
        left.legend(loc="upper left")
        t, angles = data["times"][1:], data["angles"][1:]
        strong, centre = data["strong"], data["centre"] & ~data["strong"]
        # points: angles jump where they pass pi
        for which, colour, size, name in (
            (~data["centre"], "#9A9A9A", 0.9, "tokens"),
            (centre, "#111111", 2.0, "centres"),
            (strong, COLOURS[4], 3.0, "strong centres"),
        ):
            at = t[:, None].expand(-1, int(which.sum()))
            middle.scatter(at, angles[:, which], s=size, color=colour, linewidths=0, rasterized=True)
            middle.plot([], [], "o", ms=4, color=colour, label=name)
        middle.set(xscale="log", xlabel="t", ylabel="angle", ylim=(-math.pi, 1.35 * math.pi))
        middle.set_yticks([-math.pi, 0, math.pi], ["-pi", "0", "pi"])
        middle.set_title(f"n = {self.n}, beta = {self.beta:g}, delta = {self.delta:g}")
        middle.legend(loc="upper center", ncols=3, handletextpad=0.1, columnspacing=1.0)
        right.plot(t, data["near moving"][1:], color="#111111", label="near a centre, where it is")
        right.plot(t, data["near strong"][1:], color=COLOURS[4], label="near the place of a strong centre")
        right.plot(
            t, data["drift"][1:] / self.delta, color=COLOURS[0], label="drift of a strong centre, the most"
        )
        right.set(xscale="log", xlabel="t", ylabel="share of tokens; drift / delta", ylim=(-0.02, 1.45))
        right.legend(loc="upper left")
        return made


def variance_of_strong_centres(n: int, delta: float) -> float:
    """The variance of the number of strong centres of n uniform tokens of the circle; exact but for a quadrature.

    Tokens i < j at an angle s > delta are both strong where the i - 1 first ones are outside both arcs, which cover
    ``min(2 delta + s, 4 delta) / 2 pi``, and those between i and j outside that of j.
    """
    if not 0 < delta < math.pi / 3:
        raise ValueError(f"variance_of_strong_centres: delta is {delta}; expected an angle in (0, pi/3).")
    p = delta / math.pi
    s = np.concatenate([np.linspace(delta, 2 * delta, 2001), [math.pi]])
    free = 1 - np.minimum(2 * delta + s, 4 * delta) / (2 * math.pi)
    i = np.arange(1, n + 1)
    both = np.trapezoid(free ** (i[:, None] - 1), s, axis=1) / math.pi
    after = -np.expm1((n - i) * np.log1p(-p)) / p  # sum over j > i of (1 - p)^{j - i - 1}
    mean = -np.expm1(n * np.log1p(-p)) / p
    return float(mean + 2 * (both @ after) - mean**2)


SYSTEMS: dict[str, System] = {
    "causal/centres": Centres(),
    "causal/centres-beta-64": Centres(n=200, delta=0.5),
}
