"""Rates: of the last approach, of patterns on the uniform ring, and at three clusters apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from torch import Tensor

from .. import theory
from ..adaptive import Adaptive
from ..fields import Field
from ..observables import cluster_count
from ..pictures import COLOURS, EXACT, figure
from ..simulate import simulate
from ..spaces import Circle
from ..starts import cap, seeded
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = Literal["SA", "USA"]
STABLE, UNSTABLE = -0.75, -0.6  # on either side of -2/3


@dataclass(frozen=True)
class Consensus(System):
    """The last approach: ``1 - <x_i, x_j>`` falls like e^{-2t} (SA), ``e^{-2 e^beta t}`` (USA), whatever n and d."""

    n: int = 16
    d: int = 3
    betas: tuple[float, ...] = (0.0, 1.0, 4.0)
    angle: float = 0.5
    tolerance: float = 1e-11
    seed: int = 0

    title = "the last approach is exponential, at a rate known exactly"
    source = "linearisation at consensus, theory.consensus_rate; measured before 1.9999 (SA) and 5.4362 (USA, beta = 1)"
    time_scale = "1 / 2 (SA), e^{-beta} / 2 (USA)"

    def quick(self) -> Self:
        return replace(self, betas=self.betas[1:])

    def problem(self) -> Problem:
        return self._problem("SA", self.betas[-1])

    def _problem(self, model: Model, beta: float) -> Problem:
        start = cap(self.n, self.d, angle=self.angle, generator=seeded(self.seed))
        # down to gaps of 1e-14, distances of 1e-7: in units of the rate, some 16 more than to the first
        unit = 1.0 if model == "SA" else math.exp(-beta)
        times = unit * torch.linspace(0.0, 18.0, 91, dtype=torch.float64)
        field = Field(Attention(beta, law="row" if model == "SA" else "mean"))
        return Problem(field, start, times, stepper=Adaptive(self.tolerance), beta=beta)

    def measure(self, told: Told = silent) -> Findings:
        measured, curves, fits = {}, [], []
        for model in ("SA", "USA"):
            for beta in self.betas:
                told(f"{model}, beta = {beta:g}")
                run = self._problem(model, beta).simulate()
                # products of near tokens from their differences: 1 - <x, y> would be rounding
                gap = torch.cdist(run.states, run.states, compute_mode="donot_use_mm_for_euclid_dist")
                gap = gap.square().amax((-1, -2)) / 2
                # quadratic terms are of the size of the gap; distances stay 100 times over the tolerance of a step
                window = (gap < 1e-5) & (gap > (100 * self.tolerance) ** 2 / 2 * 100)
                t, y = run.times[window].numpy(), gap[window].log().numpy()
                rate, at = np.polyfit(t, y, 1) if len(t) > 2 else (math.nan, math.nan)
                measured[f"rate, {model}, beta = {beta:g}"] = -float(rate)
                measured[f"gaps fitted, {model}, beta = {beta:g}"] = float(len(t))
                curves.append(torch.stack([run.times, gap]))
                fits.append(float(at))
        return Findings(measured, {"curves": torch.stack(curves), "fits": np.array(fits)})

    def targets(self) -> tuple[Target, ...]:
        out = []
        for model in ("SA", "USA"):
            for beta in self.betas:
                rate = float(theory.consensus_rate(beta, model=model))
                # the rate itself is off by (1 + beta) gap where the fit begins
                out.append(
                    Target(
                        f"rate, {model}, beta = {beta:g}",
                        rate,
                        1e-5 * (1 + beta) * rate,
                        "theory.consensus_rate, gaps < 1e-5",
                    )
                )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, (left, right) = figure(8.8, 3.7, 1, 2)
        row = 0
        for model, marker in (("SA", "o"), ("USA", "s")):
            for k, beta in enumerate(self.betas):
                t, gap = findings.data["curves"][row]
                at = float(findings.data["fits"][row])
                t = t if model == "SA" else math.exp(beta) * t
                kind = {
                    "ms": 3.5,
                    "color": COLOURS[k % len(COLOURS)],
                    "mfc": "none" if model == "USA" else None,
                }
                left.plot(t[::2], gap[::2], marker, **kind, label=f"{model}, β = {beta:g}")
                late = gap < 1e-3
                left.plot(
                    t[late], np.exp(at - 2 * t[late].numpy()), **EXACT, label=None if row else "exact rates"
                )
                kept = gap > 1e-14
                local = -gap[kept].log().diff() / t[kept].diff() / 2
                right.plot(t[kept][1:][::2], local[::2], marker, **kind)
                row += 1
        right.axhline(1.0, **EXACT, label="exact")
        left.set(yscale="log", xlabel=r"time; of USA $e^\beta t$", ylabel="1 − ⟨x, y⟩ of the widest pair")
        left.set_ylim(1e-15, 2)
        right.set(xlabel=r"time; of USA $e^\beta t$", ylabel="rate between two times, over the exact one")
        left.legend(fontsize=7, ncols=2)
        right.legend()
        return made


@dataclass(frozen=True)
class Growth(System):
    """Small patterns on a uniform ring: the k-th harmonic grows at its own rate, and the fastest sets the number of clusters."""

    betas: tuple[float, ...] = (4.0, 9.0, 25.0)
    harmonics: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
    n: int = 128
    size: float = 1e-7
    until: float = 4.0
    model: Model = "SA"

    title = "patterns on the uniform ring grow at exact rates"
    source = "growth spectrum derived in osmose.dynamics.theory; (beta, k) = (4, 2) .56824, (9, 4) .70450, (25, 7) .72580 (SA)"
    time_scale = "the fastest harmonic, near sqrt(2 beta), grows at a rate that tends to 2 / e"

    def quick(self) -> Self:
        return replace(self, n=64)

    def _field(self, beta: float) -> Field:
        law = "row" if self.model == "SA" else "mean"
        return Field(Attention(beta, law=law, scaled=self.model == "USA"))

    def problem(self) -> Problem:
        beta = self.betas[-1]
        k = theory.fastest_degree(beta, 2, model=self.model)
        times = torch.linspace(0.0, 40.0, 161, dtype=torch.float64)
        return Problem(self._field(beta), self._rings(1e-3, (k,))[0], times, space=Circle(), beta=beta)

    def _rings(self, size: float, harmonics: tuple[int, ...]) -> Tensor:
        """``(len, n, 1)``: density ``1 + size cos(k theta)`` by displacing a ring by ``-(size / k) sin(k theta)``."""
        ring = 2 * math.pi * torch.arange(self.n, dtype=torch.float64) / self.n
        return torch.stack([ring - size / k * (k * ring).sin() for k in harmonics])[..., None]

    def measure(self, told: Told = silent) -> Findings:
        measured, rates = {}, []
        times = torch.linspace(0.0, self.until, 21, dtype=torch.float64)
        ring = self._rings(0.0, self.harmonics)
        for beta in self.betas:
            told(f"beta = {beta:g}")
            start = self._rings(self.size, self.harmonics)
            run = simulate(
                self._field(beta), start, times, space=Circle(), stepper=Adaptive(1e-10 * self.size)
            )
            moved = (run.states - ring)[..., 0]  # (K, harmonics, n)
            waves = torch.stack([(k * r[:, 0]).sin() for k, r in zip(self.harmonics, ring, strict=True)])
            amplitude = (moved * waves).mean(-1).abs()
            fitted = np.polyfit(times.numpy(), amplitude.log().numpy(), 1)[0]
            rates.append(fitted)
            for k, rate in zip(self.harmonics, fitted.tolist(), strict=True):
                measured[f"rate, beta = {beta:g}, k = {k}"] = rate
        return Findings(measured, {"rates": np.array(rates), "harmonics": np.array(self.harmonics)})

    def targets(self) -> tuple[Target, ...]:
        out = []
        # angles are rounded at 1e-9 of the amplitude and steps err by 1e-10; the ring is finer than any wave of the kernel
        for beta in self.betas:
            for k in self.harmonics:
                rate = float(theory.growth_rate(k, beta, 2, model=self.model, scaled=True))
                out.append(Target(f"rate, beta = {beta:g}, k = {k}", rate, 1e-7, "theory.growth_rate"))
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(5.8, 3.6)
        k = findings.data["harmonics"]
        dense = np.arange(1, k.max() + 1)
        for row, beta in enumerate(self.betas):
            exact = theory.growth_rate(dense, beta, 2, model=self.model, scaled=True)
            axes.plot(dense, exact, **EXACT, label="exact" if row == 0 else None)
            axes.plot(
                k,
                findings.data["rates"][row],
                "o",
                ms=5,
                color=COLOURS[row % len(COLOURS)],
                label=f"ring of {self.n}, β = {beta:g}",
            )
            axes.axvline(math.sqrt(2 * beta), color=COLOURS[row % len(COLOURS)], lw=0.7, ls=":")
        axes.set(
            xlabel="harmonic k (dotted: $\\sqrt{2\\beta}$)",
            ylabel="growth rate",
            ylim=(min(0.0, findings.data["rates"].min()), None),
        )
        axes.legend(fontsize=7)
        return made


@dataclass(frozen=True)
class ThreeClusters(System):
    """Three equal clusters 120 degrees apart: stable if and only if beta < -2/3, so not every start of the circle ends in one."""

    betas: tuple[float, ...] = (-0.66, -0.667)
    lowest: float = -1.5
    highest: float = 0.5
    each: int = 2
    model: Model = "USA"

    title = "three clusters 120 degrees apart are stable below beta = -2/3"
    source = (
        "derived (theory.ring_spectrum): eigenvalues +.00695 at -.66, -.000349 at -.667 (USA); clustering is proved for beta >= -.16 "
        "(2507.22857), between it is open"
    )
    time_scale = "1 / |eigenvalue|: long at the threshold"

    def _field(self, beta: float) -> Field:
        return Field(Attention(beta, law="row" if self.model == "SA" else "mean"))

    @property
    def _angles(self) -> Tensor:
        return (2 * math.pi / 3 * torch.arange(3, dtype=torch.float64)).repeat_interleave(self.each)[:, None]

    def problem(self) -> Problem:
        x = self._angles + 0.02 * torch.randn(3 * self.each, 1, dtype=torch.float64, generator=seeded(0))
        times = torch.linspace(0.0, 20.0, 101, dtype=torch.float64)
        return Problem(self._field(self.lowest), x, times, space=Circle(), beta=self.lowest)

    def _largest(self, beta: float) -> float:
        """Of the Jacobian of all tokens' angles, by automatic differentiation, but for the rotation of all."""
        field = self._field(beta)

        def velocity(angles: Tensor) -> Tensor:
            return Circle().velocity(field, angles[:, None], None, 0.0)[:, 0]

        jacobian = torch.autograd.functional.jacobian(velocity, self._angles[:, 0])
        values = torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)
        rotation = values.abs().argmin()
        return float(values[torch.arange(len(values)) != rotation].max())

    def measure(self, told: Told = silent) -> Findings:
        from scipy.optimize import brentq

        measured = {f"largest eigenvalue, beta = {b:g}": self._largest(b) for b in self.betas}
        told("threshold")
        measured["beta at which the largest eigenvalue is 0"] = float(
            brentq(self._largest, -0.9, -0.4, xtol=1e-13)
        )
        betas = np.linspace(self.lowest, self.highest, 33)
        values = np.array([self._largest(float(b)) for b in betas])
        exact = np.array([self._exact(float(b)) for b in betas])
        measured["eigenvalues off the exact ones"] = float(np.abs(values - exact).max())
        told("runs")
        for beta in (UNSTABLE, STABLE):
            noise = torch.randn(3 * self.each, 1, dtype=torch.float64, generator=seeded(1))
            run = simulate(
                self._field(beta),
                self._angles + 1e-3 * noise,
                [0.0, 400.0],
                space=Circle(),
                stepper=Adaptive(1e-9),
            )
            measured[f"clusters left at t = 400, beta = {beta:g}"] = float(
                cluster_count(Circle().points(run.final), 0.01)
            )
        return Findings(measured, {"betas": betas, "values": values})

    def _exact(self, beta: float) -> float:
        return float(theory.ring_spectrum(3, beta, model=self.model)[0])

    def targets(self) -> tuple[Target, ...]:
        out = [
            Target(f"largest eigenvalue, beta = {b:g}", self._exact(b), 1e-12, "theory.ring_spectrum")
            for b in self.betas
        ]
        out += [
            Target(
                "beta at which the largest eigenvalue is 0", -2 / 3, 1e-10, "e^{-beta/2} (1/2 + 3 beta/4) = 0"
            ),
            Target("eigenvalues off the exact ones", 0.0, 1e-12, "theory.ring_spectrum", "at most"),
            Target(f"clusters left at t = 400, beta = {STABLE:g}", 3.0, 0.0, "stable, theory.ring_spectrum"),
            Target(
                f"clusters left at t = 400, beta = {UNSTABLE:g}",
                2.0,
                0.0,
                "unstable: 1e-3 grows by e^{.07 t}",
                "at most",
            ),
        ]
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(5.4, 3.4)
        b = findings.data["betas"]
        dense = np.linspace(b.min(), b.max(), 300)
        axes.plot(
            b,
            findings.data["values"],
            "o",
            ms=4,
            color=COLOURS[0],
            label=f"Jacobian of {3 * self.each} tokens",
        )
        axes.plot(dense, [self._exact(float(x)) for x in dense], **EXACT, label="exact")
        axes.axhline(0.0, color="#999999", lw=0.6)
        axes.axvline(-2 / 3, color="#999999", lw=0.8, ls=":")
        axes.annotate(
            "−2/3", (-2 / 3, axes.get_ylim()[1]), ha="center", va="bottom", fontsize=8, color="#555555"
        )
        axes.set(xlabel="β", ylabel="largest eigenvalue at three clusters")
        axes.legend()
        return made


SYSTEMS: dict[str, System] = {
    "rates/consensus": Consensus(),
    "rates/growth": Growth(),
    "rates/three-clusters": ThreeClusters(),
}
