r"""Normalisation schemes: the same attention, with a length for every token, agrees like e^{-2t}, t^{-2} or e^{-4 sqrt t}.

Shapes: ``K`` times; states ``(K, n, d)``, lengths ``(K, n)``; ``1 - rho`` is the mean of ``1 - <theta_i, theta_j>`` over pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from ..adaptive import Adaptive
from ..fields import Field
from ..normalised import Normalised
from ..observables import Observable, Recorder
from ..pictures import COLOURS, EXACT, figure, style
from ..starts import equiangular, seeded, uniform
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scheme = Literal["post-ln", "pre-ln", "mix-ln", "peri-ln", "ngpt", "sqrt-ln"]
SCHEMES: tuple[Scheme, ...] = ("post-ln", "ngpt", "sqrt-ln", "pre-ln", "mix-ln", "peri-ln")
GROWING = ("pre-ln", "mix-ln", "peri-ln")
TIMES = 81
STEPS_OFF = 20  # steps whose errors are in a state at once: older ones have shrunk with the tokens


@dataclass(frozen=True)
class Schemes(System):
    """Normalisation schemes from one start, SA with Q = K = V = I.

    ``scheme`` is the one that a single run shows, ``schemes`` those that are measured. Schemes that keep lengths run until post-LN has shrunk distances by
    ``e^{-reach}``, each in its own time; the others until ``until``.
    """

    start: Literal["equiangular", "random"] = "equiangular"
    n: int = 32
    d: int = 32
    beta: float = 1.0
    rho: float = 0.0
    radius: float = 1.0
    alpha: float = 1.0
    switch: float = 2.0
    scheme: Scheme = "pre-ln"
    schemes: tuple[Scheme, ...] = SCHEMES
    reach: float = 12.0
    until: float = 1e4
    rtol: float = 1e-11
    seed: int = 0

    title = "where the LayerNorm sits decides how fast tokens agree"
    source = (
        "2510.22026 (schemes and decay laws); n = 32, beta = 1, rho_0 = 0, r_0 = 1 are those of the stored rates 2.0000, 2.002, "
        "1.9998, 2.0000, 4.0000; switch, times and the random start are our own choice"
    )
    time_scale = "e^{-2t} (post-ln, ngpt), e^{-4 sqrt(t+1)} (sqrt-ln), t^{-2} (pre-ln, mix-ln, peri-ln)"
    invariants = (
        "lengths are kept under post-ln, ngpt, sqrt-ln",
        "equal inner products stay equal",
    )

    def quick(self) -> Self:
        return replace(
            self, reach=min(self.reach, 9.0), until=min(self.until, 1e3), rtol=max(self.rtol, 1e-8)
        )

    def problem(self) -> Problem:
        return self._problem(self.scheme)

    def _problem(self, scheme: Scheme) -> Problem:
        if self.start == "equiangular":
            x = equiangular(self.n, self.d, self.rho)
        else:
            x = uniform(self.n, self.d, generator=seeded(self.seed))
        times = torch.from_numpy(np.geomspace(1e-2, self._end(scheme), TIMES - 1))
        return Problem(
            Field(Attention(self.beta)),
            self.radius * x,
            torch.cat([times.new_zeros(1), times]),
            space=Normalised(
                scheme,
                self.alpha if scheme == "ngpt" else 1.0,
                switch=self.switch if scheme == "mix-ln" else None,
            ),
            stepper=Adaptive(self.rtol),
            beta=self.beta,
        )

    def _end(self, scheme: str) -> float:
        if scheme in GROWING:
            return self.until
        if scheme == "sqrt-ln":  # post-ln at 2 (sqrt(t + 1) - 1)
            return (self.reach / 2 + 1) ** 2 - 1
        return self.reach / (self.alpha if scheme == "ngpt" else 1.0)

    def measure(self, told: Told = silent) -> Findings:
        measured: dict[str, float] = {}
        data: dict[str, Any] = {}
        kept, solution = 0.0, None
        for scheme in self.schemes:
            told(scheme)
            problem = self._problem(scheme)
            mean = Observable("mean_gap", _mean_gap)
            run = problem.simulate(observe=Recorder([mean]))
            assert isinstance(problem.space, Normalised)
            lengths = problem.space.radius(run.states).squeeze(-1)
            times, gap = run.times.numpy(), run.results["mean_gap"].numpy()
            data |= {f"time {scheme}": times, f"gap {scheme}": gap, f"length {scheme}": lengths.mean(-1)}
            measured[f"rate of {scheme} in its clock"] = self._rate(scheme, times, gap)
            if scheme not in GROWING:
                kept = max(kept, float((lengths / self.radius - 1).abs().max()))
            exact, radius = self._exact(scheme, times)
            data |= {f"exact gap {scheme}": exact, f"exact length {scheme}": radius}
            if self.start == "equiangular":
                measured[f"1 - rho of {scheme}, relative error"] = float(np.abs(gap / exact - 1).max())
                off = np.abs(lengths.numpy() / radius[:, None] - 1).max()
                measured[f"lengths of {scheme}, relative error"] = float(off)
            if scheme == self.scheme:
                solution = run
        measured["lengths that are kept, relative change"] = kept
        return Findings(measured, data, solution)

    def _exact(self, scheme: str, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = self.rho if self.start == "equiangular" else 0.0
        alpha = self.alpha if scheme == "ngpt" else 1.0
        return _curve(
            scheme, self.beta, self.n, start, self.radius, alpha, self.switch, tuple(times.tolist())
        )

    def _clock(self, scheme: str, times: np.ndarray) -> np.ndarray:
        from ..theory import SCHEMES as KNOWN

        return KNOWN["pre-ln" if scheme == "mix-ln" else scheme].clock(times)

    def _window(self, scheme: str, times: np.ndarray) -> np.ndarray:
        """The last decade where lengths grow, else the last third of the clock."""
        if scheme in GROWING:
            return times >= self.until / 10
        clock = self._clock(scheme, times)
        return clock >= clock[0] + 2 / 3 * (clock[-1] - clock[0])

    def _rate(self, scheme: str, times: np.ndarray, gap: np.ndarray) -> float:
        keep = self._window(scheme, times)
        return float(-np.polyfit(self._clock(scheme, times[keep]), np.log(gap[keep]), 1)[0])

    def targets(self) -> tuple[Target, ...]:
        out = [Target("lengths that are kept, relative change", 0.0, 1e-12, "r' = 0; rounding", "at most")]
        for scheme in self.schemes:
            rate = limit_of(scheme, self.alpha)
            name = f"rate of {scheme} in its clock"
            out.append(Target(name, rate, self._unsettled(scheme), "2510.22026: the limit for large t"))
            if self.start == "equiangular":
                times = self._problem(scheme).times.numpy()
                exact, _ = self._exact(scheme, times)
                off = self._stepping(scheme)
                clock = self._clock(scheme, times[self._window(scheme, times)])
                where = "theory.normalised_equiangular"
                out += [
                    Target(f"1 - rho of {scheme}, relative error", 0.0, off, where, "at most"),
                    Target(f"lengths of {scheme}, relative error", 0.0, 1e3 * self.rtol, where, "at most"),
                    Target(
                        name,
                        self._rate(scheme, times, exact),
                        4 * off / float(np.ptp(clock)),
                        f"{where}, fitted",
                    ),
                ]
        return tuple(out)

    def _stepping(self, scheme: str) -> float:
        """What the stepper may do to 1 - rho: each step errs by an angle rtol, against an angle that has shrunk."""
        gap = self.until**-2 if scheme in GROWING else math.exp(-2 * self.reach)
        return 2 * STEPS_OFF * self.rtol / math.sqrt(2 * gap)

    def _unsettled(self, scheme: Scheme) -> float:
        """How far a fitted rate may be from its limit. Near consensus the local rate is off by ``(1 + beta) (1 - rho)`` of
        itself, and where ``r = t + c`` by ``c / t``; both are largest at the start of the window. A random start may be
        behind the equiangular one, by a time in which ``1 - rho`` falls by 3."""
        times = self._problem(scheme).times.numpy()
        gap, length = self._exact(scheme, times)
        first = int(self._window(scheme, times).argmax())
        share = (1 + abs(self.beta)) * gap[first]
        if scheme in GROWING:
            share += abs(length[-1] - times[-1]) / times[first]
        return float(limit_of(scheme, self.alpha) * share * (1 if self.start == "equiangular" else 3))

    @style()
    def draw(self, findings: Findings) -> Figure:
        made, (left, middle, right) = figure(10.6, 3.7, 1, 3, width_ratios=[1.2, 1, 1])
        data = findings.data
        name = "exact" if self.start == "equiangular" else "exact from an equiangular start"
        for k, scheme in enumerate(self.schemes):
            t, gap = data[f"time {scheme}"][1:], data[f"gap {scheme}"][1:]
            look: dict[str, Any] = {"color": COLOURS[k], "lw": 2.4, "alpha": 0.8, "label": scheme}
            left.plot(t, gap, **look)
            right.plot(t, np.asarray(data[f"length {scheme}"])[1:], **look)
            label = name if k == len(self.schemes) - 1 else None
            left.plot(t, data[f"exact gap {scheme}"][1:], **EXACT, label=label)
            right.plot(t, data[f"exact length {scheme}"][1:], **EXACT)
            local = -np.gradient(np.log(gap), self._clock(scheme, t))
            middle.plot(t, local / limit_of(scheme, self.alpha), color=COLOURS[k], label=scheme)
        middle.axhline(1.0, **EXACT, label="limit for large t")
        left.set(xscale="log", yscale="log", xlabel="t", ylabel="1 - rho")
        left.set_title(f"disagreement, {self.start} start")
        left.set_ylim(bottom=float(left.get_ylim()[0]) * 1e-3)  # room for the legend
        left.legend(loc="lower left", ncols=2, handlelength=1.6)
        middle.set(xscale="log", xlabel="t", ylabel="local rate in its clock / limit", ylim=(0, 1.95))
        middle.set_title("rates: of t, sqrt(t + 1), log t")
        middle.legend(loc="upper left", handlelength=1.6, ncols=2)
        right.set(xscale="log", yscale="log", xlabel="t", ylabel="mean length r")
        right.set_title("lengths")
        return made


@lru_cache(maxsize=64)
def _curve(
    scheme: str,
    beta: float,
    n: int,
    start: float,
    radius: float,
    alpha: float,
    switch: float,
    times: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """The exact ``1 - rho`` and r; targets, measurement and figure ask for the same one."""
    from ..theory import normalised_equiangular

    return normalised_equiangular(
        times, scheme, beta, n, start=start, radius=radius, alpha=alpha, switch=switch
    )


def limit_of(scheme: str, alpha: float) -> float:
    """The limit of the rate of a scheme in its clock."""
    from ..theory import SCHEMES as KNOWN

    return KNOWN["pre-ln" if scheme == "mix-ln" else scheme].rate * (alpha if scheme == "ngpt" else 1.0)


def _mean_gap(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """The mean of ``1 - <x_i, x_j>`` over pairs, from differences to the mean, which keep their precision."""
    n = x.shape[-2]
    return (x - x.mean(-2, keepdim=True)).square().sum((-1, -2)) / (n - 1)


SYSTEMS: dict[str, System] = {
    "normalisation/schemes": Schemes(),
    "normalisation/random": Schemes(start="random", d=64),
}
