r"""Causal attention: tokens see themselves and earlier ones. With V = I all go to the first, else V decides.

Shapes: ``K`` times, ``R`` draws; states ``(K, n, d)``, distances ``(K, n)``.

Source: 2411.04990.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from ..adaptive import Adaptive
from ..fields import Field
from ..pictures import COLOURS, EXACT, View, draw_tokens, figure, style
from ..simulate import Solution
from ..spaces import Sphere
from ..starts import seeded, uniform
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weights = Literal["identity", "random"]
NEAR = 1e-4  # largest distance to the first token at which the linearised flow takes over
OUTPUTS = 400


def _query_key(
    weights: Weights, d: int, generator: torch.Generator
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Q and K with standard normal entries, or the identity."""
    if weights == "identity":
        return None, None
    q, k = torch.randn(2, d, d, dtype=torch.float64, generator=generator)
    return q, k


@dataclass(frozen=True)
class Collapse(System):
    """V = I: every token goes to where the first one is, for any Q and K; near it distances follow a linear flow.

    Its slowest mode, ``e^{-t/2}``, is that of the second token. Where Q and K keep some tokens away for long, that mode is gone
    before they come, and their own is seen: rates of 1/2 are a target for Q = K = I alone. ``rtol`` is tight because an error
    of a step is an angle, and distances of 1e-7 are compared.
    """

    n: int = 32
    d: int = 3
    beta: float = 1.0
    weights: Weights = "identity"
    draws: int = 6
    until: float = 100.0
    rtol: float = 1e-12
    seed: int = 0

    title = "causal attention with V = I: all tokens go to the first"
    source = (
        "2411.04990, theorem 4.1 (limits); rates derived from the linearisation. n = 32 is that of the stored rates "
        "(.5000 .4997 .4974 .4903 for tokens 2, 3, 6, 32, about t = 35; here later); Q, K and times are our own choice"
    )
    time_scale = "the distance of token k to the first falls like (k - 1) e^{-t/2} once all are near"
    invariants = ("the first token does not move",)

    def quick(self) -> Self:
        return replace(self, draws=1, until=min(self.until, 140.0), rtol=max(self.rtol, 1e-11))

    @property
    def followed(self) -> tuple[int, ...]:
        """Tokens whose rates are shown, counted from 1."""
        return tuple(dict.fromkeys(k for k in (2, 3, 6, self.n) if k <= self.n))

    def problem(self) -> Problem:
        return self._problem(0)

    def _problem(self, draw: int) -> Problem:
        generator = seeded(self.seed + draw)
        start = uniform(self.n, self.d, generator=generator)
        q, k = _query_key(self.weights, self.d, generator)
        return Problem(
            Field(Attention(self.beta, causal=True, query=q, key=k)),
            start,
            torch.linspace(0.0, self.until, OUTPUTS + 1, dtype=torch.float64),
            stepper=Adaptive(self.rtol),
            beta=self.beta,
        )

    def measure(self, told: Told = silent) -> Findings:
        from scipy.linalg import expm

        from ..theory import causal_linearisation

        moved, left, off, rates = 0.0, 0.0, 0.0, []
        shown: Solution | None = None
        data: dict[str, Any] = {}
        matrix = causal_linearisation(self.n)
        for draw in range(self.draws):
            told(f"draw {draw + 1} of {self.draws}")
            run = self._problem(draw).simulate()
            t, away = run.times, run.states - run.states[:, :1]
            distance = away.norm(dim=-1)
            moved = max(moved, float((run.states[:, 0] - run.states[0, 0]).norm(dim=-1).max()))
            left = max(left, float((run.states[-1] - run.states[0, 0]).norm(dim=-1).max()))
            close = (distance.amax(-1) < NEAR).nonzero()
            a = int(close[0]) if len(close) else len(t)
            flows = [torch.from_numpy(expm(matrix * float(s - t[a]))) for s in t[a:]]
            linear = torch.stack([(flow @ away[a]).norm(dim=-1) for flow in flows]) if flows else distance[:0]
            # until they have shrunk by e^{-7}, far above the errors of steps
            until = int((distance[a:].amax(-1) > NEAR * math.exp(-7)).sum())
            errors = (linear - distance[a:]).abs().amax(-1) / distance[a:].amax(-1)
            off = max(off, float(errors[:until].max())) if until else math.nan
            rates.append(_rates(t[a:], distance[a:]))
            if shown is None:
                shown = run
                data = {"times": t, "distance": distance, "linear times": t[a:], "linear": linear}
        measured = {
            "largest motion of the first token": moved,
            "largest distance to the first token's start at the end": left,
            "distances against the linearised flow, relative to the largest": off,
        }
        for k in self.followed:
            own = torch.stack(rates)[:, k - 1]
            measured[f"rate of token {k}, farthest from 1/2"] = float(own[(own - 0.5).abs().argmax()])
        return Findings(measured, data, shown)

    def targets(self) -> tuple[Target, ...]:
        from ..theory import CAUSAL_RATE

        out = [
            Target(
                "largest motion of the first token", 0.0, 1e-14, "proj x_1 = 0 at x_1; rounding", "at most"
            ),
            Target(
                "largest distance to the first token's start at the end",
                0.0,
                10 * self.n * math.exp(-self.until / 2) + 1e-14,
                "2411.04990, theorem 4.1, for any Q, K; no theorem gives a time: what e^{-t/2} leaves, and rounding",
                "at most",
            ),
            Target(
                "distances against the linearised flow, relative to the largest",
                0.0,
                20 * (NEAR + self.rtol / (NEAR * math.exp(-7))),
                "theory.causal_linearisation; of second order in distances, and errors of steps",
                "at most",
            ),
        ]
        for k in self.followed if self.weights == "identity" else ():
            # of later tokens modes of 2/3 and more are left; the stored rates are off by up to .0097
            name = f"rate of token {k}, farthest from 1/2"
            out.append(Target(name, CAUSAL_RATE, 1e-4 if k == 2 else 0.01, "min over k of 1 - 1/k, derived"))
        return tuple(out)

    @style()
    def draw(self, findings: Findings) -> Figure:
        assert findings.solution is not None
        made, (left, right) = figure(8.4, 3.7, 1, 2, width_ratios=[1, 1.35])
        states = findings.solution.states
        t, distance = findings.data["times"], findings.data["distance"]
        first = states[0, :1]
        view = View.facing(first) if self.d == 3 else None
        way = states[: max(2, int((t < 40).sum()))].flip(0) if self.d <= 3 else None
        draw_tokens(left, states[0], trail=way, frame=states, size=26.0, view=view)
        if self.d <= 3:
            draw_tokens(left, first, colours=[COLOURS[4]], size=90.0, view=view)
        left.set_title("starts and ways; the first token large")
        since, linear = findings.data["linear times"], findings.data["linear"]
        right.plot(t, distance.clamp(min=1e-300), color="#BBBBBB", lw=0.5)
        for index, k in enumerate(self.followed):
            right.plot(t, distance[:, k - 1], color=COLOURS[index], label=f"token {k}", lw=2.2)
        for k in self.followed:
            label = "linearised flow" if k == self.followed[-1] else None
            right.plot(since, linear[:, k - 1], **EXACT, label=label)
        right.set(yscale="log", xlabel="t", ylabel="distance to the first token", ylim=(1e-17, 8))
        over = float(t[int((distance.amax(-1) > 2e-15).sum()) - 1])
        right.set_xlim(-0.02 * over, 1.15 * over)
        right.set_title("the slowest mode is e^{-t/2}")
        right.legend(loc="lower left")
        return made


def _rates(t: Tensor, distance: Tensor) -> Tensor:
    """Rates of all tokens from 20 to 30 units of time after t[0], NaN where the run ends before."""
    i, j = (int((t <= t[0] + s).sum()) - 1 if len(t) else 0 for s in (20.0, 30.0))
    if not len(t) or t[-1] < t[0] + 30.0:
        return torch.full(distance.shape[-1:], math.nan, dtype=torch.float64)
    return (distance[i] / distance[j]).log() / (t[j] - t[i])


@dataclass(frozen=True)
class Leading(System):
    """V with a simple largest eigenvalue 1 > 0 and eigenvector xi: do all tokens end at xi or -xi?

    V has the other eigenvalues between ``low`` and ``high``, in a random basis: orthogonal (V symmetric) or not. With
    ``weights="random"`` there are draws of Q, K whose tokens come to rest elsewhere, at places that attract.
    """

    n: int = 32
    d: int = 3
    beta: float = 1.0
    weights: Weights = "identity"
    symmetric: bool = False
    low: float = -1.0
    high: float = 0.5
    draws: int = 24
    until: float = 200.0
    seed: int = 0

    title = "causal attention with a leading eigenvector of V: two clusters, xi and -xi"
    source = (
        "2411.04990, conjecture on a simple leading eigenvalue > 0 (nothing is proved; whether for all Q, K is not confirmed "
        "from the text); n, d, spectra and times are our own choice"
    )
    time_scale = "the first token: e^{-(1 - lambda_2) t}; later ones slower by their share of attention"

    def quick(self) -> Self:
        return replace(self, draws=min(self.draws, 5), n=min(self.n, 16))

    def problem(self) -> Problem:
        return self._problem(0)[0]

    def _problem(self, draw: int) -> tuple[Problem, Tensor]:
        generator = seeded(self.seed + draw)
        d = self.d
        lower = self.low + (self.high - self.low) * torch.rand(
            d - 1, dtype=torch.float64, generator=generator
        )
        basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q
        skew = torch.randn(d, d, dtype=torch.float64, generator=generator)
        if not self.symmetric:
            basis = basis @ (torch.eye(d, dtype=torch.float64) + 0.4 * skew)
        spectrum = torch.diag(torch.cat([lower.new_ones(1), lower]))
        value = basis @ spectrum @ torch.linalg.inv(basis)
        q, k = _query_key(self.weights, d, generator)
        problem = Problem(
            Field(Attention(self.beta, causal=True, query=q, key=k, value=value)),
            uniform(self.n, d, generator=generator),
            torch.linspace(0.0, self.until, 101, dtype=torch.float64),
            stepper=Adaptive(1e-8),
        )
        return problem, basis[:, 0] / basis[:, 0].norm()

    def measure(self, told: Told = silent) -> Findings:
        arrived, first, tilts, growth, speed = [], [], [], -math.inf, 0.0
        shown = None
        for draw in range(self.draws):
            told(f"draw {draw + 1} of {self.draws}")
            problem, xi = self._problem(draw)
            run = problem.simulate()
            x, along = run.final, run.states @ xi
            away = torch.minimum((x - xi).norm(dim=-1), (x + xi).norm(dim=-1))
            there = away < 1e-6
            arrived.append(float(there.double().mean()))
            first.append(float(there[0]))
            tilts.append(along)
            if shown is None:
                shown = run
            if not bool(there.all()):
                token = int((~there).to(torch.int64).argmax())
                speed = max(speed, float(Sphere().velocity(problem.field, x, None, 0.0)[token].norm()))
                growth = max(growth, _growth(problem.field, x, token))
        strays = sum(a < 1 for a in arrived)
        measured = {
            "share of tokens at xi or -xi": float(np.mean(arrived)),
            "share of first tokens at xi or -xi": float(np.mean(first)),
            "draws with tokens elsewhere": float(strays),
        }
        if strays:
            measured["largest speed of the first token elsewhere"] = speed
            measured["largest growth rate about it (negative attracts)"] = growth
        data = {"times": shown.times if shown else None, "along": torch.stack(tilts), "arrived": arrived}
        return Findings(measured, data, shown)

    def targets(self) -> tuple[Target, ...]:
        proved = "x_1' = proj V x_1 is the power method, from almost every start"
        out = [Target("share of first tokens at xi or -xi", 1.0, 0.0, proved)]
        if self.weights == "identity":
            text = "a conjecture (2411.04990), as seen here: not a theorem"
            out.append(Target("share of tokens at xi or -xi", 1.0, 0.0, text))
        return tuple(out)

    @style()
    def draw(self, findings: Findings) -> Figure:
        made, (left, right) = figure(8.8, 3.6, 1, 2, width_ratios=[1.4, 1])
        t, along, arrived = findings.data["times"], findings.data["along"], findings.data["arrived"]
        # the draw with most tokens elsewhere, if there is one, else the first
        chosen = int(np.argmin(arrived))
        left.axhline(1.0, **EXACT, label="xi, -xi")
        left.axhline(-1.0, **EXACT)
        left.plot(t, along[chosen], lw=0.9, alpha=0.8, color=COLOURS[0])
        left.plot(t, along[chosen][:, 0], lw=2.2, color=COLOURS[4], label="the first token")
        left.set(xlabel="t", ylabel="<x_i, xi>", ylim=(-1.1, 1.35), xlim=(0, float(t[-1]) / 4))
        left.set_title(f"draw {chosen + 1}: {100 * arrived[chosen]:.0f} % of tokens at xi or -xi at the end")
        left.legend(loc="upper right", ncols=2)
        right.bar(np.arange(1, len(arrived) + 1), arrived, color=COLOURS[0])
        right.axhline(1.0, **EXACT, label="conjectured" if self.weights == "identity" else "all tokens")
        right.set(xlabel="draw of V, Q, K and start", ylabel="share of tokens at xi or -xi", ylim=(0, 1.25))
        right.legend(loc="upper right")
        return made


def _growth(field: Field, x: Tensor, token: int) -> float:
    """The largest growth rate of a small motion of one token, those before it at rest."""

    def velocity(y: Tensor) -> Tensor:
        y = y / y.norm()
        state = torch.cat([x[:token], y[None]])
        return Sphere().tangent(state, field(state))[token]

    change = torch.autograd.functional.jacobian(velocity, x[token])
    frame = torch.linalg.svd(x[token][None], full_matrices=True).Vh[1:]  # tangent
    return float(torch.linalg.eigvals(frame @ change @ frame.mT).real.max())


SYSTEMS: dict[str, System] = {
    "causal/collapse": Collapse(),
    "causal/collapse-random": Collapse(weights="random", until=240.0),
    "causal/leading": Leading(),
    "causal/leading-random": Leading(weights="random"),
}
