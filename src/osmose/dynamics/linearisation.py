r"""Small motions around a state: the Jacobian of the velocity, its rates and directions, and how many of them lead away.

At a state at rest the rates are those of ``u' = J u`` in the tangent space; of a gradient flow J is the Hessian of the energy in the
flow's metric, rates are real, and the number of positive ones is the index of the saddle. ``d (d - 1) / 2`` of them are 0 at most,
those of rotations of all tokens.

Shapes: state ``(n, d)``, angles ``(n, 1)``; ``r = n (d - 1)`` coordinates on the sphere, n d in flat spaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import Tokens
from .fields import Field
from .spaces import Circle, Euclidean, Space, Sphere
from .terms import Attention

COORDINATES = 4096  # a Jacobian of so many is 128 MiB


@dataclass(frozen=True, eq=False)
class Linearisation:
    """What :func:`linearise` finds.

    Attributes:
        jacobian: ``(r, r)`` in an orthonormal basis of the tangent space.
        rates: eigenvalues ``(r,)``, complex, the fastest growing first.
        directions: tangent vectors of the same order ``(r, n, d)``, complex, of length 1.
        speed: of the fastest token at the state; the rates mean growth around it only where this is 0.
    """

    jacobian: Tensor
    rates: Tensor
    directions: Tensor
    speed: float

    def index(self, tolerance: float = 1e-9) -> int:
        """How many rates lead away: real part above the tolerance. 0 at a state that is stable, or neutral."""
        return int((self.rates.real > tolerance).sum())


def linearise(
    field: Field,
    x: Tensor,
    *,
    space: Space | None = None,
    tokens: Tokens | None = None,
    t: float = 0.0,
) -> Linearisation:
    """The velocity of a field around a state, to first order.

    Args:
        field: differentiable (not ``kernel="hardmax"``, whose derivative is 0 or undefined).
        x: ``(n, d)``, one system, float64 for rates that mean something.
        space: None is the sphere; :class:`Circle` and :class:`Euclidean` are the others.
        tokens: masses; absent tokens are not moved and have no coordinates.
        t: time, for fields that depend on it.

    Raises:
        ValueError: a batch, more than 4096 coordinates, another space, a hard maximum.

    Cost: r backward passes and an eigenvalue problem, ``r^3``; memory ``r^2``.

    >>> from osmose.dynamics import Attention
    >>> linearise(Field(Attention(1.0)), torch.eye(2, dtype=torch.float64)[:1].repeat(3, 1)).index()
    0
    """
    space = space or Sphere()
    if not isinstance(space, (Sphere, Circle, Euclidean)):
        raise ValueError(f"linearise: space is {space!r}; expected Sphere(), Circle() or Euclidean().")
    if any(isinstance(term, Attention) and term.kernel == "hardmax" for term in field.terms):
        raise ValueError(
            "linearise: the field holds a hard maximum, which has no derivative; expected another kernel."
        )
    if x.ndim != 2:
        raise ValueError(f"linearise: x has shape {tuple(x.shape)}; expected one system (n, d).")
    if x.shape[-1] < 2 and isinstance(space, Sphere):
        raise ValueError(
            f"linearise: x has shape {tuple(x.shape)}; expected d of 2 or more, where tokens can move."
        )
    mass = None if tokens is None or tokens.mass is None else tokens.mass.to(x.dtype)
    x = space.check(x.detach(), mass)
    here = torch.ones(len(x), dtype=torch.bool) if mass is None else mass > 0
    basis = _basis(space, x)  # (n, d, c)
    rows = here.nonzero().squeeze(-1)
    shape = (len(rows), basis.shape[-1])
    if shape[0] * shape[1] > COORDINATES:
        raise ValueError(
            f"linearise: {shape[0]} tokens have {shape[0] * shape[1]} coordinates; expected at most {COORDINATES}. Take fewer "
            "tokens."
        )

    def velocity(u: Tensor) -> Tensor:
        moved = torch.einsum("ndc,nc->nd", basis[rows], u.reshape(shape))
        y = space.retract(x, torch.zeros_like(x).index_copy(0, rows, moved))
        v = space.velocity(field, y, tokens, t)
        return torch.einsum("ndc,nd->nc", basis[rows], v[rows]).reshape(-1)

    still = torch.zeros(shape[0] * shape[1], dtype=x.dtype, device=x.device)
    jacobian = torch.autograd.functional.jacobian(velocity, still)
    assert isinstance(jacobian, Tensor)
    rates, vectors = torch.linalg.eig(jacobian)
    order = rates.real.argsort(descending=True)
    parts = vectors.mT[order].reshape(-1, *shape)
    directions = torch.zeros(len(rates), *x.shape, dtype=parts.dtype, device=x.device)
    directions[:, rows] = torch.einsum("ndc,rnc->rnd", basis[rows].to(parts.dtype), parts)
    speed = float(space.velocity(field, x, tokens, t)[rows].norm(dim=-1).max()) if len(rows) else 0.0
    return Linearisation(jacobian, rates[order], directions, speed)


def _basis(space: Space, x: Tensor) -> Tensor:
    """Orthonormal tangent vectors of every token, ``(n, d, c)``."""
    if isinstance(space, Sphere):
        # the complement of x_i: all but the first column of a QR factorisation that begins with it
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        return torch.linalg.qr(torch.cat([x.unsqueeze(-1), eye], -1))[0][..., 1:]
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
