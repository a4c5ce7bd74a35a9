"""Mixers by name: functions that carry values from sources to targets, head by head, with masses and sets.

``MIXERS`` is the table; ``osmose.nn`` puts projections around it. ``mixer_operator`` gives them as operators, with any
structure on their kernel.
"""

from .linear import linear_attention, mean_attention
from .operators import mixer_operator
from .softmax import softmax_attention
from .table import MIXERS, Mixer, mixer_of

__all__ = [
    "MIXERS",
    "Mixer",
    "linear_attention",
    "mean_attention",
    "mixer_of",
    "mixer_operator",
    "softmax_attention",
]
