"""Moments of a run: its tokens at some times, side by side.

Shapes: states ``(F, n, d)`` of a trajectory, inner products ``(n, n)`` of a run in Gram space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..gram import Gram
from ..simulate import Solution
from ..spaces import Circle
from ..trajectory import Trajectory
from .style import figure, style
from .tokens import On, View, draw_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colours = Tensor | Sequence[Any] | str | None


def place_of(trajectory: Trajectory) -> On:
    """How the tokens of a trajectory are drawn, by its space."""
    if isinstance(trajectory.space, Circle):
        return "angles"
    d = trajectory.states.shape[-1]
    if trajectory.spherical:
        return {2: "circle", 3: "sphere"}.get(d, "axes")  # type: ignore[return-value]
    return {1: "line", 2: "plane", 3: "space"}.get(d, "axes")  # type: ignore[return-value]


def token_colours(
    trajectory: Trajectory, colours: Colours, scale: float | None
) -> Tensor | Sequence[Any] | None:
    """What :func:`draw_tokens` is given: ``clusters`` or None are the fates of tokens, ``tokens`` their order."""
    if isinstance(colours, str) and colours not in ("clusters", "tokens"):
        raise ValueError(
            f"colours is {colours!r}; expected 'clusters', 'tokens', or one colour or label for each token."
        )
    if colours is None or (isinstance(colours, str) and colours == "clusters"):
        return trajectory.fates(scale)
    return None if isinstance(colours, str) else colours


def view_of(trajectory: Trajectory, view: View | None) -> View:
    """The view given, else one from which the end of the run is in front."""
    if view is not None or place_of(trajectory) != "sphere" or isinstance(trajectory.space, Gram):
        return view or View()
    return View.facing(trajectory.points(trajectory.states[-1]))


def draw_state(
    axes: Axes,
    trajectory: Trajectory,
    state: Tensor,
    *,
    trail: Tensor | None = None,
    colours: Tensor | Sequence[Any] | None = None,
    scale: float | None = None,
    size: float = 34.0,
    frame: Tensor | None = None,
    view: View | None = None,
) -> Any:
    """One state of a trajectory: its tokens, or in Gram space its inner products with tokens in the order of their clusters."""
    if isinstance(trajectory.space, Gram):
        return _draw_gram(axes, trajectory, state, scale)
    place = place_of(trajectory)
    if place != "angles":  # lengths of a residual stream are not drawn
        state = trajectory.points(state)
        trail = None if trail is None else trajectory.points(trail)
        frame = None if frame is None else trajectory.points(frame)
    return draw_tokens(
        axes,
        state,
        trail=trail,
        colours=colours,
        mass=trajectory.mass,
        size=size,
        frame=frame,
        on=place,
        view=view,
    )


def _draw_gram(axes: Axes, trajectory: Trajectory, state: Tensor, scale: float | None) -> Any:
    labels = trajectory.clusters(state.unsqueeze(0), scale).labels[0]
    order = torch.argsort(labels, stable=True)
    image = axes.imshow(
        state[order][:, order].double().cpu().numpy(), vmin=-1, vmax=1, interpolation="nearest"
    )
    ends = np.flatnonzero(np.diff(labels[order].cpu().numpy())) + 0.5
    if len(ends) < 24:
        for end in ends:
            axes.axhline(end, color="white", lw=0.6)
            axes.axvline(end, color="white", lw=0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("tokens by cluster")
    return image


@style()
def snapshots(
    solution: Solution,
    at: Sequence[float] | Tensor | None = None,
    *,
    system: int | tuple[int, ...] = 0,
    colours: Colours = None,
    scale: float | None = None,
    view: View | None = None,
    columns: int | None = None,
    size: float = 34.0,
    trail: bool = False,
    title: str | None = None,
) -> Figure:
    """A grid of moments, each under its time and number of clusters.

    Args:
        solution: a run.
        at: times; between saved ones tokens are put on the geodesic. None takes five, even in time (in log t where the run
            stepped so).
        system: of a batch, an index of the leading dimensions or a number that counts through them.
        colours: ``clusters`` (None is the same): a token keeps the colour of its cluster at the first time with 2 to 8 of
            them, so that one sees who joins whom; ``tokens``: by index; or one label or colour for each token.
        scale: distance at which tokens are in one cluster. See :meth:`Trajectory.scale`.
        view: from where spheres and space are seen; None looks at where tokens end on a sphere.
        columns: of the grid; None is at most 5.
        size: of a token.
        trail: whether each moment shows the way since the one before.
        title: over all.

    Raises:
        ValueError: times outside the run, no such system.
    """
    trajectory = Trajectory.of(solution, system)
    log = trajectory.log_time
    times = (
        trajectory.moments(5, log=log) if at is None else torch.as_tensor(at, dtype=torch.float64).flatten()
    )
    if not len(times):
        raise ValueError("snapshots: at is empty; expected at least one time.")
    states = trajectory.at(times, log=log)
    counts = trajectory.clusters(states, scale).count
    across = min(len(times), 5) if columns is None else min(columns, len(times))
    if across < 1:
        raise ValueError(f"snapshots: columns is {columns}; expected at least 1.")
    down = math.ceil(len(times) / across)
    top = 0.3 if title is None else 0.6
    tall = 1.4 if place_of(trajectory) == "line" else 2.4
    made, grid = figure(2.35 * across, tall * down + top, down, across, squeeze=False)
    chosen, eye = token_colours(trajectory, colours, scale), view_of(trajectory, view)
    image: Any = None
    for k, axes in enumerate(grid.flat):
        if k >= len(times):
            axes.set_visible(False)
            continue
        way = None
        if trail and k and times[k] > times[k - 1]:
            way = trajectory.at(_between(float(times[k - 1]), float(times[k]), log), log=log)
        image = draw_state(
            axes,
            trajectory,
            states[k],
            trail=way,
            colours=chosen,
            scale=scale,
            size=size,
            frame=states,
            view=eye,
        )
        axes.set_title(moment_title(float(times[k]), int(counts[k])), loc="center")
        if axes.get_subplotspec().colspan.start:  # axes of a row are the same
            axes.set_ylabel("")
    if isinstance(trajectory.space, Gram):
        made.colorbar(image, ax=grid, shrink=0.7, label="inner product")
    foot = f"clusters: single linkage at distance {trajectory.scale(scale):.3g}"
    made.supxlabel(foot, fontsize=7.5, color="#777777", x=0.99, ha="right")
    if title is not None:
        made.suptitle(title)
    return made


def _between(a: float, b: float, log: bool, count: int = 40) -> Tensor:
    """Times from a to b, even in time or its logarithm."""
    if log and a > 0:
        return torch.linspace(math.log(a), math.log(b), count, dtype=torch.float64).exp().clamp(a, b)
    return torch.linspace(a, b, count, dtype=torch.float64)


def moment_title(t: float, count: int) -> str:
    """``t = 3, 5 clusters``."""
    return f"t = {t:.4g},  {count} cluster{'' if count == 1 else 's'}"
