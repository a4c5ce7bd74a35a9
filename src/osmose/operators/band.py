"""Products with banded Toeplitz matrices: every row is the same few weights, one place further.

Shapes: ``...`` leading dimensions, ``m`` sources, ``n`` targets, ``c`` channels, ``K`` offsets, ``G`` groups of channels
that share their weights, ``P`` merged leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def band_product(x: Tensor, weights: Tensor, low: int, n: int) -> Tensor:
    """``y_i = sum_k w_k x_{i + low + k}`` for targets ``0 <= i < n``; what lies outside of ``x`` reads 0.

    Args:
        x: ``(..., m, c)``.
        weights: ``(..., K)``; its leading dimensions broadcast with those of ``x``.
        low: the offset source - target of the first weight; the others follow one by one.
        n: number of targets.

    Returns:
        ``(..., n, c)``.

    Cost: time ``n K c``, memory O(n c), forward and backward. In float32 it is one depthwise convolution, else K slices.
    The second derivative of the convolution is not provided and raises.
    """
    lead = torch.broadcast_shapes(weights.shape[:-1], x.shape[:-2])
    if not (n and x.shape[-2] and x.shape[-1] and lead.numel()):
        return _nothing(x, weights, n)
    if x.dtype == torch.float32 and weights.dtype == torch.float32:
        return _by_convolution(x.expand(*lead, *x.shape[-2:]), weights, low, n)
    return slices_product(x, weights, range(low, low + weights.shape[-1]), n)


def channel_band_product(
    x: Tensor, weights: Tensor, low: int, n: int, *, beside: Tensor | None = None
) -> Tensor:
    """:func:`band_product` with weights ``(c, K)`` of their own for every channel of ``x (..., m, c)``.

    ``beside (..., n, c)`` is added to it, at the price of no other tensor.
    """
    lead, (m, c) = x.shape[:-2], x.shape[-2:]
    if n and m and lead.numel() and x.dtype == torch.float32 and weights.dtype == torch.float32:
        parts = (None if t is None else t.reshape(-1, *t.shape[-2:]) for t in (x, beside))
        out = _DepthwiseBand.apply(next(parts), weights, low, n, next(parts))
        return out.reshape(*lead, n, c)
    if beside is not None:
        return beside + channel_band_product(x, weights, low, n)
    grouped = x.unsqueeze(-1).transpose(-3, -2)  # (..., c, m, 1)
    return band_product(grouped, weights, low, n).transpose(-3, -2).squeeze(-1)


def slices_product(x: Tensor, weights: Tensor, offsets: Iterable[int], n: int) -> Tensor:
    """:func:`band_product` for any offsets, a weight each: one multiple of a slice for each of them. Time ``n K c``."""
    m, out = x.shape[-2], _nothing(x, weights, n)
    for k, d in enumerate(offsets):
        first, last = max(0, -d), min(n, m - d)  # the targets whose source i + d exists
        if first < last:
            part = weights[..., k, None, None] * x[..., first + d : last + d, :]
            out = out + F.pad(part, (0, 0, first, n - last))
    return out


def _nothing(x: Tensor, weights: Tensor, n: int) -> Tensor:
    """Zeros in the shape of a product, that depend on both operands."""
    lead = torch.broadcast_shapes(weights.shape[:-1], x.shape[:-2])
    return (x[..., :0, :].sum() + weights[..., :0].sum()).expand(*lead, n, x.shape[-1])


def _by_convolution(x: Tensor, weights: Tensor, low: int, n: int) -> Tensor:
    """Leading dimensions that the weights have become channels, the others become the batch."""
    lead, (m, c) = x.shape[:-2], x.shape[-2:]
    while weights.ndim > 1 and weights.shape[0] == 1:
        weights = weights.squeeze(0)
    first = len(lead) - weights.ndim + 1
    batch, groups = lead[:first], lead[first:]
    x_PmC = x.movedim(-2, first).reshape(math.prod(batch), m, math.prod(groups) * c)
    w_CK = weights.expand(*groups, weights.shape[-1]).reshape(-1, 1, weights.shape[-1]).expand(-1, c, -1)
    out = _DepthwiseBand.apply(x_PmC, w_CK.flatten(0, 1), low, n, None)
    return out.reshape(*batch, n, *groups, c).movedim(first, -2)


class _DepthwiseBand(torch.autograd.Function):
    """``y[p, i, c] = z[p, i, c] + sum_k w[c, k] x[p, i + low + k, c]`` for ``x (P, m, C)``, ``w (C, K)``, ``z`` or nothing.

    oneDNN's depthwise convolution of channels-last images of height 1 makes one pass over ``x``, an order faster than
    the one of sequences; its gradient of the weights is fast for images of width 1 instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, low: int, n: int, z: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.low, ctx.n = low, n
        out = _correlate(x, w, low, n)
        return out if z is None else out.add_(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        low, n, (m, k) = ctx.low, ctx.n, (x.shape[1], w.shape[1])
        dx, dw, dz = None, None, grad if ctx.needs_input_grad[4] else None
        if ctx.needs_input_grad[0]:
            dx = _correlate(grad, w.flip(-1), -(low + k - 1), m)
        if ctx.needs_input_grad[1]:
            pad, start, length = _padding(m, k, low, n)
            if (start, length) != (0, n):
                grad = F.pad(grad, (0, 0, start, length - start - n))
            with torch.autocast(x.device.type, enabled=False):
                dw = torch.ops.aten.convolution_backward(
                    _column(grad), _column(x), w[:, None, :, None],
                    None, [1, 1], [pad, 0], [1, 1], False, [0, 0], len(w), [False, True, False],
                )[1].reshape(w.shape)  # fmt: skip
        return dx, dw, None, None, dz


def _correlate(x: Tensor, w: Tensor, low: int, n: int) -> Tensor:
    pad, start, _ = _padding(x.shape[1], w.shape[1], low, n)
    with torch.autocast(x.device.type, enabled=False):
        out = F.conv2d(_line(x), w[:, None, None, :], padding=(0, pad), groups=len(w))
    return out.squeeze(-2).mT[:, start : start + n]


def _line(x: Tensor) -> Tensor:
    """``(P, m, C)`` as images ``(P, C, 1, m)``, without a copy where channels lie together."""
    p, m, c = x.shape
    return x.contiguous().as_strided((p, c, 1, m), (m * c, 1, m * c, c))


def _column(x: Tensor) -> Tensor:
    """``(P, m, C)`` as images ``(P, C, m, 1)``: with these strides, though one says nothing, oneDNN is ten times faster."""
    p, m, c = x.shape
    return x.contiguous().as_strided((p, c, m, 1), (m * c, 1, c, c))


def _padding(m: int, k: int, low: int, n: int) -> tuple[int, int, int]:
    """Zeros on both sides of ``m`` sources, the output that is target 0, and the number of outputs."""
    pad = max(0, -low, n + low + k - 1 - m)
    return pad, low + pad, m + 2 * pad - k + 1
