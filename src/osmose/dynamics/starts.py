r"""Starts: seeded configurations of tokens from which runs begin.

Shapes: ``(..., n, d)``, float64; leading numbers of ``shape`` are systems.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for everything random of a run."""
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Independent and uniform on the sphere: normalised Gaussians.

    >>> uniform(5, 3, generator=seeded(0)).norm(dim=-1).allclose(torch.ones(5, dtype=torch.float64))
    True
    """
    _check("uniform", shape)
    x = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return x / x.norm(dim=-1, keepdim=True)


def hemisphere(*shape: int, generator: torch.Generator) -> Tensor:
    """Independent and uniform on the half-sphere of positive last coordinate."""
    x = uniform(*shape, generator=generator)
    return torch.cat([x[..., :-1], x[..., -1:].abs()], -1)


def cap(*shape: int, angle: float, generator: torch.Generator) -> Tensor:
    """Independent and uniform in the tangent ball of radius ``angle`` around the last axis, brought up by the exponential map."""
    _check("cap", shape)
    if not 0 < angle <= math.pi:
        raise ValueError(f"cap: angle is {angle}; expected radians above 0, at most pi.")
    d = shape[-1]
    if d < 2:
        raise ValueError(f"cap: shape is {shape}; expected d of 2 or more.")
    flat = uniform(*shape[:-1], d - 1, generator=generator) if d > 2 else _signs(shape, generator)
    r = angle * torch.rand(*shape[:-1], 1, dtype=torch.float64, generator=generator) ** (1 / (d - 1))
    return torch.cat([r.sin() * flat, r.cos()], -1)


def box(*shape: int, width: float, generator: torch.Generator) -> Tensor:
    """Independent and uniform in ``[-width, width]^d``, for tokens without a sphere."""
    _check("box", shape)
    if not (width > 0 and math.isfinite(width)):
        raise ValueError(f"box: width is {width}; expected a positive number.")
    return width * (2 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1)


def equiangular(n: int, d: int, rho: float = 0.0) -> Tensor:
    """n unit vectors of R^d whose inner products are all rho: an invariant manifold of SA and USA.

    Raises:
        ValueError: a rho that n vectors cannot have, ``-1/(n-1) <= rho <= 1``; too few dimensions (n, or n - 1 for the simplex).
    """
    least = -1.0 / (n - 1) if n > 1 else 1.0
    if not least - 1e-12 <= rho <= 1:
        raise ValueError(f"equiangular: rho is {rho} for n = {n}; expected {least:.6g} to 1.")
    gram = torch.full((n, n), float(rho), dtype=torch.float64)
    gram.fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh(gram)
    rank = int((values > 1e-9).sum())
    if rank > d:
        raise ValueError(f"equiangular: d is {d}; expected at least {rank} for n = {n}, rho = {rho}.")
    x = torch.zeros(n, d, dtype=torch.float64)
    x[:, :rank] = vectors[:, n - rank :] * values[n - rank :].sqrt()
    return x / x.norm(dim=-1, keepdim=True)


def on_circle(angles: Tensor) -> Tensor:
    """Unit vectors ``(..., n, 2)`` of angles ``(..., n)``."""
    return torch.stack([angles.cos(), angles.sin()], -1)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, (*shape[:-1], 1), generator=generator).double() - 1


def _check(what: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{what}: shape is {shape}; expected (..., n, d), all at least 1.")
