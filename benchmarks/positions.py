"""Benchmarks of positions: the additive branch of shifts beside the mixers that it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from osmose.nn import MultiheadMixer
from osmose.nn.position import Shift
from osmose.nn.position.shift import depthwise_shifts
from osmose.ops.diffusion import diffusion_attention
from osmose.ops.flow import flow_attention

from .registry import Case, Contender, Inputs, differentiable, register

D, HEADS, RADIUS = 64, 8, 8


def points(n: int) -> Inputs:
    """q, k, v, the weights of the shifts and a gradient; token-major in memory as projections make them."""
    q, k, v = (torch.randn(1, n, HEADS, D).transpose(1, 2).requires_grad_() for _ in range(3))
    weight = torch.randn(HEADS * D, 2 * RADIUS + 1, requires_grad=True)
    return q, k, v, weight, torch.randn(1, n, HEADS, D).transpose(1, 2)


def beside(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mixer: Callable[..., Tensor]) -> Tensor:
    """What ``MultiheadMixer(position=Shift(8))`` does between its projections."""
    return depthwise_shifts(weight, v, v.shape[-2], None, None, False, mixer(q, k, v))


def alone(mixer: Callable[..., Tensor]) -> Contender:
    """The mixer without the branch, whose weights it leaves out."""
    inner = differentiable(mixer)

    def run(inputs: Inputs, mode: str) -> object:
        q, k, v, _, grad = inputs
        return inner.run((q, k, v, grad), mode)

    return Contender(run)


@register("positions", "17 learned shifts beside a mixer, d = 64, 8 heads, between the projections")
def positions(quick: bool) -> Iterator[Case]:
    for name, mixer in (("DIFFormer-s", diffusion_attention), ("flow", flow_attention)):
        for n in (1_000,) if quick else (1_000, 4_000, 16_000):
            yield Case(
                {"mixer": name, "n": n},
                partial(points, n),
                {
                    "osmose, with shifts": differentiable(partial(beside, mixer=mixer)),
                    "osmose, without": alone(mixer),
                },
            )


def tokens(n: int) -> Inputs:
    """Tokens ``(1, n, E)`` and a gradient."""
    return torch.randn(1, n, HEADS * D).requires_grad_(), torch.randn(1, n, HEADS * D)


@register("positions_module", "MultiheadMixer with 17 learned shifts, d = 64, 8 heads, projections included")
def positions_module(quick: bool) -> Iterator[Case]:
    for name in ("diffusion", "flow"):
        modules = [
            MultiheadMixer(HEADS * D, HEADS, batch_first=True, mixer=name, position=position)
            for position in (Shift(RADIUS), None)
        ]

        def mixed(module: MultiheadMixer) -> Contender:
            def run(inputs: Inputs, mode: str) -> object:
                x, grad = inputs
                if mode == "forward":
                    with torch.no_grad():
                        return module(x, x, x, need_weights=False)[0]
                out = module(x, x, x, need_weights=False)[0]
                return out, torch.autograd.grad(out, [x, *module.parameters()], grad)

            return Contender(run)

        for n in (1_000,) if quick else (1_000, 4_000, 16_000):
            yield Case(
                {"mixer": name, "n": n},
                partial(tokens, n),
                {"osmose, with shifts": mixed(modules[0]), "osmose, without": mixed(modules[1])},
            )
