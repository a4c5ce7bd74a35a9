r"""Where the LayerNorm sits: tokens with a length, seen by attention through their directions.

``x_i = r_i theta_i``; a scheme of :data:`~osmose.dynamics.theory.SCHEMES` gives ``theta_i' = proj A_i(theta) / s`` and r', so

.. math:: x_i' = r_i' \theta_i + (r_i / s_i) \operatorname{proj} A_i(\theta).

Pre-LN is then ``x_i' = A_i(theta)``, the residual stream itself.

Shapes: ``x (..., n, d)``, any lengths above 0.

Source: 2510.22026.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens
from .fields import Field
from .spaces import Space, Sphere


class Normalised(Space):
    """``(r, theta)`` as the vector ``r theta``; observables and events see theta.

    Args:
        scheme: ``post-ln``, ``pre-ln``, ``peri-ln``, ``ngpt`` or ``sqrt-ln``. Mix-LN is a run of post-ln whose last state starts
            one of pre-ln.
        alpha: step of ngpt.

    Steppers are those of R^d, so ``Layer`` is a pre-LN layer for pre-ln, for the others a first-order step.
    """

    def __init__(self, scheme: str, alpha: float = 1.0):
        from .theory import SCHEMES

        if scheme not in SCHEMES:
            raise ValueError(f"Normalised: scheme is {scheme!r}; expected one of {', '.join(SCHEMES)}.")
        if not alpha > 0:
            raise ValueError(f"Normalised: alpha is {alpha}; expected a positive number.")
        self.scheme, self.alpha = SCHEMES[scheme], alpha

    def check(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        x = super().check(x)
        empty = x.norm(dim=-1) == 0
        if bool((empty if mass is None else empty & (mass > 0)).any()):
            raise ValueError(
                "Normalised: a token is the zero vector, which has no direction; give it one, or mass 0."
            )
        return x

    def notes(self, x: Tensor) -> tuple[str, ...]:
        return Sphere().notes(self.points(x))

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        theta, r = self.points(x), x.norm(dim=-1, keepdim=True)
        a = field(theta, tokens, t)
        along, size = (a * theta).sum(-1, keepdim=True), a.norm(dim=-1, keepdim=True)
        tiny = torch.finfo(x.dtype).tiny  # where nothing is taken nothing moves
        size = size.clamp(min=tiny)
        # the schemes are arithmetic, on tensors as on floats
        slow = self.scheme.slowness(r, size, t, self.alpha)  # type: ignore[arg-type]
        growth = self.scheme.radius_velocity(along, size)  # type: ignore[arg-type]
        pace = r / torch.as_tensor(slow, dtype=x.dtype, device=x.device).clamp(min=tiny)
        return growth * theta + pace * (a - along * theta)

    def points(self, x: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True)
        return x / torch.where(length > 0, length, 1.0)

    def vectors(self, x: Tensor, v: Tensor) -> Tensor:
        """The velocity of the directions."""
        length = x.norm(dim=-1, keepdim=True)
        return Sphere().tangent(self.points(x), v) / torch.where(length > 0, length, 1.0)

    def __repr__(self) -> str:
        return f"Normalised({self.scheme.name!r})"
