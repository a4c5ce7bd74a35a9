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
from torch.autograd.function import once_differentiable

from .call import Call
from .sweeps import apply_moments, no_direction, project, source_backward, target_backward

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

    Cost: time ``(N + M) d c`` per head. Memory beyond the output: ``H (2 N + M)`` numbers, the blocks, and moments
    ``H S (d + 1)(c + 1)`` where they are smaller than half the output (else backward computes them again).
    The second derivative is not provided and raises.
    """
    return _SimpleAttention.apply(q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = _empty_results(q, k, v, q_ptr)
    out, inverse, moments, q_rows, k_rows = results
    call = Call(q, k, v, q_ptr, k_ptr, mass, present, q_rows, k_rows)
    call.spread_scales(q_scale, k_scale)
    out_, inverse_, moments_ = call.flat(out), call.flat(inverse), call.sets_first(moments)
    with torch.autocast(q.device.type, enabled=False):
        for group in call.groups:
            state = call.new_moments(group, moments_)
            for block in group.targets:
                x, scale = call.target(block)
                y = call.slot("result", out_, block)
                inv = inverse_[..., block.start : block.stop]
                total, keep = call.totals(block), call.present_rows(block)
                apply_moments(state, block, x, scale, total, keep, y, inv, call.work)
                call.store(y, out_, block)
    return results


@_forward.register_fake
def _(q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale):
    return _empty_results(q, k, v, q_ptr)


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
    q_rows: Tensor,
    k_rows: Tensor,
    learned_mass: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = Call(q, k, v, q_ptr, k_ptr, mass, present, q_rows, k_rows)
    results = _empty_gradients(q, k, v, q_ptr, learned_mass, q_scale)
    dq, dk, dv, d_mass, d_scale = results
    grad_, out_, inverse_, dq_, dk_, dv_ = (call.flat(x) for x in (grad, out, inverse, dq, dk, dv))
    with torch.autocast(q.device.type, enabled=False):
        for group in call.groups:
            state = call.known_moments(group, call.sets_first(moments))
            d_state = call.zero_moments(group)
            for block in group.targets:
                x, scale = call.target(block)
                g, a = call.load("grad", grad_, block), call.load("out", out_, block)
                dx, inv = call.slot("result", dq_, block), inverse_[..., block.start : block.stop]
                target_backward(state, d_state, block, x, scale, inv, a, g, dx, call.work)
                if q_scale is None:
                    project(x, scale, dx, call.work)
                call.store(dx, dq_, block)
            if q_scale is not None:
                along = (state.whole[..., :-1, :] * d_state.whole[..., :-1, :]).sum((-2, -1))
                d_scale[:, group.first : group.last] = along.reshape(-1, q.shape[0]).mT
            for block in group.sources:
                x, y, m, scale = call.source(block)
                dx, dy = call.slot("result", dk_, block), call.slot("result_values", dv_, block)
                source_backward(d_state, block, x, y, scale, m, dx, dy, call.work)
                if learned_mass:
                    d_mass[block.start : block.stop] = call.mass_gradient(d_state, block, x, y, scale, dx)
                if k_scale is None:
                    project(x, scale, dx, call.work)
                dx.mul_((scale if m is None else scale * m).unsqueeze(-1))
                call.store(dx, dk_, block)
                call.store(dy, dv_, block)
    for rows, dx in ((q_rows, dq), (k_rows, dk)):
        dead = rows >= no_direction(rows.dtype)
        if bool(dead.any()):
            dx.masked_fill_(dead.unsqueeze(-1), 0.0)
    return results


@_backward.register_fake
def _(
    grad, q, k, v, q_ptr, k_ptr, mass, present, q_scale, k_scale,
    out, inverse, moments, q_rows, k_rows, learned_mass,
):  # fmt: skip
    return _empty_gradients(q, k, v, q_ptr, learned_mass, q_scale)


class _SimpleAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        results = _forward(*inputs)
        ctx.save_for_backward(*inputs, *results)
        return results[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        scales = saved[7:9]
        learned_mass = ctx.needs_input_grad[5]
        dq, dk, dv, d_mass, d_scale = _backward(grad, *saved, learned_mass)
        # the sums of q~ . dL/dq~ and of k~ . dL/dk~ are one number, linear in the scale of either side
        d_scales = (None if s is None else torch.where(s > 0, d_scale / s, 0.0).to(s.dtype) for s in scales)
        return dq, dk, dv, None, None, d_mass if learned_mass else None, None, *d_scales


def _empty_results(
    q: Tensor, k: Tensor, v: Tensor, q_ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output in the memory order of q, inverse denominators, moments if kept, scales of the rows of q and k."""
    heads, n, d = q.shape
    c, sets = v.shape[-1], q_ptr.shape[0] - 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    token_major = q.stride(0) < q.stride(1)
    out = v.new_empty(n, heads, c).transpose(0, 1) if token_major else v.new_empty(heads, n, c)
    kept = sets == 1 or 2 * sets * (d + 1) * (c + 1) <= n * c
    moments = q.new_empty((heads, sets if kept else 0, d + 1, c + 1), dtype=dtype)
    inverse, q_rows = (q.new_empty((heads, n), dtype=dtype) for _ in range(2))
    return out, inverse, moments, q_rows, q.new_empty((heads, k.shape[1]), dtype=dtype)


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, q_ptr: Tensor, learned_mass: bool, q_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    d_mass = q.new_empty(k.shape[1] if learned_mass else 0, dtype=dtype)
    d_scale = q.new_empty((q.shape[0], 0 if q_scale is None else q_ptr.shape[0] - 1), dtype=dtype)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), d_mass, d_scale
