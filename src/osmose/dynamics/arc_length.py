r"""Arc length as time: steps of equal change, however long they take.

With the speed ``|v| = (sum_i m_i |x_i'|^2 / M)^{1/2}`` and ``ds = |v| dt``,

.. math:: \frac{dx}{ds} = \frac{v}{|v|}, \qquad \frac{d \log(1 + t)}{ds} = \frac{1}{(1 + t) |v|}.

For USA s is the length of its curve in the Wasserstein-2 metric, whose gradient flow it is. A plateau of the energy that lasts
``e^{beta}`` takes as many steps as what moves in it is long. The curve ends at a state of rest, at a finite s.

Shapes: states ``(..., n, c + 1)``, those of the space ``(..., n, c)`` with ``log(1 + t)`` as one more coordinate of every token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens
from .fields import Field
from .gram import Gram
from .spaces import Space


class ArcLength(Space):
    """A space whose runs go by arc length: the times of ``simulate`` are lengths, and states carry their time.

    Start from ``lift(x0)``; read ``times(states)`` and ``states(states)``. Event times and those of a recorder are lengths too.
    Where a curve ends before the length asked for, the status is ``STEP_TOO_SMALL``: stop it by ``GradientBelow``.

    Explicit steppers gain nothing over stiffness from it (their step is still a few units of the fastest rate).

    Args:
        space: the sphere, the circle, ``R^d``, its rescaled form, or a normalisation scheme.

    Raises:
        ValueError: a space whose state is no set of tokens (Gram), or with a switch; a field with switches, a start that is not
            lifted.

    >>> space = ArcLength(Sphere())
    >>> run = simulate(Field(Attention(1.0)), space.lift(torch.eye(3, dtype=torch.float64)), [0.0, 0.5], space=space)
    >>> space.times(run.states).shape
    torch.Size([2])
    """

    def __init__(self, space: Space):
        if isinstance(space, (Gram, ArcLength)) or space.breaks:
            raise ValueError(
                f"ArcLength: the space is {space!r}; expected tokens in a space without switches, e.g. Sphere()."
            )
        self.space = space
        self.reach = space.reach

    def lift(self, x: Tensor, t: float = 0.0) -> Tensor:
        """A state ``(..., n, c)`` at time t, with its clock: ``(..., n, c + 1)``."""
        if not t >= 0:
            raise ValueError(f"ArcLength.lift: t is {t}; expected a time from 0.")
        return torch.cat([x, torch.full_like(x[..., :1], t).log1p()], -1)

    def times(self, x: Tensor) -> Tensor:
        """The times of lifted states, ``(...)``."""
        return x[..., 0, -1].expm1()

    def states(self, x: Tensor) -> Tensor:
        """Lifted states without their clocks, ``(..., n, c)``."""
        return x[..., :-1]

    def admit(self, field: Field) -> None:
        if field.breaks:
            raise ValueError(
                f"ArcLength: {field!r} is switched at given times, and a run by arc length knows them too late; expected a field "
                "that is the same throughout."
            )

    def check(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        x = super().check(x)
        clock = x[..., -1]
        if x.shape[-1] < 2 or bool((clock != clock[..., :1]).any()) or bool((clock < 0).any()):
            raise ValueError(
                f"ArcLength: the start of shape {tuple(x.shape)} has no clock, or tokens of different times; expected "
                "space.lift(x0)."
            )
        return torch.cat([self.space.check(x[..., :-1], mass), x[..., -1:]], -1)

    def notes(self, x: Tensor) -> tuple[str, ...]:
        return self.space.notes(x[..., :-1])

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        v, speed, clock = self._motion(field, x, tokens)
        v = torch.where(speed > 0, v / torch.where(speed > 0, speed, 1.0), 0.0)
        return torch.cat([v, ((-clock).exp() / speed).expand_as(x[..., -1:])], -1)

    def layer(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        _, speed, clock = self._motion(field, x, tokens)
        moved = self.space.layer(field, x[..., :-1], tokens, clock.expm1(), h / speed)
        return self._after(x, moved, h / speed)

    def euler(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        _, speed, clock = self._motion(field, x, tokens)
        moved = self.space.euler(field, x[..., :-1], tokens, clock.expm1(), h / speed)
        return self._after(x, moved, h / speed)

    def _after(self, x: Tensor, moved: Tensor, dt: Tensor) -> Tensor:
        clock = x[..., -1:]
        return torch.cat([moved, clock + (dt * (-clock).exp()).log1p()], -1)

    def _motion(self, field: Field, x: Tensor, tokens: Tokens | None) -> tuple[Tensor, Tensor, Tensor]:
        """``dx/dt``, the speed and the clock, ``(..., 1, 1)``."""
        y, clock = x[..., :-1], x[..., :1, -1:]
        v = self.space.velocity(field, y, tokens, clock.expm1())
        square = self.space.vectors(y, v).square().sum(-1)
        mass = None if tokens is None or tokens.mass is None else tokens.mass.to(x.dtype)
        mean = square.mean(-1) if mass is None else (mass * square).sum(-1) / mass.sum(-1)
        return v, mean.sqrt()[..., None, None], clock

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.cat([self.space.exp(x[..., :-1], u[..., :-1]), x[..., -1:] + u[..., -1:]], -1)

    def pull(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.cat([self.space.pull(x[..., :-1], u[..., :-1], v[..., :-1]), v[..., -1:]], -1)

    def retract(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.cat([self.space.retract(x[..., :-1], a[..., :-1]), x[..., -1:] + a[..., -1:]], -1)

    def tangent(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.cat([self.space.tangent(x[..., :-1], a[..., :-1]), a[..., -1:]], -1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return self.space.distance(x[..., :-1], y[..., :-1])

    def size(self, x: Tensor) -> Tensor | float:
        return self.space.size(x[..., :-1])

    def points(self, x: Tensor) -> Tensor:
        return self.space.points(x[..., :-1])

    def vectors(self, x: Tensor, v: Tensor) -> Tensor:
        """Velocities in time, not in length."""
        speed = (-x[..., -1:]).exp() / v[..., -1:]
        return self.space.vectors(x[..., :-1], v[..., :-1]) * speed

    def seen(
        self, field: Field, x: Tensor, v: Tensor | None, tokens: Tokens | None, t: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        points = self.points(x)
        return points, torch.zeros_like(points) if v is None else self.vectors(x, v)

    def __repr__(self) -> str:
        return f"ArcLength({self.space!r})"
