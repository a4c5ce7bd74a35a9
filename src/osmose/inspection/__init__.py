"""Taking a model apart: what its attentions do to the values, layer by layer, and what happens without it.

``structure``, ``operator``, ``jacobian`` read one layer; ``capture`` and ``study`` a model while it runs; ``replacing`` and
``replacement_test`` put fixed matrices in. What is computed from matrices alone lives in ``osmose.diagnostics``.
"""

from .calls import AttentionCall, Structure, attention_calls
from .capture import capture, study
from .layer import constant, jacobian, jacobian_gap, jacobian_gaps, operator, structure
from .replacement import Replaced, replacement_test, replacing

__all__ = [
    "AttentionCall",
    "Replaced",
    "Structure",
    "attention_calls",
    "capture",
    "constant",
    "jacobian",
    "jacobian_gap",
    "jacobian_gaps",
    "operator",
    "replacement_test",
    "replacing",
    "structure",
    "study",
]
