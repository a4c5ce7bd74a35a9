"""DIFFormer as its theorem wants it: a layer is one step down an energy, and nothing else.

Queries, keys and values are the state itself, there is no LayerNorm and no dropout between steps, and the step is kept
within the bound. Then the energy never rises from layer to layer, for any weights and any input; :class:`DIFFormer`
with its own queries, keys, values and norms has no such guarantee.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..energy import DescentMonitor, Energy, PairWeight
from ..operators import Graph, Operator
from ..structure.graphs import propagation
from ..tokens import Tokens
from .graph_term import as_propagation
from .layers import check_input, dropout, linear


class ExactDIFFormer(nn.Module):
    """Input layer to unit vectors, ``num_layers`` steps of :class:`~osmose.energy.Energy`, linear output.

    Args:
        in_channels, hidden_channels, out_channels, num_layers, dropout: as in DIFFormer; dropout acts on the input layer's
            features and before the output layer only.
        alpha: wished step size; each step takes the smaller of it and the admissible bound.
        weight: pair weight, ``simple`` (linear cost), ``sigmoid``, ``gaussian``, or a :class:`PairWeight`.
        strength: of the all-pair term; the energy has ``lambda = strength / n`` for a set of n tokens, so that its meaning
            does not depend on n.
        graph_strength: of the graph term; 0 leaves the graph out.
        source_strength: pull to the input state, against over-smoothing.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 4,
        dropout: float = 0.2,
        alpha: float = 0.5,
        weight: str | PairWeight = "simple",
        strength: float = 1.0,
        graph_strength: float = 1.0,
        source_strength: float = 1.0,
    ):
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"ExactDIFFormer: alpha is {alpha}; expected a step size in (0, 1].")
        self.fcs = nn.ModuleList(
            [nn.Linear(in_channels, hidden_channels), nn.Linear(hidden_channels, out_channels)]
        )
        self.in_channels, self.num_layers, self.dropout = in_channels, num_layers, dropout
        self.alpha, self.weight = alpha, weight
        self.strength, self.graph_strength, self.source_strength = strength, graph_strength, source_strength

    def prepare_graph(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, num_nodes: int | None = None
    ) -> Operator | None:
        """What ``forward`` takes as ``edge_index``, made once instead of in every call; None if unused."""
        return (
            propagation(edge_index, edge_weight, num_nodes, self_loops=False) if self.graph_strength else None
        )

    def energy(self, h_0: Tensor, graph: Operator | None = None, tokens: Tokens | None = None) -> Energy:
        """The energy that the layers descend, for the input state ``h_0 (n, d)``."""
        if graph is not None and not isinstance(graph, Graph):
            raise TypeError(
                f"ExactDIFFormer: graph is {graph!r}; expected an edge index or what prepare_graph made."
            )
        tokens = tokens or Tokens(h_0.shape[-2])
        return Energy(
            self.weight,
            strength=self.strength / tokens.total(h_0).clamp(min=1.0),
            graph=graph,
            graph_strength=self.graph_strength,
            source=h_0 if self.source_strength else None,
            source_strength=self.source_strength,
            tokens=tokens,
        )

    def forward(
        self,
        x: Tensor | Operator,
        edge_index: Tensor | Operator | None = None,
        edge_weight: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        mask: Tensor | None = None,
        monitor: DescentMonitor | None = None,
    ) -> Tensor:
        """Outputs ``(..., n, out_channels)``; arguments as :meth:`DIFFormer.forward`."""
        x, tokens = check_input("ExactDIFFormer", x, self.in_channels, batch, mask)
        graph = None
        if self.graph_strength:
            graph = as_propagation(
                edge_index, edge_weight, x, "ExactDIFFormer", batch=batch, self_loops=False
            )
        z = self.initial(x)
        energy = self.energy(z, graph, tokens)
        for _ in range(self.num_layers):
            tau = energy.max_step(z).clamp(max=self.alpha)
            before, z = z, energy.step(z, tau)
            if monitor is not None:
                monitor(before, z, tau, energy)
        return self.fcs[1](dropout(z, self.dropout, self.training))

    def initial(self, x: Tensor | Operator) -> Tensor:
        """The state before the first step: unit vectors, so that the simple weight is inside its domain."""
        h = dropout(linear(x, self.fcs[0]).relu(), self.dropout, self.training)
        return F.normalize(h, dim=-1)
