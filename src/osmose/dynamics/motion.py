"""A field on a space, for the merged systems of a batch: what a stepper is given.

Shapes: ``P`` systems, states ``x (P, n, d)``, masses ``(P, n)``, times a number or ``(P,)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..tokens import Tokens
from .fields import Field
from .spaces import Space


@dataclass(frozen=True, eq=False)
class Motion:
    """``dx/ds`` of merged systems, where s is time or, with ``log_time``, its logarithm."""

    field: Field
    space: Space
    mass: Tensor | None = None
    log_time: bool = False

    def take(self, index: Tensor, systems: int) -> Motion:
        """The motion of some of the systems."""
        if len(index) == systems:
            return self
        mass = None if self.mass is None else self.mass[index]
        return replace(self, field=self.field.take(index, torch.Size((systems,))), mass=mass)

    def time(self, s: float | Tensor) -> float | Tensor:
        """The time at s."""
        if not self.log_time:
            return s
        return s.exp() if isinstance(s, Tensor) else float(torch.tensor(s, dtype=torch.float64).exp())

    def velocity(self, x: Tensor, s: float | Tensor) -> Tensor:
        """``dx/ds``, tangent."""
        return self._scaled(self.space.velocity(self.field, x, self.tokens(x), self.time_of_field(s)), s)

    def rate(self, x: Tensor, s: float | Tensor) -> Tensor:
        """``dx/dt``."""
        return self.space.velocity(self.field, x, self.tokens(x), self.time_of_field(s))

    def layer(self, x: Tensor, s: float | Tensor, h: float | Tensor) -> Tensor:
        """A layer of size h in s."""
        return self.space.layer(self.field, x, self.tokens(x), self.time_of_field(s), self._step(s, h))

    def euler(self, x: Tensor, s: float | Tensor, h: float | Tensor) -> Tensor:
        """A projected Euler step of size h in s."""
        return self.space.euler(self.field, x, self.tokens(x), self.time_of_field(s), self._step(s, h))

    def _step(self, s: float | Tensor, h: float | Tensor) -> float | Tensor:
        return h * self.time_of_field(s) if self.log_time else h

    def tokens(self, x: Tensor) -> Tokens | None:
        """The masses as the field takes them."""
        return None if self.mass is None else Tokens(x.shape[-2], self.mass)

    def time_of_field(self, s: float | Tensor) -> float | Tensor:
        """The time as the field takes it."""
        t = self.time(s)
        return t[:, None, None] if isinstance(t, Tensor) else t

    def _scaled(self, v: Tensor, s: float | Tensor) -> Tensor:
        return v * self.time_of_field(s) if self.log_time else v
