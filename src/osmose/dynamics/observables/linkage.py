"""Clusters by single linkage: tokens closer than a scale are together, and so is whoever they are with.

Transitive, so the answer does not depend on an order. The scale is a Euclidean distance, stated with the answer; on the
sphere an angle a is the distance ``2 sin(a/2)``.

Shapes: ``x (..., n, d)``, ``mass (..., n)``; a token of mass 0 is in no cluster, label -1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._points import ENTRIES, distances, weighted

SMALL = 512  # up to here all pairs of a batch at once
GRID_DIMENSIONS = 3  # up to here cells of a grid are few
GRID_CELLS = 1e12  # on a side; past it rounding decides who is in which cell


def cluster_scale(beta: float, c: float = 1.0) -> float:
    """``c / sqrt(beta)``: the width to which the kernel ``e^{beta <x, y>}`` sees two tokens as one."""
    if not (beta > 0 and c > 0):
        raise ValueError(f"cluster_scale: beta is {beta} and c {c}; expected positive numbers.")
    return c / math.sqrt(beta)


@dataclass(frozen=True, eq=False)
class Clusters:
    """The partition of a batch of states.

    Attributes:
        labels: ``(..., n)`` int64 from 0, in the order in which clusters first appear; -1 for absent tokens.
        count: ``(...)`` int64.
        scale: the distance of the linkage.
    """

    labels: Tensor
    count: Tensor
    scale: float

    def masses(self, mass: Tensor | None = None) -> Tensor:
        """Mass of every cluster, ``(..., k)`` with k the largest count; 0 beyond a state's own count."""
        m = torch.ones(self.labels.shape, dtype=torch.float64, device=self.labels.device)
        return self._sum((m if mass is None else mass.expand(self.labels.shape)).unsqueeze(-1)).squeeze(-1)

    def means(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        """Mean of every cluster under the mass, ``(..., k, d)``, unnormalised; 0 beyond a state's own count."""
        x, m = weighted("Clusters.means", x, mass)
        sums = self._sum(torch.cat([m.unsqueeze(-1) * x, m.unsqueeze(-1)], -1))
        return sums[..., :-1] / torch.where(sums[..., -1:] > 0, sums[..., -1:], 1.0)

    def _sum(self, values: Tensor) -> Tensor:
        k = int(self.count.max()) if self.count.numel() else 0
        out = values.new_zeros(
            *self.labels.shape[:-1], k + 1, values.shape[-1]
        )  # one more row for the absent
        slot = torch.where(self.labels < 0, k, self.labels).unsqueeze(-1).expand(values.shape)
        return out.scatter_add_(-2, slot, values)[..., :k, :]


def clusters(x: Tensor, scale: float, mass: Tensor | None = None) -> Clusters:
    """Connected components of ``|x_i - x_j| <= scale``, exactly.

    Cost, for each state: up to 512 tokens ``n^2 d`` for all states at once. Beyond, in d <= 3 near ``n log n`` (a grid of
    cells narrower than the scale, k-d trees between neighbouring ones; on the CPU); in more dimensions at most
    ``n^2 d`` time and O(n) memory, far less where clusters are tight.

    Raises:
        ValueError: a scale that is not a positive number.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(
            f"clusters: scale is {scale}; expected a positive distance, e.g. cluster_scale(beta)."
        )
    x, m = weighted("clusters", x.detach(), mass)
    lead, n = x.shape[:-2], x.shape[-2]
    x_PNd, here_PN = x.reshape(-1, n, x.shape[-1]), (m > 0).reshape(-1, n)
    if n <= SMALL:
        depth = max(1, ENTRIES // max(n * n, 1))
        parts = [_linked(a, h, scale) for a, h in zip(x_PNd.split(depth), here_PN.split(depth), strict=True)]
        first = torch.cat(parts) if parts else here_PN.long()
    else:
        first = torch.stack([_one_state(a, h, scale) for a, h in zip(x_PNd, here_PN, strict=True)])
    labels, count = _in_order(first, here_PN)
    return Clusters(labels.view(*lead, n), count.view(lead), scale)


def cluster_count(x: Tensor, scale: float, mass: Tensor | None = None) -> Tensor:
    """How many clusters there are at the scale, ``(...)`` int64. See :func:`clusters`."""
    return clusters(x, scale, mass).count


def _linked(x: Tensor, here: Tensor, scale: float) -> Tensor:
    """The least index of every token's component, for ``(P, n, d)``: minima over neighbours until nothing moves."""
    n = x.shape[-2]
    near = distances(x, x) <= scale
    near &= here.unsqueeze(-1) & here.unsqueeze(-2)
    near |= torch.eye(n, dtype=torch.bool, device=x.device)  # also where rounding or NaN says otherwise
    label = torch.arange(n, device=x.device).expand(x.shape[:-1]).contiguous()
    while True:
        new = torch.where(near, label.unsqueeze(-2), n).amin(-1)
        new = new.gather(-1, new)  # the label of one's label: chains shorten by halves
        if torch.equal(new, label):
            return label
        label = new


def _in_order(first: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """Labels from 0 in order of appearance, from the least index of each component."""
    n = first.shape[-1]
    is_first = (first == torch.arange(n, device=first.device)) & here
    rank = is_first.long().cumsum(-1) - 1
    return torch.where(here, rank.gather(-1, first), -1), is_first.sum(-1)


def _one_state(x: Tensor, here: Tensor, scale: float) -> Tensor:
    out = torch.arange(len(x), device=x.device)
    index = here.nonzero().squeeze(-1)
    points = x[index]
    width = float(points.amax() - points.amin()) if points.numel() else 0.0
    if x.shape[-1] <= GRID_DIMENSIONS and width < GRID_CELLS * scale:
        component = torch.from_numpy(_grid(points.double().cpu().numpy(), scale)).to(x.device)
    else:
        component = _grown(points, scale)
    least = torch.full((len(index),), len(x), device=x.device).scatter_reduce(0, component, index, "amin")
    out[index] = least[component]
    return out


def _grown(x: Tensor, scale: float) -> Tensor:
    """Components by growth: from a seed, whoever is near the frontier joins and is the next frontier."""
    component = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    left, found = torch.arange(len(x), device=x.device), 0
    while len(left):
        frontier, left = left[:1], left[1:]
        component[frontier] = found
        while len(frontier) and len(left):
            batch, frontier = frontier[:SMALL], frontier[SMALL:]
            width = max(1, ENTRIES // len(batch))
            near = torch.cat([(distances(x[part], x[batch]) <= scale).any(-1) for part in left.split(width)])
            joined, left = left[near], left[~near]
            component[joined] = found
            frontier = torch.cat([frontier, joined])
        found += 1
    return component


def _grid(x: np.ndarray, scale: float) -> np.ndarray:
    """Components in few dimensions: a cell of the grid is one piece, cells are joined by their closest points."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not len(x):
        return np.zeros(0, dtype=np.int64)
    d = x.shape[1]
    extent = float(np.ptp(x, axis=0).max())
    side = (
        scale / math.sqrt(d) * (1 - 1e-9 - 1e-15 * extent / scale)
    )  # two points of a cell are within the scale
    cells, cell = np.unique(np.floor((x - x.min(0)) / side).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(len(cells) + 1))
    members = [order[bounds[c] : bounds[c + 1]] for c in range(len(cells))]
    # points within the scale lie in cells whose corners are at most this far apart, in steps of the side
    reach = scale / side + math.sqrt(d) + 1e-3
    pairs = cKDTree(cells).query_pairs(reach, output_type="ndarray")
    first = order[bounds[:-1]]
    near = np.linalg.norm(x[first[pairs[:, 0]]] - x[first[pairs[:, 1]]], axis=-1) <= scale

    def components(edges: np.ndarray) -> np.ndarray:
        graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(cells),) * 2)
        return connected_components(graph, directed=False)[1]

    label = components(pairs[near])
    sizes = np.diff(bounds)
    # where each side is a single point the test above was exact
    open_ = ~near & (label[pairs[:, 0]] != label[pairs[:, 1]])
    open_ &= (sizes[pairs[:, 0]] > 1) | (sizes[pairs[:, 1]] > 1)
    parent = np.arange(int(label.max()) + 1)

    def root(c: int) -> int:
        while parent[c] != c:
            parent[c] = parent[parent[c]]
            c = int(parent[c])
        return c

    for a, b in pairs[open_]:
        u, v = root(int(label[a])), root(int(label[b]))
        if u == v:
            continue
        small, large = sorted((members[a], members[b]), key=len)
        closest = cKDTree(x[large]).query(x[small], distance_upper_bound=scale * (1 + 1e-12))[0]
        if closest.min() <= scale:
            parent[u] = v
    roots = np.array([root(c) for c in range(len(parent))])
    return np.unique(roots[label], return_inverse=True)[1].reshape(-1)[cell].astype(np.int64)
