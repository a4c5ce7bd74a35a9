"""Tokens on the sphere that gather: the movies of SA and USA, from anywhere or from a half-sphere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch

from ..fields import Field
from ..observables import (
    EnergyBalance,
    Observable,
    Recorder,
    cluster_count,
    cluster_scale,
    hemisphere_margin,
    hemisphere_pole,
    product_histogram,
)
from ..pictures import snapshots
from ..starts import hemisphere, seeded, uniform
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 101


@dataclass(frozen=True)
class SphereMovie(System):
    """Tokens under SA or USA on the sphere, Q = K = I, V a multiple of the identity."""

    n: int = 64
    d: int = 3
    beta: float = 1.0
    model: Literal["SA", "USA"] = "SA"
    value: float = 1.0
    causal: bool = False
    half: bool = False
    until: float = 15.0
    interval: float = 0.1
    seed: int = 0

    title = "tokens on the sphere gather in clusters, and then in one"
    source = "2312.10794v5, figures 1 and 2 (n = 64, d = 3, beta = 1, T = 15, dt = 0.1, SA)"
    time_scale = "clusters close like e^{-t} (SA); USA is e^beta times faster"
    invariants = ("the energy never falls", "min_i <x_i, w> never falls where tokens are in a half-sphere")

    def quick(self) -> Self:
        return replace(self, n=min(self.n, 24))

    def problem(self) -> Problem:
        start = (hemisphere if self.half else uniform)(self.n, self.d, generator=seeded(self.seed))
        law = "row" if self.model == "SA" else "mean"
        # rounded: the last time is the one that was asked for
        count = max(1, round(self.until / self.interval))
        return Problem(
            Field(Attention(self.beta, law=law, value=self.value, causal=self.causal)),
            start,
            torch.linspace(0.0, self.until, count + 1, dtype=torch.float64),
            beta=self.beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        problem = self.problem()
        told("simulating")
        watched: list = [Observable("histogram", lambda x, mass: product_histogram(x, BINS).share)]
        if problem.field.is_gradient and self.value == 1:
            watched.append(EnergyBalance(self.beta, model=self.model))
        if self.beta > 0:
            watched.append(
                Observable("clusters", partial(cluster_count, scale=cluster_scale(self.beta, 0.1)))
            )
        if self.half:
            watched.append(Observable("margin", hemisphere_margin))
        solution = problem.simulate(observe=Recorder(watched))
        found = solution.results
        measured: dict[str, float] = {}
        data = {"times": solution.times, "states": solution.states, "histogram": found["histogram"]}
        if "energy_balance" in found:
            balance = found["energy_balance"]
            gained = float(balance["energy"][-1] - balance["energy"][0])
            measured["largest fall of the energy"] = float((-balance["energy"].diff()).max())
            measured["energy against dissipation, relative"] = float(balance["residual"].abs().max()) / (
                gained or 1.0
            )
            data["energy"] = balance["energy"]
        if "clusters" in found:
            data["clusters"] = found["clusters"]
            measured["clusters at the end"] = float(found["clusters"][-1])
        if self.causal:
            first = solution.states[:, 0]
            measured["how far the first token moves"] = float((first - first[0]).norm(dim=-1).max())
        if self.half:
            pole = hemisphere_pole(solution.states[0])
            least = (solution.states @ pole).amin(-1)
            measured["largest fall of min <x, w>"] = float((-least.diff()).max())
        return Findings(measured, data, solution)

    def targets(self) -> tuple[Target, ...]:
        out = []
        if self.problem().field.is_gradient and self.value == 1:
            out += [
                Target(
                    "largest fall of the energy", 0.0, 1e-12, "gradient flow, 2312.10794v5, (3.8)", "at most"
                ),
                Target(
                    "energy against dissipation, relative",
                    0.0,
                    1e-4,
                    "dE/dt = |velocity|^2 in the flow's metric",
                ),
            ]
        if self.causal:
            out.append(
                Target(
                    "how far the first token moves", 0.0, 1e-14, "2411.04990: it sees itself alone", "at most"
                )
            )
        if self.half and self.value > 0:
            out.append(
                Target(
                    "largest fall of min <x, w>", 0.0, 1e-12, "2312.10794v5, proof of Lemma 6.4", "at most"
                )
            )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        assert findings.solution is not None
        return snapshots(findings.solution, at=[self.until * share for share in (0.0, 0.1, 0.2, 0.4, 1.0)])


SYSTEMS: dict[str, System] = {
    "movie/sphere": SphereMovie(),
    "movie/half-sphere": SphereMovie(half=True),
    "movie/usa": SphereMovie(model="USA", until=5.0, interval=0.05),
    "movie/causal": SphereMovie(causal=True),
}
