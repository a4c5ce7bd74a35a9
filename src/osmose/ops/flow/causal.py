"""Causal Flow-Attention over whole sequences: the scan in stretches, with a backward that makes each of them again.

Forward keeps the carry at the start of every stretch, which is of constant size; backward goes through the stretches from
the last to the first. So memory is that of inputs and outputs, and one stretch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...tokens import Tokens
from .features import FEATURES, IDENTITY
from .scan import CHUNK, Carry, scan
from .settings import FlowSettings

STRETCH = 1 << 14  # tokens of a stretch, over all sequences and heads
GROWTH = 1.25  # packed sequences that differ by less than this factor are padded to one length


def causal_flow(q: Tensor, k: Tensor, v: Tensor, settings: FlowSettings, tokens: Tokens) -> Tensor:
    """Outputs ``(..., H, n, c)`` for points ``(..., H, n, d)``; masses ``(..., 1 or H, n)`` or ``(n,)``; packed sets too.

    Cost: time ``n (64 d + d c)`` and memory ``O(n (d + c))`` a head, forward and backward. Packed sequences cost the sum
    of their lengths, and up to a quarter more for padding. The second derivative is not provided and raises.
    """
    if tokens.packed:
        return _packed(q, k, v, settings, tokens)
    *lead, n, _ = q.shape
    if not q.numel():
        return v.new_zeros(*lead, n, v.shape[-1])
    mass = None if tokens.mass is None else tokens.mass.expand(*lead, n).reshape(-1, n)
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    # a compiler sees the plain loop: it saves and makes again what it finds best
    run = _stretches if torch.compiler.is_compiling() else _CausalFlow.apply
    out: Tensor = run(q, k, v, mass, settings)[0]
    return out.reshape(*lead, n, v.shape[-1])


def _packed(q: Tensor, k: Tensor, v: Tensor, settings: FlowSettings, tokens: Tokens) -> Tensor:
    """Sequences of similar lengths side by side, padded to the longest of them."""
    assert tokens.batch is not None
    sizes = tokens.sizes.to(q.device)
    kind = (sizes.clamp(min=1).log() / math.log(GROWTH)).long()
    by_kind = torch.argsort(kind, stable=True)  # of the sequences
    place = torch.empty_like(by_kind)
    place[by_kind] = torch.arange(len(by_kind), device=q.device)
    order = torch.argsort(
        place[tokens.batch], stable=True
    )  # of the tokens: sequence after sequence, kind after kind
    mass = torch.ones(tokens.n, device=q.device) if tokens.mass is None else tokens.mass
    lengths = [
        part[part > 0]
        for part in sizes[by_kind].split(kind[by_kind].unique_consecutive(return_counts=True)[1].tolist())
    ]
    counts = [int(part.sum()) for part in lengths]
    sorted_ = (
        x.index_select(dim, order).split(counts, dim) for x, dim in ((q, -2), (k, -2), (v, -2), (mass, -1))
    )
    outputs = []
    for some, *parts in zip(lengths, *sorted_, strict=True):
        if not some.numel():
            continue
        keep = torch.arange(int(some.max()), device=q.device) < some.unsqueeze(-1)  # (sequences, longest)
        q_, k_, v_ = (_pad(x, keep) for x in parts[:3])
        mass_ = _pad(parts[3].unsqueeze(-1), keep).squeeze(-1)
        out = causal_flow(q_, k_, v_, settings, Tokens(keep.shape[1], mass_))
        outputs.append(out.flatten(-3, -2)[..., keep.flatten().nonzero().squeeze(-1), :])
    out = torch.cat(outputs, -2) if outputs else v.new_zeros(*q.shape[:-2], 0, v.shape[-1])
    return out.index_select(-2, torch.argsort(order))


def _pad(x: Tensor, keep: Tensor) -> Tensor:
    """``(..., tokens, c)`` to ``(..., sequences, longest, c)``, 0 where there is no token."""
    out = x.new_zeros(*x.shape[:-2], keep.numel(), x.shape[-1])
    return out.index_copy(-2, keep.flatten().nonzero().squeeze(-1), x).unflatten(-2, keep.shape)


def _features(
    q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, settings: FlowSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Features and values in float32 or better, zero where there is no mass."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    phi = FEATURES[settings.feature] if isinstance(settings.feature, str) else IDENTITY
    if mass is None:
        return phi.value(q.to(dtype)), phi.value(k.to(dtype)), v.to(dtype)
    here = (mass > 0).unsqueeze(-1)
    q, k, v = (torch.where(here, x.to(dtype), 0.0) for x in (q, k, v))
    return torch.where(here, phi.value(q), 0.0), torch.where(here, phi.value(k), 0.0), v


def advance(
    q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, settings: FlowSettings, before: Carry
) -> tuple[Tensor, Carry]:
    """Outputs ``(P, n, c)`` in the type of v, and the carry after these tokens, from points."""
    with torch.autocast(v.device.type, enabled=False):
        mass = None if mass is None else torch.where(mass > 0, mass, 0.0).to(before.moments.dtype)
        out, after = scan(*_features(q, k, v, mass, settings), mass, settings, before)
    return out.to(v.dtype), after


def _starts(x: Tensor) -> range:
    """Where the stretches of tensors ``(P, n, ...)`` begin: the more of them side by side, the shorter."""
    parts, n = x.shape[:2]
    return range(0, n, max(STRETCH // max(parts, 1) // CHUNK, 1) * CHUNK)


def _stretch(start: int, step: int, *tensors: Any) -> list[Any]:
    """The rows of one stretch."""
    return [None if x is None else x[:, start : start + step] for x in tensors]


def _stretches(
    q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, settings: FlowSettings
) -> tuple[Tensor, list[Carry]]:
    """The outputs, and the carry before every stretch."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    carries = [Carry.empty(q.shape[0], q.shape[-1], v.shape[-1], dtype, q.device)]
    outputs = []
    starts = _starts(q)
    for start in starts:
        q_, k_, v_, mass_ = _stretch(start, starts.step, q, k, v, mass)
        out, after = advance(q_, k_, v_, mass_, settings, carries[-1])
        outputs.append(out)
        carries.append(after)
    return torch.cat(outputs, 1), carries[:-1]


class _CausalFlow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, settings: FlowSettings
    ) -> tuple[Tensor]:
        out, carries = _stretches(q, k, v, mass, settings)
        ctx.settings = settings
        ctx.save_for_backward(q, k, v, mass, *(x for carry in carries for x in carry))
        return (out,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mass, *rest = ctx.saved_tensors
        size = len(Carry._fields)
        carries = [Carry(*rest[i : i + size]) for i in range(0, len(rest), size)]
        found = [
            torch.empty_like(x) if needed else None
            for x, needed in zip((q, k, v, mass), ctx.needs_input_grad, strict=False)
        ]
        later: list[Tensor | None] = [None] * size  # gradients of the carry after a stretch
        starts = _starts(q)
        for start, carry in reversed(list(zip(starts, carries, strict=True))):
            g, *room = _stretch(start, starts.step, grad, *found)
            with torch.enable_grad():
                points = [
                    None if x is None else x.detach() for x in _stretch(start, starts.step, q, k, v, mass)
                ]
                wanted = [
                    x.requires_grad_()
                    for x, r in zip(points, room, strict=True)
                    if x is not None and r is not None
                ]
                before = Carry(*(x.detach().requires_grad_() for x in carry))
                out, after = advance(*points, ctx.settings, before)  # type: ignore[call-arg, arg-type]
            known = [
                (x, slope)
                for x, slope in zip(after, later, strict=True)
                if slope is not None and x.requires_grad
            ]
            results, slopes = [out, *(x for x, _ in known)], [g, *(slope for _, slope in known)]
            new = torch.autograd.grad(results, [*wanted, *before], slopes, allow_unused=True)
            for x, slope in zip([r for r in room if r is not None], new, strict=False):
                x.copy_(slope) if slope is not None else x.zero_()
            later = list(new[len(wanted) :])
        return (*found, None)
