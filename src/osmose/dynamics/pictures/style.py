"""One quiet look for every figure of the dynamics, without a display and without pyplot's global state.

    @style()
    def my_figure(...):
        made, (left, right) = figure(8, 3.5, 1, 2)

Matplotlib is imported when a figure is made, not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A00", "#4D4D4D")
"""Tokens, clusters and curves: the palette of Okabe and Ito, told apart by any eye; its yellow is darkened to be seen on white."""

MAP = "cividis"
"""Fields over a plane (phase diagrams, histograms over time): one sequential map, monotone in lightness."""

EXACT: dict[str, Any] = {"color": "#111111", "lw": 1.3, "ls": (0, (4, 2)), "zorder": 5}
"""How a curve from theory is drawn: ``axes.plot(t, g, **EXACT, label="exact")``. Over dark fields add a white outline,
:func:`outlined`."""

FAINT = "#B8B8B8"  # outlines, absent clusters, what is behind

SETTINGS: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "figure.titlesize": 11.0,
    "image.cmap": MAP,
}


def figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches on the Agg canvas, and its axes as ``Figure.subplots`` gives them.

    Args:
        width, height: in inches.
        rows, columns: of the grid of axes; 1 and 1 give one ``Axes``, more an array.
        subplots: of ``Figure.subplots``: ``squeeze``, ``sharex``, ``width_ratios``, ``gridspec_kw``, ...

    Raises:
        ModuleNotFoundError: without matplotlib (``pip install 'osmose[dynamics]'``).
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style():
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        made.get_layout_engine().set(w_pad=0.07, h_pad=0.07)  # type: ignore[union-attr, call-arg]
        axes = made.subplots(rows, columns, **subplots)
    return made, axes


@contextmanager
def style() -> Iterator[None]:
    """The settings of the look while something is drawn: ``with style():``, or ``@style()`` over a function that draws.

    Axes made by :func:`figure` have it already; titles, legends and lines take their sizes when they are added, so add them
    under it too.
    """
    matplotlib = require_matplotlib()
    with matplotlib.rc_context({**SETTINGS, "axes.prop_cycle": matplotlib.cycler(color=COLOURS)}):
        yield


def outlined(width: float = 2.6) -> dict[str, Any]:
    """Keyword arguments that put a white rim around a line, for :data:`EXACT` over a dark field."""
    from matplotlib import patheffects

    return {"path_effects": [patheffects.Stroke(linewidth=width, foreground="white"), patheffects.Normal()]}


def colour(index: int) -> str:
    """The colour of a cluster by its label, around the palette; label -1 (absent) is grey."""
    return FAINT if index < 0 else COLOURS[index % len(COLOURS)]


def require_matplotlib() -> Any:
    """The package, or an error that says how to get it."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures are drawn with matplotlib, which is not installed: pip install 'osmose[dynamics]'",
            name="matplotlib",
        ) from error
    return matplotlib
