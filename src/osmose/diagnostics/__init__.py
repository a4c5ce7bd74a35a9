"""Taking a model apart: what its operators are, and what in them is structure.

``identify`` finds the shifts of a linear module by probes. The rest asks what matrices of attention are made of: pairs by
offset, structure ANOVA, heads, as plain functions of tensors; ``osmose.inspection`` reads the matrices of layers and
models, and puts replacements in.
"""

from .anova import COMPONENTS, Shares, StructureAnova
from .heads import HeadStatistics, head_statistics
from .identify import Identification, NotLinearError, identify
from .null import expected_by_chance, permutation_p
from .pairs import PairClasses
from .replacements import REPLACEMENTS, replacement

__all__ = [
    "COMPONENTS",
    "REPLACEMENTS",
    "HeadStatistics",
    "Identification",
    "NotLinearError",
    "PairClasses",
    "Shares",
    "StructureAnova",
    "expected_by_chance",
    "head_statistics",
    "identify",
    "permutation_p",
    "replacement",
]
