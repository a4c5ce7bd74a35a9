r"""State spaces: where tokens live, which velocity a field gives them there, and how one moves along it.

Steppers work in the normal coordinates u of a state x: ``y = exp_x(u)``, and a velocity v at y is ``u' = pull(x, u, v)``. In flat
spaces u is a difference. On the sphere an error in u is an angle, and no step leaves it.

Shapes: states ``x (..., n, d)``, tangents ``u, v (..., n, d)``, masses ``(..., n)``; angles of the circle ``(..., n, 1)``.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from ..tokens import Tokens
from .fields import Field
from .terms import Attention

Off = Literal["normalise", "refuse"]
PAIRS = 2048  # tokens up to which all pairs of a start are looked at


class Space:
    """A space of tokens. Flat unless it says otherwise."""

    reach = math.inf  # length of a tangent that exp can follow
    breaks: tuple[float, ...] = ()  # times at which the motion is switched; no step goes over them

    def at(self, t: float) -> Space:
        """The space in force from time t on: itself, if nothing is switched."""
        return self

    def admit(self, field: Field) -> None:
        """Raise ValueError for a field that cannot run here."""

    def check(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        """The start of a run, made good or refused.

        Raises:
            ValueError: not finite, the wrong shape or type.
        """
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: the state is {x.dtype} of shape {tuple(x.shape)}; expected floats (..., n, d)."
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"{type(self).__name__}: the state holds NaN or infinite values; expected finite ones."
            )
        return x

    def notes(self, x: Tensor) -> tuple[str, ...]:
        """What is special about a start: manifolds that no trajectory leaves but by rounding."""
        return ()

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        """``dx/dt``, tangent at x."""
        return field(x, tokens, t)

    def layer(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        """``x + h A`` brought back to the space: a layer."""
        return self.retract(x, h * self.velocity(field, x, tokens, t))

    def euler(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        """``x + h v`` brought back to the space."""
        return self.retract(x, h * self.velocity(field, x, tokens, t))

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """The end of the geodesic from x along u."""
        return x + u

    def between(self, x: Tensor, y: Tensor, share: Tensor | float) -> Tensor:
        """The point a share of the way along the shortest path from x to y; share ``(..., 1, 1)`` or a number from 0 to 1."""
        return x + share * (y - x)

    def pull(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """A tangent v at ``exp_x(u)`` in the normal coordinates of x."""
        return v

    def retract(self, x: Tensor, a: Tensor) -> Tensor:
        """``x + a`` brought back to the space; a need not be tangent."""
        return x + a

    def tangent(self, x: Tensor, a: Tensor) -> Tensor:
        """The tangent part of a at x."""
        return a

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """How far tokens lie apart, ``(..., n)``."""
        return (x - y).norm(dim=-1)

    def size(self, x: Tensor) -> Tensor | float:
        """What an error of one token is relative to, ``(..., n)``; 1 where distances are angles."""
        return x.norm(dim=-1)

    def points(self, x: Tensor) -> Tensor:
        """The state as points of R^d, for observables and events."""
        return x

    def vectors(self, x: Tensor, v: Tensor) -> Tensor:
        """A tangent as a vector of R^d."""
        return v

    def seen(
        self, field: Field, x: Tensor, v: Tensor | None, tokens: Tokens | None, t: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Points and velocities in R^d, for observables and events; v None gives zeros."""
        return self.points(x), self.vectors(x, torch.zeros_like(x) if v is None else v)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Euclidean(Space):
    """``R^d``: ``x_i' = A_i``."""


class Sphere(Space):
    r"""``S^{d-1}``: ``x_i' = A_i - <x_i, A_i> x_i``.

    Args:
        off: what to do with a start whose tokens are longer or shorter than 1: ``normalise`` with a warning, or ``refuse``.
    """

    reach = math.pi

    def __init__(self, off: Off = "normalise"):
        if off not in ("normalise", "refuse"):
            raise ValueError(f"Sphere: off is {off!r}; expected 'normalise' or 'refuse'.")
        self.off = off

    def check(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        """Unit vectors.

        Raises:
            ValueError: zero vectors; with ``off='refuse'`` lengths other than 1.
        """
        x = super().check(x)
        absent = (
            torch.zeros_like(x[..., 0], dtype=torch.bool)
            if mass is None
            else (mass <= 0).expand(x.shape[:-1])
        )
        length = x.norm(dim=-1)
        if bool(((length == 0) & ~absent).any()):
            raise ValueError(
                "Sphere: a token is the zero vector, which has no direction; give it one, or mass 0."
            )
        off = torch.where(absent, 0.0, (length - 1).abs())
        worst = float(off.max()) if off.numel() else 0.0
        if worst > 1e4 * torch.finfo(x.dtype).eps:
            where = f"Sphere: tokens are off the sphere: a length differs from 1 by {worst:.3g}"
            if self.off == "refuse":
                raise ValueError(f"{where}; normalise them, or take Sphere(off='normalise').")
            warnings.warn(f"{where}; they were normalised.", stacklevel=3)
        return torch.where(absent.unsqueeze(-1), x, _unit(x))

    def notes(self, x: Tensor) -> tuple[str, ...]:
        n = x.shape[-2]
        if not 1 < n <= PAIRS:
            return ()
        out, eps = [], 64 * torch.finfo(x.dtype).eps
        g = x @ x.mT
        gram = g.masked_fill(torch.eye(n, dtype=torch.bool, device=x.device), 0.0)
        if bool((gram < -1 + eps).any()):
            out.append("antipodal: two tokens are opposite, and alone they would never meet (a saddle)")
        off = g[..., ~torch.eye(n, dtype=torch.bool, device=x.device)]
        equal = (off.amax(-1) - off.amin(-1)) < eps
        if n > 2 and bool((equal & (off[..., 0] < 1 - eps)).any()):
            out.append("equiangular: all inner products are equal, and stay so (an invariant manifold)")
        elif n > 2 and bool((x.sum(-2).norm(dim=-1) < n * eps).any()):
            out.append("balanced: the mean is 0; a symmetric start stays symmetric. Perturb it to leave")
        return tuple(out)

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        return self.tangent(x, field(x, tokens, t))

    def layer(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        return self.retract(x, h * field(x, tokens, t))

    def size(self, x: Tensor) -> float:
        return 1.0

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        angle = u.norm(dim=-1, keepdim=True)
        # once more to length 1: rounding would add up
        return _unit(angle.cos() * x + torch.sinc(angle / math.pi) * u)

    def between(self, x: Tensor, y: Tensor, share: Tensor | float) -> Tensor:
        towards = self.tangent(x, y - x)
        length = towards.norm(dim=-1, keepdim=True)
        # at the antipode every way is as short: one along an axis
        axis = torch.zeros_like(x).scatter_(-1, x.abs().argmin(-1, keepdim=True), 1.0)
        aside = _unit(self.tangent(x, axis))
        near = max(1e-12, 64 * torch.finfo(x.dtype).eps)  # below it the direction is rounding
        opposite = (length < near) & ((x * y).sum(-1, keepdim=True) < 0)
        way = torch.where(
            opposite, aside, _unit(self.tangent(x, towards / torch.where(length > 0, length, 1.0)))
        )
        return self.exp(x, share * self.distance(x, y).unsqueeze(-1) * way)

    def pull(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        a2 = u.square().sum(-1, keepdim=True)
        a = a2.sqrt()
        sinc = torch.sinc(a / math.pi)
        small = a < 0.03
        safe = torch.where(small, 1.0, a)
        curve = torch.where(
            small, 1 / 3 + a2 / 45 + 2 * a2**2 / 945 + a2**3 / 4725, (1 - safe / safe.tan()) / safe**2
        )
        along = a.cos() * (v * u).sum(-1, keepdim=True) - a2 * sinc * (v * x).sum(-1, keepdim=True)
        return v / sinc + along * (curve * u + x)

    def retract(self, x: Tensor, a: Tensor) -> Tensor:
        return _unit(x + a)

    def tangent(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.addcmul(a, (a * x).sum(-1, keepdim=True), x, value=-1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Angles, exact for close and for opposite tokens."""
        return 2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1))


class Circle(Space):
    r"""``S^1`` by angles ``(..., n, 1)``: ``theta_i' = <A_i, (-sin theta_i, cos theta_i)>``; angles are not wrapped."""

    def check(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        x = super().check(x)
        if x.shape[-1] != 1:
            raise ValueError(
                f"Circle: the state has shape {tuple(x.shape)}; expected angles (..., n, 1). Points of R^2 go to "
                "Circle.angles, or stay on Sphere()."
            )
        return x

    def notes(self, x: Tensor) -> tuple[str, ...]:
        return Sphere().notes(self.points(x))

    def size(self, x: Tensor) -> float:
        return 1.0

    @staticmethod
    def angles(points: Tensor) -> Tensor:
        """``(..., n, 2)`` to angles ``(..., n, 1)``."""
        return torch.atan2(points[..., 1:], points[..., :1])

    def points(self, x: Tensor) -> Tensor:
        return torch.cat([x.cos(), x.sin()], -1)

    def vectors(self, x: Tensor, v: Tensor) -> Tensor:
        return v * torch.cat([-x.sin(), x.cos()], -1)

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        a = field(self.points(x), tokens, t)
        return a[..., 1:] * x.cos() - a[..., :1] * x.sin()

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().squeeze(-1)


class Rescaled(Space):
    r"""``z_i = e^{-tV} x_i`` for tokens without a sphere: ``z_i' = sum_j P_ij(e^{tV} z) V (z_j - z_i)``.

    What ``x`` does without bound, z does within the hull of its start (V >= 0): clusters of directions become points.

    Args:
        value: V ``(d, d)``, or a number that multiplies the identity. The field must be one :class:`Attention` under the law
            row with this value.

    Source: 2305.05465, section 1.
    """

    def __init__(self, value: Tensor | float = 1.0):
        self.value = value
        self._spectrum = _spectrum(value) if isinstance(value, Tensor) and value.ndim == 2 else None

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        if isinstance(t, (int, float)):
            field = field.at(t)
        term = field.terms[0] if len(field.terms) == 1 else None
        if field.drift is not None or not isinstance(term, Attention) or term.law_name != "row":
            raise ValueError(
                f"Rescaled: the field is {field!r}; expected one Attention under law='row', without a drift."
            )
        given = 1.0 if term.value is None else term.value
        v = torch.as_tensor(self.value, dtype=x.dtype, device=x.device)
        same = torch.as_tensor(given, dtype=x.dtype, device=x.device)
        if v.shape != same.shape or not torch.equal(v, same):
            raise ValueError("Rescaled: its value is not that of the field; expected the same V for both.")
        difference = term.carry(self.unscale(x, t), x, tokens) - x
        return difference @ v.mT if v.ndim else v * difference

    def unscale(self, z: Tensor, t: float | Tensor) -> Tensor:
        """``x = e^{tV} z``. A symmetric V is taken apart once; for one that is diagonal no coordinate sees the rounding of another."""
        v = torch.as_tensor(self.value, dtype=z.dtype, device=z.device)
        t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
        if not v.ndim:
            return torch.exp(t * v) * z
        if self._spectrum is not None:
            rates, basis = (y.to(z) for y in self._spectrum)
            return (z @ basis * torch.exp(t * rates)) @ basis.mT
        return z @ torch.linalg.matrix_exp(t * v).mT

    def __repr__(self) -> str:
        shown = tuple(self.value.shape) if isinstance(self.value, Tensor) else self.value
        return f"Rescaled(value={shown})"


def _spectrum(v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues ``(d,)`` and eigenvectors in columns, of a symmetric V that is no parameter of a derivative."""
    if v.shape[0] != v.shape[1] or v.requires_grad or not torch.equal(v, v.mT):
        return None
    if torch.equal(v, torch.diag(v.diagonal())):
        return v.diagonal(), torch.eye(len(v), dtype=v.dtype, device=v.device)
    return torch.linalg.eigh(v.double())


def _unit(x: Tensor) -> Tensor:
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)
