"""Our instances against the formulas of the papers' code, written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.mixed import MixedProduct, Together, layers
from ..nn.mixed.graphs import Propagation
from ..nn.mixed.values import Tied
from .published import (
    published_causal_flow,
    published_diffusion,
    published_flow,
    published_linear,
    published_sigmoid_diffusion,
)
from .registry import Equality, Trial, randomised


def _attention(published: Callable[..., Tensor], **settings: Any) -> Callable[[torch.dtype], Trial]:
    """Heads of a mixer between projections, against a formula on ``(B, H, n, d)``."""

    def trial(dtype: torch.dtype) -> Trial:
        ours = randomised(layers.attention(6, 2, **settings), dtype)
        structure, values = ours.structure, ours.values

        def theirs(x: Tensor) -> Tensor:
            weights = (structure.query.weight, structure.key.weight, values.in_weight)
            biases = (structure.query.bias, structure.key.bias, values.in_bias)
            q, k, v = (
                F.linear(x, w, b).unflatten(-1, (2, -1)).transpose(1, 2)
                for w, b in zip(weights, biases, strict=True)
            )
            return F.linear(published(q, k, v).transpose(1, 2).flatten(-2), values.out_weight, ours.bias)

        return Trial(ours, theirs, torch.randn(2, 9, 6, dtype=dtype))

    return trial


def _difformer(kernel: str, heads: int, **options: Any) -> Callable[[torch.dtype], Trial]:
    """Heads of full width and their mean, against the released formula on ``(n, H, d)``."""

    def trial(dtype: torch.dtype) -> Trial:
        ours = randomised(layers.difformer(6, 4, heads, kernel=kernel, **options), dtype)
        return Trial(ours, _released(ours, kernel, heads), torch.randn(9, 6, dtype=dtype))

    return trial


def _released(layer: Any, kernel: str, heads: int, theta: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    structure: Any = layer.structure.parts[0] if isinstance(layer.structure, Together) else layer.structure
    weight: Any = layer.values.weight if theta is None else theta

    def run(x: Tensor) -> Tensor:
        q, k = (linear(x).unflatten(-1, (heads, 4)) for linear in (structure.query, structure.key))
        v = torch.einsum("np,hpq->nhq", x, weight)
        if kernel == "simple":
            mixed = published_diffusion(q, k, v).sum(1)
        else:
            mixed = torch.stack(
                [published_sigmoid_diffusion(q[:, h], k[:, h], v[:, h]) for h in range(heads)]
            ).sum(0)
        return mixed + layer.bias

    return run


def _difformer_graph(dtype: torch.dtype) -> Trial:
    attention = layers.difformer(6, 4, 1, normalization="frobenius").structure
    ours = randomised(MixedProduct(Together(attention, Propagation()), Tied(2, 6, 4)), dtype)
    edges = torch.unique(torch.randint(0, 9, (2, 20)), dim=1)
    edges = torch.unique(torch.cat([edges, edges.flip(0), torch.arange(9).expand(2, -1)], 1), dim=1)
    degree = torch.bincount(edges[1], minlength=9).to(dtype)
    weight = (degree[edges[0]] * degree[edges[1]]).rsqrt()
    dense = torch.zeros(9, 9, dtype=dtype).index_put((edges[1], edges[0]), weight, accumulate=True)
    theta = ours.values.weight

    def theirs(x: Tensor) -> Tensor:
        return _released(ours, "simple", 1, theta[None])(x) + dense @ (x @ theta)

    return Trial(ours, theirs, torch.randn(9, 6, dtype=dtype), {"edge_index": edges})


EQUALITIES = (
    Equality(
        "Flow-Attention, released (core)",
        "published",
        "flow heads",
        _attention(published_flow, mixer="flow", preset="core"),
    ),
    Equality(
        "Flow-Attention, released, causal",
        "published",
        "flow heads, causal order",
        _attention(published_causal_flow, mixer="flow", preset="core", causal=True),
    ),
    Equality(
        "linear attention, elu + 1",
        "published",
        "low-rank heads, law row",
        _attention(published_linear, mixer="linear"),
    ),
    Equality(
        "DIFFormer-s, released",
        "published",
        "1 + q k^T heads, law row, mean of heads",
        _difformer("simple", 3, normalization="frobenius"),
    ),
    Equality(
        "DIFFormer-a, released",
        "published",
        "sigmoid heads, law row, mean of heads",
        _difformer("sigmoid", 3, normalization="none"),
    ),
    Equality(
        "DIFFormer-s with a graph",
        "published",
        "1 + q k^T, D^-1/2 (A + I) D^-1/2",
        _difformer_graph,
    ),
)
