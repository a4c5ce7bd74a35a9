"""Our instances against the layers of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.mixed import from_torch, layers
from .registry import Equality, Trial, randomised


def _across(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module of torch's layout (channels first) on tokens with channels last."""
    return lambda x: module(x.movedim(-1, 1)).movedim(1, -1)


def _convolution(make: Callable[[], nn.Module], *size: int) -> Callable[[torch.dtype], Trial]:
    def trial(dtype: torch.dtype) -> Trial:
        peer = randomised(make(), dtype)
        ours = from_torch(peer)
        return Trial(ours, _across(peer), torch.randn(2, *size, 6, dtype=dtype))

    return trial


def _linear(dtype: torch.dtype) -> Trial:
    peer = randomised(nn.Linear(6, 4), dtype)
    ours = from_torch(peer)
    return Trial(ours, peer, torch.randn(2, 9, 6, dtype=dtype))


def _heads(**options: Any) -> Callable[[torch.dtype], Trial]:
    """Self-attention, with what ``options`` ask for: padding, a float mask, causal order."""
    call = {name: options.pop(name, False) for name in ("padding", "mask", "causal")}

    def trial(dtype: torch.dtype) -> Trial:
        peer = randomised(nn.MultiheadAttention(6, 3, batch_first=True, **options), dtype)
        ours, n = from_torch(peer), 9
        masks: dict[str, Tensor] = {}
        if call["mask"]:
            masks["attn_mask"] = torch.randn(n, n, dtype=dtype)
        if call["causal"]:
            masks["attn_mask"] = torch.full((n, n), -torch.inf, dtype=dtype).triu(1)
        theirs = dict(masks)
        if call["padding"]:
            ignored = torch.zeros(2, n, dtype=torch.bool)
            ignored[0, 6:] = True
            masks["key_padding_mask"] = ignored
            theirs["key_padding_mask"] = torch.where(ignored, -torch.inf, torch.zeros((), dtype=dtype))
        return Trial(
            ours,
            lambda x: peer(x, x, x, need_weights=False, **theirs)[0],
            torch.randn(2, n, 6, dtype=dtype),
            masks,
        )

    return trial


def _cross(dtype: torch.dtype) -> Trial:
    peer = randomised(nn.MultiheadAttention(6, 2, batch_first=True, kdim=5, vdim=7), dtype)
    ours = from_torch(peer)
    key, value = torch.randn(2, 8, 5, dtype=dtype), torch.randn(2, 8, 7, dtype=dtype)
    return Trial(
        ours,
        lambda x: peer(x, key, value, need_weights=False)[0],
        torch.randn(2, 9, 6, dtype=dtype),
        {"key": key},
        value,
    )


def _grouped(dtype: torch.dtype) -> Trial:
    """Six query heads that share two key and value heads, against SDPA with ``enable_gqa``."""
    ours = randomised(layers.attention(12, 6, shared=2), dtype)
    structure, values = ours.structure, ours.values

    def theirs(x: Tensor) -> Tensor:
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (-1, 2)).transpose(1, 2)
            for w, b in (
                (structure.query.weight, structure.query.bias),
                (structure.key.weight, structure.key.bias),
                (values.in_weight, values.in_bias),
            )
        )
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return F.linear(out.transpose(1, 2).flatten(-2), values.out_weight, ours.bias)

    return Trial(ours, theirs, torch.randn(2, 9, 12, dtype=dtype))


def _conv1d(name: str, structure: str, **settings: Any) -> Equality:
    return Equality(
        f"Conv1d, {name}", "torch", structure, _convolution(lambda: nn.Conv1d(6, 4, **settings), 11)
    )


def _conv2d(name: str, structure: str, **settings: Any) -> Equality:
    return Equality(
        f"Conv2d, {name}", "torch", structure, _convolution(lambda: nn.Conv2d(6, 12, **settings), 7, 9)
    )


EQUALITIES = (
    Equality("Linear", "torch", "identity", _linear),
    _conv1d("one tap", "identity", kernel_size=1),
    _conv1d("padding 1", "shifts", kernel_size=3, padding=1),
    _conv1d(
        "stride 2, dilation 2", "strided, dilated shifts", kernel_size=3, stride=2, dilation=2, padding=3
    ),
    _conv1d("same, dilation 2", "shifts", kernel_size=3, padding="same", dilation=2),
    _conv1d("two groups", "shifts", kernel_size=5, padding=2, groups=2),
    *(
        _conv1d(mode, f"shifts, {mode} border", kernel_size=4, stride=2, padding=2, padding_mode=mode)
        for mode in ("circular", "reflect", "replicate")
    ),
    _conv2d("3 x 2, padding 1", "shifts on a grid", kernel_size=(3, 2), padding=1),
    _conv2d(
        "strides 2 and 1, dilations 1 and 2",
        "shifts on a grid",
        kernel_size=3,
        stride=(2, 1),
        dilation=(1, 2),
        padding=(2, 0),
    ),
    _conv2d(
        "depthwise, circular", "shifts on a grid", kernel_size=3, padding=1, groups=6, padding_mode="circular"
    ),
    Equality(
        "Conv3d", "torch", "shifts on a grid", _convolution(lambda: nn.Conv3d(6, 4, 2, padding=1), 3, 4, 5)
    ),
    Equality(
        "ConvTranspose1d, stride 2",
        "torch",
        "transposed strided shifts",
        _convolution(lambda: nn.ConvTranspose1d(6, 4, 3, 2, padding=1, output_padding=1), 11),
    ),
    Equality(
        "ConvTranspose2d, two groups, dilation 2",
        "torch",
        "transposed strided shifts",
        _convolution(lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2, dilation=2), 5, 4),
    ),
    Equality("AvgPool1d", "torch", "one average of shifts", _convolution(lambda: nn.AvgPool1d(3, 2), 11)),
    Equality(
        "AvgPool2d, padding not counted",
        "torch",
        "one average of shifts, law row",
        _convolution(lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 7, 9),
    ),
    Equality("MultiheadAttention", "torch", "softmax heads", _heads()),
    Equality("MultiheadAttention, no biases", "torch", "softmax heads", _heads(bias=False)),
    Equality("MultiheadAttention, float mask", "torch", "softmax heads, bias of pairs", _heads(mask=True)),
    Equality("MultiheadAttention, padding", "torch", "softmax heads, masses", _heads(padding=True)),
    Equality("MultiheadAttention, causal", "torch", "softmax heads, causal order", _heads(causal=True)),
    Equality(
        "MultiheadAttention, add_bias_kv",
        "torch",
        "softmax heads, a learned source",
        _heads(add_bias_kv=True),
    ),
    Equality(
        "MultiheadAttention, add_zero_attn",
        "torch",
        "softmax heads, a zero source",
        _heads(add_zero_attn=True, add_bias_kv=True),
    ),
    Equality("MultiheadAttention, cross, kdim and vdim", "torch", "softmax heads, other sources", _cross),
    Equality("SDPA, grouped queries", "torch", "softmax heads, shared keys", _grouped),
)
