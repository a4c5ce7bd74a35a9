"""The graph term of message-passing layers: a normalised adjacency, made once and used in every layer."""

from __future__ import annotations

from torch import Tensor

from ..operators import Graph, Operator
from ..structure.graphs import DegreeOf, propagation


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
