"""The lazy matrix and its kinds: rows are targets, columns are sources, nothing is formed.

Given kinds: Identity, Dense, Graph, Toeplitz. Computed kinds: LowRank, CausalLowRank, Local (linear cost), Pairwise
(streamed). New kinds live here too, one file each, and inherit the suite of ``tests/laws``.
"""

from .algebra import Hadamard, Scaled, Sum, Transposed
from .base import Cost, DenseLimitError, Operator, dense_limit
from .causal import CausalLowRank
from .dense import Dense, Identity
from .graph import Graph
from .local import Local
from .low_rank import LowRank
from .pairwise import Pairwise
from .streaming import ScoreKernel
from .toeplitz import Toeplitz

__all__ = [
    "CausalLowRank",
    "Cost",
    "Dense",
    "DenseLimitError",
    "Graph",
    "Hadamard",
    "Identity",
    "Local",
    "LowRank",
    "Operator",
    "Pairwise",
    "Scaled",
    "ScoreKernel",
    "Sum",
    "Toeplitz",
    "Transposed",
    "dense_limit",
]
