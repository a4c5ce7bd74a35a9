r"""Leaders: tokens that listen to themselves alone stand still, and the others go straight to the one they listen to.

Hard maximum attention in layers, ``x_i <- x_i + h (mean of C_i - x_i)``, ``C_i = argmax_j <A x_i, x_j>``; and softmax attention by the
weights of the same script.

Shapes: states ``x (K, n, d)`` after every layer, hard attention ``(n, n)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import theory
from ..fields import Field
from ..observables import hull_volume, leaders, listeners
from ..pictures import COLOURS, EXACT, draw_tokens
from ..spaces import Rescaled
from ..starts import box, seeded
from ..steppers import Layer
from ..terms import Attention
from ._figures import decay, page, place_of
from .base import Findings, Problem, System, Target, Told, silent
from .hyperplanes import GoodTriple
from .unprojected import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HARD = "2407.01602"
SEED = 6  # the eigenvalues of A are .49 and 1.09, those of V .76 and 1.58: in many draws one of A is near 0


def positive(d: int, seed: int) -> Tensor:
    """``B B^T`` with B ``(d, d)`` uniform in [-1, 1]."""
    b = box(d, d, width=1.0, generator=seeded(seed))
    return b @ b.mT


@dataclass(frozen=True)
class Leaders(System):
    """Hard maximum attention with a random positive A, V = I, rescaled: a layer is a step h towards whom one listens to."""

    n: int = 20
    d: int = 2
    h: float = 0.1
    until: float = 10.0
    seed: int = SEED

    title = "leaders stand still, and every other token goes straight to one"
    source = (
        f"{HARD} (hard maximum attention; h = alpha / (1 + alpha), V = alpha I); n = 20, d = 2, T = 10, dt = 0.1, A = B B^T and the start "
        "uniform in [-1, 1] by the authors' code of 2305.05465, which has softmax attention (leaders/softmax)"
    )
    time_scale = "a layer takes a token 1 - h of its way to its leader"
    invariants = (
        "leaders stand still and stay leaders",
        "|A^(1/2) x_i| never falls",
        "hulls are nested",
    )

    def __post_init__(self) -> None:
        if not 0 < self.h < 1:
            raise ValueError(f"Leaders: h is {self.h}; expected a step between 0 and 1.")

    def matrix(self) -> Tensor:
        """A ``(d, d)``."""
        return positive(self.d, self.seed + 2000)

    def problem(self) -> Problem:
        layers = max(4, round(self.until / self.h))
        return Problem(
            Field(Attention(1.0, kernel="hardmax", query=self.matrix())),
            box(self.n, self.d, width=1.0, generator=seeded(self.seed)),
            self.h * torch.arange(layers + 1, dtype=torch.float64),
            space=Rescaled(1.0),
            stepper=Layer(self.h),
        )

    def hard(self, x: Tensor) -> Tensor:
        """The attention of a state, ``(n, n)``: rows share 1 among their argmax."""
        return Attention(1.0, kernel="hardmax", query=self.matrix()).carry(
            x, torch.eye(len(x), dtype=x.dtype)
        )

    def measure(self, told: Told = silent) -> Findings:
        told("simulating")
        problem = self.problem()
        solution = problem.simulate()
        x, a = solution.states, self.matrix()
        lead = leaders(x, matrix=a)  # (K, n)
        moved = (x.diff(dim=0).norm(dim=-1) * lead[:-1]).max()
        height = (x * (x @ a.mT)).sum(-1)  # |A^(1/2) x|^2
        root = torch.linalg.cholesky(a).mT  # <L^T x, L^T y> = <A x, y>
        final = theory.polytope_gap(x[-1], x[-1], root) / height[-1].max()
        reach = (
            x @ torch.cat([torch.eye(self.d, dtype=x.dtype), -torch.eye(self.d, dtype=x.dtype)]).mT
        ).amax(-2)
        attention = torch.stack([self.hard(state) for state in x])
        whom, since = self._follows(attention, lead)
        off, distance = self._straight(x, whom, since)
        measured = {
            "largest move of a leader": float(moved),
            "leaders lost": float((lead[:-1] & ~lead[1:]).sum()),
            "largest fall of |A^(1/2) x|^2": float(-height.diff(dim=0).min()),
            "largest growth of the hull": float(reach.diff(dim=0).max()),
            "followers against the straight way, largest": off,
            "followers that change their leader": self._unfaithful(attention, whom, since),
            "leaders at the start": float(lead[0].sum()),
            "leaders at the end": float(lead[-1].sum()),
            "tokens that follow one leader": float((whom >= 0).sum()),
            "time by which they do": float(solution.times[int(since[whom >= 0].max())])
            if bool((whom >= 0).any())
            else 0.0,
            "gap max <A x, v> - <A x, x> at the end, relative": float(final.max()),
            "most listeners": float(listeners(attention[-1]).max()),
        }
        data = {
            "times": solution.times, "states": x, "leads": lead, "whom": whom, "since": since, "distance": distance,
            "volume": hull_volume(x) if self.d <= 6 else torch.zeros(len(x)),
        }  # fmt: skip
        return Findings(measured, data, solution)

    def _follows(self, attention: Tensor, lead: Tensor) -> tuple[Tensor, Tensor]:
        """The one leader that a token comes to listen to ``(n,)``, -1 for none, and from which layer on; leaders follow themselves."""
        one, target = attention.max(-1)
        settled = (one == 1) & lead.gather(-1, target)
        since = settled.long().argmax(0)
        found = settled.any(0)
        index = torch.arange(attention.shape[-1])
        return torch.where(found, target[since, index], -1), since

    def _straight(self, x: Tensor, whom: Tensor, since: Tensor) -> tuple[float, Tensor]:
        """How far followers are from ``l + (1 - h)^k (x - l)``, and their distances ``(K, followers)`` from their leaders."""
        off, distances = 0.0, []
        for i in (whom >= 0).nonzero().flatten().tolist():
            leader, k0 = int(whom[i]), int(since[i])
            if leader == i:
                continue
            share = (1 - self.h) ** torch.arange(len(x) - k0, dtype=x.dtype)
            way = x[k0, leader] + share[:, None] * (x[k0, i] - x[k0, leader])
            off = max(off, float((x[k0:, i] - way).abs().max()))
            distances.append((x[:, i] - x[-1, leader]).norm(dim=-1))
        return off, torch.stack(distances, -1) if distances else x[..., :0, 0]

    def _unfaithful(self, attention: Tensor, whom: Tensor, since: Tensor) -> float:
        """Followers that at some later layer listen to another token than their leader."""
        target = attention.argmax(-1)
        later = torch.arange(len(attention))[:, None] >= since
        # at their leader to the last bit a follower cannot be told from it
        return float(((target != whom) & later & (whom >= 0)).any(0).sum())

    def targets(self) -> tuple[Target, ...]:
        # rounding: a step, and a hundred of them
        step, run = 1e-14, 1e-12
        return (
            Target("largest move of a leader", 0.0, step, f"{HARD}: a leader listens to itself", "at most"),
            Target("leaders lost", 0.0, 0.0, f"{HARD}: once a leader, always a leader", "at most"),
            Target(
                "largest fall of |A^(1/2) x|^2",
                0.0,
                step,
                f"{HARD}: a step goes where <A x, y> >= <A x, x>",
                "at most",
            ),
            Target(
                "largest growth of the hull", 0.0, step, f"{HARD}: a layer is a convex combination", "at most"
            ),
            Target(
                "followers against the straight way, largest",
                0.0,
                run,
                "2508.09628v1, section 4: x = l + (1 - h)^k (x_0 - l)",
                "at most",
            ),
            Target(
                "followers that change their leader",
                0.0,
                0.0,
                "2508.09628v1, section 4: a cell is convex, and keeps its tokens",
                "at most",
            ),
        )

    def draw(self, findings: Findings) -> Figure:
        made, top, bottom = page(4, 2)
        times, x, whom, lead = (findings.data[key] for key in ("times", "states", "whom", "leads"))
        names = {int(w): k for k, w in enumerate(whom[whom >= 0].unique())}
        colours = [COLOURS[names[int(w)] % len(COLOURS)] if w >= 0 else "#B8B8B8" for w in whom]
        layers = len(times) - 1
        for axes, k in zip(top, (0, layers // 10, layers // 4, layers), strict=True):
            p = self.hard(x[k])
            for i, j in p.nonzero().tolist():
                axes.plot(*x[k, [i, j], :2].mT, color="#999999", lw=0.6, alpha=0.8, zorder=1)
            draw_tokens(axes, x[k], colours=colours, frame=x[0], size=22, on=place_of(self.d))
            if self.d == 2:
                some = x[k, lead[k]]
                axes.scatter(
                    *some.mT, s=90, facecolors="none", edgecolors="#111111", linewidths=0.9, zorder=5
                )
            axes.set_title(f"t = {float(times[k]):g}, leaders: {int(lead[k].sum())}")
            axes.set(xlabel="", ylabel="")
        distance = findings.data["distance"]
        bottom[0].plot(times, distance, color=COLOURS[0], lw=0.7)
        bottom[0].plot([], [], color=COLOURS[0], lw=0.7, label="tokens")
        if distance.shape[-1]:
            exact = distance[-1].max() * (1 - self.h) ** (torch.arange(len(times)) - layers)
            bottom[0].plot(times, exact, **EXACT, label="$(1-h)^k$")
        bottom[0].set(
            xlabel="time", ylabel="distance from the leader", yscale="log", xlim=(0, float(times[-1]))
        )
        bottom[0].legend()
        bottom[1].step(times, lead.sum(-1), where="post", color=COLOURS[0], label="leaders")
        following = (torch.arange(len(times))[:, None] >= findings.data["since"]) & (whom >= 0)
        bottom[1].step(
            times, following.sum(-1), where="post", color=COLOURS[1], label="tokens that follow one leader"
        )
        bottom[1].set(xlabel="time", ylabel="tokens", xlim=(0, float(times[-1])), ylim=(0, self.n + 1))
        bottom[1].locator_params(axis="y", integer=True)
        bottom[1].legend(loc="center right")
        return made


@dataclass(frozen=True)
class SoftLeaders(GoodTriple):
    """The authors' script: softmax attention with random positive A and V."""

    d: int = 2
    width: float = 1.0
    until: float = 10.0
    seed: int = SEED

    title = "softmax attention with random positive weights: a few tokens lead, and hyperplanes form"
    source = (
        "authors' code of 2305.05465 (n = 20, d = 2, T = 10, dt = 0.1, V = B B^T and A = B B^T with B uniform, start in [-1, 1]^d); "
        f"targets of {PAPER}, theorem 4.2"
    )

    def value(self) -> Tensor:
        return positive(self.d, self.seed + 1000)

    def query(self) -> Tensor:
        return positive(self.d, self.seed + 2000)

    def draw(self, findings: Findings) -> Figure:
        made, top, bottom = page(4, 2)
        self.draw_top(top, findings)
        self.draw_leading(bottom[0], findings)
        decay(bottom[1], findings.data["times"], findings.data["width"], self.rate, "hyperplane width, share")
        return made

    def draw_top(self, top: list[Axes], findings: Findings) -> None:
        """Tokens, and lines to whom they listen, as strong as the attention."""
        times, z = findings.data["times"], findings.data["states"]
        colours = [COLOURS[int(g) % len(COLOURS)] for g in findings.data["groups"]]
        term = Attention(1.0, query=self.query(), value=self.value())
        eye = torch.eye(self.n, dtype=z.dtype)
        for axes, share in zip(top, (0.0, 0.25, 0.5, 1.0), strict=True):
            k = round(share * (len(times) - 1))
            p = term.carry(Rescaled(self.value()).unscale(z[k], float(times[k])), eye)
            for i, j in (p > 0.05).nonzero().tolist():
                if i != j:
                    axes.plot(
                        *z[k, [i, j], :2].mT, color="#777777", lw=0.9 * math.sqrt(float(p[i, j])), zorder=1
                    )
            draw_tokens(axes, z[k], colours=colours, frame=z, size=22, on=place_of(self.d))
            count = int((listeners(p) > 0).sum())
            axes.set_title(f"t = {float(times[k]):g}, leaders: {count}")
            axes.set(xlabel="", ylabel="")


SYSTEMS: dict[str, System] = {"leaders": Leaders(), "leaders/softmax": SoftLeaders()}
