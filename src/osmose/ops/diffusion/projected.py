"""DIFFormer-s under the Frobenius norm straight from the state: queries and keys are never formed.

With ``x^ = [x, 1]``, ``Q = x^ Wq^`` (the bias is the last row of ``Wq^``), ``K`` alike and the source state as value,
``G = y^T y^`` over the sources and ``s = 1 / (|Q|_F |K|_F)``,

    [sum_j (1 + s q_i . k_j) y_j,  sum_j (1 + s q_i . k_j)]  =  x^_i (e e^T + s Wq^ Wk^^T) G,   e = (0, ..., 0, 1),

and ``|Q|_F^2 = tr(Wq^^T G_x Wq^)``. One Gram matrix and one product with the state replace the two projections and the
two products of attention. A norm of each row would need the rows, so this is for one scale a set alone.

Shapes: ``n`` targets, ``m`` sources, ``c`` channels, ``C = c + 1``, ``H`` heads, ``d`` key channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .normalize import inverse_norm

__all__ = ["projected_simple_attention"]


def projected_simple_attention(
    x: Tensor, y: Tensor | None, query: nn.Linear, key: nn.Linear, num_heads: int
) -> Tensor:
    """Every head of ``diffusion_attention(query(x), key(y), y, normalization="frobenius")`` for one set or more of mass 1.

    Args:
        x: ``(..., n, c)``, targets.
        y: ``(..., m, c)``, sources and their values; None means x.
        query, key: projections ``c`` to ``H d``, heads one after the other.
        num_heads: H; the norm runs over all heads.

    Returns:
        ``(..., H, n, c)``, of the dtype of x. Sums in float32 or better, under autocast too.

    Cost: time ``(m + H n) c^2 + H c^2 d``; memory the output and ``H C^2``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x_ = x.to(dtype)
        moments_x = _moments(x_)
        moments_y = moments_x if y is None else _moments(y.to(dtype))
        wq_HCd, wk_HCd = (_homogeneous(layer, num_heads, dtype) for layer in (query, key))
        scale = _inverse_frobenius(wq_HCd, moments_x) * _inverse_frobenius(wk_HCd, moments_y)
        moments_y = moments_y.unsqueeze(-3)
        pairs = (scale * wq_HCd) @ (wk_HCd.mT @ moments_y)
        matrix = torch.cat([pairs[..., :-1, :], pairs[..., -1:, :] + moments_y[..., -1:, :]], -2)
        return _Ratio.apply(x_.unsqueeze(-3), matrix).to(x.dtype)


def _moments(x: Tensor) -> Tensor:
    """``x^T x^`` of ``x^ = [x, 1]``, ``(..., C, C)``."""
    total = x.sum(-2).unsqueeze(-1)
    count = total.new_full((*total.shape[:-2], 1, 1), x.shape[-2])
    return torch.cat([torch.cat([_Gram.apply(x), total], -1), torch.cat([total, count], -2).mT], -2)


def _homogeneous(layer: nn.Linear, num_heads: int, dtype: torch.dtype) -> Tensor:
    """Weight and bias as one matrix ``(H, C, d)`` for rows ``[x, 1]``."""
    weight = layer.weight.to(dtype).unflatten(0, (num_heads, -1)).mT
    bias = layer.bias.to(dtype).unflatten(0, (num_heads, 1, -1))
    return torch.cat([weight, bias], -2)


def _inverse_frobenius(weight_HCd: Tensor, moments: Tensor) -> Tensor:
    """``1 / |x^ W^|_F`` over all heads, ``(..., 1, 1, 1)``."""
    square = (weight_HCd * (moments.unsqueeze(-3) @ weight_HCd)).sum((-3, -2, -1), keepdim=True)
    return inverse_norm(square)


class _Gram(torch.autograd.Function):
    """``x^T x``, whose gradient is one product, not two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.mT @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x @ (grad + grad.mT)


class _Ratio(torch.autograd.Function):
    """``z = [x, 1] A``; its first columns over its last one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        z = x @ matrix[..., :-1, :]
        z += matrix[..., -1:, :]
        out, last = z[..., :-1], z[..., -1:]
        inverse = torch.where(last == 0, 0.0, last.reciprocal())
        out = out * inverse
        ctx.save_for_backward(x, matrix, out, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, matrix, out, inverse = ctx.saved_tensors
        dz = out.new_empty(*out.shape[:-1], out.shape[-1] + 1)
        torch.mul(grad, inverse, out=dz[..., :-1])
        torch.linalg.vecdot(dz[..., :-1], out, out=dz[..., -1]).neg_()
        dx = (dz @ matrix[..., :-1, :].mT).sum_to_size(x.shape)
        return dx, torch.cat([x.mT @ dz, dz.sum(-2, keepdim=True)], -2)
