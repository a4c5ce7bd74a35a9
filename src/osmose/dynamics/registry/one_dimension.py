r"""Unprojected tokens on a line: attention becomes Boolean. And V = -I: tokens come to the origin.

Shapes: states ``(K, n, d)`` at K times, attention ``(n, n)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..adaptive import Adaptive
from ..fields import Field
from ..observables import boolean_distance, log_interaction
from ..pictures import COLOURS, EXACT, MAP, draw_tokens
from ..spaces import Euclidean, Rescaled
from ..starts import box, seeded
from ..terms import Attention
from ._figures import page, place_of
from .base import Findings, Problem, System, Target, Told, silent
from .unprojected import PAPER, RTOL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class BooleanAttention(System):
    """Tokens of R, V > 0 and Q K > 0, in their order."""

    n: int = 20
    value: float = 1.0
    product: float = 1.0
    width: float = 5.0
    until: float = 10.0
    interval: float = 0.1
    seed: int = 0

    title = "on a line attention becomes Boolean: all listen to the first token or to the last"
    source = f"{PAPER}, theorem 2.1 and section 7 (n = 20, start in [-5, 5] as in the authors' code; T = 10 is our choice)"
    time_scale = "doubly exponential: a row is e^{-c e^{Vt}} from its limit"
    invariants = ("gaps between neighbours never shrink", "tokens keep their order")

    def __post_init__(self) -> None:
        if not (self.value > 0 and self.product > 0):
            raise ValueError(
                f"BooleanAttention: value is {self.value} and product {self.product}; expected positive numbers."
            )

    def problem(self) -> Problem:
        start = box(self.n, 1, width=self.width, generator=seeded(self.seed)).sort(0).values
        count = max(1, round(self.until / self.interval))
        return Problem(
            Field(Attention(self.product, value=self.value)),
            start,
            torch.linspace(0.0, self.until, count + 1, dtype=torch.float64),
            space=Rescaled(self.value),
            stepper=Adaptive(RTOL),
        )

    def attention(self, z: Tensor, t: float) -> Tensor:
        """P of a state."""
        x = Rescaled(self.value).unscale(z, t)
        return Attention(self.product).carry(x, torch.eye(self.n, dtype=z.dtype))

    def measure(self, told: Told = silent) -> Findings:
        told("simulating")
        solution = self.problem().simulate()
        z, times = solution.states, solution.times
        x = torch.stack([Rescaled(self.value).unscale(s, t) for t, s in zip(times.tolist(), z, strict=True)])
        gaps = x.squeeze(-1).diff(dim=-1)
        p = torch.stack([self.attention(s, t) for t, s in zip(times.tolist(), z, strict=True)])
        away = boolean_distance(p).sort(-1).values  # (K, n): all rows but one are those before the last
        ends = (p[..., 0] + p[..., -1]).sort(-1).values
        measured = {
            # of gaps that grow like e^{Vt} from what they were
            "largest shrinkage of a gap, relative": float((-gaps.diff(dim=0) / gaps[:-1]).max()),
            "distance from Boolean rows, all but one row": float(away[-1, -2]),
            "attention outside first and last token, all but one row": float(1 - ends[-1, 1]),
            "distance from Boolean rows, the last row": float(away[-1, -1]),
            "rank of the attention at the end": float(torch.linalg.matrix_rank(p[-1])),
            "tokens that listen to the first": float((p[-1, :, 0] > 0.5).sum()),
        }
        data = {"times": times, "states": z, "attention": p, "boolean_distance": away}
        return Findings(measured, data, solution)

    def targets(self) -> tuple[Target, ...]:
        out = [
            # the stepper's error of RTOL |x| beside a gap that is a hundredth of |x|
            Target(
                "largest shrinkage of a gap, relative",
                0.0,
                1e-8,
                f"{PAPER}, section 7: distances never fall",
                "at most",
            )
        ]
        if self.value * self.until >= 8:  # e^8 in the exponent leaves rounding alone
            theorem = f"{PAPER}, theorem 2.1: rows e_1 or e_n, at most one exception"
            out += [
                Target("distance from Boolean rows, all but one row", 0.0, 1e-12, theorem, "at most"),
                Target(
                    "attention outside first and last token, all but one row", 0.0, 1e-12, theorem, "at most"
                ),
                Target(
                    "rank of the attention at the end",
                    3.0,
                    0.0,
                    f"{theorem}: rank 1 or 2, and the exceptional row",
                    "at most",
                ),
            ]
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, top, bottom = page(4, 2)
        times, z, p = (findings.data[key] for key in ("times", "states", "attention"))
        for axes, t in zip(top, (0.0, self.until / 20, self.until / 10, self.until), strict=True):
            k = int((times - t).abs().argmin())
            image = axes.imshow(p[k], vmin=0, vmax=1, cmap=MAP, interpolation="nearest")
            axes.set_title(f"t = {float(times[k]):.3g}, rank {int(torch.linalg.matrix_rank(p[k]))}")
            axes.set(xticks=[], yticks=[], xlabel="sources in order")
        top[0].set_ylabel("targets in order")
        made.colorbar(image, ax=top[-1], label="attention")
        last = p[-1, :, 0] > 0.5
        for i in range(self.n):
            bottom[0].plot(times, z[:, i, 0], color=COLOURS[int(last[i])], lw=0.9)
        bottom[0].plot([], [], color=COLOURS[1], label="listen to the first")
        bottom[0].plot([], [], color=COLOURS[0], label="listen to the last")
        bottom[0].set(xlabel="time", ylabel="rescaled tokens z", xlim=(0, self.until))
        bottom[0].legend(loc="best")
        away = findings.data["boolean_distance"]
        curves = {"worst row": away[:, -1], "second worst": away[:, -2], "mean of rows": away.mean(-1)}
        for colour, (label, curve) in zip(COLOURS, curves.items(), strict=False):
            bottom[1].plot(times, torch.where(curve > 0, curve, torch.nan), color=colour, label=label)
        bottom[1].set(xlabel="time", ylabel="distance from a Boolean row", yscale="log", xlim=(0, self.until))
        bottom[1].set_ylim(1e-16, 2)
        bottom[1].legend()
        return made


@dataclass(frozen=True)
class ToTheOrigin(System):
    """V = -I, Q^T K = I, not rescaled: tokens repel, and come to the origin as ``t^{-1/2}``."""

    n: int = 20
    d: int = 2
    width: float = 5.0
    until: float = 1000.0
    seed: int = 0

    title = "V = -I: tokens come to the origin, with covariance I / (2t)"
    source = (
        f"{PAPER}, section 8 (V = -I, Q^T K = I: x -> 0); n = 20, start in [-5, 5]^d by the authors' code; T is our choice. The rate is "
        "derived: near the origin P = (1 + <x_i, x_j - mean>)/n, so the mean dies as e^{-t} and C' = -2 C^2"
    )
    time_scale = "first e^{-t}, then t^{-1/2}"
    invariants = ("the energy sum_ij e^{<x_i, x_j>} never rises", "sum |x_i|^2 never rises")

    def problem(self) -> Problem:
        late = torch.logspace(-2, float(np.log10(self.until)), 121, dtype=torch.float64)
        late[-1] = self.until
        return Problem(
            Field(Attention(1.0, value=-1.0)),
            box(self.n, self.d, width=self.width, generator=seeded(self.seed)),
            torch.cat([torch.zeros(1, dtype=torch.float64), late]),
            space=Euclidean(),
            stepper=Adaptive(RTOL),
        )

    def measure(self, told: Told = silent) -> Findings:
        told("simulating")
        solution = self.problem().simulate()
        x, times = solution.states, solution.times
        squares = x.square().sum((-1, -2))
        energy = log_interaction(x, 1.0)  # the logarithm: at the start it is e^50
        centred = x - x.mean(-2, keepdim=True)
        spectrum = torch.linalg.eigvalsh(centred.mT @ centred / self.n)  # (K, d)
        largest = x.norm(dim=-1).amax(-1)
        measured = {
            "largest rise of sum |x|^2, relative": float((squares.diff() / squares[:-1]).max()),
            "largest rise of log sum e^<x, y>": float(energy.diff().max()),
            "2 t x least eigenvalue of the covariance": 2 * float(times[-1] * spectrum[-1, 0]),
            "2 t x largest eigenvalue of the covariance": 2 * float(times[-1] * spectrum[-1, -1]),
            "largest |x| at the end": float(largest[-1]),
            "largest |x| at the start": float(largest[0]),
        }
        data = {"times": times, "states": x, "spectrum": spectrum, "largest": largest, "log_energy": energy}
        return Findings(measured, data, solution)

    def targets(self) -> tuple[Target, ...]:
        out = [
            # the stepper's error of RTOL |x| in a step that moves less, late
            Target(
                "largest rise of sum |x|^2, relative",
                0.0,
                1e-9,
                "derived: its rate is at most -2 n |mean|^2",
                "at most",
            ),
            Target(
                "largest rise of log sum e^<x, y>",
                0.0,
                1e-9,
                f"{PAPER}, section 8: a gradient flow, downwards",
                "at most",
            ),
        ]
        if self.until >= 100 and self.n > self.d:
            # corrections of higher moments, O(|x|^2) = O(1/t), add up to log(t)/t; the start, of variance width^2/3, is forgotten
            # as 1/(2 t variance), and its sample variance may be half of that
            tolerance = float(np.log(self.until)) / self.until + 3 / (self.until * self.width**2)
            for end in ("least", "largest"):
                out.append(
                    Target(
                        f"2 t x {end} eigenvalue of the covariance", 1.0, tolerance, "derived: C' = -2 C^2"
                    )
                )
        return tuple(out)

    def draw(self, findings: Findings) -> Figure:
        made, top, bottom = page(4, 2)
        times, x = findings.data["times"], findings.data["states"]
        for axes, t in zip(top, (0.0, 1.0, self.until**0.5, self.until), strict=True):
            k = int((times - t).abs().argmin())
            draw_tokens(axes, x[k], frame=x[k], size=22, on=place_of(self.d))
            axes.set_title(f"t = {round(float(times[k]), 1):g}")
            axes.set(xlabel="", ylabel="")
        late = times > 0
        for j in range(self.d):
            bottom[0].plot(
                times[late],
                findings.data["spectrum"][late, j],
                color=COLOURS[j % len(COLOURS)],
                label="covariance" if j == 0 else None,
            )
        after = times >= 1
        bottom[0].plot(times[after], 1 / (2 * times[after]), **EXACT, label="1/(2t)")
        bottom[0].set(xlabel="time", ylabel="eigenvalues of the covariance", xscale="log", yscale="log")
        bottom[0].legend()
        bottom[1].plot(times[late], findings.data["largest"][late], color=COLOURS[0], label="largest |x|")
        bottom[1].set(xlabel="time", ylabel="largest |x|", xscale="log", yscale="log")
        return made


SYSTEMS: dict[str, System] = {
    "unprojected/boolean": BooleanAttention(),
    "unprojected/negative": ToTheOrigin(),
}
