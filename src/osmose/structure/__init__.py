"""Structure: linear maps as mixed products of structures (who reaches whom) and values (what is carried).

The product and its inverse: mixed, basis. How few terms: rank. What the values are made of:
factors, tensor_factors. Which shifts a map consists of: shift_fit.
"""

from .basis import Basis
from .factors import (
    Bases,
    Diagonal,
    Factors,
    Full,
    Grouped,
    GroupedQuery,
    Heads,
    jacobian_rank,
)
from .mixed import KroneckerSum, layer_matrix, layer_tensor, mixed_product
from .rank import (
    MixedApproximation,
    best_mixed_product,
    mixed_product_rank,
    numerical_rank,
    spectrum,
    stable_rank,
)
from .shift_fit import ShiftAxis
from .tensor_factors import CP, Tucker

__all__ = [
    "CP",
    "Bases",
    "Basis",
    "Diagonal",
    "Factors",
    "Full",
    "Grouped",
    "GroupedQuery",
    "Heads",
    "KroneckerSum",
    "MixedApproximation",
    "ShiftAxis",
    "Tucker",
    "best_mixed_product",
    "jacobian_rank",
    "layer_matrix",
    "layer_tensor",
    "mixed_product",
    "mixed_product_rank",
    "numerical_rank",
    "spectrum",
    "stable_rank",
]
