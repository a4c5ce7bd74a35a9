"""The four sweeps of the simple kernel: moments of the sources, outputs, and the two halves of backward.

Every function works on one block of rows and a list of pieces, one for each set in the block; elementwise
work is done for the block at once, products for each piece. Row scales carry the norms: ``q~ = r q``,
``k~ = w k``. The letters of the derivation are in README.md.

Shapes: ``L`` rows of a block, ``d`` key channels, ``c`` value channels; with several heads a head dimension
stands in front of everything. Moments of a set: ``(d + 1, c + 1)``, the sum over sources of
``m [k~, 1]^T [v, 1]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pieces = tuple[tuple[int, int, int], ...]


class Workspace:
    """Block buffers, made once for a sweep. Rows begin at multiples of 64 bytes."""

    def __init__(self, like: Tensor, lead: tuple[int, ...], rows: int, dtype: torch.dtype):
        self.like, self.lead, self.rows, self.dtype = like, lead, rows, dtype
        self.buffers: dict[str, Tensor] = {}

    def get(self, name: str, rows: int, width: int) -> Tensor:
        """An uninitialised ``(..., rows, width)``."""
        if name not in self.buffers:
            shape = (*self.lead, self.rows, -(-width // 16) * 16)
            self.buffers[name] = self.like.new_empty(shape, dtype=self.dtype)
        return self.buffers[name][..., :rows, :width]


def unit_scale(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """``1 / |x|`` of every row, and which rows have no direction (None where all have); those get scale 1."""
    norm = torch.linalg.vector_norm(x, dim=-1)
    dead = norm <= torch.finfo(norm.dtype).tiny ** 0.5
    if not bool(dead.any()):
        return norm.reciprocal_(), None
    return norm.masked_fill_(dead, 1.0).reciprocal_(), dead


def add_moments(
    moments: Tensor, pieces: Pieces, k: Tensor, v: Tensor, scale: Tensor, mass: Tensor | None, work: Workspace
) -> None:
    """Add ``sum_j m_j [k~_j, 1]^T [v_j, 1]`` of every piece to its set's moments."""
    c = v.shape[-1]
    keys = _extended(k, scale, mass, work, "keys")
    for s, lo, hi in pieces:
        part = keys[..., lo:hi, :]
        _add_product(moments[s][..., :c], part.mT, v[..., lo:hi, :])
        moments[s][..., c].add_(part.sum(-2))


def apply_moments(
    moments: Tensor,
    pieces: Pieces,
    q: Tensor,
    scale: Tensor,
    total: Tensor,
    keep: Tensor | None,
    out: Tensor,
    inverse: Tensor,
    work: Workspace,
) -> None:
    """Write ``a_i = (sum m v + S^T q~_i) / (total + z . q~_i)`` and the inverse of its denominator."""
    d, c = q.shape[-1], out.shape[-1]
    for s, lo, hi in pieces:
        torch.matmul(q[..., lo:hi, :], moments[s][..., :d, c, None], out=inverse[..., lo:hi, None])
    inverse.mul_(scale).add_(total)
    empty = inverse == 0
    inverse.reciprocal_().masked_fill_(empty, 0.0)
    if keep is not None:
        inverse.mul_(keep)
    queries = work.get("queries", q.shape[-2], d + 1)
    torch.mul(q, (scale * inverse).unsqueeze(-1), out=queries[..., :d])
    queries[..., d] = inverse
    for s, lo, hi in pieces:
        _product(queries[..., lo:hi, :], moments[s][..., :c], out[..., lo:hi, :])


def target_backward(
    moments: Tensor,
    d_moments: Tensor,
    pieces: Pieces,
    q: Tensor,
    scale: Tensor,
    inverse: Tensor,
    out: Tensor,
    grad: Tensor,
    dq: Tensor,
    work: Workspace,
) -> None:
    """Write ``r dL/dq~`` and add ``dL/dmoments``, from the gradient of the outputs."""
    d, c = q.shape[-1], grad.shape[-1]
    h = torch.mul(grad, out, out=work.get("product", q.shape[-2], c)).sum(-1)
    factor = scale * inverse
    grads = work.get("grads", q.shape[-2], c + 1)
    torch.mul(grad, factor.unsqueeze(-1), out=grads[..., :c])
    torch.mul(h.neg_(), factor, out=grads[..., c])
    norm = scale.reciprocal().expand(q.shape[:-1]).unsqueeze(-2)
    for s, lo, hi in pieces:
        part = grads[..., lo:hi, :]
        _product(part, moments[s][..., :d, :].mT, dq[..., lo:hi, :])
        _add_product(d_moments[s][..., :d, :], q[..., lo:hi, :].mT, part)
        _add_product(d_moments[s][..., d:, :], norm[..., lo:hi], part)


def source_backward(
    d_moments: Tensor,
    pieces: Pieces,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    mass: Tensor | None,
    dk: Tensor,
    dv: Tensor,
    work: Workspace,
) -> None:
    """Write ``dL/dv`` and, not yet multiplied by ``m_j w_j``, ``dL/dk~``, from ``dL/dmoments``."""
    d, c = k.shape[-1], v.shape[-1]
    keys = _extended(k, scale, mass, work, "keys")
    for s, lo, hi in pieces:
        g = d_moments[s]
        _product(keys[..., lo:hi, :], g[..., :c], dv[..., lo:hi, :])
        bias = g[..., :d, c].unsqueeze(-2)
        _product(v[..., lo:hi, :], g[..., :d, :c].mT, dk[..., lo:hi, :], bias)


def project(x: Tensor, scale: Tensor, dx: Tensor, work: Workspace) -> Tensor:
    """Remove from ``dx`` its part along ``x``; the rows' ``x~ . dx`` come back."""
    along = torch.mul(x, dx, out=work.get("product", x.shape[-2], x.shape[-1])).sum(-1).mul_(scale)
    dx.addcmul_(x, (along * scale).unsqueeze(-1), value=-1)
    return along


def _extended(x: Tensor, scale: Tensor, mass: Tensor | None, work: Workspace, name: str) -> Tensor:
    """``m [x~, 1]``."""
    d = x.shape[-1]
    y = work.get(name, x.shape[-2], d + 1)
    torch.mul(x, (scale if mass is None else scale * mass).unsqueeze(-1), out=y[..., :d])
    y[..., d] = 1.0 if mass is None else mass
    return y


def _product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    if bias is not None:
        (torch.addmm if out.ndim == 2 else torch.baddbmm)(bias, a, b, out=out)
    elif out.ndim == 2:
        torch.mm(a, b, out=out)
    else:
        torch.bmm(a, b, out=out)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if out.ndim == 2:
        out.addmm_(a, b)
    else:
        out.baddbmm_(a, b)
