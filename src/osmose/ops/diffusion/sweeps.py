"""The four sweeps of the simple kernel: moments of the sources, outputs, and the two halves of backward.

Every function works on one block of rows: elementwise work is done for the block at once, products for each
of its pieces, the rows of one set. Row scales carry the norms: ``q~ = r q``,
``k~ = w k``. The letters of the derivation are in README.md.

Shapes: ``L`` rows of a block, ``d`` key channels, ``c`` value channels; with several heads a head dimension
stands in front of everything. Moments of a set: ``(d + 1, c + 1)``, the sum over sources of
``m [k~, 1]^T [v, 1]``.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..blocks import Block, Workspace, add_product, pieces, product


class Moments:
    """Views of the moments ``(sets, ..., d + 1, c + 1)`` of a group, one of each kind for every set."""

    def __init__(self, moments: Tensor):
        self.whole = moments

    @cached_property
    def values(self) -> tuple[Tensor, ...]:
        """``[S; sum m v]``"""
        return self.whole[..., :-1].unbind(0)

    @cached_property
    def sums(self) -> tuple[Tensor, ...]:
        """``[z; sum m]``"""
        return self.whole[..., -1].unbind(0)

    @cached_property
    def keys(self) -> tuple[Tensor, ...]:
        """``[S, z]``"""
        return self.whole[..., :-1, :].unbind(0)

    @cached_property
    def product(self) -> tuple[Tensor, ...]:
        """``S``"""
        return self.whole[..., :-1, :-1].unbind(0)

    @cached_property
    def key_sum(self) -> tuple[Tensor, ...]:
        """``z`` as a column"""
        return self.whole[..., :-1, -1:].unbind(0)

    @cached_property
    def last(self) -> tuple[Tensor, ...]:
        """``[sum m v, sum m]``"""
        return self.whole[..., -1:, :].unbind(0)


def unit_scale(x: Tensor, out: Tensor) -> None:
    """Write ``1 / |x|`` of every row, at most ``1 / sqrt(tiny)``; see :func:`no_direction`."""
    torch.linalg.vector_norm(x, dim=-1, out=out)
    out.clamp_min_(torch.finfo(out.dtype).tiny ** 0.5).reciprocal_()


def no_direction(dtype: torch.dtype) -> float:
    """The scale above which a row counts as 0."""
    return 0.999 * torch.finfo(dtype).tiny ** -0.5


def add_moments(
    moments: Moments,
    block: Block,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    mass: Tensor | None,
    work: Workspace,
    whole: bool,
) -> None:
    """Add ``sum_j m_j [k~_j, 1]^T [v_j, 1]`` of every piece to its set's moments, or write it if pieces are ``whole`` sets."""
    keys = _extended(k, scale, mass, work)
    for s, kp, vp in zip(block.sets, pieces(keys, block), pieces(v, block), strict=True):
        if whole:
            product(kp.mT, vp, moments.values[s])
            torch.sum(kp, -2, out=moments.sums[s])
        else:
            add_product(moments.values[s], kp.mT, vp)
            moments.sums[s].add_(kp.sum(-2))


def apply_moments(
    moments: Moments,
    block: Block,
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    keep: Tensor | None,
    out: Tensor,
    inverse: Tensor,
    work: Workspace,
) -> None:
    """Write ``a_i = (sum m v + S^T q~_i) / (total + z . q~_i)`` and the inverse of its denominator."""
    d = q.shape[-1]
    column = inverse.unsqueeze(-1)
    for s, qp, ip in zip(block.sets, pieces(q, block), pieces(column, block), strict=True):
        product(qp, moments.key_sum[s], ip)
    inverse.mul_(scale).add_(total).reciprocal_().nan_to_num_(torch.nan, 0.0, 0.0)
    if keep is not None:
        inverse.mul_(keep)
    queries = work.get("extended", q.shape[-2], d + 1)
    torch.mul(q, (scale * inverse).unsqueeze(-1), out=queries[..., :d])
    queries[..., d] = inverse
    for s, qp, op in zip(block.sets, pieces(queries, block), pieces(out, block), strict=True):
        product(qp, moments.values[s], op)


def target_backward(
    moments: Moments,
    d_moments: Moments,
    block: Block,
    q: Tensor,
    scale: Tensor,
    inverse: Tensor,
    out: Tensor,
    grad: Tensor,
    dq: Tensor,
    work: Workspace,
) -> None:
    """Write ``r dL/dq~`` and add ``dL/dmoments``, from the gradient of the outputs."""
    rows, c = grad.shape[-2:]
    h = torch.mul(grad, out, out=work.get("product", rows, c)).sum(-1)
    factor = scale * inverse
    grads = work.get("extended", rows, c + 1)
    torch.mul(grad, factor.unsqueeze(-1), out=grads[..., :c])
    torch.mul(h.neg_(), factor, out=grads[..., c])
    norm = scale.reciprocal().expand(q.shape[:-1]).unsqueeze(-1)
    parts = (pieces(x, block) for x in (q, grads, norm, dq))
    for s, qp, gp, np, dqp in zip(block.sets, *parts, strict=True):
        product(gp, moments.keys[s].mT, dqp)
        add_product(d_moments.keys[s], qp.mT, gp)
        add_product(d_moments.last[s], np.mT, gp)


def source_backward(
    d_moments: Moments,
    block: Block,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    mass: Tensor | None,
    dk: Tensor,
    dv: Tensor,
    work: Workspace,
) -> None:
    """Write ``dL/dv`` and, not yet multiplied by ``m_j w_j``, ``dL/dk~``, from ``dL/dmoments``."""
    keys = _extended(k, scale, mass, work)
    parts = (pieces(x, block) for x in (keys, v, dk, dv))
    for s, kp, vp, dkp, dvp in zip(block.sets, *parts, strict=True):
        product(kp, d_moments.values[s], dvp)
        product(vp, d_moments.product[s].mT, dkp, d_moments.key_sum[s].mT)


def project(x: Tensor, scale: Tensor, dx: Tensor, work: Workspace) -> None:
    """Remove from ``dx`` its part along ``x``."""
    along = torch.mul(x, dx, out=work.get("product", *x.shape[-2:])).sum(-1)
    dx.addcmul_(x, along.mul_(scale).mul_(scale).unsqueeze(-1), value=-1)


def _extended(x: Tensor, scale: Tensor, mass: Tensor | None, work: Workspace) -> Tensor:
    """``m [x~, 1]``."""
    d = x.shape[-1]
    y = work.get("extended", x.shape[-2], d + 1)
    torch.mul(x, (scale if mass is None else scale * mass).unsqueeze(-1), out=y[..., :d])
    y[..., d] = 1.0 if mass is None else mass
    return y
