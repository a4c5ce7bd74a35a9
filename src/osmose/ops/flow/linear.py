"""Flow-Attention in linear time and memory, with a backward of its own.

Two custom operators, forward and backward, so that compilers and exporters see one node. Both sweep blocks of rows that
stay in cache and make the feature map anew in every sweep; nothing of the size of the inputs is made besides the
output and gradients. The letters are those of README.md.

Shapes: ``H`` heads, ``N`` targets, ``M`` sources, ``d`` key and ``c`` value channels, ``S`` packed sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..blocks import Group, Workspace, add_product, block_rows, plan, product
from .features import FEATURES, IDENTITY
from .settings import FlowSettings
from .sweeps import Rows, Side, safe_inverse

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def linear_flow(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ptr: Tensor,
    k_ptr: Tensor,
    q_mass: Tensor | None,
    k_mass: Tensor | None,
    settings: FlowSettings,
) -> Tensor:
    """Competition among sources only.

    Args:
        q, k, v: ``(H, N, d)``, ``(H, M, d)``, ``(H, M, c)``, any strides with a dense last dimension.
        q_ptr, k_ptr: ``(S + 1,)`` int64 on the CPU, bounds of the sets.
        q_mass, k_mass: ``(N,)``, ``(M,)`` without gradient; a token of mass 0 is absent, its output 0.
        settings: the feature map by name, or a function that was already applied.

    Returns:
        ``(H, N, c)`` in the memory order of ``q``.

    Cost: time ``(N + M) d c`` a head, two products forward and four backward. Memory beyond the output: two numbers a
    token and head, five vectors and a matrix ``d x c`` a set and head (the matrix made again in backward where sets
    are small). The second derivative is not provided and raises.
    """
    options = (
        settings.feature if isinstance(settings.feature, str) else "",
        settings.clamp,
        settings.mean_weight,
        settings.sink_correction,
        settings.source_correction,
        settings.eps,
        settings.eps_at == "factors",
    )
    out: Tensor = _LinearFlow.apply(q, k, v, q_ptr, k_ptr, q_mass, k_mass, *options)
    return out


def _settings(
    feature: str,
    clamp: float | None,
    mean_weight: bool,
    sink_correction: bool,
    source_correction: bool,
    eps: float,
    in_factors: bool,
) -> FlowSettings:
    """The settings of the plain values that an operator takes; no name stands for a function already applied."""
    return FlowSettings(
        feature or torch.clone,
        clamp,
        "sources",
        mean_weight,
        sink_correction,
        source_correction,
        eps,
        "factors" if in_factors else "products",
    )


class _LinearFlow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        results = _forward(*inputs)
        ctx.save_for_backward(*inputs[:7], *results)
        ctx.options = inputs[7:]
        return results[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 11)


class _Call:
    """The arguments of one call, and the steps that forward and backward share."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_ptr: Tensor,
        k_ptr: Tensor,
        q_mass: Tensor | None,
        k_mass: Tensor | None,
        settings: FlowSettings,
    ):
        dtype = torch.promote_types(q.dtype, torch.float32)
        heads, self.d, self.c = q.shape[0], q.shape[-1], v.shape[-1]
        rows = block_rows(heads, max(self.d, self.c), dtype.itemsize, q.device.type)
        rows = min(rows, max(q.shape[1], k.shape[1], 1))
        work = Workspace(q, (heads,), rows, dtype, rows_first=q.stride(0) < q.stride(1))
        phi = FEATURES[settings.feature] if isinstance(settings.feature, str) else IDENTITY
        self.targets, self.sources = Side(q, q_mass, phi, work), Side(k, k_mass, phi, work)
        self.groups = plan(tuple(q_ptr.tolist()), tuple(k_ptr.tolist()), rows)
        self.T, self.S = self.targets.total(q_ptr), self.sources.total(k_ptr)
        ratio = self.T * safe_inverse(self.S)  # T / S
        one = torch.ones_like(ratio)
        self.sink_factor = one if settings.sink_correction else safe_inverse(ratio)
        self.source_factor = one if settings.source_correction else ratio
        self.share = one if settings.mean_weight else safe_inverse(self.S)  # of T, the carried mean
        self.ratio, self.clamp, self.eps = ratio, settings.clamp, settings.eps
        self.shift = settings.eps if settings.eps_at == "factors" else 0.0

    def blocks(self, group: Group, side: Side) -> Iterator[Rows]:
        return (Rows(side, b) for b in (group.targets if side is self.targets else group.sources))

    def of(self, group: Group) -> slice:
        return slice(group.first, group.last)

    def with_eps(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The vector and the constant of ``(x + eps) . (sum + eps)`` in mean form; ``mean (G, H, d)``, ``scale (G, 1)``."""
        if not self.eps:
            return mean, scale * 0.0
        if not self.shift:
            return mean, self.eps * scale
        vector = mean + self.eps * scale.unsqueeze(-1)
        return vector, self.eps * vector.sum(-1)

    def weights(self, rows: Rows, c: Tensor, log_sum: Tensor, share: Tensor) -> Tensor:
        """``omega_j``, the coefficient of ``k_j v_j^T`` in T."""
        return rows.weigh((self.cut(c) - rows.at(log_sum)).exp_().mul_(rows.at(share)))

    def cut(self, c: Tensor) -> Tensor:
        return c.clone() if self.clamp is None else c.clamp(-self.clamp, self.clamp)

    def compete(self, group: Group, v: Tensor, B: Tensor, c: Tensor, out: Tensor) -> Tensor:
        """Logits ``c`` of the sources of a group and ``T`` under their softmax; gives its ``log sum exp (G, H)``.

        The largest logit so far is taken out as the blocks come, so nothing overflows.
        """
        of = self.of(group)
        vector, constant = self.with_eps(B, safe_inverse(self.ratio[of]))
        peak, total = torch.full_like(B[..., 0], -torch.inf), torch.zeros_like(B[..., 0])
        out.zero_()
        for rows in self.blocks(group, self.sources):
            _, y = rows.features()
            flow = rows.dot(y, vector).add_(rows.at(constant)).mul_(rows.at(self.source_factor[of]))
            c[:, rows.span] = flow
            e = self.cut(flow)
            if rows.side.absent is not None:
                e.masked_fill_(rows.side.absent[rows.span], -torch.inf)
            before, peak = peak, torch.maximum(peak, rows.peaks(e, peak))
            base = peak.masked_fill(peak == -torch.inf, 0.0)
            fade = (before - base).exp_()
            e = rows.weigh(e.sub_(rows.at(base)).exp_())
            total = total.mul_(fade) + rows.sums(e, total)
            y.mul_(e.unsqueeze(-1))
            out.mul_(fade[..., None, None])
            for s, (yp, vp) in rows.by_set(y, rows.load("values", v)):
                add_product(out[s], yp.mT, vp)
        out.mul_((safe_inverse(total) * self.share[of])[..., None, None])
        return torch.where(total > 0, total.log() + peak, 0.0)

    def room(self, group: Group, kept: Tensor) -> Tensor:
        """Where ``T`` of the sets of a group is made: in what is kept for backward, or beside it."""
        if kept.shape[0]:
            return kept[self.of(group)]
        heads = self.targets.x.shape[0]
        return self.T.new_empty(group.last - group.first, heads, self.d, self.c)

    def carry(self, group: Group, v: Tensor, c: Tensor, log_sum: Tensor, out: Tensor) -> None:
        """``T`` of the sets of a group once the weights are known."""
        share = self.share[self.of(group)]
        out.zero_()
        for rows in self.blocks(group, self.sources):
            _, y = rows.features()
            y.mul_(self.weights(rows, c[:, rows.span], log_sum, share).unsqueeze(-1))
            for s, (yp, vp) in rows.by_set(y, rows.load("values", v)):
                add_product(out[s], yp.mT, vp)


@torch.library.custom_op("osmose::linear_flow", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ptr: Tensor,
    k_ptr: Tensor,
    q_mass: Tensor | None,
    k_mass: Tensor | None,
    feature: str,
    clamp: float | None,
    mean_weight: bool,
    sink_correction: bool,
    source_correction: bool,
    eps: float,
    in_factors: bool,
) -> Results:
    results = _empty_results(q, k, v, q_ptr)
    with torch.autocast(q.device.type, enabled=False):
        settings = _settings(feature, clamp, mean_weight, sink_correction, source_correction, eps, in_factors)
        call = _Call(q, k, v, q_ptr, k_ptr, q_mass, k_mass, settings)
        if v.shape[-1] == q.shape[-1] and results[0].dtype == call.targets.work.dtype:
            # until the output is written, features of the targets stand in its place
            call.targets.room = results[0]
        for group in call.groups:
            _forward_group(call, group, v, *results[:-1], call.room(group, results[-1]))
    return results


def _forward_group(
    call: _Call,
    group: Group,
    v: Tensor,
    out: Tensor,
    taken: Tensor,
    given: Tensor,
    sinks: Tensor,
    logits: Tensor,
    vectors: Tensor,
    log_sums: Tensor,
    carried: Tensor,
) -> None:
    of, sides = call.of(group), (call.targets, call.sources)
    q_mean, k_mean, A, B = vectors[:, of].zero_().unbind(0)  # A, B: means of keys and queries over their flow
    T, S = call.T[of], call.S[of]
    per_T, per_S = (safe_inverse(x).unsqueeze(-1) for x in (T, S))
    for side, mean in zip(sides, (q_mean, k_mean), strict=True):
        for rows in call.blocks(group, side):
            rows.add_sum(rows.new_features(), rows.mass, mean)
    q_mean *= per_T
    k_mean *= per_S
    seen = (call.with_eps(k_mean, per_S[..., 0]), call.with_eps(q_mean, per_T[..., 0]))
    for side, inverse, (vector, constant), mean in zip(sides, (taken, given), seen, (B, A), strict=True):
        for rows in call.blocks(group, side):
            y = rows.known_features()
            flow = rows.dot(y, vector).add_(rows.at(constant))
            inverse[:, rows.span] = rows.present(safe_inverse(flow))
            rows.add_sum(y, rows.weigh(inverse[:, rows.span]), mean)
    A *= per_S
    B *= per_T
    log_sums[of] = call.compete(group, v, B, logits, carried)
    vector, constant = call.with_eps(A, call.ratio[of])
    for rows in call.blocks(group, call.targets):
        y = rows.known_features()
        s = rows.dot(y, vector).add_(rows.at(constant)).mul_(rows.at(call.sink_factor[of]))
        sinks[:, rows.span] = s
        open_ = s.sigmoid_().mul_(taken[:, rows.span]).unsqueeze(-1)
        y = torch.mul(y, open_, out=call.targets.work.get("features", *y.shape[-2:]))
        x = rows.slot("results", out)
        for i, (yp, xp) in rows.by_set(y, x):
            product(yp, carried[i], xp)
        rows.store(x, out)


@_forward.register_fake
def _(q, k, v, q_ptr, k_ptr, *_):
    return _empty_results(q, k, v, q_ptr)


@torch.library.custom_op("osmose::linear_flow_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ptr: Tensor,
    k_ptr: Tensor,
    q_mass: Tensor | None,
    k_mass: Tensor | None,
    out: Tensor,
    taken: Tensor,
    given: Tensor,
    sinks: Tensor,
    logits: Tensor,
    vectors: Tensor,
    log_sums: Tensor,
    carried: Tensor,
    feature: str,
    clamp: float | None,
    mean_weight: bool,
    sink_correction: bool,
    source_correction: bool,
    eps: float,
    in_factors: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    results = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    with torch.autocast(q.device.type, enabled=False):
        settings = _settings(feature, clamp, mean_weight, sink_correction, source_correction, eps, in_factors)
        call = _Call(q, k, v, q_ptr, k_ptr, q_mass, k_mass, settings)
        for group in call.groups:
            room = call.room(group, carried)
            if not carried.shape[0]:
                call.carry(group, v, logits, log_sums[call.of(group)], room)
            _backward_group(
                call, group, grad, v, out, taken, given, sinks, logits, vectors, log_sums, room, *results
            )
    return results


def _backward_group(
    call: _Call,
    group: Group,
    grad: Tensor,
    v: Tensor,
    out: Tensor,
    taken: Tensor,
    given: Tensor,
    sinks: Tensor,
    logits: Tensor,
    vectors: Tensor,
    log_sums: Tensor,
    carried: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    of = call.of(group)
    q_mean, k_mean, A, B = vectors[:, of].unbind(0)
    per_T, per_S = (safe_inverse(x[of]) for x in (call.T, call.S))
    ratio, inverse_ratio = call.ratio[of], safe_inverse(call.ratio[of])
    (q_seen, _), (k_seen, _) = call.with_eps(q_mean, per_T), call.with_eps(k_mean, per_S)
    (A_seen, _), (B_seen, _) = call.with_eps(A, ratio), call.with_eps(B, inverse_ratio)
    d_carried = torch.zeros_like(carried)
    dA, dB, dq_mean, dk_mean = torch.zeros_like(vectors[:, of]).unbind(0)
    along = torch.empty_like(sinks[:, : 0 if not group.targets else group.targets[-1].stop])  # g_i . x_i
    for rows in call.blocks(group, call.targets):
        _, y = rows.features()
        g, x = rows.load("gradients", grad), rows.load("outputs", out)
        h = torch.mul(g, x, out=call.targets.work.get("products", *g.shape[-2:])).sum(-1)
        along[:, rows.span] = h
        alpha = sinks[:, rows.span].sigmoid()
        ds = h * (1 - alpha) * rows.at(call.sink_factor[of])
        rows.add_sum(y, ds, dA, call.shift)
        open_ = alpha.mul_(taken[:, rows.span]).unsqueeze(-1)
        y.mul_(open_)
        dx = rows.slot("results", dq)
        for i, (yp, gp, dxp) in rows.by_set(y, g, dx):
            add_product(d_carried[i], yp.mT, gp)
            product(gp, carried[i].mT, dxp)
        dx.mul_(open_)
        rows.store(dx, dq)
    lost = (carried * d_carried).sum((-2, -1)) * safe_inverse(call.share[of])
    for rows in call.blocks(group, call.sources):
        _, y = rows.features()
        values, dx, dy = rows.load("values", v), rows.slot("results", dk), rows.slot("value results", dv)
        c, b = logits[:, rows.span], given[:, rows.span]
        omega = call.weights(rows, c, log_sums[of], call.share[of])
        for i, (vp, dxp) in rows.by_set(values, dx):
            product(vp, d_carried[i].mT, dxp)
        p = torch.mul(y, dx, out=call.sources.work.get("products", *y.shape[-2:])).sum(-1)
        dc = (p - rows.at(lost)).mul_(omega).mul_(rows.at(call.source_factor[of]))
        if call.clamp is not None:
            dc.masked_fill_(c.abs() > call.clamp, 0.0)
        dO = rows.dot(y, dA).mul_(b).mul_(b).mul_(rows.at(-per_S))
        dO = rows.weigh(dO)
        rows.add_sum(y, dc, dB, call.shift)
        rows.add_sum(y, dO, dq_mean, call.shift)
        dx.mul_(omega.unsqueeze(-1))
        rows.add_outer(dx, (dc, B_seen), (rows.weigh(b * rows.at(per_S)), dA), (dO, q_seen))
        rows.store(dx, dk)
        y.mul_(omega.unsqueeze(-1))
        for i, (yp, dyp) in rows.by_set(y, dy):
            product(yp, d_carried[i], dyp)
        rows.store(dy, dv)
    for rows in call.blocks(group, call.targets):
        x, y = rows.features()
        a, h = taken[:, rows.span], along[:, rows.span]
        share = rows.weigh(rows.at(per_T).expand(a.shape))
        dI = -a * (h + a * share * rows.dot(y, dB))
        rows.add_sum(y, dI, dk_mean, call.shift)
        ds = h * (1 - sinks[:, rows.span].sigmoid()) * rows.at(call.sink_factor[of])
        dx = rows.slot("results", dq)
        if dx.dtype != dq.dtype:
            dx.copy_(dq[:, rows.span])
        rows.add_outer(dx, (ds, A_seen), (dI, k_seen), (share * a, dB), (share, dq_mean))
        call.targets.feature.chain(dx, x, y)
        rows.store(dx, dq)
    for rows in call.blocks(group, call.sources):
        x, y = rows.features()
        dx = rows.slot("results", dk)
        if dx.dtype != dk.dtype:
            dx.copy_(dk[:, rows.span])
        share = rows.weigh(rows.at(per_S).expand(y.shape[:-1]))
        rows.add_outer(dx, (share, dk_mean))
        call.sources.feature.chain(dx, x, y)
        rows.store(dx, dk)


@_backward.register_fake
def _(grad, q, k, v, *_):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _empty_results(q: Tensor, k: Tensor, v: Tensor, q_ptr: Tensor) -> Results:
    """Output in the memory order of q; inverse flows, logits of both sides, vectors, log sums, and T if it is kept."""
    heads, n, d = q.shape
    m, c, sets = k.shape[1], v.shape[-1], q_ptr.shape[0] - 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    token_major = q.stride(0) < q.stride(1)
    out = v.new_empty(n, heads, c).transpose(0, 1) if token_major else v.new_empty(heads, n, c)
    kept = sets == 1 or 2 * sets * d * c <= n * c
    taken, given, sinks, logits = (q.new_empty((heads, x), dtype=dtype) for x in (n, m, n, m))
    vectors = q.new_empty((4, sets, heads, d), dtype=dtype)
    log_sums = q.new_empty((sets, heads), dtype=dtype)
    carried = q.new_empty((sets if kept else 0, heads, d, c), dtype=dtype)
    return out, taken, given, sinks, logits, vectors, log_sums, carried
