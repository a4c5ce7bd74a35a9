"""DIFFormer-s in linear time and memory: the simple kernel ``1 + q~ . k~`` under the row law.

Two custom operators, forward and backward, so that compilers and exporters see one node. Both sweep blocks
of rows that stay in cache (blocks.py, sweeps.py); nothing of the size of the inputs is made besides outputs
and gradients.

Shapes: ``H`` heads, ``N`` targets, ``M`` sources, ``d`` key and ``c`` value channels, ``S`` packed sets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blocks import Block, Group, block_rows, plan
from .sweeps import (
    Workspace,
    add_moments,
    apply_moments,
    project,
    source_backward,
    target_backward,
    unit_scale,
)

__all__ = ["simple_attention"]


def simple_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ptr: Tensor,
    k_ptr: Tensor,
    *,
    mass: Tensor | None = None,
    present: Tensor | None = None,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> Tensor:
    """``a_i = (sum_j m_j v_j + S^T q~_i) / (sum_j m_j + q~_i . sum_j m_j k~_j)``, ``S = sum_j m_j k~_j v_j^T``.

    Args:
        q, k, v: ``(H, N, d)``, ``(H, M, d)``, ``(H, M, c)``, any strides with a dense last dimension.
        q_ptr, k_ptr: ``(S + 1,)`` int64 on the CPU, bounds of the sets.
        mass: ``(M,)`` of the sources, differentiable; a source of mass 0 is absent and gets gradient 0.
        present: ``(N,)`` bool; the output of other targets is 0.
        q_scale, k_scale: ``(H, S)``, ``q~ = scale q`` with one scale for a set and head, differentiable; a scale
            of 0 stands for a set without directions. None: every row is scaled to length 1, rows of length
            0 stay 0.

    Returns:
        ``(H, N, c)`` in the memory order of ``q`` (token-major stays token-major). Targets whose sources have no
        mass get 0, as have gradients there.

    Cost: time ``(N + M) d c`` per head. Memory beyond the output: ``H N`` numbers, the blocks, and moments
    ``H S (d + 1)(c + 1)`` where they are smaller than the output (else they are computed again in backward).
    The second derivative is not provided and raises.
    """
    return _forward(q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale)[0]


@torch.library.custom_op("osmose::simple_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ptr: Tensor,
    k_ptr: Tensor,
    mass: Tensor | None,
    present: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    call = _Call(q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale)
    out, inverse, moments = _empty_results(q, v, q_ptr)
    out_, inverse_, moments_ = call.flat(out), call.flat(inverse), call.flat(moments, 1)
    with torch.autocast(q.device.type, enabled=False):
        for group in call.groups:
            state = call.moments(group, moments_, known=False)
            for block in group.targets:
                x, scale, _ = call.target(block)
                y = call.slot("result", out_, block)
                apply_moments(
                    state, block.pieces, x, scale, call.totals(block), call.present_of(block), y,
                    inverse_[..., block.start : block.stop], call.work,
                )  # fmt: skip
                call.store(y, out_, block)
    return out, inverse, moments


@_forward.register_fake
def _(q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale):
    return _empty_results(q, v, q_ptr)


@torch.library.custom_op("osmose::simple_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ptr: Tensor,
    k_ptr: Tensor,
    mass: Tensor | None,
    present: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    out: Tensor,
    inverse: Tensor,
    moments: Tensor,
    learned_mass: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _Call(q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale)
    dq, dk, dv, d_mass, d_scale = _empty_gradients(q, k, v, q_ptr, learned_mass, q_scale)
    dq_, dk_, dv_, d_scale_ = (call.flat(x) for x in (dq, dk, dv, d_scale))
    grad_, out_, inverse_, moments_ = (
        call.flat(grad),
        call.flat(out),
        call.flat(inverse),
        call.flat(moments, 1),
    )
    d = q.shape[-1]
    with torch.autocast(q.device.type, enabled=False):
        for group in call.groups:
            state = call.moments(group, moments_, known=True)
            d_state = call.scratch(group)
            for block in group.targets:
                x, scale, dead = call.target(block)
                g, a = call.load("grad", grad_, block), call.load("out", out_, block)
                dx = call.slot("result", dq_, block)
                inv = inverse_[..., block.start : block.stop]
                target_backward(state, d_state, block.pieces, x, scale, inv, a, g, dx, call.work)
                if q_scale is None:
                    project(x, scale, dx, call.work)
                call.store(dx, dq_, block, dead)
            if q_scale is not None:
                along = (state[..., :d, :] * d_state[..., :d, :]).sum((-2, -1))
                d_scale_[..., group.first : group.last] = along.movedim(0, -1)
            for block in group.sources:
                x, y, m, scale, dead = call.source(block)
                dx, dy = call.slot("result", dk_, block), call.slot("result_values", dv_, block)
                source_backward(d_state, block.pieces, x, y, scale, m, dx, dy, call.work)
                if learned_mass:
                    along = (x * dx).sum(-1) * scale
                    d_mass[block.start : block.stop] = call.mass_gradient(d_state, block, y, along)
                if k_scale is None:
                    project(x, scale, dx, call.work)
                dx.mul_((scale if m is None else scale * m).unsqueeze(-1))
                call.store(dx, dk_, block, dead)
                call.store(dy, dv_, block)
    return dq, dk, dv, d_mass, d_scale


@_backward.register_fake
def _(
    grad, q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale, out, inverse, moments, learned_mass
):  # fmt: skip
    return _empty_gradients(q, k, v, q_ptr, learned_mass, q_scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _autograd(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    q_scale, k_scale = saved[7:9]
    needs = ctx.needs_input_grad
    dq, dk, dv, d_mass, d_scale = _backward(grad, *saved, needs[5])
    # sum of q~ . dL/dq~ equals that of k~ . dL/dk~: the scale of either side has it divided by itself
    d_q_scale, d_k_scale = (
        None if s is None else torch.where(s > 0, d_scale / s, 0.0).to(s.dtype) for s in (q_scale, k_scale)
    )
    return dq, dk, dv, None, None, d_mass if needs[5] else None, None, d_q_scale, d_k_scale


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _empty_results(q: Tensor, v: Tensor, q_ptr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output in the memory order of q, inverse denominators, and the moments if they are to be kept."""
    heads, n, d = q.shape
    c, sets = v.shape[-1], q_ptr.shape[0] - 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    token_major = q.stride(0) < q.stride(1)
    out = v.new_empty(n, heads, c).transpose(0, 1) if token_major else v.new_empty(heads, n, c)
    kept = sets == 1 or 2 * sets * (d + 1) * (c + 1) <= n * c
    moments = q.new_empty((heads, sets if kept else 0, d + 1, c + 1), dtype=dtype)
    return out, q.new_empty((heads, n), dtype=dtype), moments


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, q_ptr: Tensor, learned_mass: bool, q_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    d_mass = q.new_empty(k.shape[1] if learned_mass else 0, dtype=dtype)
    d_scale = q.new_empty((q.shape[0], 0 if q_scale is None else q_ptr.shape[0] - 1), dtype=dtype)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), d_mass, d_scale


class _Call:
    """The arguments of one call, its plan and its buffers; without the head dimension where there is one head."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_ptr: Tensor,
        k_ptr: Tensor,
        mass: Tensor | None,
        present: Tensor | None,
        q_scale: Tensor | None,
        k_scale: Tensor | None,
    ):
        self.heads, self.shape = q.shape[0], (q.shape[-1] + 1, v.shape[-1] + 1)
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self.q, self.k, self.v = self.flat(q), self.flat(k), self.flat(v)
        self.mass = None if mass is None else mass.to(self.dtype)
        self.exists = None if mass is None else mass > 0
        self.present = present
        width = max(self.shape)
        rows = block_rows(self.heads, width, self.dtype.itemsize, q.device.type)
        rows = min(rows, max(q.shape[1], k.shape[1], 1))
        q_bounds, k_bounds = tuple(q_ptr.tolist()), tuple(k_ptr.tolist())
        self.groups = plan(q_bounds, k_bounds, rows)
        sets = torch.arange(len(q_bounds) - 1, device=q.device)
        self.q_sets = sets.repeat_interleave(q_ptr.diff().to(q.device)) if len(sets) > 1 else None
        self.k_sets = sets.repeat_interleave(k_ptr.diff().to(q.device)) if len(sets) > 1 else None
        self.q_scale = None if q_scale is None else self.flat(q_scale.to(self.dtype))
        self.k_scale = None if k_scale is None else self.flat(k_scale.to(self.dtype))
        self.set_totals = self._set_totals(k_ptr)
        lead = (self.heads,) if self.heads > 1 else ()
        self.work = Workspace(q, lead, rows, self.dtype)
        self.lead = lead

    def flat(self, x: Tensor, at: int = 0) -> Tensor:
        """``x`` without its head dimension if there is one head; moments get their sets in front."""
        if at:
            x = x.transpose(0, 1)
        return x.squeeze(at) if self.heads == 1 else x

    def _set_totals(self, k_ptr: Tensor) -> Tensor:
        if self.mass is None:
            return k_ptr.diff().to(self.q.device, self.dtype)
        if self.k_sets is None:
            return self.mass.sum(0, keepdim=True)
        return self.mass.new_zeros(k_ptr.shape[0] - 1).index_add_(0, self.k_sets, self.mass)

    def totals(self, block: Block) -> Tensor:
        """Mass of the sources of every target in the block."""
        return (
            self.set_totals if self.q_sets is None else self.set_totals[self.q_sets[block.start : block.stop]]
        )

    def present_of(self, block: Block) -> Tensor | None:
        return None if self.present is None else self.present[block.start : block.stop]

    def target(self, block: Block) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries of a block, their scales, and which of them have no direction."""
        x = self.load("queries_in", self.q, block, self.present)
        return x, *_scales(x, self.q_scale, self.q_sets, block)

    def source(self, block: Block) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """Keys, values, masses of a block, scales of its keys, and which keys have no direction."""
        x = self.load("keys_in", self.k, block, self.exists)
        y = self.load("values_in", self.v, block, self.exists)
        m = None if self.mass is None else self.mass[block.start : block.stop]
        scale, dead = _scales(x, self.k_scale, self.k_sets, block)
        return x, y, m, scale, dead

    def load(self, name: str, x: Tensor, block: Block, keep: Tensor | None = None) -> Tensor:
        """Rows of a block in the accumulation type, those not kept set to zero."""
        rows = x[..., block.start : block.stop, :]
        drop = None if keep is None else ~keep[block.start : block.stop]
        if drop is not None and not bool(drop.any()):
            drop = None
        if rows.dtype == self.dtype and drop is None:
            return rows
        rows = self.work.get(name, *rows.shape[-2:]).copy_(rows)
        return rows if drop is None else rows.masked_fill_(drop.unsqueeze(-1), 0.0)

    def slot(self, name: str, x: Tensor, block: Block) -> Tensor:
        """Where to compute rows of a result: in place, or in a buffer if the result is in half precision."""
        rows = x[..., block.start : block.stop, :]
        return rows if rows.dtype == self.dtype else self.work.get(name, *rows.shape[-2:])

    def store(self, rows: Tensor, x: Tensor, block: Block, dead: Tensor | None = None) -> None:
        if dead is not None:
            rows.masked_fill_(dead.unsqueeze(-1), 0.0)
        if x.dtype != self.dtype:
            x[..., block.start : block.stop, :] = rows

    def scratch(self, group: Group) -> Tensor:
        """Zeroed moments for the sets of a group."""
        shape = (group.last - group.first, *self.lead, *self.shape)
        return self.q.new_zeros(shape, dtype=self.dtype)

    def moments(self, group: Group, kept: Tensor, known: bool) -> Tensor:
        """Moments of the sets of a group: read, or computed from the sources."""
        if kept.shape[0] and known:
            return kept[group.first : group.last]
        state = kept[group.first : group.last].zero_() if kept.shape[0] else self.scratch(group)
        for block in group.sources:
            x, y, m, scale, _ = self.source(block)
            add_moments(state, block.pieces, x, y, scale, m, self.work)
        return state

    def mass_gradient(self, d_state: Tensor, block: Block, v: Tensor, along: Tensor) -> Tensor:
        """``dL/dm_j`` of a block, summed over heads: ``[k~, 1] dmoments [v, 1]^T`` of every row."""
        d, c = self.shape[0] - 1, self.shape[1] - 1
        for s, lo, hi in block.pieces:
            g = d_state[s]
            values = v[..., lo:hi, :] @ g[..., d, :c].unsqueeze(-1)
            along[..., lo:hi] += values.squeeze(-1) + g[..., d, c].unsqueeze(-1)
        total = along if along.ndim == 1 else along.sum(0)
        return total if self.exists is None else total * self.exists[block.start : block.stop]


def _scales(
    x: Tensor, scale: Tensor | None, sets: Tensor | None, block: Block
) -> tuple[Tensor, Tensor | None]:
    if scale is None:
        return unit_scale(x)
    rows = scale if sets is None else scale[..., sets[block.start : block.stop]]
    dead = rows == 0
    if not bool(dead.any()):
        return rows, None
    return rows.masked_fill(dead, 1.0), dead.expand(x.shape[:-1])
