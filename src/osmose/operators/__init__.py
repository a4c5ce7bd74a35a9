"""The lazy matrix and its kinds: rows are targets, columns are sources, nothing is formed.

Given kinds: Identity, Dense, Graph. Computed kinds: LowRank (linear cost), Pairwise (streamed), LinearMap (any function).
New kinds (shift, causal) live here too, one file each, and inherit the suite of ``tests/laws``.
"""

from .algebra import Hadamard, Scaled, Sum, Transposed
from .base import Cost, DenseLimitError, Operator, dense_limit
from .dense import Dense, Identity
from .graph import Graph
from .linear_map import LinearMap
from .low_rank import LowRank
from .pairwise import Pairwise
from .streaming import ScoreKernel

__all__ = [
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
    "Sum",
    "Transposed",
    "dense_limit",
]
