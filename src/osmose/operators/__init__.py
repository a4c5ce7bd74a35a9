"""The lazy matrix and its kinds: rows are targets, columns are sources, nothing is formed.

Given kinds: Identity, Dense, Graph, Shift. Computed kinds: LowRank (linear cost), Pairwise (streamed), LinearMap (any
function). Made of others: sums, scalings, transposes, entrywise and matrix products, polynomials. A new kind is one file,
and inherits the suite of ``tests/laws``.
"""

from .algebra import Hadamard, Scaled, Sum, Transposed
from .base import Cost, DenseLimitError, Operator, dense_limit
from .causal import Causal
from .dense import Dense, Identity
from .graph import Graph
from .linear_map import LinearMap
from .low_rank import LowRank
from .pairwise import Pairwise
from .products import matrix_product, polynomial
from .shift import Shift
from .streaming import ScoreKernel

__all__ = [
    "Causal",
    "Cost",
    "Dense",
    "DenseLimitError",
    "Graph",
    "Hadamard",
    "Identity",
    "LinearMap",
    "LowRank",
    "Operator",
    "Pairwise",
    "Scaled",
    "ScoreKernel",
    "Shift",
    "Sum",
    "Transposed",
    "dense_limit",
    "matrix_product",
    "polynomial",
]
