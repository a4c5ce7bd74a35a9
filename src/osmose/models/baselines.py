"""What a diffusion has to beat: a network without neighbours, and one that sees the graph only.

Kipf and Welling, ICLR 2017 (1609.02907) for GCN. The third baseline, the mean over all tokens in place of
attention, is :class:`~osmose.models.difformer.DIFFormer` with ``kernel="mean"``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operators import Operator
from ..structure.graphs import propagation
from .graph_term import as_propagation
from .layers import check_input, dropout, linear


class MLP(nn.Module):
    """``num_layers`` hidden layers of ReLU and dropout, then a linear output; every token for itself.

    Takes the arguments of the graph models and leaves the graph out.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.5,
    ):
        super().__init__()
        widths = [in_channels] + [hidden_channels] * num_layers + [out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.in_channels, self.dropout = in_channels, dropout

    def prepare_graph(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, num_nodes: int | None = None
    ) -> None:
        """Nothing: there is no graph here."""

    def forward(
        self,
        x: Tensor | Operator,
        edge_index: Tensor | Operator | None = None,
        edge_weight: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """``(..., n, c)`` to ``(..., n, out_channels)``."""
        x, _ = check_input("MLP", x, self.in_channels, batch, mask)
        for layer in self.layers[:-1]:
            x = dropout(F.relu(linear(x, layer)), self.dropout, self.training)
        return linear(x, self.layers[-1])


class GCN(nn.Module):
    """``h <- dropout(relu(A h W))`` ``num_layers - 1`` times, then ``A h W``; A is the symmetric normalised adjacency
    with loops. Without a graph A is the identity.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        dropout: float = 0.5,
    ):
        super().__init__()
        widths = [in_channels] + [hidden_channels] * (num_layers - 1) + [out_channels]
        self.weights = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(width) for width in widths[1:])
        for weight in self.weights.parameters():
            nn.init.xavier_uniform_(weight)
        self.in_channels, self.dropout = in_channels, dropout

    def prepare_graph(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, num_nodes: int | None = None
    ) -> Operator:
        """What ``forward`` takes as ``edge_index``, made once instead of in every call."""
        return propagation(edge_index, edge_weight, num_nodes, dtype=self.biases[0].dtype)

    def forward(
        self,
        x: Tensor | Operator,
        edge_index: Tensor | Operator | None = None,
        edge_weight: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """``(n, c)`` to ``(n, out_channels)``; edges join nodes of a set, so ``batch`` changes nothing."""
        x, _ = check_input("GCN", x, self.in_channels, batch, mask)
        graph = as_propagation(edge_index, edge_weight, x, "GCN", batch=batch)
        h = self._propagate(linear(x, self.weights[0]), graph, 0)
        for i, weight in enumerate(self.weights[1:], start=1):
            h = dropout(F.relu(h), self.dropout, self.training)
            h = self._propagate(weight(h), graph, i)
        return h

    def _propagate(self, h: Tensor, graph: Operator | None, layer: int) -> Tensor:
        return (h if graph is None else graph @ h) + self.biases[layer]
