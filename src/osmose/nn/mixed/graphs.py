"""Structures from a graph: propagation, polynomials of it, neighbourhoods, relations, Gaussians of edge coordinates.

Edges are PyG's: ``edge_index (2, e)`` int64, row 0 = source, row 1 = target.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ... import laws
from ...laws.base import mass_of, reciprocal
from ...operators import Identity, Operator
from ...operators.exponential_graph import ExponentialGraph
from ...structure.families import Blends, Family, Given, Polynomials, Union
from ...structure.graphs import adjacency, relations, rings, scaled_laplacian
from ...tokens import Tokens
from .product import Structure

Made = TypeVar("Made")
Degree = Literal["own", "received", "given"]


class GraphStructure(Structure):
    """A structure made of ``edge_index`` and, where a kind takes them, weights; masses are part of its law.

    What was made of a graph is used again in the next call with the same tensors, unchanged, as in training on one graph.
    """

    own_law = True

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_kept": None}

    def once(self, make: Callable[[], Made], n: int, x: Tensor, *given: Tensor | None) -> Made:
        """``make()``, or what it made of the same tensors before; with masses it is made anew."""
        if any(t is not None and (t.requires_grad or t.is_inference()) for t in given):
            return make()
        key = (n, x.dtype, *(None if t is None else t._version for t in given))
        if self._kept is not None:
            before, refs, made = self._kept
            if before == key and all(
                (r is None) == (t is None) and (r is None or r() is t)
                for r, t in zip(refs, given, strict=True)
            ):
                return made
        made = make()
        refs = tuple(None if t is None else weakref.ref(t) for t in given)
        self._kept = (key, refs, made)
        return made


def _own(x: Tensor, sources: Tokens | None, targets: Tokens | None) -> Operator:
    """Every node takes from itself, under the masses."""
    identity = Identity(x.shape[-2], dtype=x.dtype, device=x.device)
    return laws.none(identity, sources=sources, targets=targets)


def _weighted(*sides: Tokens | None) -> bool:
    return any(t is not None and t.mass is not None for t in sides)


class Propagation(GraphStructure):
    """GCN's one operator: ``D^-1/2 (A + I) D^-1/2``, on an undirected graph the law ``sym``.

    Args:
        self_loops: add a loop of weight 1 to every node that has none; None takes away those that there are.
        degree: of a directed graph, at both ends of an edge: what a node has ``received`` (PyG's GCN and TAG), has ``given``
            (PyG's Cheb), or ``own``, what its end of the edge says, which is the law ``sym``.
    """

    count = 1

    def __init__(self, self_loops: bool | None = True, degree: Degree = "own"):
        super().__init__()
        if degree not in get_args(Degree):
            raise ValueError(
                f"{type(self).__name__}: degree is {degree!r}; expected one of {', '.join(get_args(Degree))}."
            )
        self.self_loops, self.degree = self_loops, degree

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        sources: Tokens | None = None,
        targets: Tokens | None = None,
    ) -> Family:
        n = x.shape[-2]

        def make() -> Operator:
            edges, weight = edge_index, edge_weight
            if self.self_loops is None:
                keep = edges[0] != edges[1]
                edges, weight = edges[:, keep], None if weight is None else weight[keep]
            graph = adjacency(edges, weight, n, self_loops=bool(self.self_loops), dtype=x.dtype)
            if self.degree == "own":
                return laws.sym(graph, sources=sources, targets=targets)
            received = self.degree == "received"
            side = (sources if received else targets) or Tokens(n)
            total = (graph if received else graph.mT) @ mass_of(side, x).unsqueeze(-1)
            scale = reciprocal(total.squeeze(-1), 0.5)
            return laws.none(graph.scale(scale, scale), sources=sources, targets=targets)

        weighted = _weighted(sources, targets)
        return self.of(make() if weighted else self.once(make, n, x, edge_index, edge_weight))

    def of(self, operator: Operator) -> Family:
        """The family that is made of the propagation."""
        return Given([operator])


class Powers(Propagation):
    """``S^k`` for k = 0 .. K-1 of the symmetric propagation without self loops (TAG)."""

    def __init__(self, count: int, self_loops: bool = False, degree: Degree = "own"):
        super().__init__(self_loops, degree)
        self.count = count

    def of(self, operator: Operator) -> Family:
        return Polynomials(operator, self.count)


class Chebyshev(Propagation):
    """``T_k(2 L / lambda_max - I)`` for k = 0 .. K-1, of the symmetric Laplacian ``L = I - D^-1/2 A D^-1/2``.

    Args:
        count: K.
        largest_eigenvalue: lambda_max, at most 2.
        degree: as for :class:`Propagation`. Loops do not count.
    """

    def __init__(self, count: int, largest_eigenvalue: float = 2.0, degree: Degree = "own"):
        super().__init__(None, degree)
        self.count, self.largest_eigenvalue = count, largest_eigenvalue

    def of(self, operator: Operator) -> Family:
        return Polynomials(scaled_laplacian(operator, self.largest_eigenvalue), self.count, "chebyshev")


class Neighbours(GraphStructure):
    """``{D^-1 A, I}``: the mean over what arrives, and the node itself (GraphSAGE)."""

    count = 2

    def forward(
        self, x: Tensor, edge_index: Tensor, sources: Tokens | None = None, targets: Tokens | None = None
    ) -> Family:
        n = x.shape[-2]

        def make() -> Operator:
            return laws.row(adjacency(edge_index, None, n, dtype=x.dtype), sources=sources, targets=targets)

        mean = make() if _weighted(sources, targets) else self.once(make, n, x, edge_index)
        return Given([mean, _own(x, sources, targets)])


class Rings(GraphStructure):
    """``R_k`` for k = 0 .. radius, each under the law ``row``: the mean over the nodes exactly k steps upstream; R_0 is I."""

    def __init__(self, radius: int):
        super().__init__()
        self.radius, self.count = radius, radius + 1

    def forward(
        self, x: Tensor, edge_index: Tensor, sources: Tokens | None = None, targets: Tokens | None = None
    ) -> Family:
        n = x.shape[-2]
        found = self.once(lambda: rings(edge_index, n, self.radius, dtype=x.dtype), n, x, edge_index)
        return Given([laws.row(ring, sources=sources, targets=targets) for ring in found])


class Relations(Structure):
    """``{A_r / deg_r}_r`` and I: one mean for each type of edge (R-GCN); with ``blends`` learned mixtures of them.

    Args:
        relations: R.
        blends: B; the operators are then ``sum_r c_br A_r / deg_r`` with learned ``coefficients (B, R)``: the same layer
            as with values of B bases, read the other way.
    """

    own_law = True

    def __init__(self, relations: int, blends: int | None = None, **made):
        super().__init__()
        self.relations, self.count = relations, (blends or relations) + 1
        self.coefficients = (
            nn.Parameter(torch.empty(blends, relations, **made).uniform_(-1, 1)) if blends else None
        )

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        sources: Tokens | None = None,
        targets: Tokens | None = None,
    ) -> Family:
        graph = adjacency(edge_index, None, x.shape[-2], dtype=x.dtype)
        parts = relations(graph, edge_type, self.relations)
        means = Given([laws.row(part, sources=sources, targets=targets) for part in parts])
        family = means if self.coefficients is None else Blends(means, self.coefficients)
        return Union(family, Given([_own(x, sources, targets)]))


class Gaussians(Structure):
    """``A_k = D^-1 (g_k on the edges)`` with ``g_k = exp(-1/2 sum_a ((e_a - mu_ka) / sigma_ka)^2)``, and I (GMM, MoNet).

    Args:
        count: of Gaussians; the identity comes on top.
        coordinates: of an edge.
    """

    own_law = True

    def __init__(self, count: int, coordinates: int, eps: float = 1e-15, **made):
        super().__init__()
        self.count, self.eps = count + 1, eps
        self.centre = nn.Parameter(torch.randn(count, coordinates, **made))
        self.width = nn.Parameter(torch.ones(count, coordinates, **made))

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        sources: Tokens | None = None,
        targets: Tokens | None = None,
    ) -> Family:
        n = x.shape[-2]
        if edge_attr.shape != (edge_index.shape[1], self.centre.shape[1]):
            raise ValueError(
                f"Gaussians: edge_attr has shape {tuple(edge_attr.shape)}; expected "
                f"({edge_index.shape[1]}, {self.centre.shape[1]}), coordinates of each edge."
            )
        graph = adjacency(edge_index, None, n, dtype=x.dtype)
        off = (edge_attr - self.centre[:, None]).square() / (self.eps + self.width[:, None].square())
        arrived = graph @ mass_of(sources or Tokens(n), x).unsqueeze(-1)
        share = reciprocal(arrived)[..., edge_index[1], 0].to(x.dtype)
        weights = (-0.5 * off.sum(-1)).exp()
        heads = [laws.none(graph.with_weight(w * share), sources=sources, targets=targets) for w in weights]
        return Given([*heads, _own(x, sources, targets)])


class EdgeScores(Structure):
    """Heads on the edges of a graph: ``A_k = row(exp(score_k) on the edges)``; a kind gives the scores ``(K, e)``.

    Args:
        heads: K.
        self_loops: replace the loops of the graph by one for every node (GAT).
        root: I as one more operator.
    """

    own_law = True

    def __init__(self, heads: int, self_loops: bool, root: bool):
        super().__init__()
        self.heads, self.self_loops, self.root = heads, self_loops, root
        self.count = heads + root

    @abstractmethod
    def scores(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """A score for each head and edge, ``(K, e)``, for points ``x (n, P)`` and the ends of the edges."""

    def forward(
        self, x: Tensor, edge_index: Tensor, sources: Tokens | None = None, targets: Tokens | None = None
    ) -> Family:
        if x.ndim != 2:
            raise ValueError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}; expected (n, channels), one set of nodes. Put the "
                "graphs of a batch side by side, as PyG does."
            )
        n = x.shape[-2]
        if self.self_loops:
            node = torch.arange(n, device=x.device)
            edge_index = torch.cat([edge_index[:, edge_index[0] != edge_index[1]], node.expand(2, -1)], 1)
        graph = adjacency(edge_index, None, n, dtype=x.dtype)
        scores = self.scores(x, edge_index[0], edge_index[1])
        heads = [laws.row(ExponentialGraph(graph, s), sources=sources, targets=targets) for s in scores]
        return Given([*heads, _own(x, sources, targets)] if self.root else heads)


class AdditiveEdges(EdgeScores):
    """``score_k = leaky_relu(a_k . x_source + b_k . x_target)``: rank two before the nonlinearity (GAT)."""

    def __init__(self, in_channels: int, heads: int, *, slope: float = 0.2, self_loops: bool = True, **made):
        super().__init__(heads, self_loops, root=False)
        self.slope = slope
        self.of_source = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, in_channels, **made)))
        self.of_target = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, in_channels, **made)))

    def scores(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        scores = (x @ self.of_source.mT)[source] + (x @ self.of_target.mT)[target]
        return nn.functional.leaky_relu(scores, self.slope).mT


class BilinearEdges(EdgeScores):
    """``score_k = q_k(x_target) . k_k(x_source) / sqrt(D)``: attention masked by a graph (graph transformer)."""

    def __init__(self, in_channels: int, heads: int, rank: int, *, root: bool = True, **made):
        super().__init__(heads, self_loops=False, root=root)
        self.query = nn.Linear(in_channels, heads * rank, **made)
        self.key = nn.Linear(in_channels, heads * rank, **made)
        self.rank = rank

    def scores(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, self.rank)) / self.rank**0.5
        k = self.key(x).unflatten(-1, (self.heads, self.rank))
        return (q[target] * k[source]).sum(-1).mT
