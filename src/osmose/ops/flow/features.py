"""Non-negative feature maps, with the slopes that a backward pass of its own needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tokens import Tokens

RELU_FLOOR = 1e-6


@dataclass(frozen=True)
class Feature:
    """``y = phi(x) >= 0`` elementwise, in three forms of the same map.

    Attributes:
        value: ``phi(x)`` for torch to differentiate.
        write: ``write(x, out)`` puts ``phi(x)`` into ``out``.
        chain: ``chain(dy, x, y)`` multiplies ``dy`` by ``phi'(x)`` in place.
    """

    value: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], object]
    chain: Callable[[Tensor, Tensor, Tensor], object]


_aten = torch.ops.aten

IDENTITY = Feature(lambda x: x, lambda x, out: out.copy_(x), lambda dy, x, y: dy)

FEATURES: dict[str, Feature] = {
    "sigmoid": Feature(
        torch.sigmoid,
        lambda x, out: torch.sigmoid(x, out=out),
        lambda dy, x, y: _aten.sigmoid_backward.grad_input(dy, y, grad_input=dy),
    ),
    "relu": Feature(
        lambda x: F.relu(x) + RELU_FLOOR,
        lambda x, out: torch.clamp_min(x, 0.0, out=out).add_(RELU_FLOOR),
        lambda dy, x, y: _aten.threshold_backward.grad_input(dy, x, 0.0, grad_input=dy),
    ),
    "elu": Feature(
        lambda x: F.elu(x) + 1.0,
        lambda x, out: _aten.elu.out(x, out=out).add_(1.0),
        lambda dy, x, y: dy.mul_(y.clamp(max=1.0)),
    ),
    "softplus": Feature(
        F.softplus,
        lambda x, out: _aten.softplus.out(x, out=out),
        lambda dy, x, y: dy.mul_(torch.sigmoid(x)),
    ),
    "exp": Feature(
        torch.exp,
        lambda x, out: torch.exp(x, out=out),
        lambda dy, x, y: dy.mul_(y),
    ),
}
"""``relu`` is ``max(x, 0) + 1e-6`` and ``elu`` is ``elu(x) + 1``. ``exp`` is taken of :func:`shifted` points."""


def shifted(x: Tensor, tokens: Tokens) -> Tensor:
    """Points ``(..., H, n, d)`` minus the largest entry of their set and head, so that ``exp`` cannot overflow.

    A common factor of a feature map cancels in the flow. Tokens of mass 0 may hold anything.
    """
    with torch.no_grad():
        peak = tokens.spread(tokens.amax(x.detach().amax(-1, keepdim=True)))
        peak = torch.where(peak == -torch.inf, 0.0, peak)
    return x - peak
