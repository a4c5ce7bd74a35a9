"""Tokens drawn where they live: on a circle, on a sphere seen from a side, in the plane, in space, on two principal axes.

Shapes: ``x (n, d)`` points or ``(n, 1)`` angles, trails ``(k, n, d)``, masses ``(n,)``. Plain 2-D axes throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .style import FAINT, MAP, colour, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection

On = Literal["angles", "circle", "sphere", "line", "plane", "space", "axes"]
INNER = 0.35  # radius at which the trail of a token on the circle begins
FEW = 24  # tokens up to which trails are drawn at full strength


@dataclass(frozen=True)
class View:
    """From where a sphere or space is seen, without perspective.

    Attributes:
        azimuth: degrees around the third axis, from the first.
        elevation: degrees above the plane of the first two. The point in the direction (azimuth, elevation) is nearest to
            the eye and is drawn at the centre; the third axis points up.
    """

    azimuth: float = 35.0
    elevation: float = 20.0

    @classmethod
    def facing(cls, x: Tensor) -> View:
        """The view in which the mean of ``x (..., 3)`` is in front, a little aside; the usual one where it has no direction."""
        mean = x.detach().double().cpu().reshape(-1, 3).mean(0)
        length = float(mean.norm())
        if not length > 0.2 * float(x.detach().norm(dim=-1).max()):
            return cls()
        elevation = math.degrees(math.asin(max(-1.0, min(1.0, float(mean[2]) / length))))
        azimuth = math.degrees(math.atan2(float(mean[1]), float(mean[0])))
        return cls(azimuth - 25.0, max(-40.0, min(40.0, elevation)))

    def project(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(..., 3)`` to places on the page ``(..., 2)`` and depth ``(...)``, positive towards the eye."""
        a, e = math.radians(self.azimuth), math.radians(self.elevation)
        right = np.array([-math.sin(a), math.cos(a), 0.0])
        up = np.array([-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e)])
        eye = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        return x @ np.stack([right, up], -1), x @ eye


def draw_tokens(
    axes: Axes,
    x: Tensor,
    *,
    trail: Tensor | None = None,
    colours: Tensor | Sequence[Any] | None = None,
    mass: Tensor | None = None,
    size: float = 34.0,
    frame: Tensor | None = None,
    on: On | None = None,
    view: View | None = None,
) -> PathCollection:
    """Draw the tokens of one state.

    =========== ============================ =================================================================
    ``on``      state                        drawn
    =========== ============================ =================================================================
    ``angles``  ``(n, 1)`` angles            on the unit circle; trails run outwards, from past to present
    ``circle``  ``(n, 2)`` unit vectors      the same
    ``sphere``  ``(n, 3)`` unit vectors      seen from ``view``; what is behind is faded and smaller
    ``line``    ``(n, 1)``                   on the first axis
    ``plane``   ``(n, 2)``                   as they are, equal scales
    ``space``   ``(n, 3)``                   seen from ``view``, far tokens faded and smaller
    ``axes``    ``(n, d)``                   on the two principal axes of ``frame``, with their share of variance
    =========== ============================ =================================================================

    Args:
        axes: of matplotlib.
        x: tokens.
        trail: earlier states ``(k, n, d)`` in the order of time, the last of them x or just before it.
        colours: integers are labels of clusters (-1 absent, grey); else anything that matplotlib takes, one for each token;
            None tells tokens apart by their index along the sequential map.
        mass: areas are in proportion; tokens of mass 0 are left out.
        size: area of a token of mean mass, in square points.
        frame: states ``(..., d)`` that all belong to the picture, e.g. a whole run: they set the limits of flat spaces and the
            principal axes. None is x with its trail.
        on: None guesses: ``(n, 1)`` are angles, unit vectors lie on the circle or sphere, others in flat space.
        view: of ``sphere`` and ``space``.

    Returns:
        The scatter of the tokens drawn, farthest first, then the rarest colour.

    Raises:
        ValueError: shapes that do not fit, a place that does not fit the state.
    """
    require_matplotlib()
    state, past = _arrays(x, trail)
    place = on or guess(x)
    if _width(place) not in (None, state.shape[1]):
        raise ValueError(
            f"draw_tokens: on is {place!r} and x has shape {tuple(x.shape)}; expected (n, {_width(place)})."
        )
    rgba, areas = _rgba(colours, len(state)), _areas(mass, len(state), size)
    shown = areas > 0
    extent = _extent(frame, state, past)
    view = view or View()
    if place in ("angles", "circle"):
        at, depth, paths = _on_circle(axes, state, past, place)
    elif place == "sphere":
        at, depth, paths = _on_sphere(axes, state, past, view)
    elif place == "space":
        at, depth, paths = _in_space(axes, state, past, extent, view)
    else:
        at, depth, paths = _in_plane(axes, state, past, extent, place)
    if paths is not None:
        _draw_trails(axes, paths, rgba, shown)
    if depth is not None:  # what is behind is paler and smaller
        back = np.clip(0.5 - 0.5 * depth, 0.0, 1.0)
        rgba[:, 3] *= np.where(depth < 0, 0.45, 1.0) if place == "sphere" else 1 - 0.5 * back
        areas = areas * (1 - 0.5 * back)
    order = np.flatnonzero(shown)
    if len(order):  # tokens at one place show the colour of most of them
        _, kind, often = np.unique(rgba[order, :3], axis=0, return_inverse=True, return_counts=True)
        often = often[kind.reshape(-1)]
        nearness = np.zeros(len(order)) if depth is None else depth[order].round(1)
        order = order[np.lexsort((often, nearness))]
    return axes.scatter(
        at[order, 0],
        at[order, 1],
        s=areas[order],
        c=rgba[order],
        edgecolors="white",
        linewidths=0.6,
        zorder=4,
        clip_on=False,
    )


def guess(x: Tensor) -> On:
    """Where a state lives, by its shape and lengths."""
    d = x.shape[-1]
    if d == 1:
        return "angles"
    length = x.detach().norm(dim=-1)
    length = length[length > 0]
    unit = bool(((length - 1).abs() < 1e-6).all())
    if d > 3:
        return "axes"
    if unit:
        return "circle" if d == 2 else "sphere"
    return "plane" if d == 2 else "space"


def principal_axes(x: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean ``(d,)``, the two directions of largest variance ``(d, 2)`` and their shares of it ``(2,)``, of states ``(..., d)``.

    Signs are fixed: the largest coordinate of a direction is positive.
    """
    points = np.asarray(x.detach().double().cpu() if isinstance(x, Tensor) else x, dtype=float)
    points = points.reshape(-1, points.shape[-1])
    centre = points.mean(0)
    values, vectors = np.linalg.eigh((points - centre).T @ (points - centre))
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    total = values.clip(min=0).sum()
    share = values[::-1][:2].clip(min=0) / total if total > 0 else np.zeros(2)
    return centre, axes, share


# ---- places ---------------------------------------------------------------------------------------

Placed = tuple[
    np.ndarray, np.ndarray | None, np.ndarray | None
]  # tokens (n, 2), depth (n,), trails (k, n, 2)


def _on_circle(axes: Axes, x: np.ndarray, past: np.ndarray | None, place: str) -> Placed:
    angle = np.linspace(0, 2 * np.pi, 361)
    axes.plot(np.cos(angle), np.sin(angle), color=FAINT, lw=0.9, zorder=1)
    _bare(axes, 1.12)
    at = np.concatenate([np.cos(x), np.sin(x)], -1) if place == "angles" else x
    if past is None:
        return at, None, None
    turn = np.concatenate([np.cos(past), np.sin(past)], -1) if place == "angles" else past
    # time is the radius: on the circle itself trails would hide each other
    axes.plot(INNER * np.cos(angle), INNER * np.sin(angle), color=FAINT, lw=0.5, ls=":", zorder=1)
    return at, None, turn * np.linspace(INNER, 1.0, len(past))[:, None, None]


def _on_sphere(axes: Axes, x: np.ndarray, past: np.ndarray | None, view: View) -> Placed:
    angle = np.linspace(0, 2 * np.pi, 361)
    axes.fill(np.cos(angle), np.sin(angle), color="#F6F6F3", zorder=0)
    axes.plot(np.cos(angle), np.sin(angle), color=FAINT, lw=0.9, zorder=1)
    circles = [np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)]
    for longitude in np.radians([0, 45, 90, 135]):
        out = np.array([math.cos(longitude), math.sin(longitude), 0.0])
        circles.append(np.cos(angle)[:, None] * out + np.sin(angle)[:, None] * np.array([0.0, 0.0, 1.0]))
    for circle in circles:
        at, depth = view.project(circle)
        axes.plot(*np.where(depth[:, None] >= 0, at, np.nan).T, color=FAINT, lw=0.6, alpha=0.9, zorder=1)
        axes.plot(*np.where(depth[:, None] < 0, at, np.nan).T, color=FAINT, lw=0.5, alpha=0.4, zorder=1)
    _bare(axes, 1.08)
    at, depth = view.project(x)
    return at, depth, None if past is None else view.project(past)[0]


def _in_space(axes: Axes, x: np.ndarray, past: np.ndarray | None, extent: np.ndarray, view: View) -> Placed:
    reach = float(np.abs(extent).max()) or 1.0
    for index, name in enumerate("xyz"):
        end = np.zeros((2, 3))
        end[0, index], end[1, index] = -reach, reach
        line, _ = view.project(end)
        axes.plot(*line.T, color=FAINT, lw=0.6, zorder=1)
        axes.annotate(
            name,
            line[1] * 1.06,
            color="#777777",
            fontsize=7.5,
            ha="center",
            va="center",
            annotation_clip=False,
        )
    at, depth = view.project(x)
    everywhere, _ = view.project(extent)
    _bare(axes, 1.12 * max(float(np.abs(everywhere).max()), reach))
    depth = depth / max(float(np.abs(view.project(extent)[1]).max()), 1e-300)
    return at, depth, None if past is None else view.project(past)[0]


def _in_plane(axes: Axes, x: np.ndarray, past: np.ndarray | None, extent: np.ndarray, place: str) -> Placed:
    if place == "axes" and x.shape[-1] == 1:
        place = "line"

    def flat(points: np.ndarray) -> np.ndarray:
        if place == "line":
            return np.concatenate([points, np.zeros_like(points)], -1)
        return points if place == "plane" else (points - centre) @ directions

    if place == "axes":
        centre, directions, share = principal_axes(extent)
        axes.set_xlabel(f"axis 1 ({100 * share[0]:.0f} % of variance)")
        axes.set_ylabel(f"axis 2 ({100 * share[1]:.0f} %)")
    everywhere = flat(extent)
    low, high = everywhere.min(0), everywhere.max(0)
    half = 0.54 * max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    if place == "line":
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-half / 4, half / 4)
    axes.axhline(0, color=FAINT, lw=0.5, zorder=0)
    axes.axvline(0, color=FAINT, lw=0.5, zorder=0)
    return flat(x), None, None if past is None else flat(past)


def _bare(axes: Axes, reach: float) -> None:
    axes.set_aspect("equal")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.axis("off")


# ---- parts ----------------------------------------------------------------------------------------


def _draw_trails(axes: Axes, paths: np.ndarray, rgba: np.ndarray, shown: np.ndarray) -> None:
    """Lines ``(k, n, 2)`` that fade into the past."""
    from matplotlib.collections import LineCollection

    k = len(paths)
    if k < 2:
        return
    segments = np.stack([paths[:-1], paths[1:]], 2)[:, shown]  # (k - 1, n, 2, 2)
    tints = np.broadcast_to(rgba[shown], (*segments.shape[:2], 4)).copy()
    strength = 0.95 if shown.sum() <= FEW else 0.6
    tints[..., 3] *= strength * np.linspace(0.2, 1.0, k - 1)[:, None]
    axes.add_collection(
        LineCollection(
            list(segments.reshape(-1, 2, 2)),
            colors=tints.reshape(-1, 4),
            linewidths=1.1,
            zorder=2,
            capstyle="butt",
        ),
        autolim=False,
    )


def _arrays(x: Tensor, trail: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
    if x.ndim != 2:
        raise ValueError(
            f"draw_tokens: x has shape {tuple(x.shape)}; expected one state (n, d). Choose a system: x[0]."
        )
    if trail is not None and (trail.ndim != 3 or trail.shape[1:] != x.shape):
        raise ValueError(
            f"draw_tokens: trail has shape {tuple(trail.shape)}; expected (k, {x.shape[0]}, {x.shape[1]})."
        )
    past = None if trail is None else trail.detach().double().cpu().numpy()
    return x.detach().double().cpu().numpy(), past


def _extent(frame: Tensor | None, x: np.ndarray, past: np.ndarray | None) -> np.ndarray:
    """Points ``(m, d)`` that the picture must hold."""
    if frame is None:
        return x if past is None else np.concatenate([past.reshape(-1, x.shape[1]), x])
    points = frame.detach().double().cpu().numpy().reshape(-1, frame.shape[-1])
    if points.shape[1] != x.shape[1]:
        raise ValueError(
            f"draw_tokens: frame has shape {tuple(frame.shape)}; expected (..., {x.shape[1]}), states like x."
        )
    return points[np.isfinite(points).all(-1)]


def _rgba(colours: Tensor | Sequence[Any] | None, n: int) -> np.ndarray:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgba_array

    if colours is None:
        return np.asarray(colormaps[MAP](np.linspace(0.05, 0.92, n)))
    given = colours.tolist() if isinstance(colours, torch.Tensor) and colours.ndim == 1 else colours
    if len(given) != n:
        raise ValueError(f"draw_tokens: {len(given)} colours for {n} tokens; expected one for each.")
    if n and isinstance(given[0], (int, np.integer)):
        given = [colour(int(label)) for label in given]
    return to_rgba_array(np.asarray(given) if isinstance(given, torch.Tensor) else given).copy()


def _areas(mass: Tensor | None, n: int, size: float) -> np.ndarray:
    if mass is None:
        return np.full(n, float(size))
    m = mass.detach().double().cpu().numpy()
    if m.shape != (n,):
        raise ValueError(f"draw_tokens: mass has shape {m.shape}; expected ({n},).")
    here = m > 0
    return np.where(here, size * m / (m[here].mean() if here.any() else 1.0), 0.0)


def _width(place: str) -> int | None:
    known = {"angles": 1, "circle": 2, "sphere": 3, "line": 1, "plane": 2, "space": 3, "axes": None}
    if place not in known:
        raise ValueError(f"draw_tokens: on is {place!r}; expected one of {', '.join(known)}.")
    return known[place]
