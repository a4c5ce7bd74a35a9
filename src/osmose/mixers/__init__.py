"""Mixers by name: functions that carry values from sources to targets, head by head, with masses and sets.

``MIXERS`` is the table; ``osmose.nn`` puts projections around it.
"""

from .linear import linear_attention, mean_attention
from .softmax import softmax_attention
from .table import MIXERS, Mixer, mixer_of

__all__ = ["MIXERS", "Mixer", "linear_attention", "mean_attention", "mixer_of", "softmax_attention"]
