"""Edges: one canonical form, and k nearest neighbours for data that come without edges."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import DataError


def canonical(
    edges: Tensor, weight: Tensor | None, num_nodes: int, *, directed: bool = False
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Edges without self-loops and duplicates, in both directions unless `directed`.

    Args:
        edges: (2, e) int64, indices within `num_nodes`.
        weight: (e,) or None. Of duplicates, and of the two directions of a pair, the largest weight stays.

    Returns:
        edges sorted by source then target, their weights, and what was changed, one sentence each.
    """
    notes = []
    loops = edges[0] == edges[1]
    if bool(loops.any()):
        notes.append(f"{int(loops.sum())} self-loops removed (the graph term of a model adds its own)")
        edges, weight = edges[:, ~loops], None if weight is None else weight[~loops]
    key = edges[0] * num_nodes + edges[1]
    unique = key.unique()
    if unique.numel() < key.numel():
        notes.append(f"{key.numel() - unique.numel()} duplicate edges merged")
    if not directed:
        missing = int((~torch.isin(unique % num_nodes * num_nodes + unique // num_nodes, unique)).sum())
        if missing:
            notes.append(f"graph made undirected: {missing} reverse edges added")
        key = torch.cat([key, edges[1] * num_nodes + edges[0]])
        weight = None if weight is None else torch.cat([weight, weight])
    unique, inverse = key.unique(return_inverse=True)
    if weight is not None:
        merged = torch.zeros(unique.shape, dtype=weight.dtype)
        weight = merged.scatter_reduce(0, inverse, weight, "amax", include_self=False)
    return torch.stack([unique // num_nodes, unique % num_nodes]), weight, notes


def knn_graph(x: Tensor, k: int) -> Tensor:
    """Undirected graph of the `k` nearest rows by Euclidean distance, without self-loops.

    Cost: a tree search for few features, O(n^2 c) time and O(n) memory else (scikit-learn).
    """
    from sklearn.neighbors import NearestNeighbors

    n = x.shape[0]
    if k < 1:
        raise DataError(f"knn is {k}; expected at least 1 neighbour")
    k = min(k, n - 1)
    if k == 0:
        return torch.zeros(2, 0, dtype=torch.int64)
    found = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors(return_distance=False)
    target = np.repeat(np.arange(n), k)
    edges = torch.from_numpy(np.stack([found.reshape(-1).astype(np.int64), target]))
    return canonical(edges, None, n)[0]
