r"""Unprojected tokens in many dimensions: attention of low rank, and coordinates that cluster or grow, each by its eigenvalue.

Shapes: states ``z (K, n, d)`` at K times, attention ``(n, n)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ..observables import boolean_distance, listeners
from ..pictures import COLOURS, EXACT, MAP
from ..spaces import Rescaled
from ..starts import box, seeded
from ..terms import Attention
from ._figures import moments, page
from .base import Findings, System, Target, Told, silent
from .hyperplanes import GoodTriple
from .unprojected import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Large(GoodTriple):
    """Many dimensions: moments are attention matrices."""

    def attention(self, z: Tensor, t: float) -> Tensor:
        """P ``(n, n)`` of a state."""
        v = self.value()
        x = Rescaled(v).unscale(z, t)
        return Attention(1.0, query=self.query(), value=v).carry(x, torch.eye(len(z), dtype=z.dtype))

    def measure(self, told: Told = silent) -> Findings:
        found = super().measure(told)
        assert found.solution is not None
        told("attention")
        times, states = found.solution.times, found.solution.states
        every = max(1, (len(times) - 1) // 40)
        ranks, leading = [], []
        for t, z in zip(times[::every].tolist(), states[::every], strict=True):
            p = self.attention(z, t)
            ranks.append(float(torch.linalg.matrix_rank(p)))
            leading.append(float((listeners(p) > 0).sum()))
        measured = {
            **found.measured,
            "attention, largest distance from Boolean rows at the end": float(boolean_distance(p).max()),
            "rank of the attention at the start": ranks[0],
            "rank of the attention at the end": ranks[-1],
            "tokens that lead at the end": leading[-1],
        }
        data = {
            **found.data,
            "rank_times": times[::every],
            "rank": torch.tensor(ranks),
            "leading_tokens": torch.tensor(leading),
        }
        return Findings(measured, data, found.solution)

    def draw_top(self, top: list[Axes], findings: Findings) -> None:
        """Attention at four times, tokens in the order of their last ``<phi, z>``."""
        times, states = findings.data["times"], findings.data["states"]
        order = findings.data["leading"][-1].argsort(descending=True)
        for axes, t in zip(top, moments(self.until), strict=True):
            k = int((times - t).abs().argmin())
            p = self.attention(states[k], float(times[k]))
            image = axes.imshow(p[order][:, order], vmin=0, vmax=1, cmap=MAP, interpolation="nearest")
            axes.set_title(f"t = {float(times[k]):.3g}, rank {int(torch.linalg.matrix_rank(p))}")
            axes.set(xticks=[], yticks=[], xlabel="sources")
        top[0].set_ylabel("targets")
        top[-1].figure.colorbar(image, ax=top[-1], label="attention")

    def draw_rank(self, axes: Axes, findings: Findings) -> None:
        """Rank and leaders over time."""
        t = findings.data["rank_times"]
        axes.plot(t, findings.data["rank"], color=COLOURS[0], label="rank of P")
        axes.plot(t, findings.data["leading_tokens"], color=COLOURS[1], ls="--", label="leaders")
        axes.set(xlabel="time", ylabel="rank of attention, leaders", xlim=(0, self.until))
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend()


@dataclass(frozen=True)
class LowRank(Large):
    """A random positive V with its interaction."""

    n: int = 40
    d: int = 80
    width: float = 1.0
    until: float = 11.0
    norm: float = 3.0

    title = "in 80 dimensions: ranges of coordinates, and the rank of attention over time"
    source = (
        f"{PAPER}, section 1 and theorem 4.2 (n = 40, d = 80, T = 11, dt = 0.1, start in [-1, 1]^d, V = B B^T with B uniform by the "
        "authors' code, whose tokens do not interact; here they do). That V has norm near 100, and x overflows by t = 7: here it is "
        "scaled to norm 3, our choice"
    )

    def quick(self) -> Self:
        return replace(self, n=min(self.n, 20), d=min(self.d, 30))

    def value(self) -> Tensor:
        b = box(self.d, self.d, width=1.0, generator=seeded(self.seed + 1000))
        v = b @ b.mT
        v = v * (self.norm / torch.linalg.eigvalsh(v)[-1])
        return (v + v.mT) / 2

    def draw(self, findings: Findings) -> Figure:
        made, top, bottom = page(4, 2)
        self.draw_top(top, findings)
        self.draw_leading(bottom[0], findings)
        self.draw_rank(bottom[1], findings)
        return made


@dataclass(frozen=True)
class HighDimension(Large):
    """A sparse symmetric V of eigenvalues larger than 1 in size, both signs, in its own basis."""

    n: int = 128
    d: int = 128
    width: float = 0.5
    until: float = 4.5
    interval: float = 0.05
    density: float = 0.1

    title = "128 dimensions: growing coordinates cluster, the others spread, each at its own rate"
    source = (
        f"{PAPER}, theorem 4.2 and conjecture 4.3 (n = d = 128, sparse symmetric V of density 0.1, eigenvalues of size below 1 replaced by "
        "1 to 2, start in [-1/2, 1/2]^d by the authors' code). Its T = 15 is past t = 36/lambda = 5.3, from which tokens of a hyperplane are equal "
        "to the last bit and attention between them is rounding: here T = 4.5"
    )

    def quick(self) -> Self:
        return replace(self, n=min(self.n, 64), d=min(self.d, 64), until=8.0)

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        g = seeded(self.seed + 1000)
        m = torch.rand(self.d, self.d, dtype=torch.float64, generator=g)
        m = m * (torch.rand(self.d, self.d, dtype=torch.float64, generator=g) < self.density)
        rates, basis = torch.linalg.eigh((m + m.mT) / 2)
        large = 1 + torch.rand(self.d, dtype=torch.float64, generator=g)
        return torch.where(rates.abs() <= 1, large * rates.sign(), rates), basis

    def value(self) -> Tensor:
        # in the basis of eigenvectors: e^{-tV} there leaves each coordinate its own precision
        return torch.diag(self._spectrum()[0])

    def start(self) -> Tensor:
        return super().start() @ self._spectrum()[1]

    def measure(self, told: Told = silent) -> Findings:
        found = super().measure(told)
        times, z, rates = found.data["times"], found.data["states"], self._spectrum()[0]
        groups = found.data["groups"]
        large = groups == groups.mode().values
        spread = z[:, large].std(1)  # (K, d)
        a, b = (len(times) - 1) // 2, (3 * (len(times) - 1)) // 4
        seen = (spread[a] / spread[b]).log() / (rates * (times[b] - times[a]))
        measured = {
            **found.measured,
            "rates of coordinates over eigenvalues, least": float(seen.min()),
            "rates of coordinates over eigenvalues, largest": float(seen.max()),
        }
        return Findings(measured, {**found.data, "spread": spread, "rates": rates}, found.solution)

    def targets(self) -> tuple[Target, ...]:
        out = super().targets()
        if not self.read:
            return out
        law = "derived: with a leader that stays, z_k - its z_k goes as e^(-lambda_k t) for either sign"
        ends = ("least", "largest")
        return out + tuple(
            Target(f"rates of coordinates over eigenvalues, {end}", 1.0, self.resolution, law) for end in ends
        )

    def draw(self, findings: Findings) -> Figure:
        made, top, bottom = page(4, 3)
        self.draw_top(top, findings)
        self.draw_leading(bottom[0], findings)
        times, spread, rates = (findings.data[key] for key in ("times", "spread", "rates"))
        for axes, chosen, end in ((bottom[1], rates > 0, rates.max()), (bottom[2], rates < 0, rates.min())):
            for k in chosen.nonzero().flatten().tolist():
                axes.plot(times, spread[:, k], color=COLOURS[0], lw=0.5, alpha=0.6)
            k = int((rates == end).nonzero()[0])
            half = len(times) // 2
            exact = spread[half, k] * torch.exp(-end * (times - times[half]))
            axes.plot(
                times[half // 2 :], exact[half // 2 :], **EXACT, label=f"$e^{{-λt}}$, λ = {float(end):.3g}"
            )
            axes.set(xlabel="time", yscale="log", xlim=(0, self.until))
            axes.legend()
        bottom[1].set_ylabel("spread, growing coordinates")
        bottom[2].set_ylabel("spread, other coordinates")
        return made


SYSTEMS: dict[str, System] = {"low-rank": LowRank(), "high-dimension": HighDimension()}
