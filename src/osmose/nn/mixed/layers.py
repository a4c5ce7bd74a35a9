"""Known layers as mixed products: each constructor says which structure and which values it is.

Tokens are ``(..., n, P)``, grids ``(..., n_1, ..., n_D, P)``: channels last. Parameters start as those parts start;
``from_torch`` takes those of an existing layer.
"""

from __future__ import annotations

from typing import Any

from ...operators.shift import Border
from ...structure.shifts import Kernel
from .attention import Attention
from .graphs import (
    AdditiveEdges,
    BilinearEdges,
    Chebyshev,
    Gaussians,
    Neighbours,
    Powers,
    Propagation,
    Relations,
)
from .product import MixedProduct
from .shifts import Average, Own, Taps
from .values import Bases, Carried, Concatenated, Full, Joined, LowRank, Values

Sizes = int | tuple[int, ...]


def linear(in_channels: int, out_channels: int, bias: bool = True, **made: Any) -> MixedProduct:
    """``{I}`` and one matrix: ``nn.Linear``, also a convolution with one tap."""
    return MixedProduct(Own(), Full(1, in_channels, out_channels, **made), bias=bias, **made)


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: Border = "zeros",
    *,
    axes: int | None = None,
    **made: Any,
) -> MixedProduct:
    """K shifts and a matrix for each: ``nn.Conv1d``, ``Conv2d``, ``Conv3d`` by the axes of ``kernel_size``.

    Args:
        axes: of the grid, where all sizes are ints; None means as many as ``kernel_size`` has.
        padding: also ``"same"`` and ``"valid"``, as in torch.
        others: torch's; ``groups`` makes every matrix block-diagonal, depthwise at ``in_channels``.
    """
    axes = axes or (1 if isinstance(kernel_size, int) else len(kernel_size))
    taps, strides, dilations = (_all(x, axes) for x in (kernel_size, stride, dilation))
    kernel = Kernel(taps, strides, dilations, _padding(padding, taps, dilations, axes), border=padding_mode)
    values = Full(len(kernel.offsets()), in_channels, out_channels, groups, **made)
    return MixedProduct(Taps(kernel), values, bias=bias, **made)


def conv_transpose(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
    *,
    axes: int | None = None,
    **made: Any,
) -> MixedProduct:
    """Transposed strided shifts and a matrix for each: ``nn.ConvTranspose1d``, ``2d``, ``3d``; torch's arguments."""
    axes = axes or (1 if isinstance(kernel_size, int) else len(kernel_size))
    taps, strides, dilations, pads, more = (
        _all(x, axes) for x in (kernel_size, stride, dilation, padding, output_padding)
    )
    kernel = Kernel(
        taps, strides, dilations, tuple((p, p) for p in pads), transposed=True, output_padding=more
    )
    values = Full(len(kernel.offsets()), in_channels, out_channels, groups, **made)
    return MixedProduct(Taps(kernel), values, bias=bias, **made)


def average_pool(
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    count_include_pad: bool = True,
    *,
    axes: int | None = None,
) -> MixedProduct:
    """One averaging operator, Theta = I: ``nn.AvgPool1d``, ``2d``, ``3d``; no parameters."""
    axes = axes or (1 if isinstance(kernel_size, int) else len(kernel_size))
    taps, pads = _all(kernel_size, axes), _all(padding, axes)
    strides = taps if stride is None else _all(stride, axes)
    kernel = Kernel(taps, strides, (), tuple((p, p) for p in pads))
    return MixedProduct(Average(kernel, count_include_pad), Carried(1), bias=False)


def gcn(in_channels: int, out_channels: int, bias: bool = True, *, self_loops: bool = True, **made: Any) -> MixedProduct:  # fmt: skip
    """``{D^-1/2 (A + I) D^-1/2}`` and one matrix: ``GCNConv``. Call with ``edge_index=``, ``edge_weight=``."""
    return MixedProduct(
        Propagation(self_loops, "received"), Full(1, in_channels, out_channels, **made), bias=bias, **made
    )


def cheb(
    in_channels: int, out_channels: int, count: int, bias: bool = True, *, largest_eigenvalue: float = 2.0, **made: Any
) -> MixedProduct:  # fmt: skip
    """Chebyshev polynomials of the scaled Laplacian, k < ``count``, and a matrix for each: ``ChebConv``."""
    values = Full(count, in_channels, out_channels, **made)
    return MixedProduct(Chebyshev(count, largest_eigenvalue, "given"), values, bias=bias, **made)


def tag(in_channels: int, out_channels: int, hops: int = 3, bias: bool = True, **made: Any) -> MixedProduct:
    """Powers 0 .. ``hops`` of ``D^-1/2 A D^-1/2`` and a matrix for each: ``TAGConv``."""
    return MixedProduct(
        Powers(hops + 1, degree="received"),
        Full(hops + 1, in_channels, out_channels, **made),
        bias=bias,
        **made,
    )


def sage(in_channels: int, out_channels: int, bias: bool = True, **made: Any) -> MixedProduct:
    """``{D^-1 A, I}`` and a matrix for each: ``SAGEConv`` with the mean."""
    return MixedProduct(Neighbours(), Full(2, in_channels, out_channels, **made), bias=bias, **made)


def rgcn(
    in_channels: int,
    out_channels: int,
    relations: int,
    bases: int | None = None,
    bias: bool = True,
    *,
    regrouped: bool = False,
    **made: Any,
) -> MixedProduct:
    """A mean for each relation, and I: ``RGCNConv``. Call with ``edge_index=``, ``edge_type=``.

    Args:
        bases: B; matrices are then mixtures of B.
        regrouped: read the bases as B learned mixtures of relations with a free matrix each; the same map.
    """
    if regrouped and bases is None:
        raise ValueError("rgcn: regrouped=True reads bases as mixtures of relations; pass bases=.")
    structure = Relations(relations, bases if regrouped else None, **made)
    root = Full(1, in_channels, out_channels, **made)
    inner: Values = (
        Full(structure.count - 1, in_channels, out_channels, **made)
        if bases is None or regrouped
        else Bases(relations, bases, in_channels, out_channels, **made)
    )
    return MixedProduct(structure, Joined(inner, root), bias=bias, **made)


def gmm(
    in_channels: int, out_channels: int, coordinates: int, count: int, bias: bool = True, **made: Any
) -> MixedProduct:
    """Learned Gaussians of edge coordinates, and I: ``GMMConv`` with the mean. Call with ``edge_attr=``."""
    return MixedProduct(
        Gaussians(count, coordinates, **made),
        Full(count + 1, in_channels, out_channels, **made),
        bias=bias,
        **made,
    )


def gat(
    in_channels: int,
    out_channels: int,
    heads: int = 1,
    concat: bool = True,
    slope: float = 0.2,
    self_loops: bool = True,
    bias: bool = True,
    **made: Any,
) -> MixedProduct:
    """Softmax of additive scores on edges: ``GATConv``; ``concat``: heads side by side, else their mean (in Theta)."""
    structure = AdditiveEdges(in_channels, heads, slope=slope, self_loops=self_loops, **made)
    return MixedProduct(structure, _heads(in_channels, out_channels, heads, concat, made), bias=bias, **made)


def graph_transformer(
    in_channels: int,
    out_channels: int,
    heads: int = 1,
    concat: bool = True,
    bias: bool = True,
    *,
    root: bool = True,
    **made: Any,
) -> MixedProduct:
    """Attention masked by a graph, and I: ``TransformerConv``."""
    structure = BilinearEdges(in_channels, heads, out_channels, root=root, **made)
    values = _heads(in_channels, out_channels, heads, concat, made, bias)
    if root:
        wide = heads * out_channels if concat else out_channels
        values = Joined(values, Full(1, in_channels, wide, **made))
    return MixedProduct(structure, values, bias=bias, **made)


def _heads(
    in_channels: int, out_channels: int, heads: int, concat: bool, made: dict[str, Any], bias: bool = False
) -> Values:
    if concat:
        return Concatenated(heads, in_channels, heads * out_channels, bias=bias, **made)
    return Full(heads, in_channels, out_channels, in_bias=bias, **made)


def attention(
    channels: int,
    heads: int,
    bias: bool = True,
    add_bias_kv: bool = False,
    add_zero_attn: bool = False,
    kdim: int | None = None,
    vdim: int | None = None,
    *,
    shared: int | None = None,
    mixer: str = "softmax",
    causal: bool = False,
    **options: Any,
) -> MixedProduct:
    """Bilinear heads and values of rank E / K: ``nn.MultiheadAttention``, and with ``mixer`` Flow-Attention and others.

    Call ``layer(value, y=query, key=key, attn_mask=..., key_padding_mask=...)``; ``layer(x)`` is self-attention.

    Args:
        channels: E, of query and output.
        heads: K.
        shared: key and value heads (grouped queries); None means K.
        mixer, options: as for :class:`Attention`; ``device`` and ``dtype`` too.
        others: as in torch.
    """
    made = {name: options.pop(name) for name in ("device", "dtype") if name in options}
    extra = ("learned",) * add_bias_kv + ("zero",) * add_zero_attn
    structure = Attention(
        channels, heads, key_channels=kdim, shared=shared, mixer=mixer, bias=bias, extra=extra, causal=causal,
        **made, **options,
    )  # fmt: skip
    values = LowRank(heads, vdim or channels, channels, bias=bias, shared=shared, extra=extra, **made)
    return MixedProduct(structure, values, bias=bias, **made)


def difformer(
    in_channels: int, out_channels: int, heads: int = 1, *, kernel: str = "simple", **options: Any
) -> MixedProduct:
    """DIFFormer's attention: heads of full width, averaged (in Theta); ``kernel`` is ``simple`` or ``sigmoid``."""
    made = {name: options.pop(name) for name in ("device", "dtype") if name in options}
    mixer = {"simple": "diffusion", "sigmoid": "diffusion-sigmoid"}.get(kernel, kernel)
    structure = Attention(in_channels, heads, out_channels, mixer=mixer, **made, **options)
    return MixedProduct(structure, Full(heads, in_channels, out_channels, **made), **made)


def _all(size: Sizes, axes: int) -> tuple[int, ...]:
    if isinstance(size, int):
        return (size,) * axes
    if len(size) != axes:
        raise ValueError(
            f"a size {tuple(size)} for {axes} axes; expected one number for each, or one for all."
        )
    return tuple(size)


def _padding(
    padding: Sizes | str, taps: tuple[int, ...], dilations: tuple[int, ...], axes: int
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        padding = 0
    if padding == "same":
        spans = [d * (k - 1) for k, d in zip(taps, dilations, strict=True)]
        return tuple((span // 2, span - span // 2) for span in spans)
    if isinstance(padding, str):
        raise ValueError(f"padding is {padding!r}; expected same, valid, or sizes.")
    return tuple((p, p) for p in _all(padding, axes))
