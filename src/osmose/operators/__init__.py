"""The lazy matrix and its kinds: rows are targets, columns are sources, nothing is formed.

Given kinds: Identity, Dense, Graph, Shift, Toeplitz, Causal. Computed kinds: LowRank, CausalLowRank, Local (linear cost),
Pairwise (streamed). Made of others: sums, scalings, transposes, entrywise and matrix products, polynomials. A new kind is one
file, and inherits the suite of ``tests/laws``.
"""

from .algebra import Hadamard, Scaled, Sum, Transposed
from .base import Cost, DenseLimitError, Operator, dense_limit
from .causal import Causal, CausalLowRank
from .dense import Dense, Identity
from .graph import Graph
from .linear_map import LinearMap
from .local import Local
from .low_rank import LowRank
from .pairwise import Pairwise
from .products import matrix_product, polynomial
from .shift import Shift
from .streaming import ScoreKernel
from .toeplitz import Toeplitz

__all__ = [
    "Causal",
    "CausalLowRank",
    "Cost",
    "Dense",
    "DenseLimitError",
    "Graph",
    "Hadamard",
    "Identity",
    "LinearMap",
    "Local",
    "LowRank",
    "Operator",
    "Pairwise",
    "Scaled",
    "ScoreKernel",
    "Shift",
    "Sum",
    "Toeplitz",
    "Transposed",
    "dense_limit",
    "matrix_product",
    "polynomial",
]
