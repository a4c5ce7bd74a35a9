"""Full batch, or random mini-batches as induced subgraphs, shared out over processes.

Legend: n nodes, e edges, b nodes of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One mini-batch of one process."""

    nodes: Tensor
    """(b,) node indices"""
    edge_index: Tensor | None
    """(2, e_b) edges inside the batch, in batch positions"""
    edge_weight: Tensor | None
    labelled: Tensor
    """positions within the batch that carry a training label"""
    scale: float
    """factor that makes the mean over processes of `scale * sum(loss)` the mean over all labelled nodes of the step"""


def mini_batches(
    *,
    num_nodes: int,
    edge_index: Tensor | None,
    edge_weight: Tensor | None,
    train: Tensor,
    batch_size: int,
    generator: torch.Generator,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Random mini-batches that cover every node once.

    The nodes are permuted and cut into parts of nearly equal size, at most `batch_size`, as many on every process, so
    that no batch is empty or tiny. Edges between parts are dropped. A step in which no process has a labelled node is
    passed over: it has no loss. Every process must draw from the same `generator` state.
    Cost: O(n + e log e) per epoch for all batches together.
    """
    steps = ceil(ceil(num_nodes / batch_size) / world)
    count = min(steps * world, num_nodes)
    if count % world:
        raise ValueError(f"--batch-size: {num_nodes} nodes cannot be shared out over {world} processes")
    order = torch.randperm(num_nodes, generator=generator).to(train.device)
    parts = torch.tensor_split(order, count)
    sizes = torch.tensor([len(part) for part in parts], device=order.device)
    part_of = torch.empty_like(order)
    part_of[order] = torch.repeat_interleave(torch.arange(count, device=order.device), sizes)
    position = torch.empty_like(order)
    position[order] = torch.cat([torch.arange(len(part), device=order.device) for part in parts])
    edges = _edges_by_part(edge_index, edge_weight, part_of, position, count)
    train_part = part_of[train]
    labels = torch.bincount(train_part, minlength=count).tolist()
    for first in range(0, count, world):
        total = sum(labels[first : first + world])
        if total == 0:
            continue
        mine = first + rank
        yield Batch(
            nodes=parts[mine],
            edge_index=edges[mine][0],
            edge_weight=edges[mine][1],
            labelled=position[train[train_part == mine]],
            scale=world / total,
        )


def _edges_by_part(
    edge_index: Tensor | None, edge_weight: Tensor | None, part_of: Tensor, position: Tensor, count: int
) -> list[tuple[Tensor | None, Tensor | None]]:
    if edge_index is None:
        return [(None, None)] * count
    part = part_of[edge_index]
    inside = part[0] == part[1]
    kept = part[0][inside]
    order = torch.argsort(kept, stable=True)
    bounds = torch.bincount(kept, minlength=count).tolist()
    local = torch.split(position[edge_index[:, inside]][:, order], bounds, dim=1)
    if edge_weight is None:
        return [(piece, None) for piece in local]
    return list(zip(local, torch.split(edge_weight[inside][order], bounds), strict=True))
