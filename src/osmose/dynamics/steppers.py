r"""Steppers with a given step: layers, projected Euler, RK4 in normal coordinates, Euler-Maruyama.

Shapes: ``P`` systems of a batch, states ``x (P, n, d)``; s is time or its logarithm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .motion import Motion
from .spaces import Sphere

Redo = Callable[[Tensor, Tensor], Tensor]
"""``redo(index, share)``: the states of systems ``index`` of the step after a share ``(k,)`` of it."""

Watch = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Redo], tuple[Tensor, Tensor]]
"""``watch(systems, x, s, new, h, redo)`` to the states to go on from and which systems stop ``(k,)``."""


class Stepper(ABC):
    """Takes the systems of a batch from one output time to the next.

    Attributes:
        limit: how far h times the fastest rate may go before steps grow; inf where they never do.
        random: whether a generator is needed.
        accuracy: the step, shown in messages.
    """

    limit: float = math.inf
    random: bool = False
    h: float | None = None

    @abstractmethod
    def advance(
        self,
        motion: Motion,
        x: Tensor,
        start: float,
        stop: float,
        active: Tensor,
        memory: dict[str, Any],
        watch: Watch,
        generator: torch.Generator | None,
    ) -> Tensor:
        """All states at ``stop``. ``active (P,)`` says which systems move; it, and ``memory`` (what the next stretch needs),
        are updated in place."""


class FixedStep(Stepper):
    """Equal steps of at most h between two output times."""

    def __init__(self, h: float):
        if not (h > 0 and math.isfinite(h)):
            raise ValueError(f"{type(self).__name__}: h is {h}; expected a positive step.")
        self.h = float(h)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(h={self.h:g})"

    def count(self, start: float, stop: float) -> int:
        """Steps between two times."""
        assert self.h is not None
        return max(1, math.ceil((stop - start) / self.h * (1 - 1e-9)))

    @abstractmethod
    def step(
        self, motion: Motion, x: Tensor, s: float | Tensor, h: float | Tensor, noise: Tensor | None
    ) -> Tensor:
        """One step; h is a number or ``(P, 1, 1)``."""

    def noise(self, motion: Motion, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """What is random in a step."""
        return None

    def advance(
        self,
        motion: Motion,
        x: Tensor,
        start: float,
        stop: float,
        active: Tensor,
        memory: dict[str, Any],
        watch: Watch,
        generator: torch.Generator | None,
    ) -> Tensor:
        count = self.count(start, stop)
        h = (stop - start) / count
        for k in range(count):
            index = active.nonzero().squeeze(-1)
            if not len(index):
                break
            s = start + k * h
            every = len(index) == len(x)
            here, old = motion.take(index, len(x)), x if every else x[index]
            noise = self.noise(here, old, generator)
            new = self.step(here, old, s, h, noise)

            def redo(
                some: Tensor,
                share: Tensor,
                here: Motion = here,
                old: Tensor = old,
                noise: Tensor | None = noise,
                s: float = s,
            ) -> Tensor:
                part = here.take(some, len(old))
                kept = None if noise is None else noise[some]
                return self.step(part, old[some], s, h * share[:, None, None].to(old.dtype), kept)

            when = torch.full((len(index),), s, dtype=torch.float64, device=x.device)
            new, stopped = watch(index, old, when, new, torch.full_like(when, h), redo)
            x = new if every else x.index_copy(0, index, new)
            active[index] = ~stopped
        return x


class Layer(FixedStep):
    r"""``x <- normalise(x + h A)``: a post-LN layer; h = 1 is attention with its residual. In flat spaces ``x + h A``.

    First order. With Q = K = V = I on the sphere no step, however long, lowers the energy. Output times must be whole
    numbers of layers apart.
    """

    def count(self, start: float, stop: float) -> int:
        assert self.h is not None
        count = round((stop - start) / self.h)
        if count < 1 or abs(count * self.h - (stop - start)) > 1e-9 * (stop - start):
            raise ValueError(
                f"Layer: from {start:g} to {stop:g} are {(stop - start) / self.h:g} layers of h = {self.h:g}; expected output "
                "times a whole number of layers apart."
            )
        return count

    def step(
        self, motion: Motion, x: Tensor, s: float | Tensor, h: float | Tensor, noise: Tensor | None
    ) -> Tensor:
        return motion.layer(x, s, h)


class Euler(FixedStep):
    """``x <- normalise(x + h v)`` with the tangent velocity: projected Euler, first order, in flat spaces Euler.

    With Q = K = V = I the energy does not fall for ``h <= 2`` under the law row, ``2 e^{-beta}`` under mean.
    """

    limit = 2.0

    def step(
        self, motion: Motion, x: Tensor, s: float | Tensor, h: float | Tensor, noise: Tensor | None
    ) -> Tensor:
        return motion.euler(x, s, h)


class RK4(FixedStep):
    """The classical fourth-order method in the normal coordinates of each state: on the sphere by the exponential map."""

    limit = 2.785

    def step(
        self, motion: Motion, x: Tensor, s: float | Tensor, h: float | Tensor, noise: Tensor | None
    ) -> Tensor:
        space, dt = motion.space, h.reshape(-1) if isinstance(h, Tensor) else h

        def slope(u: Tensor, share: float) -> Tensor:
            return space.pull(x, u, motion.velocity(space.exp(x, u), s + share * dt))

        k1 = motion.velocity(x, s)
        k2 = slope(h / 2 * k1, 0.5)
        k3 = slope(h / 2 * k2, 0.5)
        k4 = slope(h * k3, 1.0)
        return space.exp(x, h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))


class EulerMaruyama(FixedStep):
    r"""``dX = v dt + sqrt(2 / kappa) dW`` on the space: ``x <- exp_x(h v + sqrt(2 h / kappa) xi)``, xi normal in the tangent space.

    Weak order 1. Large kappa is little noise; the invariant density without a field is uniform.

    Args:
        h: step.
        kappa: inverse noise, positive.
    """

    random = True
    limit = 2.0

    def __init__(self, h: float, kappa: float):
        super().__init__(h)
        if not kappa > 0:
            raise ValueError(
                f"EulerMaruyama: kappa is {kappa}; expected a positive number (inf is no noise)."
            )
        self.kappa = float(kappa)

    def __repr__(self) -> str:
        return f"EulerMaruyama(h={self.h:g}, kappa={self.kappa:g})"

    def noise(self, motion: Motion, x: Tensor, generator: torch.Generator | None) -> Tensor:
        xi = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        if motion.mass is not None:
            xi = xi * (motion.mass > 0).unsqueeze(-1)
        return motion.space.tangent(x, xi)

    def step(
        self, motion: Motion, x: Tensor, s: float | Tensor, h: float | Tensor, noise: Tensor | None
    ) -> Tensor:
        assert noise is not None
        # in logarithmic time the noise of dt = t ds
        time = motion.time(s) if motion.log_time else 1.0
        size = (
            (2 / self.kappa * h * time) ** 0.5
            if not isinstance(h, Tensor)
            else (2 / self.kappa * h * time).sqrt()
        )
        return motion.space.exp(x, h * motion.velocity(x, s) + size * noise)


def stability_bound(stepper: Stepper, motion: Motion) -> float | None:
    """The longest step at which tokens in a cluster do not overshoot; None where it is not known.

    Known for Q = K = V = I on the sphere: the fastest rate of a distance is 1 (law row) or ``e^beta`` (law mean; 1 on the
    clock ``e^beta t``), and h times it stays under 2 (Euler; there the energy is monotone too) or 2.785 (RK4). Inner
    products go at twice the rate, and RK4 of them has half the bound.
    """
    from .gram import Gram
    from .terms import Attention

    terms, space = motion.field.terms, motion.space
    term = terms[0] if len(terms) == 1 else None
    if motion.field.drift is not None or motion.log_time or not isinstance(space, (Sphere, Gram)):
        return None
    if (
        not isinstance(term, Attention)
        or term.kernel != "exp"
        or term.query is not None
        or term.key is not None
    ):
        return None
    if (
        isinstance(term.value, Tensor)
        or term.value not in (None, 1, 1.0)
        or term.law_name not in ("row", "mean")
        or not math.isfinite(stepper.limit)
    ):
        return None
    beta = float(torch.as_tensor(term.beta).detach().max())
    if float(torch.as_tensor(term.beta).detach().min()) < 0:
        return None
    limit = stepper.limit / 2 if isinstance(space, Gram) and isinstance(stepper, RK4) else stepper.limit
    return limit * (math.exp(-beta) if term.law_name == "mean" and not term.scaled else 1.0)
