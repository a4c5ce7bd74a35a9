"""What a matrix of attention is made of, as plain functions of tensors: pairs by offset, structure ANOVA, heads.

``osmose.inspection`` reads the matrices of layers and models, and puts replacements in.
"""

from .anova import COMPONENTS, Shares, StructureAnova
from .heads import HeadStatistics, head_statistics
from .null import expected_by_chance, permutation_p
from .pairs import PairClasses
from .replacements import REPLACEMENTS, replacement

__all__ = [
    "COMPONENTS",
    "REPLACEMENTS",
    "HeadStatistics",
    "PairClasses",
    "Shares",
    "StructureAnova",
    "expected_by_chance",
    "head_statistics",
    "permutation_p",
    "replacement",
]
