r"""One system of a run as a path: its states at any time, on its space, with what moved it.

Shapes: ``K`` saved times, states ``(K, n, d)`` (angles ``(K, n, 1)``, inner products ``(K, n, n)``), masses ``(n,)``; ``F`` times
asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .fields import Field, Schedule
from .gram import Gram
from .normalised import Normalised
from .observables import Clusters, clusters
from .simulate import Solution
from .spaces import Circle, Space, Sphere
from .terms import Attention


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The saved states of one system, and the geodesics between them.

    Attributes:
        times: ``(K,)`` float64.
        states: ``(K, n, d)``.
        space, field: where and by what it moved; every inverse temperature is one number.
        mass: ``(n,)``, or None.
        log_time: whether the run stepped in log t.
        solution: the run.
        index: of the system among the merged leading dimensions.
    """

    times: Tensor
    states: Tensor
    space: Space
    field: Field
    mass: Tensor | None
    log_time: bool
    solution: Solution
    index: int

    @classmethod
    def of(
        cls, solution: Solution, system: int | tuple[int, ...] = 0, field: Field | None = None
    ) -> Trajectory:
        """System ``system`` of a run: an index of its leading dimensions, or a number that counts through them.

        Args:
            field: None is the one of the run; another one for what is computed from the states.

        Raises:
            ValueError: there is no such system.
        """
        lead = solution.states.shape[1:-2]
        index = _flat(system, lead)
        motion = solution.run.motion
        systems = lead.numel()
        at = torch.tensor([index], device=solution.states.device)
        own = motion.field.take(at, torch.Size((systems,))) if field is None else field.take(at, lead)
        states = solution.states.reshape(-1, systems, *solution.states.shape[-2:])[:, index]
        return cls(
            solution.times[-len(states) :],
            states,
            motion.space,
            _single(own),
            None if motion.mass is None else motion.mass[index],
            motion.log_time,
            solution,
            index,
        )

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.states.shape[-2]

    @property
    def spherical(self) -> bool:
        """Whether points are unit vectors."""
        return isinstance(self.space, (Sphere, Circle, Gram, Normalised))

    def at(self, times: Sequence[float] | Tensor, *, log: bool = False) -> Tensor:
        """States ``(F, n, d)`` at times within the run: saved ones as they are, between them points of the geodesics.

        Args:
            times: any order.
            log: whether tokens go along a geodesic evenly in log t, where t > 0.

        Raises:
            ValueError: times outside the run.
        """
        t = torch.as_tensor(times, dtype=torch.float64).reshape(-1)
        first, last = float(self.times[0]), float(self.times[-1])
        slack = 1e-12 * max(abs(first), abs(last))
        if len(t) and not (float(t.min()) >= first - slack and float(t.max()) <= last + slack):
            raise ValueError(
                f"times are {_few(t)}; expected times of the run, from {first:g} to {last:g}"
                + ("." if len(self.states) > 1 else " (only one state was saved; simulate with save=True).")
            )
        t = t.clamp(first, last)
        if len(self.times) == 1:
            return self.states.expand(len(t), -1, -1)
        k = torch.searchsorted(self.times, t, right=True).clamp(1, len(self.times) - 1)
        a, b = self.times[k - 1], self.times[k]
        share = (t - a) / (b - a)
        if log:
            low = torch.where(a > 0, a, 1.0)  # any number: from a time <= 0 on the share stays linear
            share = torch.where(
                a > 0, (torch.maximum(t, low) / low).log() / (torch.where(a > 0, b, 2.0) / low).log(), share
            )
        s = share.to(self.states)[:, None, None]
        x, y = self.states[k - 1], self.states[k]
        return torch.where(s <= 0, x, torch.where(s >= 1, y, self.space.between(x, y, s)))

    def moments(self, count: int, *, log: bool = False) -> Tensor:
        """``count`` times over the run, even in t, or in log t from the first positive saved time on."""
        first, last = float(self.times[0]), float(self.times[-1])
        if count < 2 or len(self.times) == 1:
            return self.times[-1:].clone()
        if not log:
            return torch.linspace(first, last, count, dtype=torch.float64)
        start = first if first > 0 else float(self.times[1])
        if start <= 0:
            raise ValueError(f"log time from {first:g}, then {start:g}; expected saved times above 0.")
        more = count - 1 if first <= 0 else count
        grid = torch.logspace(math.log10(start), math.log10(last), more, dtype=torch.float64)
        grid = grid.clamp(start, last)
        return grid if first > 0 else torch.cat([self.times[:1], grid])

    def points(self, states: Tensor | None = None) -> Tensor:
        """States as points of R^d: unit vectors on sphere, circle and of inner products, directions where tokens have lengths."""
        return self.space.points(self.states if states is None else states)

    def radii(self, states: Tensor | None = None) -> Tensor | None:
        """Lengths ``(..., n)`` where they are part of the state."""
        if not isinstance(self.space, Normalised):
            return None
        return self.space.radius(self.states if states is None else states).squeeze(-1)

    @property
    def beta(self) -> float | None:
        """The inverse temperature of the exponential kernel, where there is one for all heads."""
        betas = {
            float(term.beta) if isinstance(term, Attention) and term.kernel == "exp" else None
            for term in self.field.terms
        }
        return betas.pop() if len(betas) == 1 else None

    def scale(self, given: float | None = None) -> float:
        """The distance of the linkage by which clusters are told.

        None is ``min(0.1, 0.3 / sqrt(beta))`` on the sphere, well inside the reach of the kernel, and in flat spaces 0.02 of
        the root mean square distance of the start from its mean.
        """
        if given is not None:
            return float(given)
        if self.spherical:
            beta = abs(self.beta or 0.0)
            return min(0.1, 0.3 / math.sqrt(beta)) if beta > 0 else 0.1
        x = self.states[0]
        if self.mass is not None:
            x = x[self.mass > 0]
        spread = float((x - x.mean(0)).square().sum(-1).mean().sqrt()) if len(x) else 0.0
        return 0.02 * spread if spread > 0 else 0.02

    def clusters(self, states: Tensor | None = None, scale: float | None = None) -> Clusters:
        """Single linkage of every state. See :func:`osmose.dynamics.observables.clusters`."""
        return clusters(self.points(states), self.scale(scale), self.mass)

    def fates(self, scale: float | None = None, most: int = 8) -> Tensor | None:
        """A label for every token that holds for the whole run: its cluster at the first time with 2 to ``most`` of them.

        None where there is no such time.
        """
        found = self.clusters(scale=scale)
        few = ((found.count <= most) & (found.count > 1)).nonzero().flatten()
        return found.labels[few[0]] if len(few) else None


def _flat(system: int | tuple[int, ...], lead: torch.Size) -> int:
    systems = lead.numel()
    if isinstance(system, tuple):
        if len(system) == len(lead) and all(0 <= i < size for i, size in zip(system, lead, strict=True)):
            flat = 0
            for i, size in zip(system, lead, strict=True):
                flat = flat * size + i
            return flat
    elif 0 <= system < systems:
        return system
    raise ValueError(
        f"system is {system}; the run has {tuple(lead) or 'one'}: expected an index of these, or a number below {systems}."
    )


def _single(field: Field) -> Field:
    """The field with every inverse temperature one number: those of a batch were chosen from already."""
    if isinstance(field, Schedule):
        return Schedule([(t, _single(f)) for t, f in field.pieces])
    if type(field) is not Field:
        return field
    terms = [
        replace(term, beta=float(term.beta))
        if isinstance(term, Attention) and isinstance(term.beta, Tensor) and term.beta.numel() == 1
        else term
        for term in field.terms
    ]
    return Field(*terms, drift=field.drift)


def _few(t: Tensor) -> str:
    shown = ", ".join(f"{v:g}" for v in t[:6].tolist())
    return f"[{shown}{', ...' if len(t) > 6 else ''}]"
