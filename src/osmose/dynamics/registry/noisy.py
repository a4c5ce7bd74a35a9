r"""Noisy tokens beside what is known of them: the mean field, its growth rates, and noise alone.

Shapes: ``K`` times; states ``(K, n, d)``, coefficients of densities ``(L,)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from ..adaptive import Adaptive
from ..fields import Field
from ..fokker_planck import FokkerPlanck
from ..observables import Observable, Recorder, order_parameter
from ..pictures import COLOURS, EXACT, figure, style
from ..starts import hemisphere, seeded, uniform
from ..steppers import EulerMaruyama
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "2606.05140 (threshold and kind of the transition; their K_# is half of kappa_c)"


@dataclass(frozen=True)
class Growth(System):
    """A weak wave on the circle, ``1 + 2 r_0 cos theta``, grows or decays: tokens, their mean field, and the linear rate."""

    n: int = 4000
    beta: float = 1.5
    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)
    start: float = 0.15
    until: float = 6.0
    h: float = 0.05
    seed: int = 0

    title = "the first harmonic grows above kappa_c and decays below it"
    source = f"{SOURCE}; rate derived; parameters our own choice"
    time_scale = "1 / (I_1(beta) / beta - 1 / kappa)"

    def quick(self) -> Self:
        return replace(self, n=min(self.n, 1000), ratios=self.ratios[::2])

    def _kappa(self, ratio: float) -> float:
        from ..theory import critical_kappa

        return ratio * critical_kappa(self.beta, 2)

    def problem(self) -> Problem:
        return self._problem(self.ratios[-1])

    def _problem(self, ratio: float) -> Problem:
        return Problem(
            Field(Attention(self.beta, law="mean")),
            wave(self.n, self.start),
            torch.linspace(0.0, self.until, 31, dtype=torch.float64),
            stepper=EulerMaruyama(self.h, self._kappa(ratio)),
            seed=self.seed,
            beta=self.beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        field = FokkerPlanck(self.beta, 2)
        rates, deviations, curves, exact = [], [], [], []
        times = np.linspace(0.0, self.until, 31)
        for index, ratio in enumerate(self.ratios):
            told(f"kappa / kappa_c = {ratio:g}")
            kappa = self._kappa(ratio)
            # a wave too weak to feel itself: the linear rate
            weak = field.order_parameter(field.evolve(field.tilted(1e-6), kappa, times))
            rates.append(float(np.polyfit(times, np.log(weak), 1)[0]))
            mean = field.order_parameter(field.evolve(field.tilted(self.start), kappa, times))
            problem = replace(self._problem(ratio), seed=self.seed + index)
            along = Observable("along", lambda x, mass: x[..., 0].mean(-1))
            run = problem.simulate(observe=Recorder([along]), save=False)
            seen = run.results["along"].numpy()
            curves.append(seen)
            exact.append(mean)
            deviations.append(float(np.abs((seen - mean)[1:] / self._noise(ratio, times)[1:]).max()))
        from ..theory import noisy_growth_rate

        known = [noisy_growth_rate(1, self.beta, 2, self._kappa(r)) for r in self.ratios]
        inverse = 1 / np.array([self._kappa(r) for r in self.ratios])
        line = np.polyfit(inverse, rates, 1)
        measured = {
            "largest error of a growth rate of the mean field": float(
                np.abs(np.subtract(rates, known)).max()
            ),
            "kappa of zero growth": float(-line[0] / line[1]),
            "tokens against the mean field, in standard errors": max(deviations),
        }
        data = {
            "times": times,
            "tokens": np.stack(curves),
            "mean field": np.stack(exact),
            "rates": np.array(rates),
            "noise": np.stack([self._noise(r, times) for r in self.ratios]),
        }
        return Findings(measured, data)

    def _noise(self, ratio: float, times: np.ndarray) -> np.ndarray:
        """The standard deviation of the mean cosine of n tokens about the mean field, to first order in the wave: what arrives as
        ``1/(n kappa)`` a unit of time grows on at the linear rate."""
        from ..theory import noisy_growth_rate

        kappa = self._kappa(ratio)
        rate = noisy_growth_rate(1, self.beta, 2, kappa)
        grown = times if abs(rate) < 1e-12 else np.expm1(2 * rate * times) / (2 * rate)
        return np.sqrt(grown / (self.n * kappa))

    def targets(self) -> tuple[Target, ...]:
        from ..theory import critical_kappa

        return (
            Target(
                "largest error of a growth rate of the mean field",
                0.0,
                1e-7,
                "theory.noisy_growth_rate; a wave of 1e-6",
                "at most",
            ),
            Target("kappa of zero growth", critical_kappa(self.beta, 2), 1e-6, SOURCE),
            Target(
                "tokens against the mean field, in standard errors",
                0.0,
                4.0,
                "law of large numbers; four standard errors from the linear noise about uniform",
                "at most",
            ),
        )

    @style()
    def draw(self, findings: Findings) -> Figure:
        from ..theory import critical_kappa, noisy_growth_rate

        data = findings.data
        made, (left, right) = figure(9.0, 3.7, 1, 2, width_ratios=[1.25, 1])
        for index, ratio in enumerate(self.ratios):
            colour = COLOURS[index % len(COLOURS)]
            seen, mean, noise = data["tokens"][index], data["mean field"][index], data["noise"][index]
            left.fill_between(
                data["times"], mean - 2 * noise, mean + 2 * noise, color=colour, alpha=0.15, lw=0
            )
            left.plot(data["times"], seen, color=colour, label=f"kappa / kappa_c = {ratio:g}")
            label = "mean field, bands of 2 standard errors" if index == len(self.ratios) - 1 else None
            left.plot(data["times"], mean, **EXACT, label=label)
        left.set(xlabel="t", ylabel="mean cosine")
        low, high = left.get_ylim()
        left.set_ylim(low, high + 0.6 * (high - low))
        left.set_title(f"n = {self.n} tokens, beta = {self.beta:g}")
        left.legend(loc="upper left")
        grid = np.linspace(0.9 * min(self.ratios), 1.1 * max(self.ratios), 200)
        exact = [noisy_growth_rate(1, self.beta, 2, self._kappa(r)) for r in grid]
        right.axhline(0, color="#999999", lw=0.7)
        right.plot(grid * critical_kappa(self.beta, 2), exact, **EXACT, label="exact")
        right.plot(
            np.array(self.ratios) * critical_kappa(self.beta, 2),
            data["rates"],
            "o",
            color=COLOURS[0],
            label="mean field",
        )
        right.set(xlabel="kappa", ylabel="growth rate of a weak wave")
        right.set_title(f"zero at kappa_c = {critical_kappa(self.beta, 2):.4f}")
        right.legend(loc="lower right")
        return made


def wave(n: int, order: float) -> Tensor:
    """n tokens of the circle with density ``1 + 2 r cos theta``, at its quantiles: without the noise of draws."""
    share = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * math.pi - math.pi
    angle = share.clone()
    for _ in range(60):  # theta + 2 r sin theta = share
        angle = angle - (angle + 2 * order * angle.sin() - share) / (1 + 2 * order * angle.cos())
    return torch.stack([angle.cos(), angle.sin()], -1)


@dataclass(frozen=True)
class NoisySphere(System):
    """Tokens on the sphere that attract each other under noise, beside the same noise without a field.

    Free tokens forget where they began: ``E <x(t), x(0)> = e^{-(d-1) t / kappa}``.
    """

    n: int = 64
    d: int = 3
    beta: float = 1.0
    kappa: float = 8.0
    until: float = 20.0
    h: float = 0.01
    free: int = 20_000
    half: bool = False
    seed: int = 0

    title = "noisy tokens on the sphere, and noise alone"
    source = f"{SOURCE}; the movie's n, d, beta as in 2312.10794v5; kappa, times and step our own choice"
    time_scale = "noise alone forgets in kappa / (d - 1)"

    def quick(self) -> Self:
        return replace(self, free=min(self.free, 5000), until=min(self.until, 12.0), h=max(self.h, 0.02))

    def problem(self) -> Problem:
        return Problem(
            Field(Attention(self.beta, law="mean")),
            (hemisphere if self.half else uniform)(self.n, self.d, generator=seeded(self.seed)),
            torch.linspace(0.0, self.until, 121, dtype=torch.float64),
            stepper=EulerMaruyama(self.h, self.kappa),
            seed=self.seed + 1,
            beta=self.beta,
        )

    @property
    def _asked(self) -> Tensor:
        """Times at which the memory of free tokens is compared: up to twice the time of forgetting."""
        return torch.linspace(0.0, 2 * self.kappa / (self.d - 1), 9, dtype=torch.float64)

    def measure(self, told: Told = silent) -> Findings:
        told("free tokens")
        times = self._asked
        start = uniform(self.free, self.d, generator=seeded(self.seed + 2))
        memory = Observable("memory", lambda x, mass: (x * start).sum(-1).mean(-1))
        still = Field(drift=lambda x, t: torch.zeros_like(x))
        alone = replace(
            self.problem(), field=still, x0=start, times=times, seed=self.seed + 3, beta=None
        ).simulate(observe=Recorder([memory]), save=False)
        seen = alone.results["memory"]
        error = self._memory(times)[1]
        told("tokens that attract each other")
        order = Observable("order", order_parameter)
        run = self.problem().simulate(observe=Recorder([order]))
        quiet = replace(self.problem(), stepper=Adaptive()).simulate(observe=Recorder([order]))
        series = run.results["order"]
        field = FokkerPlanck(self.beta, self.d)
        c, _ = field.settle(field.peaked(4.0), self.kappa)
        measured = {
            f"memory at t = {float(t):.4g}": float(s) for t, s in zip(times[2::2], seen[2::2], strict=True)
        }
        measured["tokens off the sphere"] = float((run.states.norm(dim=-1) - 1).abs().max())
        measured["order parameter, mean over the last half"] = float(series[len(series) // 2 :].mean())
        measured["order parameter of the mean field at rest"] = float(field.order_parameter(c))
        data = {
            "times": run.times,
            "order": series,
            "order without noise": quiet.results["order"],
            "memory times": times,
            "memory": seen,
            "memory error": error,
            "mean field": float(field.order_parameter(c)),
        }
        return Findings(measured, data, run)

    def _memory(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``E <x(t), x(0)>`` of free tokens, and the standard deviation of the mean of ``free`` of them."""
        first = torch.exp(-(self.d - 1) * t / self.kappa)
        second = 1 / self.d + (1 - 1 / self.d) * torch.exp(-2 * self.d * t / self.kappa)
        return first, ((second - first**2).clamp(min=0) / self.free).sqrt()

    def targets(self) -> tuple[Target, ...]:
        times = self._asked
        exact, error = self._memory(times)
        # a step of length s sqrt(h) in the tangent plane turns by more than the heat kernel: relative (d - 1) h / 2 kappa^2 a time
        bias = (self.d - 1) * self.h * times / self.kappa**2 * exact
        out = [
            Target(
                f"memory at t = {float(times[k]):.4g}",
                float(exact[k]),
                float(4 * error[k] + bias[k]),
                "e^{-(d-1) t / kappa}; four standard errors, and the weak error of steps",
            )
            for k in range(2, len(times), 2)
        ]
        out.append(Target("tokens off the sphere", 0.0, 1e-12, "geodesic steps; rounding", "at most"))
        return tuple(out)

    @style()
    def draw(self, findings: Findings) -> Figure:
        data = findings.data
        made, (left, right) = figure(9.0, 3.5, 1, 2)
        left.plot(
            data["times"], data["order"], color=COLOURS[0], label=f"n = {self.n}, kappa = {self.kappa:g}"
        )
        left.plot(
            data["times"], data["order without noise"], color=COLOURS[1], label="the same without noise"
        )
        left.axhline(data["mean field"], **EXACT, label="mean field at rest")
        left.set(xlabel="t", ylabel="order parameter", ylim=(0, 1.45), yticks=[0, 0.25, 0.5, 0.75, 1])
        left.set_title(f"tokens that attract each other, beta = {self.beta:g}")
        left.legend(loc="upper left")
        t = data["memory times"]
        fine = torch.linspace(0.0, float(t[-1]), 200, dtype=torch.float64)
        right.errorbar(
            t,
            data["memory"],
            4 * data["memory error"],
            fmt="o",
            ms=4,
            color=COLOURS[0],
            capsize=2,
            label=f"{self.free} free tokens, 4 standard errors",
        )
        right.plot(fine, self._memory(fine)[0], **EXACT, label="e^{-(d-1) t / kappa}")
        right.set(xlabel="t", ylabel="mean of <x(t), x(0)>")
        right.set_title("noise alone")
        right.legend(loc="upper right")
        return made


SYSTEMS: dict[str, System] = {
    "noisy/growth": Growth(),
    "noisy/sphere": NoisySphere(),
}
