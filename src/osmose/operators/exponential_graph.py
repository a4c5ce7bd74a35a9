"""The exponential kernel on the edges of a graph, kept as scores so that laws can shift it."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Operator
from .graph import Graph


class ExponentialGraph(Graph):
    """``A[target, source] = weight exp(score)`` on the edges of a graph: attention masked by a graph.

    It is what ``Pairwise(q, k) * graph`` gives. A law that normalises rows subtracts the largest score of each
    row first, so scores of any size are safe under it; without one they overflow as ``exp`` does.

    Args:
        graph: the edges and their weights ``(..., e)``.
        scores: ``(..., e)``, one for each edge.

    Time e a column, as a graph.
    """

    def __init__(self, graph: Graph, scores: Tensor):
        self._share(graph)
        self.graph, self.scores = graph, scores
        self._set_weight(graph.weight * scores.exp())
        self._like = graph._like

    # lazily, so that the scores stay at hand
    scale = Operator.scale
    _multiple = Operator._multiple

    @property
    def mT(self) -> ExponentialGraph:  # noqa: N802
        return ExponentialGraph(self.graph.mT, self.scores)

    @torch.no_grad()
    def _row_exponent(self, present: Tensor | None) -> Tensor:
        absent = self.graph.weight == 0
        if present is not None:
            absent = absent | ~present[..., self.source]
        scores = torch.where(absent, -torch.inf, self.scores)
        top = scores.new_full((*scores.shape[:-1], self.shape[-2]), -torch.inf)
        top = top.scatter_reduce(-1, self.target.expand_as(scores), scores, "amax")
        return torch.where(torch.isfinite(top), top, 0.0)

    def _shift_rows(self, exponent: Tensor) -> Graph:
        # capped, so that what an absent source scores cannot overflow
        weight = (self.scores - exponent[..., self.target]).clamp(max=0).exp()
        return self.graph.with_weight(self.graph.weight * weight.to(self.dtype))
