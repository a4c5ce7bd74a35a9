"""Parts of figures that families of unprojected tokens share: a row of moments over a row of curves, decay, hulls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..pictures import COLOURS, EXACT, View, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def moments(until: float) -> tuple[float, ...]:
    """The start, the times of the paper's pictures, and the end."""
    return 0.0, until / 12, until / 4, until


def place_of(d: int) -> Literal["line", "plane", "space", "axes"]:
    """Where tokens of ``R^d`` are drawn."""
    return "line" if d == 1 else "plane" if d == 2 else "space" if d == 3 else "axes"


def page(top: int, bottom: int, width: float = 9.6, height: float = 5.2) -> tuple[Figure, Any, list[Axes]]:
    """A row of moments over a row of curves."""
    made, grid = figure(width, height, 2, top, squeeze=False)
    below = grid[1, 0].get_gridspec()[1, :].subgridspec(1, bottom)
    for axes in grid[1]:
        axes.remove()
    return made, list(grid[0]), [made.add_subplot(below[0, k]) for k in range(bottom)]


def decay(axes: Axes, times: Tensor, distance: Tensor, rate: float, label: str) -> None:
    """A distance on a logarithmic axis, and the exact slope through its end."""
    axes.plot(times, distance, color=COLOURS[0], label="tokens")
    start = len(times) // 3
    exact = distance[-1] * torch.exp(-rate * (times - times[-1]))
    axes.plot(times[start:], exact[start:], **EXACT, label="$e^{-λt}$")
    axes.set(xlabel="time", ylabel=label, yscale="log", xlim=(0, float(times[-1])))
    axes.legend(loc="upper right")


def hull(z: Tensor) -> Any:
    """The hull of points ``(n, d)``, or None of points that span less."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return ConvexHull(z.numpy())
    except QhullError:
        return None


def depth(z: Tensor) -> Tensor:
    """How deep every point lies in the hull of all, ``(n,)``."""
    found = hull(z)
    if found is None:
        return torch.zeros(len(z), dtype=z.dtype)
    facets = torch.from_numpy(found.equations)
    return -(z @ facets[:, :-1].mT + facets[:, -1]).amax(-1)


def outline(axes: Axes, z: Tensor) -> None:
    """The edges of the hull, in the plane or in space."""
    found = hull(z)
    if found is None or z.shape[-1] > 3:
        return
    points = z.numpy() if z.shape[-1] == 2 else View().project(z.numpy())[0]
    for simplex in found.simplices:
        at = points[np.append(simplex, simplex[0])]
        axes.plot(*at.T, color="#888888", lw=0.7, alpha=0.6, zorder=1.5)
