"""Mini-batches: every node once, no empty batch, edges exactly those inside, loss weights that add up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osmose.tasks.batches import Batch, mini_batches


def draw(
    n: int, edges: int, size: int, world: int = 1, labels: int | None = None, seed: int = 0
) -> list[list[Batch]]:
    """Batches of every rank, and the inputs they came from."""
    source = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, n, (2, edges), generator=source)
    train = torch.randperm(n, generator=source)[: n if labels is None else labels]
    return [
        list(
            mini_batches(
                num_nodes=n,
                edge_index=edge_index,
                edge_weight=torch.arange(edges).float(),
                train=train,
                batch_size=size,
                generator=torch.Generator().manual_seed(seed),
                rank=rank,
                world=world,
            )
        )
        for rank in range(world)
    ]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), edges=st.integers(0, 150), size=st.integers(1, 70), seed=st.integers(0, 99))
def test_batches_cover_all_nodes_and_hold_the_induced_edges(n: int, edges: int, size: int, seed: int) -> None:
    (batches,) = draw(n, edges, size, seed=seed)
    nodes = torch.cat([batch.nodes for batch in batches])
    assert torch.equal(nodes.sort().values, torch.arange(n))
    sizes = [len(batch.nodes) for batch in batches]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    edge_index = torch.randint(0, n, (2, edges), generator=torch.Generator().manual_seed(seed))
    for batch in batches:
        inside = torch.isin(edge_index, batch.nodes).all(dim=0)
        assert batch.edge_index is not None
        assert batch.edge_weight is not None
        order = batch.edge_weight.argsort()
        assert torch.equal(batch.nodes[batch.edge_index[:, order]], edge_index[:, inside])
        assert torch.equal(batch.edge_weight[order].long(), inside.nonzero().flatten())
        assert batch.scale == pytest.approx(1 / len(batch.labelled))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_nodes_and_the_mean_over_ranks_is_the_mean_over_labels(world: int) -> None:
    ranks = draw(40, 100, 7, world=world, labels=11)
    assert len({len(batches) for batches in ranks}) == 1, "every rank takes part in every step"
    seen = torch.cat([batch.nodes for batches in ranks for batch in batches])
    assert len(seen.unique()) == len(seen)
    for step in zip(*ranks, strict=True):
        losses = [torch.rand(len(batch.labelled)) for batch in step]
        shared = sum(batch.scale * loss.sum() for batch, loss in zip(step, losses, strict=True)) / world
        torch.testing.assert_close(shared, torch.cat(losses).mean())


def test_a_batch_without_a_label_is_passed_over() -> None:
    (batches,) = draw(30, 20, 3, labels=1)
    assert len(batches) == 1
    assert len(batches[0].labelled) == 1


def test_more_processes_than_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="2 nodes cannot be shared out over 3 processes"):
        draw(2, 0, 5, world=3)
