"""Operators from a graph: its propagation, relations, rings of nodes at a distance, Chebyshev's scaled Laplacian."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import laws
from ..operators import Graph, Identity, Operator
from ..operators.base import refuse_past_limit
from ..operators.graph import check_edge_index

DegreeOf = Literal["weighted", "in_degree"]


def adjacency(
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    num_nodes: int | None = None,
    *,
    self_loops: bool = False,
    dtype: torch.dtype | None = None,
) -> Graph:
    """The graph as an operator, with ``self_loops`` one of weight 1 at every node that has none; see :func:`propagation`."""
    check_edge_index(edge_index, num_nodes, None, "adjacency")
    if num_nodes is None:
        num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
    if edge_weight is None:
        edge_weight = torch.ones(
            edge_index.shape[1], dtype=dtype or torch.get_default_dtype(), device=edge_index.device
        )
    if edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"adjacency: edge_weight has shape {tuple(edge_weight.shape)}; expected ({edge_index.shape[1]},), one for each edge."
        )
    if self_loops:
        has_loop = torch.zeros(num_nodes, dtype=torch.bool, device=edge_index.device)
        has_loop[edge_index[0, edge_index[0] == edge_index[1]]] = True
        node = (~has_loop).nonzero().squeeze(-1)
        edge_index = torch.cat([edge_index, node.expand(2, -1)], 1)
        edge_weight = torch.cat([edge_weight, edge_weight.new_ones(len(node))])
    return Graph(edge_index, edge_weight, num_nodes)


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
    graph = adjacency(edge_index, edge_weight, num_nodes, self_loops=self_loops, dtype=dtype)
    if degree == "weighted":
        return laws.sym(graph)
    if degree != "in_degree":
        raise ValueError(f"propagation: degree is {degree!r}; expected 'weighted' or 'in_degree'.")
    count = torch.bincount(graph.target, minlength=graph.shape[0]).to(graph.dtype)
    scale = torch.where(count > 0, count.clamp(min=1).rsqrt(), 0.0)
    return graph.scale(scale, scale)


def relations(graph: Graph, edge_type: Tensor, count: int) -> list[Graph]:
    """One graph for each relation: the edges of that type.

    Args:
        graph: the edges and their weights.
        edge_type: ``(e,)`` int64, 0 to ``count - 1``.

    Raises:
        ValueError: types of another shape or out of range.
    """
    if edge_type.shape != graph.source.shape or edge_type.dtype != torch.int64:
        raise ValueError(
            f"relations: edge_type has shape {tuple(edge_type.shape)} and dtype {edge_type.dtype}; expected int64 of shape "
            f"({len(graph.source)},), one for each edge."
        )
    if edge_type.numel() and not 0 <= int(edge_type.min()) <= int(edge_type.max()) < count:
        raise ValueError(
            f"relations: edge_type goes from {int(edge_type.min())} to {int(edge_type.max())}; expected 0 to {count - 1}."
        )
    return [
        Graph(graph.edge_index[:, keep], graph.weight[..., keep], *graph.shape[-2:])
        for keep in (edge_type == r for r in range(count))
    ]


def rings(
    edge_index: Tensor, num_nodes: int, radius: int, *, dtype: torch.dtype | None = None
) -> list[Graph]:
    """Graphs ``R_0 .. R_radius``: ``R_k`` joins every target to the sources that are exactly k steps away.

    Distances follow the edges from source to target. ``R_0`` is the identity, ``R_1`` the graph without loops and
    repeats; the graphs are disjoint, which makes their projection as simple as that of shifts. Weights are 1.

    Cost: a sparse product a step; as many edges as there are pairs within the radius.

    Raises:
        ValueError: a negative radius.
        DenseLimitError: the pairs within the radius are more than :func:`~osmose.operators.dense_limit`.
    """
    check_edge_index(edge_index, num_nodes, None, "rings")
    if radius < 0:
        raise ValueError(f"rings: radius is {radius}; expected at least 0.")
    node = torch.arange(num_nodes, device=edge_index.device)
    seen = node * num_nodes + node
    frontier = torch.stack([node, node])  # rows: source, target
    out = [Graph(frontier, None, num_nodes, dtype=dtype)]
    order = edge_index[0].argsort()
    source, target = edge_index[0][order], edge_index[1][order]
    start = torch.searchsorted(source, torch.arange(num_nodes + 1, device=source.device))
    for _ in range(radius):
        degree = (start[1:] - start[:-1])[frontier[1]]
        refuse_past_limit(int(degree.sum()), "rings", "Take a smaller radius.")
        begin = start[frontier[1]].repeat_interleave(degree)
        ends = degree.cumsum(0) - degree
        edge = begin + torch.arange(len(begin), device=begin.device) - ends.repeat_interleave(degree)
        key = torch.unique(frontier[0].repeat_interleave(degree) * num_nodes + target[edge])
        key = key[~torch.isin(key, seen)]
        seen = torch.cat([seen, key])
        frontier = torch.stack([key // max(num_nodes, 1), key % max(num_nodes, 1)])
        out.append(Graph(frontier, None, num_nodes, dtype=dtype))
    return out


def scaled_laplacian(adjacency: Operator, largest_eigenvalue: float = 2.0) -> Operator:
    """``2 (I - A) / lambda_max - I``, whose spectrum Chebyshev polynomials want in [-1, 1].

    Args:
        adjacency: ``D^-1/2 A D^-1/2``, without self loops: ``laws.sym`` of a graph.
        largest_eigenvalue: of ``I - A``, at most 2.
    """
    if not largest_eigenvalue > 0:
        raise ValueError(
            f"scaled_laplacian: largest_eigenvalue is {largest_eigenvalue}; expected more than 0."
        )
    scaled = adjacency * (-2.0 / largest_eigenvalue)
    rest = 2.0 / largest_eigenvalue - 1.0
    if rest == 0:
        return scaled
    return scaled + Identity(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device) * rest
