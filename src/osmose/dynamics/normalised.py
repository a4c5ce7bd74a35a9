r"""Tokens with a length: where the LayerNorm sits decides what the length does to the motion.

With ``x_i = r_i theta_i`` attention sees the directions, ``A_i = A(theta)_i``, and

.. math:: \theta_i' = \frac{1}{s_i} \operatorname{proj} A_i, \qquad r_i' = \frac{r_i}{s_i} \langle \theta_i, A_i \rangle
   \ \text{ or } 0,

with the slowness ``s_i`` of a scheme of :data:`osmose.dynamics.theory.SCHEMES`; lengths are kept by ``post-ln``, ``ngpt``,
``sqrt-ln`` and grow under ``pre-ln``, ``peri-ln``. The state is x itself, the residual stream. Steps are taken in the direction
and the logarithm of the length, so an error is an angle and a share of the length, and kept lengths are kept exactly.

Shapes: states ``x (..., n, d)``, lengths ``r (..., n, 1)``.

Source: 2510.22026.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..tokens import Tokens
from .fields import Field
from .spaces import Space, Sphere

FAR = 0.9 * math.pi  # angle at which normal coordinates are left


class Normalised(Space):
    """The residual stream ``x = r theta`` under a normalisation scheme.

    ============ ============================================== =============================================
    scheme       motion                                         layer, ``A = A(theta)``
    ============ ============================================== =============================================
    ``post-ln``  ``s = 1``, r kept                              ``r normalise(theta + h A)``
    ``pre-ln``   ``s = r``, ``r' = <theta, A>``: ``x' = A``     ``x + h A``
    ``mix-ln``   post-ln before ``switch``, then pre-ln         these
    ``peri-ln``  ``s = r |A|``: ``x' = A / |A|``                ``x + h A / |A|``
    ``ngpt``     ``s = |A| / alpha``, r kept                    ``r normalise(theta + h alpha A / |A|)``
    ``sqrt-ln``  ``s = sqrt(t + 1)``, r kept                    ``r normalise(theta + h A / sqrt(t + 1))``
    ============ ============================================== =============================================

    Observables and events see the directions and their velocities; lengths are ``radius(states)``. The Layer stepper under
    ``mix-ln`` needs a switch that falls between two layers.

    Args:
        scheme: a name of the table.
        alpha: the step scale of ``ngpt``.
        switch: the time of ``mix-ln``.

    Raises:
        ValueError: a scheme that is not known, alpha not positive, a switch without ``mix-ln`` or ``mix-ln`` without a switch; a
            start with a zero vector.

    >>> Normalised("pre-ln")
    Normalised('pre-ln')
    """

    def __init__(self, scheme: str, alpha: float = 1.0, *, switch: float | None = None):
        from .theory import SCHEMES  # here: it brings SciPy's integrators

        names = [*SCHEMES, "mix-ln"]
        if scheme not in names:
            raise ValueError(f"Normalised: scheme is {scheme!r}; expected one of {', '.join(names)}.")
        if not (alpha > 0 and math.isfinite(alpha)) or (alpha != 1 and scheme != "ngpt"):
            raise ValueError(
                f"Normalised: alpha is {alpha} for {scheme}; expected a positive number, and 1 for schemes other than ngpt."
            )
        if (switch is None) == (scheme == "mix-ln"):
            raise ValueError(
                f"Normalised: switch is {switch} for {scheme}; expected a time for mix-ln, which is post-ln before it and pre-ln "
                "after, and none for others."
            )
        self.scheme, self.alpha, self.switch = scheme, alpha, switch
        self._slowness = SCHEMES["post-ln" if scheme == "mix-ln" else scheme].slowness
        self.breaks = () if switch is None else (float(switch),)

    def at(self, t: float) -> Space:
        if self.switch is None:
            return self
        return Normalised("post-ln" if t < self.switch else "pre-ln")

    @property
    def keeps_radius(self) -> bool:
        """Whether tokens keep their length."""
        return self.scheme not in ("pre-ln", "peri-ln", "mix-ln")

    def check(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        """The start.

        Raises:
            ValueError: not finite, or a zero vector with mass.
        """
        x = super().check(x)
        zero = x.norm(dim=-1) == 0
        if bool((zero if mass is None else zero & (mass > 0)).any()):
            raise ValueError(
                "Normalised: a token is the zero vector, which has no direction; give it one, or mass 0."
            )
        return x

    def notes(self, x: Tensor) -> tuple[str, ...]:
        return Sphere().notes(self.points(x))

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        theta, push = self._push(field, x, tokens, t)
        return Sphere().tangent(theta, push) if self.keeps_radius else push

    def layer(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        return self.retract(x, h * self._push(field, x, tokens, t)[1])

    def _push(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Directions, and ``(r / s) A``."""
        if self.switch is not None:
            if isinstance(t, Tensor):
                raise ValueError(
                    "Normalised: mix-ln at a time for each system; take .at(t) on one side of the switch."
                )
            return Normalised("post-ln" if t < self.switch else "pre-ln")._push(field, x, tokens, t)
        r, theta = self.radius(x), self.points(x)
        a = field(theta, tokens, t)
        size = a.norm(dim=-1, keepdim=True)
        s = torch.as_tensor(self._slowness(r, size, t, self.alpha)).to(x)  # type: ignore[arg-type]
        # nothing pulls at these, or they are absent
        return theta, torch.where(s > 0, r / torch.where(s > 0, s, 1.0), 0.0) * a

    def radius(self, x: Tensor) -> Tensor:
        """Lengths ``(..., n, 1)``."""
        return x.norm(dim=-1, keepdim=True)

    def points(self, x: Tensor) -> Tensor:
        """Directions."""
        r = self.radius(x)
        return x / torch.where(r > 0, r, 1.0)

    def vectors(self, x: Tensor, v: Tensor) -> Tensor:
        """The velocity of the direction."""
        r = self.radius(x)
        return Sphere().tangent(self.points(x), v) / torch.where(r > 0, r, 1.0)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        r, theta = self.radius(x), self.points(x)
        u = u / torch.where(r > 0, r, 1.0)
        grown = (u * theta).sum(-1, keepdim=True)
        turned = Sphere().exp(theta, u - grown * theta)
        return (r * grown.exp() if not self.keeps_radius else r) * turned

    def between(self, x: Tensor, y: Tensor, share: Tensor | float) -> Tensor:
        """Directions along their arc, lengths in geometric progression."""
        r, far = self.radius(x), self.radius(y)
        present = (r > 0) & (far > 0)
        length = torch.where(present, r, 1.0) ** (1 - share) * torch.where(present, far, 1.0) ** share
        turned = Sphere().between(self.points(x), self.points(y), share)
        return torch.where(present, length, 0.0) * turned

    def pull(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        r, theta, y = self.radius(x), self.points(x), self.exp(x, u)
        safe = torch.where(r > 0, r, 1.0)
        u = u / safe
        u = u - (u * theta).sum(-1, keepdim=True) * theta
        far, end = self.radius(y), self.points(y)
        v = v / torch.where(far > 0, far, 1.0)
        grown = (v * end).sum(-1, keepdim=True)
        out = Sphere().pull(theta, u, v - grown * end) + grown * theta
        # past the antipode there are no such coordinates: the step is refused
        return torch.where(u.norm(dim=-1, keepdim=True) < FAR, safe * out, torch.nan)

    def retract(self, x: Tensor, a: Tensor) -> Tensor:
        moved = x + a
        return self.radius(x) * self.points(moved) if self.keeps_radius else moved

    def tangent(self, x: Tensor, a: Tensor) -> Tensor:
        """The part of a that turns x: noise leaves lengths as they are, and turns long tokens less."""
        return Sphere().tangent(self.points(x), a)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Angles between directions, and the logarithm of the ratio of lengths, as one length."""
        angle = Sphere().distance(self.points(x), self.points(y))
        return torch.hypot(angle, (self.radius(y) / self.radius(x)).log().squeeze(-1))

    def __repr__(self) -> str:
        more = "" if self.switch is None else f", switch={self.switch:g}"
        return f"Normalised({self.scheme!r}{f', alpha={self.alpha:g}' if self.alpha != 1 else ''}{more})"
