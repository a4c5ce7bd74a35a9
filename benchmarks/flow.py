"""Benchmarks of Flow-Attention: normal, causal, decoding, packed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from osmose.equalities.published import published_causal_flow, published_flow
from osmose.ops.flow import FlowState, flow_attention
from osmose.tokens import Tokens

from .registry import Case, Contender, Inputs, differentiable, register

D, HEADS = 64, 8


def points(n: int, heads: int = HEADS) -> Inputs:
    """q, k, v and a gradient, ``(1, H, n, d)``, token-major in memory as projections make them."""
    q, k, v = (torch.randn(1, n, heads, D).transpose(1, 2).requires_grad_() for _ in range(3))
    return q, k, v, torch.randn(1, n, heads, D).transpose(1, 2)


@register("flow", "Flow-Attention, d = 64, 8 heads")
def flow(quick: bool) -> Iterator[Case]:
    for n in (1_000, 16_000) if quick else (1_000, 4_000, 16_000, 64_000):
        yield Case(
            {"n": n},
            partial(points, n),
            {
                "osmose": differentiable(partial(flow_attention, preset="core")),
                "published einsum": differentiable(published_flow, forward=8, both=24),
                "osmose, default variant": differentiable(flow_attention),
                **({"SDPA": differentiable(F.scaled_dot_product_attention)} if n <= 4_000 else {}),
            },
        )


@register("flow_causal", "Causal Flow-Attention, d = 64, 8 heads")
def flow_causal(quick: bool) -> Iterator[Case]:
    others = {
        "published einsum and cumsum": differentiable(published_causal_flow, forward=150, both=400),
        "causal SDPA": differentiable(partial(F.scaled_dot_product_attention, is_causal=True)),
    }
    for n in (1_000, 4_000) if quick else (1_000, 4_000, 16_000, 64_000):
        yield Case(
            {"n": n},
            partial(points, n),
            {
                "osmose": differentiable(partial(flow_attention, preset="core", causal=True)),
                **({} if n > 16_000 else others),  # minutes a call, and tens of GiB
            },
        )


@register("flow_decode", "One token of causal Flow-Attention, d = 64, 8 heads, against the context length 64")
def flow_decode(quick: bool) -> Iterator[Case]:
    states = {}
    q, k, v = (torch.randn(1, HEADS, 65_536, D) for _ in range(3))
    state, start = FlowState.empty(1, HEADS, D, D), 0
    for n in (64, 1_024, 65_536):
        with torch.no_grad():
            _, state = state(q[:, :, start:n], k[:, :, start:n], v[:, :, start:n])
        states[n], start = state, n
    token = tuple(torch.randn(1, HEADS, 1, D) for _ in range(3))

    def step(state: FlowState) -> Contender:
        def run(inputs: Inputs, mode: str) -> object:
            with torch.no_grad():
                for _ in range(100):
                    state(*inputs)

        return Contender(run)

    yield Case(
        {"tokens": 100},
        lambda: token,
        {f"context {n}": step(states[n]) for n in (65_536, 64, 1_024)},
        modes=("forward",),
    )


@register("flow_packed", "Flow-Attention on packed sequences, d = 64, 8 heads, against one of as many tokens")
def flow_packed(quick: bool) -> Iterator[Case]:
    for causal in (False, True):
        sizes = torch.randint(10, 501, (100,), generator=torch.Generator().manual_seed(0))
        n = int(sizes.sum())
        tokens = Tokens.of(n, ptr=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))
        run = partial(flow_attention, causal=causal)

        def packed(q: Tensor, k: Tensor, v: Tensor, run=run, tokens=tokens) -> Tensor:
            return run(q, k, v, sources=tokens, targets=tokens)

        yield Case(
            {"sequences": 100, "sizes": "10..500", "n": n, "form": "causal" if causal else "normal"},
            partial(points, n),
            {"osmose": differentiable(packed), "one sequence": differentiable(run)},
        )
