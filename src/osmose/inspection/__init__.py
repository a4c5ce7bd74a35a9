"""Taking a model apart: what its attentions do to the values, layer by layer, and what happens without it.

``structure``, ``operator``, ``jacobian`` read one layer; ``capture`` and ``study`` a model while it runs; ``replacing`` and
``replacement_test`` put fixed matrices in. ``hidden_states`` and ``particle_study`` read the tokens themselves. What is computed
from matrices alone lives in ``osmose.diagnostics``, from states alone in ``osmose.dynamics``.
"""

from .calls import AttentionCall, Structure, attention_calls
from .capture import capture, study
from .hidden import HiddenStates, hidden_states, residual_stream
from .layer import constant, jacobian, jacobian_gap, jacobian_gaps, operator, structure
from .particles import AttentionReading, ParticleStudy, particle_study
from .replacement import Replaced, replacement_test, replacing

__all__ = [
    "AttentionCall",
    "AttentionReading",
    "HiddenStates",
    "ParticleStudy",
    "Replaced",
    "Structure",
    "attention_calls",
    "capture",
    "constant",
    "hidden_states",
    "jacobian",
    "jacobian_gap",
    "jacobian_gaps",
    "operator",
    "particle_study",
    "replacement_test",
    "replacing",
    "residual_stream",
    "structure",
    "study",
]
