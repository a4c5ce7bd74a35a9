"""Sweeps: a field over inverse temperatures, numbers of tokens, dimensions and seeds, in chunks that a stop does not lose.

``plan`` lays out what is asked and runs a chunk, ``run`` all of them, ``settings`` tells two sweeps apart, ``files`` keeps finished
chunks, ``ranks`` shares them out over processes, ``result`` holds values and intervals.
"""

from .result import Statistic, SweepResult
from .run import sweep

__all__ = ["Statistic", "SweepResult", "sweep"]
