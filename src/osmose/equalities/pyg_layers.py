"""Our instances against the layers of PyG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from ..nn.mixed import from_torch, layers
from .registry import Equality, Trial, randomised

N = 12


def _graph() -> Tensor:
    """Directed edges, with loops."""
    edges = torch.randint(0, N - 1, (2, 80))  # the last node is isolated
    return torch.unique(edges, dim=1)


def _layer(
    make: Callable[[], nn.Module],
    *names: str,
    convert: Callable[[Any], Any] = from_torch,
) -> Callable[[torch.dtype], Trial]:
    def trial(dtype: torch.dtype) -> Trial:
        peer = randomised(make(), dtype)
        ours, edges = convert(peer), _graph()
        e = edges.shape[1]
        drawn = {
            "edge_weight": torch.rand(e, dtype=dtype) + 0.1,
            "edge_type": torch.randint(0, 3, (e,)),
            "edge_attr": torch.rand(e, 2, dtype=dtype),
        }
        given = {"edge_index": edges} | {name: drawn[name] for name in names}
        return Trial(ours, lambda x: peer(x, **given), torch.randn(N, 6, dtype=dtype), given)

    return trial


def _regrouped(peer: Any) -> Any:
    """R-GCN's bases read as learned mixtures of relations."""
    plain: Any = from_torch(peer)
    out: Any = layers.rgcn(6, 4, 3, peer.num_bases, regrouped=True, dtype=peer.weight.dtype)
    (inner, root), (to, to_root) = plain.values.parts, out.values.parts
    with torch.no_grad():
        out.structure.coefficients.copy_(inner.coefficients.mT)
        to.weight.copy_(inner.weight)
        to_root.weight.copy_(root.weight)
        out.bias.copy_(plain.bias)
    return out


EQUALITIES = (
    Equality("GCNConv", "pyg", "D^-1/2 (A + I) D^-1/2", _layer(lambda: pyg.GCNConv(6, 4))),
    Equality(
        "GCNConv, edge weights",
        "pyg",
        "D^-1/2 (A + I) D^-1/2",
        _layer(lambda: pyg.GCNConv(6, 4), "edge_weight"),
    ),
    Equality(
        "ChebConv, K = 4",
        "pyg",
        "Chebyshev polynomials of the scaled Laplacian",
        _layer(lambda: pyg.ChebConv(6, 4, 4), "edge_weight"),
    ),
    Equality(
        "TAGConv, 3 hops",
        "pyg",
        "powers of D^-1/2 A D^-1/2",
        _layer(lambda: pyg.TAGConv(6, 4, 3), "edge_weight"),
    ),
    Equality("SAGEConv, mean", "pyg", "D^-1 A, identity", _layer(lambda: pyg.SAGEConv(6, 4))),
    Equality("RGCNConv", "pyg", "A_r / deg_r, identity", _layer(lambda: pyg.RGCNConv(6, 4, 3), "edge_type")),
    Equality(
        "RGCNConv, two bases",
        "pyg",
        "A_r / deg_r, identity",
        _layer(lambda: pyg.RGCNConv(6, 4, 3, num_bases=2), "edge_type"),
    ),
    Equality(
        "RGCNConv, two bases, regrouped",
        "pyg",
        "learned mixtures of A_r / deg_r, identity",
        _layer(lambda: pyg.RGCNConv(6, 4, 3, num_bases=2), "edge_type", convert=_regrouped),
    ),
    Equality(
        "GMMConv",
        "pyg",
        "learned Gaussians of edge coordinates, identity",
        _layer(lambda: pyg.GMMConv(6, 4, 2, 5), "edge_attr"),
    ),
    Equality("GATConv", "pyg", "additive softmax heads on edges", _layer(lambda: pyg.GATConv(6, 4, 3))),
    Equality(
        "GATConv, mean of heads",
        "pyg",
        "additive softmax heads on edges",
        _layer(lambda: pyg.GATConv(6, 4, 3, concat=False)),
    ),
    Equality(
        "TransformerConv",
        "pyg",
        "bilinear softmax heads on edges, identity",
        _layer(lambda: pyg.TransformerConv(6, 4, 3)),
    ),
    Equality(
        "TransformerConv, mean of heads",
        "pyg",
        "bilinear softmax heads on edges, identity",
        _layer(lambda: pyg.TransformerConv(6, 4, 3, concat=False)),
    ),
)
