"""The graph term of message-passing layers: a normalised adjacency, made once and used in every layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import laws
from ..operators import Graph, Operator
from ..operators.graph import check_edge_index

DegreeOf = Literal["weighted", "in_degree"]


def propagation(
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    num_nodes: int | None = None,
    *,
    self_loops: bool = True,
    degree: DegreeOf = "weighted",
    dtype: torch.dtype | None = None,
) -> Operator:
    """``D^-1/2 (A + I) D^-1/2`` as an operator ``(n, n)``; hand it to a model in place of ``edge_index``.

    Args:
        edge_index: ``(2, e)`` int64, row 0 = source, row 1 = target, as in PyG.
        edge_weight: ``(e,)``, None means 1.
        num_nodes: n; None takes the largest index.
        self_loops: add a loop of weight 1 to every node that has none.
        degree: ``weighted`` is the law ``sym``: weights count, targets by what they receive and sources by what
            they give. ``in_degree`` is the formula of DIFFormer's released code: the number of incoming
            edges at both ends, weights left out of it. They agree on undirected graphs without weights.

    Isolated nodes without a loop give and receive 0. Cost O(e), once; a product costs O(e) a column.

    Raises:
        TypeError, ValueError: as :class:`~osmose.operators.Graph`.
    """
    check_edge_index(edge_index, num_nodes, None, "propagation")
    if num_nodes is None:
        num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
    if edge_weight is None:
        edge_weight = torch.ones(
            edge_index.shape[1], dtype=dtype or torch.get_default_dtype(), device=edge_index.device
        )
    if edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"propagation: edge_weight has shape {tuple(edge_weight.shape)}; expected ({edge_index.shape[1]},), one for each edge."
        )
    if self_loops:
        has_loop = torch.zeros(num_nodes, dtype=torch.bool, device=edge_index.device)
        has_loop[edge_index[0, edge_index[0] == edge_index[1]]] = True
        node = (~has_loop).nonzero().squeeze(-1)
        edge_index = torch.cat([edge_index, node.expand(2, -1)], 1)
        edge_weight = torch.cat([edge_weight, edge_weight.new_ones(len(node))])
    graph = Graph(edge_index, edge_weight, num_nodes)
    if degree == "weighted":
        return laws.sym(graph)
    if degree != "in_degree":
        raise ValueError(f"propagation: degree is {degree!r}; expected 'weighted' or 'in_degree'.")
    count = torch.bincount(edge_index[1], minlength=num_nodes).to(edge_weight.dtype)
    scale = torch.where(count > 0, count.clamp(min=1).rsqrt(), 0.0)
    return graph.scale(scale, scale)


def as_propagation(
    graph: Tensor | Operator | None,
    edge_weight: Tensor | None,
    x: Tensor | Operator,
    what: str,
    *,
    batch: Tensor | None = None,
    self_loops: bool = True,
    degree: DegreeOf = "weighted",
) -> Operator | None:
    """The operator of a model's ``graph`` argument: None, an edge index, or what :func:`propagation` made of one.

    Raises:
        ValueError: a padded x, weights beside a prepared graph, another number of nodes, edges between sets.
    """
    if graph is None:
        return None
    if len(x.shape) == 3:
        raise ValueError(f"{what}: a graph goes with x of shape (n, c); pack the batch and pass batch=.")
    n = x.shape[-2]
    if isinstance(graph, Tensor):
        graph = propagation(graph, edge_weight, n, self_loops=self_loops, degree=degree, dtype=x.dtype)
    elif edge_weight is not None:
        raise ValueError(
            f"{what}: edge_weight goes with an edge index; a prepared graph has its weights already."
        )
    if graph.shape[-2:] != (n, n):
        raise ValueError(
            f"{what}: graph has shape {tuple(graph.shape)} but x has {n} nodes; expected ({n}, {n})."
        )
    if (
        batch is not None
        and isinstance(graph, Graph)
        and bool((batch[graph.source] != batch[graph.target]).any())
    ):
        raise ValueError(
            f"{what}: edge_index joins nodes of different sets of batch; expected edges inside sets only."
        )
    return graph
