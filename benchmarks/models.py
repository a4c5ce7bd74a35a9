"""Whole models and their parts: graph propagation, and an epoch of DIFFormer-s on Cora.

The published model is written here from its formulas: queries and keys over their Frobenius norm, the attention as
einsums over ``(n, heads, d)``, the graph term by PyG's ``GCNConv``, which normalises the graph in every call, as the released code does, or once (``cached``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osmose.equalities.published import published_diffusion
from osmose.models import DIFFormer, propagation, sparse_features

from .registry import Case, Contender, Inputs, differentiable, register


@register("graph", "Graph propagation with symmetric normalisation, d = 64")
def graph(quick: bool) -> Iterator[Case]:
    from torch_geometric.nn import GCNConv

    for n, edges in ((2_708, 10_556),) if quick else ((2_708, 10_556), (100_000, 1_000_000)):
        g = torch.Generator().manual_seed(0)
        edge_index = torch.randint(0, n, (2, edges // 2), generator=g)
        edge_index = torch.unique(torch.cat([edge_index, edge_index.flip(0)], 1), dim=1)
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
        operator, conv = propagation(edge_index, None, n), GCNConv(64, 64, bias=False, cached=True)
        conv.lin = nn.Identity()

        def inputs(n: int = n, g: torch.Generator = g) -> Inputs:
            return torch.randn(n, 64, generator=g, requires_grad=True), torch.randn(n, 64, generator=g)

        def ours(x: Tensor, operator=operator) -> Tensor:
            return operator @ x

        def pyg(x: Tensor, conv=conv, edge_index=edge_index) -> Tensor:
            return conv(x, edge_index)

        yield Case(
            {"n": n, "edges": edge_index.shape[1]},
            inputs,
            {"osmose": differentiable(ours), "PyG GCNConv": differentiable(pyg)},
        )


class PublishedDIFFormer(nn.Module):
    """DIFFormer-s of the paper's Cora setting: one head, no value matrix, LayerNorm, residual."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        out: int,
        layers: int,
        dropout: float,
        *,
        cached: bool,
        alpha: float = 0.5,
    ):
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.fcs = nn.ModuleList([nn.Linear(channels, hidden), nn.Linear(hidden, out)])
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers + 1))
        self.wq = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.wk = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.graph = GCNConv(hidden, hidden, bias=False, cached=cached)
        self.graph.lin = nn.Identity()
        self.dropout, self.alpha = dropout, alpha

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.dropout(F.relu(self.norms[0](self.fcs[0](x))), self.dropout, self.training)
        for wq, wk, norm in zip(self.wq, self.wk, self.norms[1:], strict=True):
            q, k, v = (t.unsqueeze(1) for t in (wq(h), wk(h), h))
            mixed = (published_diffusion(q, k, v) + self.graph(h, edge_index).unsqueeze(1)).mean(1)
            h = norm(self.alpha * mixed + (1 - self.alpha) * h)
            h = F.dropout(h, self.dropout, self.training)
        return self.fcs[1](h)


@register("cora_epoch", "An epoch of DIFFormer-s on Cora: 8 layers, 64 channels, train step and evaluation")
def cora_epoch(quick: bool) -> Iterator[Case]:
    from osmose.data import load

    data = load("cora")
    assert data.edge_index is not None
    edge_index, train = data.edge_index, data.splits[0].train
    layers = 2 if quick else 8
    features, sizes = sparse_features(data.x), (data.num_features, 64, data.num_classes)

    def osmose_model(normalization) -> tuple[nn.Module, object]:
        model = DIFFormer(*sizes, num_layers=layers, normalization=normalization)
        return model, model.prepare_graph(edge_index, None, data.num_nodes)

    def published(cached: bool) -> Contender:
        return epoch(PublishedDIFFormer(*sizes, layers, 0.2, cached=cached), edge_index, data.x)

    def epoch(model: nn.Module, graph: object, x: object) -> Contender:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.01)

        def run(inputs: Inputs, mode: str) -> object:
            model.train()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x, graph)[train], data.y[train])
            loss.backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                return model(x, graph)

        return Contender(run)

    yield Case(
        {"n": data.num_nodes, "layers": layers},
        lambda: (data.x,),
        {
            "osmose": epoch(*osmose_model("frobenius"), features),
            "published": published(cached=False),
            "published, graph normalised once": published(cached=True),
            "osmose, dense features": epoch(*osmose_model("frobenius"), data.x),
            "osmose, row norm": epoch(*osmose_model("row"), features),
        },
        modes=("forward+backward",),
    )
