"""Layers of torch and PyG as mixed products with the same parameters, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from . import layers
from .attention import Attention
from .product import MixedProduct
from .shifts import Average, Own, Taps
from .values import Carried, Concatenated, Full, Joined, LowRank


@torch.no_grad()
def from_torch(module: nn.Module) -> MixedProduct:
    """The mixed product that a layer is, with copies of its parameters, in its dtype and on its device.

    Takes of torch: Linear, Conv1d to 3d, ConvTranspose1d to 3d, AvgPool1d to 3d, MultiheadAttention. Of PyG: GCNConv, ChebConv,
    TAGConv, SAGEConv, RGCNConv, GMMConv, GATConv, TransformerConv. Tokens are channels last here: a convolution takes
    ``(..., n, C)`` where torch's takes ``(..., C, n)``; and the batch comes first: attention takes ``(B, n, E)`` whatever its
    ``batch_first``.

    Raises:
        TypeError: a layer of another kind, or of a subclass that computes something else.
        ValueError: a setting of a layer that has no counterpart here; it is named.
    """
    kinds: list[Any] = [
        kind for kind in type(module).__mro__ if kind.__module__.split(".")[0] in ("torch", "torch_geometric")
    ]
    for kind in kinds:
        if kind.__name__ not in _CONVERTERS:
            continue
        if type(module).forward is not kinds[0].forward:
            raise TypeError(
                f"from_torch: {type(module).__name__} is a {kind.__name__} with a forward of its own, and only the parameters would "
                "be taken."
            )
        _refuse_unready(module)
        layer = _CONVERTERS[kind.__name__](module)
        return layer.train(module.training)
    raise TypeError(
        f"from_torch: {type(module).__name__} is not a layer that is known here; expected one of {', '.join(_CONVERTERS)}."
    )


@torch.no_grad()
def to_torch(layer: MixedProduct) -> nn.Module:
    """The layer of torch that a mixed product is: Linear, Conv, ConvTranspose, AvgPool or MultiheadAttention.

    Raises:
        ValueError: torch has no such layer; the parts that keep it from one are named.
    """
    structure: Any = layer.structure
    values: Any = layer.values
    some = next(iter(layer.parameters()), torch.empty(0))
    made = _made(some)
    plain = isinstance(values, Full) and values.in_bias is None
    if layer.law is None and isinstance(structure, Own) and plain and values.groups == 1:
        out: Any = nn.Linear(values.in_channels, values.out_channels, layer.bias is not None, **made)
        _set(out.weight, values.weight[0].mT)
    elif layer.law is None and isinstance(structure, Taps) and plain:
        out = _to_conv(structure, values, layer.bias is not None, made)
    elif layer.law is None and isinstance(structure, Average) and isinstance(values, Carried):
        kernel = structure.kernel
        if max(kernel.dilation) > 1 or kernel.border != "zeros" or any(a != b for a, b in kernel.padding):
            raise ValueError(
                f"to_torch: torch pools neighbouring places, with as many zeros before as after them; got {kernel}."
            )
        pool: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[structure.axes - 1]
        out = pool(
            kernel.taps, kernel.stride, tuple(p for p, _ in kernel.padding), count_include_pad=structure.count_padding
        )  # fmt: skip
    elif isinstance(structure, Attention) and structure.mixer == "softmax" and isinstance(values, LowRank):
        return _to_attention(layer, structure, values, made)
    else:
        law = "" if layer.law is None else f" under {layer.law!r}"
        raise ValueError(
            f"to_torch: torch has no layer for {type(structure).__name__} with values {type(values).__name__}{law}; it has "
            "Own, Taps with Full, Average with Carried, and softmax Attention with LowRank."
        )
    if layer.bias is not None:
        _set(out.bias, layer.bias)
    return out.train(layer.training)


def _set(parameter: Any, value: Tensor | None) -> None:
    if parameter is not None and value is not None:
        parameter.copy_(value)


def _made(weight: Tensor) -> dict[str, Any]:
    return {"dtype": weight.dtype, "device": weight.device}


def _refuse(module: nn.Module, **unsupported: tuple[Any, Any]) -> None:
    for name, (given, only) in unsupported.items():
        if given != only:
            raise ValueError(
                f"from_torch: {type(module).__name__} with {name}={given!r} has no counterpart here; expected {only!r}."
            )


def _refuse_unready(module: Any) -> None:
    """A lazy layer that has not been called, or a layer of PyG between two kinds of nodes, or against the edges."""
    if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
        raise ValueError(
            f"from_torch: {type(module).__name__} has no parameters yet; call it once, then convert it."
        )
    channels = getattr(module, "in_channels", None)
    if isinstance(channels, tuple):
        raise ValueError(
            f"from_torch: {type(module).__name__} with in_channels={channels} has two kinds of nodes; expected one number."
        )
    if hasattr(module, "flow"):
        _refuse(module, flow=(module.flow, "source_to_target"))


# ---- torch --------------------------------------------------------------------------------------------


def _linear(m: Any) -> MixedProduct:
    out = layers.linear(m.weight.shape[1], m.weight.shape[0], m.bias is not None, **_made(m.weight))
    _set(out.values.weight, m.weight.mT[None])
    _set(out.bias, m.bias)
    return out


def _conv(m: Any) -> MixedProduct:
    out = layers.conv(
        m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups, m.bias is not None,
        m.padding_mode, **_made(m.weight),
    )  # fmt: skip
    _set(out.values.weight, m.weight.flatten(2).movedim(2, 0).mT)
    _set(out.bias, m.bias)
    return out


def _conv_transpose(m: Any) -> MixedProduct:
    out = layers.conv_transpose(
        m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.output_padding, m.groups,
        m.bias is not None, m.dilation, **_made(m.weight),
    )  # fmt: skip
    per = m.weight.flatten(2).unflatten(0, (m.groups, -1))  # (groups, P / groups, Q / groups, K)
    _set(out.values.weight, per.movedim(-1, 0).transpose(1, 2).flatten(2))
    _set(out.bias, m.bias)
    return out


def _average_pool(m: Any) -> MixedProduct:
    _refuse(m, ceil_mode=(m.ceil_mode, False), divisor_override=(getattr(m, "divisor_override", None), None))
    axes = int(type(m).__name__[-2])
    return layers.average_pool(m.kernel_size, m.stride, m.padding, m.count_include_pad, axes=axes)


def _attention(m: nn.MultiheadAttention) -> MixedProduct:
    _refuse(m, dropout=(m.dropout, 0.0))
    joint = m.in_proj_weight
    weights = joint.chunk(3) if joint is not None else (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    out = layers.attention(
        m.embed_dim, m.num_heads, m.in_proj_bias is not None, m.bias_k is not None, m.add_zero_attn, m.kdim, m.vdim,
        **_made(m.out_proj.weight),
    )  # fmt: skip
    structure: Any = out.structure
    values: Any = out.values
    biases = (None,) * 3 if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    for linear, weight, bias in zip((structure.query, structure.key), weights, biases, strict=False):
        _set(linear.weight, weight)
        _set(linear.bias, bias)
    _set(values.in_weight, weights[2])
    _set(values.in_bias, biases[2])
    _set(values.out_weight, m.out_proj.weight)
    _set(out.bias, m.out_proj.bias)
    if m.bias_k is not None and m.bias_v is not None:
        _set(structure.extra_keys, m.bias_k[0])
        _set(values.extra_values, m.bias_v[0])
    return out


def _to_conv(structure: Taps, values: Any, bias: bool, made: dict[str, Any]) -> nn.Module:
    kernel, axes = structure.kernel, structure.axes
    if any(a != b for a, b in kernel.padding):
        raise ValueError(
            f"to_torch: padding {kernel.padding} differs between the sides; torch pads both alike (only padding='same' does "
            "not, and then by its own rule)."
        )
    sizes = (
        values.in_channels,
        values.out_channels,
        kernel.taps,
        kernel.stride,
        tuple(a for a, _ in kernel.padding),
    )
    if kernel.transposed:
        turned: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        out = turned(
            *sizes, output_padding=kernel.output_padding, groups=values.groups, bias=bias, dilation=kernel.dilation, **made
        )  # fmt: skip
        per = values.weight.unflatten(-1, (values.groups, -1)).transpose(
            1, 2
        )  # (K, groups, P / groups, Q / groups)
        weight = per.movedim(0, -1).flatten(0, 1)
    else:
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        out = kind(
            *sizes, dilation=kernel.dilation, groups=values.groups, bias=bias, padding_mode=kernel.border, **made
        )  # fmt: skip
        weight = values.weight.mT.movedim(0, -1)
    _set(out.weight, weight.reshape(out.weight.shape))
    return out


def _to_attention(
    layer: MixedProduct, structure: Attention, values: Any, made: dict[str, Any]
) -> nn.MultiheadAttention:
    embed, query, key = values.out_channels, structure.query, structure.key
    square = (
        query.in_features == embed and structure.rank * structure.heads == embed == values.rank * values.count
    )
    kinds = structure.extra in ((), ("learned",), ("zero",), ("learned", "zero"))
    same = (query.bias is None) == (values.in_bias is None) == (layer.bias is None)
    if not (square and kinds and same) or structure.shared < structure.heads or values.shared < values.count:
        raise ValueError(
            f"to_torch: nn.MultiheadAttention has {embed} channels for queries and outputs, E / K in every head, a bias in all "
            f"projections or none, and no shared keys; got {structure!r} with values {values!r}."
        )
    if structure.causal:
        raise ValueError(
            "to_torch: nn.MultiheadAttention has no causal setting; build with causal=False and pass attn_mask."
        )
    out: Any = nn.MultiheadAttention(
        embed, values.count, bias=layer.bias is not None, add_bias_kv="learned" in structure.extra,
        add_zero_attn="zero" in structure.extra, kdim=key.in_features, vdim=values.in_channels, batch_first=True, **made,
    )  # fmt: skip
    parts = (query.weight, key.weight, values.in_weight)
    if out.in_proj_weight is not None:
        _set(out.in_proj_weight, torch.cat(parts))
    else:
        for to, weight in zip((out.q_proj_weight, out.k_proj_weight, out.v_proj_weight), parts, strict=True):
            _set(to, weight)
    if query.bias is not None and values.in_bias is not None:
        _set(out.in_proj_bias, torch.cat([query.bias, key.bias, values.in_bias]))
    _set(out.out_proj.weight, values.out_weight)
    _set(out.out_proj.bias, layer.bias)
    if structure.extra_keys is not None and values.extra_values is not None:
        _set(out.bias_k, structure.extra_keys[None])
        _set(out.bias_v, values.extra_values[None])
    return out.train(layer.training)


# ---- PyG ----------------------------------------------------------------------------------------------


def _aggr(m: Any) -> str:
    """How a layer gathers what arrives."""
    name = m.aggr if isinstance(m.aggr, str) else type(m.aggr_module).__name__
    return "add" if name == "sum" else str(name)


def _gcn(m: Any) -> MixedProduct:
    _refuse(m, aggr=(_aggr(m), "add"), normalize=(m.normalize, True), improved=(m.improved, False))
    weight = m.lin.weight
    out = layers.gcn(
        weight.shape[1], m.out_channels, m.bias is not None, self_loops=m.add_self_loops, **_made(weight)
    )
    _set(out.values.weight, weight.mT[None])
    _set(out.bias, m.bias)
    return out


def _stack(m: Any, make: Callable[..., MixedProduct], lins: list[Any], *size: int) -> MixedProduct:
    weight = lins[0].weight
    out = make(weight.shape[1], weight.shape[0], *size, m.bias is not None, **_made(weight))
    _set(out.values.weight, torch.stack([lin.weight.mT for lin in lins]))
    _set(out.bias, m.bias)
    return out


def _cheb(m: Any) -> MixedProduct:
    _refuse(m, aggr=(_aggr(m), "add"), normalization=(m.normalization, "sym"))
    return _stack(m, layers.cheb, list(m.lins), len(m.lins))


def _tag(m: Any) -> MixedProduct:
    _refuse(m, aggr=(_aggr(m), "add"), normalize=(m.normalize, True))
    return _stack(m, layers.tag, list(m.lins), m.K)


def _sage(m: Any) -> MixedProduct:
    _refuse(
        m,
        aggr=(_aggr(m), "mean"),
        normalize=(m.normalize, False),
        root_weight=(m.root_weight, True),
        project=(m.project, False),
    )
    weight = m.lin_l.weight
    out = layers.sage(weight.shape[1], weight.shape[0], m.lin_l.bias is not None, **_made(weight))
    _set(out.values.weight, torch.stack([weight.mT, m.lin_r.weight.mT]))
    _set(out.bias, m.lin_l.bias)
    return out


def _rgcn(m: Any) -> MixedProduct:
    _refuse(
        m, num_blocks=(m.num_blocks, None), aggr=(_aggr(m), "mean"), root_weight=(m.root is not None, True)
    )
    out = layers.rgcn(
        m.in_channels_l, m.out_channels, m.num_relations, m.num_bases, m.bias is not None, **_made(m.weight)
    )
    inner, root = _parts(out)
    _set(inner.weight, m.weight)
    if m.num_bases is not None:
        _set(inner.coefficients, m.comp)
    _set(root.weight, m.root[None])
    _set(out.bias, m.bias)
    return out


def _parts(layer: MixedProduct) -> Any:
    """The values of the heads or relations, and those of the node itself."""
    assert isinstance(layer.values, Joined)
    return layer.values.parts


def _gmm(m: Any) -> MixedProduct:
    _refuse(
        m, separate_gaussians=(m.separate_gaussians, False), aggr=(_aggr(m), "mean"), root_weight=(m.root is not None, True)
    )  # fmt: skip
    count = m.kernel_size
    out = layers.gmm(m.g.shape[0], m.out_channels, m.dim, count, m.bias is not None, **_made(m.g))
    structure: Any = out.structure
    values: Any = out.values
    _set(values.weight[:-1], m.g.unflatten(-1, (count, -1)).movedim(1, 0))
    _set(values.weight[-1], m.root.weight.mT)
    _set(structure.centre, m.mu)
    _set(structure.width, m.sigma)
    _set(out.bias, m.bias)
    return out


def _gat(m: Any) -> MixedProduct:
    _refuse(
        m, aggr=(_aggr(m), "add"), dropout=(m.dropout, 0.0), edge_dim=(m.edge_dim, None), residual=(getattr(m, "residual", False), False),
    )  # fmt: skip
    weight, heads = m.lin.weight, m.heads
    out = layers.gat(
        weight.shape[1], m.out_channels, heads, m.concat, m.negative_slope, m.add_self_loops, m.bias is not None,
        **_made(weight),
    )  # fmt: skip
    per = weight.unflatten(0, (heads, m.out_channels))  # (K, D, P)
    structure: Any = out.structure
    _set(structure.of_source, torch.einsum("kd,kdp->kp", m.att_src[0], per))
    _set(structure.of_target, torch.einsum("kd,kdp->kp", m.att_dst[0], per))
    _set_heads(out.values, weight, None, heads)
    _set(out.bias, m.bias)
    return out


def _graph_transformer(m: Any) -> MixedProduct:
    _refuse(
        m, aggr=(_aggr(m), "add"), dropout=(m.dropout, 0.0), edge_dim=(m.edge_dim, None),
        beta=(m.beta and m.root_weight, False),
    )  # fmt: skip
    weight, bias = m.lin_value.weight, m.lin_value.bias is not None
    out = layers.graph_transformer(
        weight.shape[1], m.out_channels, m.heads, m.concat, bias, root=m.root_weight, **_made(weight)
    )
    structure: Any = out.structure
    for linear, of in ((structure.query, m.lin_query), (structure.key, m.lin_key)):
        _set(linear.weight, of.weight)
        _set(linear.bias, of.bias)
    values: Any = out.values
    if m.root_weight:
        values, root = _parts(out)
        _set(root.weight, m.lin_skip.weight.mT[None])
        _set(out.bias, m.lin_skip.bias)
    _set_heads(values, weight, m.lin_value.bias, m.heads)
    return out


def _set_heads(values: Any, weight: Tensor, bias: Tensor | None, heads: int) -> None:
    """Values of heads side by side, or their mean, whose share 1 / K is part of Theta."""
    if isinstance(values, Concatenated):
        _set(values.weight, weight)
        _set(values.in_bias, bias)
        return
    _set(values.weight, weight.unflatten(0, (heads, -1)).mT / heads)
    _set(values.in_bias, None if bias is None else bias.unflatten(0, (heads, -1)) / heads)


_CONVERTERS: dict[str, Callable[[Any], MixedProduct]] = {
    "Linear": _linear,
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), _conv),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), _conv_transpose),
    **dict.fromkeys(("AvgPool1d", "AvgPool2d", "AvgPool3d"), _average_pool),
    "MultiheadAttention": _attention,
    "GCNConv": _gcn,
    "ChebConv": _cheb,
    "TAGConv": _tag,
    "SAGEConv": _sage,
    "RGCNConv": _rgcn,
    "GMMConv": _gmm,
    "GATConv": _gat,
    "TransformerConv": _graph_transformer,
}
