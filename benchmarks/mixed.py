"""The mixed product as the layers that it equals, with the same parameters: what the generality costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from osmose.nn.mixed import MixedProduct, from_torch

from .registry import Case, Contender, Inputs, register


def layer(module: nn.Module, call: Callable[[Tensor], Tensor]) -> Contender:
    """A layer forward, and backward into its input and all parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def run(inputs: Inputs, mode: str) -> object:
        x, grad = inputs
        if mode == "forward":
            with torch.no_grad():
                return call(x)
        out = call(x)
        return out, torch.autograd.grad(out, [x, *parameters], grad.reshape(out.shape))

    return Contender(run)


def points(*shape: int) -> Inputs:
    return torch.randn(shape, requires_grad=True), torch.randn(shape)


def instance(peer: nn.Module) -> MixedProduct:
    return from_torch(peer)


@register("mixed_conv", "MixedProduct as Conv1d, 3 taps, n = 4096, d = 64")
def conv(quick: bool) -> Iterator[Case]:
    for batch in (1,) if quick else (1, 8):
        peer = nn.Conv1d(64, 64, 3, padding=1)
        ours = instance(peer)
        across = nn.Conv1d(64, 64, 3, padding=1)
        yield Case(
            {"batch": batch, "n": 4_096},
            partial(points, batch, 4_096, 64),
            {
                "osmose, tokens (n, d)": layer(ours, ours),
                # each in the layout that it is made for: a (B, d, n) tensor of its own
                "nn.Conv1d, (d, n)": layer(peer, lambda x, peer=peer: peer(x.view(len(x), 64, -1))),
                "nn.Conv1d between transposes": layer(
                    across, lambda x, m=across: m(x.transpose(1, 2)).transpose(1, 2)
                ),
            },
        )


@register("mixed_gcn", "MixedProduct as GCNConv, d = 64")
def gcn(quick: bool) -> Iterator[Case]:
    from torch_geometric.nn import GCNConv

    for n, edges in ((2_708, 10_556),) if quick else ((2_708, 10_556), (100_000, 1_000_000)):
        g = torch.Generator().manual_seed(0)
        edge_index = torch.randint(0, n, (2, edges // 2), generator=g)
        edge_index = torch.unique(torch.cat([edge_index, edge_index.flip(0)], 1), dim=1)
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
        peer, cached = GCNConv(64, 64), GCNConv(64, 64, cached=True)
        ours = instance(peer)
        yield Case(
            {"n": n, "edges": edge_index.shape[1]},
            partial(points, n, 64),
            {
                "osmose": layer(ours, partial(ours, edge_index=edge_index)),
                "PyG GCNConv": layer(peer, partial(peer, edge_index=edge_index)),
                "PyG GCNConv, graph cached": layer(cached, partial(cached, edge_index=edge_index)),
            },
        )


@register("mixed_attention", "MixedProduct as multi-head attention, 8 heads, d = 512")
def attention(quick: bool) -> Iterator[Case]:
    for batch, n in ((4, 128),) if quick else ((16, 128), (4, 512), (1, 2_048)):
        peer = nn.MultiheadAttention(512, 8, batch_first=True).eval()  # its fast path, where it has one
        ours = instance(peer)
        yield Case(
            {"batch": batch, "n": n},
            partial(points, batch, n, 512),
            {
                "osmose": layer(ours, ours),
                "nn.MultiheadAttention": layer(
                    peer, lambda x, peer=peer: peer(x, x, x, need_weights=False)[0]
                ),
            },
        )
