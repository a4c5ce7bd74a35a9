"""Events: when something happens to a system of tokens, found inside the step in which it does.

Shapes: points ``x (k, n, d)`` of k systems, velocities ``v (k, n, d)``, times ``t (k,)``, masses ``(k, n)``; values ``(k,)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .fields import Field
from .observables import closest, cluster_count, hemisphere_margin


@dataclass(frozen=True, kw_only=True)
class Event(ABC):
    """Happens to a system when :meth:`value` first falls to 0 or below.

    Attributes:
        terminal: whether the system stops there; its later states are the one at the event.
    """

    terminal: bool = True
    needs_velocity = False

    @property
    def name(self) -> str:
        """Key in ``Solution.events``."""
        return "".join("_" + c.lower() if c.isupper() else c for c in type(self).__name__)[1:]

    @abstractmethod
    def value(self, t: Tensor, x: Tensor, v: Tensor | None, mass: Tensor | None) -> Tensor:
        """Positive before the event, ``(k,)``."""


@dataclass(frozen=True, kw_only=True)
class HemisphereEntered(Event):
    """All tokens lie in an open hemisphere, at least ``margin`` above its rim: consensus is then certain for SA and USA."""

    margin: float = 1e-9

    def value(self, t: Tensor, x: Tensor, v: Tensor | None, mass: Tensor | None) -> Tensor:
        return self.margin - hemisphere_margin(x, mass).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class PairMerged(Event):
    """The two closest tokens are at most ``distance`` apart (a chord)."""

    distance: float = 1e-3

    def __post_init__(self) -> None:
        _positive(self, "distance")

    def value(self, t: Tensor, x: Tensor, v: Tensor | None, mass: Tensor | None) -> Tensor:
        # two tokens at one place are one of mass 2: no pair that could merge
        return closest(x, None if mass is None else (mass > 0).to(x.dtype)) - self.distance


@dataclass(frozen=True, kw_only=True)
class ClustersLeft(Event):
    """At most ``count`` clusters are left, by single linkage at ``scale``: consensus for 1."""

    count: int = 1
    scale: float = 1e-3

    def __post_init__(self) -> None:
        _positive(self, "scale")
        _positive(self, "count")

    def value(self, t: Tensor, x: Tensor, v: Tensor | None, mass: Tensor | None) -> Tensor:
        return cluster_count(x, self.scale, mass).to(x.dtype) - self.count


@dataclass(frozen=True, kw_only=True)
class GradientBelow(Event):
    """No token is faster than ``tolerance``: the system has come to rest, for good or for long."""

    tolerance: float = 1e-9
    needs_velocity = True

    def __post_init__(self) -> None:
        _positive(self, "tolerance")

    def value(self, t: Tensor, x: Tensor, v: Tensor | None, mass: Tensor | None) -> Tensor:
        assert v is not None
        return v.norm(dim=-1).amax(-1) - self.tolerance


@dataclass(frozen=True, kw_only=True)
class Plateau(Event):
    """The energy is flat in logarithmic time: ``|dE / d log t| <= tolerance |E|``, not before ``after``.

    Args:
        field: a gradient flow of one beta, whose energy is looked at.
    """

    field: Field
    tolerance: float = 1e-3
    after: float = 0.0
    needs_velocity = True

    def __post_init__(self) -> None:
        _positive(self, "tolerance")
        if any(torch.as_tensor(p.beta).ndim for p in self.field.energy.parts):
            raise ValueError("Plateau: the field has a beta for each system; expected a field of one beta.")

    def value(self, t: Tensor, x: Tensor, v: Tensor | None, mass: Tensor | None) -> Tensor:
        assert v is not None
        energy = self.field.energy
        scale = max(float(torch.as_tensor(p.beta).detach().max()) for p in energy.parts)
        rate, height = energy.rate(x, v, mass, log_scale=scale), energy(x, mass, log_scale=scale)
        flat = t.to(x) * rate / height.abs() - self.tolerance
        return torch.where(t.to(x) < max(self.after, 1e-300), torch.ones_like(flat), flat)


def _positive(event: Event, name: str) -> None:
    value = getattr(event, name)
    if not value > 0:
        raise ValueError(f"{type(event).__name__}: {name} is {value}; expected a positive number.")
