"""What q~ and k~ are: rows of length 1, one scale for a whole set or batch, or the rows as they came."""

from __future__ import annotations

import torch
from torch import Tensor

from ...tokens import Tokens

NORMALIZATIONS = ("row", "frobenius", "none")
SCOPES = ("set", "batch")


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their length, in float32 or better; rows without a direction give 0 and gradient 0."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    dead = norm <= torch.finfo(x.dtype).tiny ** 0.5
    return torch.where(dead, 0.0, x / norm.masked_fill(dead, 1.0))


def frobenius_rows(x: Tensor, tokens: Tokens, scope: str = "set", joint_heads: bool = True) -> Tensor:
    """``x / |x|_F`` for points ``(..., H, n, d)``, in float32 or better."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    plain = tokens.with_mass(None)
    sums = plain.sum(square_norms(x, tokens.mass).unsqueeze(-1))  # (..., H, 1) or (..., H, S, 1)
    shape = sums.shape
    scales = inverse_norm(pool(sums.reshape(x.shape[:-3].numel(), x.shape[-3], -1), scope, joint_heads))
    return x * plain.spread(scales.reshape(shape))


def square_norms(x: Tensor, mass: Tensor | None) -> Tensor:
    """``m_i |x_i|^2`` of every row in float32 or better; rows of mass 0 count 0 whatever they hold."""
    if mass is not None:
        x = torch.where(mass.unsqueeze(-1) > 0, x, 0.0)
    square = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32)).square()
    return square if mass is None else square * torch.where(mass > 0, mass, 0.0).to(square.dtype)


def pool(squares_BHS: Tensor, scope: str, joint_heads: bool) -> Tensor:
    """Sums of squares over heads (``joint_heads``) and over sets (scope "batch"), spread back to ``(B, H, S)``."""
    over = ([1] if joint_heads else []) + ([0, 2] if scope == "batch" else [])
    return squares_BHS.sum(over, keepdim=True).expand_as(squares_BHS) if over else squares_BHS


def inverse_norm(squares: Tensor) -> Tensor:
    """``1 / sqrt(squares)``, and 0 with gradient 0 where there is nothing to scale."""
    empty = squares <= torch.finfo(squares.dtype).tiny
    # not rsqrt: its gradient, the power -3/2, overflows long before the root does
    return torch.where(empty, 0.0, squares.masked_fill(empty, 1.0).sqrt().reciprocal())
