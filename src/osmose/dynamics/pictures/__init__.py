"""Pictures of runs: tokens where they live, moments, an overview, and movies; one style for every figure of the dynamics.

Matplotlib (and for movies Pillow or ffmpeg) is imported when something is drawn.
"""

from .moments import snapshots
from .movie import movie
from .overview import overview
from .style import COLOURS, EXACT, MAP, figure, outlined, style
from .tokens import View, draw_tokens

__all__ = [
    "COLOURS",
    "EXACT",
    "MAP",
    "View",
    "draw_tokens",
    "figure",
    "movie",
    "outlined",
    "overview",
    "snapshots",
    "style",
]
