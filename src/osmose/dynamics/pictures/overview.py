"""A run on one page: where it ended and by which way, its energy, its inner products over time, its clusters.

Shapes: states ``(F, n, d)`` of a trajectory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..fields import Field
from ..gram import Gram
from ..observables import distance_to_dirac
from ..series import ExactCurve, energies, exact_curve, mean_products, products
from ..simulate import Solution
from ..trajectory import Trajectory
from .moments import Colours, draw_state, moment_title, token_colours, view_of
from .style import COLOURS, EXACT, figure, outlined, style
from .tokens import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAMES = 240  # times at which curves are computed, where not all saved ones are


@style()
def overview(
    solution: Solution,
    field: Field | None = None,
    *,
    system: int | tuple[int, ...] = 0,
    exact: bool = False,
    colours: Colours = None,
    scale: float | None = None,
    log_time: bool | None = None,
    view: View | None = None,
    bins: int = 80,
    title: str | None = None,
) -> Figure:
    """The last state with trails; energy, the histogram of inner products, and the number of clusters over time.

    On the sphere the energy is ``2 beta e^{-beta} E`` (1 at consensus) where beta > 0, else E. In flat spaces, where it has no
    bound, the distance to the nearest Dirac measure stands in its place, and inner products are cosines. Curves are computed
    at the saved times, at most 240 of them.

    Args:
        solution: a run with its states kept.
        field: None is that of the run; another one for energy and exact curve.
        system: of a batch.
        exact: whether the equiangular curve g(t) is drawn over the inner products.
        colours, scale, view: as in :func:`snapshots`.
        log_time: the axis of time; None is that of the run.
        bins: of the histogram.
        title: over all.

    Raises:
        ValueError: a run whose states were not kept; with ``exact`` a field that has no such curve, and why.
    """
    trajectory = Trajectory.of(solution, system, field)
    if len(trajectory.times) < 2:
        raise ValueError("overview: the run kept a single state; expected several: simulate with save=True.")
    log = trajectory.log_time if log_time is None else log_time
    keep = torch.linspace(0, len(trajectory.times) - 1, min(FRAMES, len(trajectory.times))).round().long()
    times, states = trajectory.times[keep], trajectory.states[keep]
    curve = exact_curve(trajectory, trajectory.moments(400, log=log)) if exact else None
    if curve is not None and curve.values is None:
        raise ValueError(f"overview: exact=True, but the field has no equiangular curve: {curve.note}.")
    made, grid = figure(9.6, 5.6, 2, 3, width_ratios=[1.35, 1, 1])
    for axes in grid[:, 0]:
        axes.remove()
    left = made.add_subplot(grid[0, 0].get_gridspec()[:, 0])
    counts = trajectory.clusters(states, scale).count
    way = trajectory.at(trajectory.moments(160, log=log), log=log)
    image = draw_state(
        left,
        trajectory,
        states[-1],
        trail=way,
        colours=token_colours(trajectory, colours, scale),
        scale=scale,
        frame=way,
        view=view_of(trajectory, view),
    )
    if isinstance(trajectory.space, Gram):
        made.colorbar(image, ax=left, shrink=0.6, label="inner product", location="bottom")
    left.set_title(moment_title(float(times[-1]), int(counts[-1])), loc="center")
    _energy(grid[0, 1], trajectory, times, states)
    _clusters(grid[0, 2], times, counts, trajectory.scale(scale))
    _products(made, grid[1, 1], trajectory, times, states, bins, log)
    _mean(grid[1, 2], trajectory, times, states, curve, log)
    if curve is not None:
        grid[1, 1].plot(trajectory.moments(400, log=log).numpy(), curve.values, **{**EXACT, **outlined()})
    for axes in grid[:, 1:].flat:
        _time_axis(axes, times, log)
    if title is not None:
        made.suptitle(title)
    return made


def _energy(axes: Axes, trajectory: Trajectory, times: Tensor, states: Tensor) -> None:
    found = energies(trajectory, states)
    if not trajectory.spherical:
        distance = distance_to_dirac(trajectory.points(states), trajectory.mass, on="space")
        axes.plot(times.numpy(), distance.cpu().numpy(), color=COLOURS[0])
        axes.set_title("distance to a Dirac")
        axes.set_ylabel(r"$W_2$")
        return
    values, name = found.normalised, r"$2\beta e^{-\beta} E$"
    if values is None or (found.model is not None and not _climbs(found.values)):
        values, name = found.values, "E" if found.log_scale == 0 else r"$e^{-\beta} E$"
    if values is None:
        axes.text(0.5, 0.5, "no energy known", transform=axes.transAxes, ha="center", color="#777777")
        axes.set_yticks([])
    else:
        axes.plot(times.numpy(), values.cpu().numpy(), color=COLOURS[0])
        axes.set_ylabel(name)
    flow = f"{found.model} flow climbs it" if found.model else "not a gradient flow"
    axes.set_title(f"energy ({flow})")


def _climbs(values: Tensor | None) -> bool:
    """Whether a gradient flow's own energy is positive: for V = -I it is -E, and that is what is drawn."""
    return values is not None and bool((values >= 0).all())


def _clusters(axes: Axes, times: Tensor, counts: Tensor, scale: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.step(times.numpy(), counts.cpu().numpy(), where="post", color=COLOURS[4])
    axes.set_title(f"clusters (linkage at {scale:.3g})")
    top = int(counts.max())
    if top > 32:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axes.set_ylim(0.85, 1.2 * top)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_ylim(0, 1.08 * top)


def _products(
    made: Figure,
    axes: Axes,
    trajectory: Trajectory,
    times: Tensor,
    states: Tensor,
    bins: int,
    log: bool,
) -> None:
    from matplotlib.colors import LogNorm

    found = products(trajectory, states, bins)
    share = found.share.cpu().numpy()
    edges = _edges(times, log)
    least = 1 / max(float(found.pairs.max()), 2)
    shown = np.where(share > 0, share, np.nan)
    mesh = axes.pcolormesh(
        edges, found.edges.cpu().numpy(), shown.T, norm=LogNorm(max(least, 1e-4), 1.0), rasterized=True
    )
    axes.set_facecolor("#F3F3F1")
    axes.set_ylim(-1, 1)
    axes.set_title(f"{_what(trajectory)} of pairs")
    made.colorbar(mesh, ax=axes, label="share of pairs", pad=0.02)


def _mean(
    axes: Axes, trajectory: Trajectory, times: Tensor, states: Tensor, curve: ExactCurve | None, log: bool
) -> None:
    axes.plot(
        times.numpy(),
        mean_products(trajectory, states).cpu().numpy(),
        color=COLOURS[2],
        label="mean of pairs",
    )
    axes.set_title(f"mean {_what(trajectory)[:-1]}")
    if curve is not None and curve.values is not None:
        name = "exact" if curve.exact else r"$g(t)$, large $d$"
        axes.plot(trajectory.moments(len(curve.values), log=log).numpy(), curve.values, **EXACT, label=name)
        axes.legend(loc="best")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.02), min(high, 1.02))


def _what(trajectory: Trajectory) -> str:
    return "inner products" if trajectory.spherical else "cosines"


def _edges(times: Tensor, log: bool) -> np.ndarray:
    """Edges of cells around times: halfway, on the axis shown."""
    t = times.numpy()
    if not log:
        middle = (t[1:] + t[:-1]) / 2
        return np.concatenate([t[:1], middle, t[-1:]])
    floor = t[t > 0][0]
    safe = np.where(t > 0, t, floor / 2)
    return np.concatenate([safe[:1], np.sqrt(safe[1:] * safe[:-1]), safe[-1:]])


def _time_axis(axes: Axes, times: Tensor, log: bool) -> None:
    axes.set_xlabel("t")
    if log:
        axes.set_xscale("log")
        axes.set_xlim(float(times[times > 0][0]), float(times[-1]))
    else:
        axes.set_xlim(float(times[0]), float(times[-1]))
