r"""Noise against attraction: at which noise tokens agree, and whether they do so little by little or by a jump.

Shapes: ``R`` ratios of kappa to its critical value; coefficients of densities ``(L,)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from ..fields import Field
from ..fokker_planck import FokkerPlanck
from ..pictures import COLOURS, EXACT, figure, style
from ..starts import seeded, uniform
from ..steppers import EulerMaruyama
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = (0.01, 0.02, 0.03)  # order parameters from which limits at 0 are taken
SOURCE = "2606.05140 (threshold and kind of the transition; their K_# is half of kappa_c)"


@dataclass(frozen=True)
class Transition(System):
    """The order parameter of the mean field against kappa, below and above the beta where the transition becomes a jump.

    Two formulations that share nothing but the equation: stationary states with a given order parameter (Newton, with those
    that repel), and the flow of the Fokker-Planck equation from a nearly uniform and from a clustered start.
    ``n``, ``h`` and ``until`` are those of the single run of tokens.
    """

    d: int = 2
    betas: tuple[float, ...] = (1.5, 4.0)
    ratios: tuple[float, ...] = (0.9, 0.93, 0.96, 0.98, 0.99, 1.01, 1.02, 1.04, 1.07, 1.1, 1.15, 1.2)
    concentration: float = 8.0
    modes: int = 60
    n: int = 500
    h: float = 0.02
    until: float = 40.0
    seed: int = 0

    title = "noise against attraction: a continuous transition for small beta, a jump for large"
    source = f"{SOURCE}; the slope is derived; all parameters our own choice"
    time_scale = "growth at (d - 1) (a_1/beta - 1/kappa), which vanishes at kappa_c: rest takes 1e2 to 1e4"
    invariants = ("uniform is stationary at every kappa",)

    def quick(self) -> Self:
        few = tuple(r for r in self.ratios if r in (0.93, 0.96, 1.02, 1.1)) or self.ratios[:4]
        return replace(self, ratios=few)

    def problem(self) -> Problem:
        from ..theory import critical_kappa

        beta = self.betas[-1]
        kappa = self.ratios[-1] * critical_kappa(beta, self.d)
        return Problem(
            Field(Attention(beta, law="mean")),
            uniform(self.n, self.d, generator=seeded(self.seed)),
            torch.linspace(0.0, self.until, 101, dtype=torch.float64),
            stepper=EulerMaruyama(self.h, kappa),
            seed=self.seed + 1,
            beta=beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        measured: dict[str, float] = {}
        data: dict[str, Any] = {"ratios": np.array(self.ratios)}
        for index, beta in enumerate(self.betas):
            told(f"beta = {beta:g}: stationary states")
            field = FokkerPlanck(beta, self.d, self.modes)
            critical, slope = _near_uniform(field)
            orders = np.concatenate([SMALL[:1], np.linspace(0.03, 0.97, 95)])
            kappa, states = field.branch(orders)
            measured[_name("critical kappa", beta)] = critical
            measured[_name("slope of kappa / kappa_c in r^2", beta)] = slope
            turn = int(kappa.argmin())
            data |= {f"orders {index}": orders, f"branch {index}": kappa / critical}
            measured[_name("least kappa / kappa_c of a clustered state", beta)] = float(
                min(kappa[turn] / critical, 1.0)
            )
            off = [field.off_gibbs(c, k) for c, k in zip(states[::10], kappa[::10], strict=True)]
            measured[_name("stationary states against e^{kappa phi / beta}", beta)] = max(off)
            told(f"beta = {beta:g}: the flow")
            measured |= self._flow(field, beta, critical, kappa, states, orders, data, index)
        told("where the transition becomes a jump")
        measured["beta where the slope vanishes"] = self._tricritical()
        return Findings(measured, data)

    def _flow(
        self,
        field: FokkerPlanck,
        beta: float,
        critical: float,
        kappa: np.ndarray,
        states: np.ndarray,
        orders: np.ndarray,
        data: dict[str, Any],
        index: int,
    ) -> dict[str, float]:
        turn = int(kappa.argmin())
        away, wrong = 0.0, 0
        ends = np.empty((2, len(self.ratios)))
        for k, ratio in enumerate(self.ratios):
            up, _ = field.settle(field.tilted(1e-3), ratio * critical)
            down, _ = field.settle(field.peaked(self.concentration), ratio * critical)
            ends[:, k] = field.order_parameter(np.stack([up, down]))
            # a uniform start must stay below kappa_c and leave above it
            wrong += int((ends[0, k] > 1e-3) != (ratio > 1))
            for end in ends[:, k]:
                if end > 1e-3:  # on the branch, beyond its turn: the part that attracts
                    k0 = int(np.abs(orders - end).argmin())
                    there, _ = field.branch([end], near=(kappa[k0], states[k0]))
                    away = max(away, abs(float(there[0]) / critical - ratio))
                    wrong += int(end < orders[turn] - 0.01)
        data[f"flow {index}"] = ends
        both = [r for r, (a, b) in zip(self.ratios, ends.T, strict=True) if abs(a - b) > 1e-3]
        return {
            _name("starts that do not do as kappa_c and the branch say", beta): float(wrong),
            _name("clustered ends of the flow against stationary states, in kappa / kappa_c", beta): away,
            _name("ratios at which the end depends on the start", beta): float(len(both)),
        }

    def _tricritical(self) -> float:
        """The beta at which ``kappa(r)`` has no curvature at 0."""
        from scipy.optimize import brentq

        def slope(beta: float) -> float:
            return _near_uniform(FokkerPlanck(beta, self.d, 24))[1]

        return float(brentq(slope, 0.1, 2 * self.d + 4, xtol=1e-9))

    def targets(self) -> tuple[Target, ...]:
        from ..theory import continuous_transition_beta, critical_kappa, transition_slope

        tricritical = continuous_transition_beta(self.d)
        out = []
        for beta in self.betas:
            continuous = beta <= tricritical
            slope = 1 / transition_slope(beta, self.d)
            out += [
                # limits at r = 0 of a polynomial in r^2 through three points: of order r^6
                Target(_name("critical kappa", beta), critical_kappa(beta, self.d), 1e-8, SOURCE),
                Target(
                    _name("slope of kappa / kappa_c in r^2", beta),
                    slope,
                    1e-4 * abs(slope) + 1e-6,
                    "theory.transition_slope, derived",
                ),
                Target(
                    _name("stationary states against e^{kappa phi / beta}", beta),
                    0.0,
                    1e-8,
                    "critical points of the free energy; truncation after the modes kept",
                    "at most",
                ),
                Target(_name("starts that do not do as kappa_c and the branch say", beta), 0.0, 0.0, SOURCE),
                Target(
                    _name("clustered ends of the flow against stationary states, in kappa / kappa_c", beta),
                    0.0,
                    1e-6,
                    "two formulations; velocities of 1e-11 at rest, against rates from 1e-3",
                    "at most",
                ),
            ]
            least = _name("least kappa / kappa_c of a clustered state", beta)
            if continuous:
                # the branch begins at r = 0.01
                out.append(Target(least, 1.0, 1e-4, f"{SOURCE}: continuous for beta <= {tricritical:.4f}"))
                name = _name("ratios at which the end depends on the start", beta)
                out.append(Target(name, 0.0, 0.0, f"{SOURCE}: no hysteresis"))
            else:
                text = f"{SOURCE}: a jump for beta > {tricritical:.4f}, so clustered states below kappa_c"
                out.append(Target(least, 1.0 - 1e-4, 0.0, text, "at most"))
        out.append(
            Target("beta where the slope vanishes", tricritical, 1e-5, "theory.continuous_transition_beta")
        )
        return tuple(out)

    @style()
    def draw(self, findings: Findings) -> Figure:
        from ..theory import continuous_transition_beta, critical_kappa, transition_slope

        data = findings.data
        made, panels = figure(4.4 * len(self.betas), 3.9, 1, len(self.betas), squeeze=False, sharey=True)
        tricritical = continuous_transition_beta(self.d)
        for index, (beta, axes) in enumerate(zip(self.betas, panels[0], strict=True)):
            orders, branch = data[f"orders {index}"], data[f"branch {index}"]
            turn = int(branch.argmin())
            left, right = min(self.ratios) - 0.03, max(self.ratios) + 0.03
            axes.plot([left, 1], [0, 0], color=COLOURS[0], lw=2.0, label="stationary, attracts")
            axes.plot([1, right], [0, 0], color=COLOURS[0], lw=1.2, ls=":", label="stationary, repels")
            axes.plot(branch[turn:], orders[turn:], color=COLOURS[0], lw=2.0)
            axes.plot(branch[: turn + 1], orders[: turn + 1], color=COLOURS[0], lw=1.2, ls=":")
            ends = data[f"flow {index}"]
            axes.plot(
                self.ratios, ends[0], "^", ms=6, mfc="none", color=COLOURS[4], label="flow from near uniform"
            )
            axes.plot(
                self.ratios, ends[1], "v", ms=6, mfc="none", color=COLOURS[2], label="flow from clustered"
            )
            r = np.linspace(0, 0.45 if transition_slope(beta, self.d) > 0 else 0.3, 50)
            axes.plot(1 + r**2 / transition_slope(beta, self.d), r, **EXACT, label="near kappa_c, exact")
            axes.axvline(1.0, color="#999999", lw=0.7)
            kind = "continuous" if beta <= tricritical else "a jump"
            axes.set_title(f"beta = {beta:g}: {kind} (beta* = {tricritical:.3f})")
            axes.set(
                xlabel=f"kappa / kappa_c,  kappa_c = {critical_kappa(beta, self.d):.4f}", xlim=(left, right)
            )
            axes.set_ylim(-0.04, 1.0)
        panels[0][0].set_ylabel("order parameter r")
        panels[0][0].legend(loc="upper left")
        return made


def _near_uniform(field: FokkerPlanck) -> tuple[float, float]:
    """``kappa_c`` and the slope of ``kappa / kappa_c`` in ``r^2`` at 0, from clustered states of small order parameter."""
    orders = np.array(SMALL)
    kappa, _ = field.branch(orders)
    curve = np.polynomial.Polynomial.fit(orders**2, kappa, 2).convert().coef
    return float(curve[0]), float(curve[1] / curve[0])


def _name(what: str, beta: float) -> str:
    return f"{what}, beta = {beta:g}"


SYSTEMS: dict[str, System] = {
    "noisy/transition": Transition(),
    "noisy/transition-sphere": Transition(d=3, betas=(1.0, 3.0)),
}
