"""The figure of `osmose particles`: tokens in a plane, their inner products, and curves over depth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from osmose.dynamics.hidden import projected
from osmose.inspection import ParticleStudy
from osmose.tasks.figures import _COLOURS

SHOWN = 6  # states, at most
POINTS = 3000  # tokens in a panel, at most
_INK, _GREY = "#2d3748", "#a0aec0"


def particle_figure(
    study: ParticleStudy,
    result: dict[str, Any],
    path: Path,
    title: str,
    *,
    labels: Tensor | None = None,
    names: list[str] | None = None,
) -> None:
    """Draw it. A row for each of up to six states from first to last: its tokens, and the histogram of inner products.

    With ``labels`` tokens are coloured by class, and ``names`` are those of the classes; else by their place in the input.
    """
    last = len(study.layers) - 1
    shown = sorted({round(i) for i in np.linspace(0, last, min(SHOWN, last + 1))})
    figure = Figure(figsize=(11, max(2.0 * len(shown), 8.0) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    left, right = parts
    grid = left.subplots(len(shown), 2, squeeze=False, width_ratios=(1, 1.25))
    _tokens(left, grid[:, 0], study, shown, labels, names)
    _histograms(grid[:, 1], study, shown)
    _curves(right.subplots(5, 1, sharex=True), study, result)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _tokens(
    part: Any,
    column: np.ndarray,
    study: ParticleStudy,
    shown: list[int],
    labels: Tensor | None,
    names: list[str] | None,
) -> None:
    states = [x.double() for x in study.first.states]
    points, masses = projected(states, study.first.masses, centre=study.centre)
    drawn = np.concatenate([points[i][masses[i] > 0].cpu().numpy() for i in shown])
    low, high = drawn.min(0), drawn.max(0)
    half = 0.54 * max(float((high - low).max()), 1e-3)
    middle = (low + high) / 2
    angle = np.linspace(0, 2 * math.pi, 400)
    image = None
    for axes, i in zip(column, shown, strict=True):
        here = (masses[i] > 0).nonzero()[:, 0].cpu()
        if len(here) > POINTS:
            draw = torch.Generator().manual_seed(0)
            here = here[torch.randperm(len(here), generator=draw)[:POINTS].sort().values]
        x, y = points[i].cpu()[here].numpy().T
        axes.plot(np.cos(angle), np.sin(angle), color="#e2e8f0", lw=1, zorder=0)
        size = 3 if len(here) > 600 else 10
        if labels is None:
            place = here.numpy()
            image = axes.scatter(x, y, c=place, cmap="viridis", s=size, lw=0)
        else:
            of = labels.cpu()[here].numpy()
            colours = [_colour(k, labels) if k >= 0 else "#cbd5e0" for k in of]
            axes.scatter(x, y, c=colours, s=size, lw=0, alpha=0.7)
        axes.set(
            xlim=(middle[0] - half, middle[0] + half),
            ylim=(middle[1] - half, middle[1] + half),
            aspect="equal",
            xticks=[],
            yticks=[],
        )
        axes.set_ylabel(_state(i, study), fontsize=9)
        axes.spines[:].set_color("#e2e8f0")
    column[0].set_title("directions, plane of the last state", fontsize=9)
    if image is not None:
        bar = part.colorbar(image, ax=list(column), location="left", shrink=0.35, aspect=30)
        bar.set_label("place in the input", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    elif names is not None and labels is not None:
        present = [k for k in range(len(names)) if bool((labels == k).any())][:20]
        handles = [
            column[0].plot([], [], "o", color=_colour(k, labels), ms=4, label=names[k])[0] for k in present
        ]
        part.legend(
            handles=handles, loc="outside lower left", ncols=min(3, len(handles)), fontsize=7, frameon=False
        )


def _histograms(column: np.ndarray, study: ParticleStudy, shown: list[int]) -> None:
    for axes, i in zip(column, shown, strict=True):
        reading = study.layers[i]
        edges, share = reading.edges.numpy(), reading.share.numpy()
        axes.stairs(share, edges, fill=True, color="#bee3f8")
        axes.stairs(share, edges, color=_COLOURS[0], lw=0.8)
        axes.axvline(reading["mean_product"].mean, color=_COLOURS[1], lw=1)
        axes.set(xlim=(-1, 1), xticks=[-1, -0.5, 0, 0.5, 1], yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=7)
        if i != shown[-1]:
            axes.tick_params(labelbottom=False)
    column[0].set_title("inner products, all pairs (line: mean)", fontsize=9)
    column[-1].set_xlabel("⟨x, y⟩", fontsize=9)


def _curves(every: np.ndarray, study: ParticleStudy, result: dict[str, Any]) -> None:
    depth = np.arange(len(study.layers))
    products, clusters, energies, ranks, betas = every
    _band(products, depth, study, "mean_product", _COLOURS[0], "tokens")
    if result["particle_model"] is not None:
        products.plot(
            depth,
            result["particle_model"],
            "--",
            color=_INK,
            lw=0.9,
            label="particle model: SA, V = I, no graph",
        )
        products.legend(fontsize=7, frameon=False)
    products.set_title("mean inner product", fontsize=9, loc="left")
    _band(clusters, depth, study, "clusters", _COLOURS[0], "number")
    clusters.set_title(
        f"clusters at distance {study.scale:.2g} (orange: share of the largest)",
        fontsize=9,
        loc="left",
    )
    counts = [reading["clusters"].mean for reading in study.layers]
    if max(counts) > 10 * min(counts):
        clusters.set_yscale("log")
    other = clusters.twinx()
    _band(other, depth, study, "largest_cluster", _COLOURS[1], "largest")
    other.set_ylim(0, 1.05)
    other.tick_params(labelsize=7)
    other.spines["top"].set_visible(False)
    _band(energies, depth, study, "normalised_energy", _COLOURS[2], "energy")
    energies.set_title(f"energy 2β e^(-β) E at β = {study.beta:.3g} (1: consensus)", fontsize=9, loc="left")
    _band(ranks, depth, study, "effective_rank", _COLOURS[3], "rank")
    ranks.set_title("effective rank", fontsize=9, loc="left")
    _betas(betas, study)
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        axes.set_xlim(-0.3, depth[-1] + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    betas.set_xlabel("state (0: before the first block)", fontsize=9)


def _band(axes: Axes, depth: np.ndarray, study: ParticleStudy, name: str, colour: str, label: str) -> None:
    values = [reading[name] for reading in study.layers]
    mean = np.array([value.mean for value in values])
    axes.plot(depth, mean, "o-", color=colour, ms=3, lw=1.2, label=label)
    if all(value.sd is not None for value in values):
        sd = np.array([value.sd for value in values], dtype=float)
        axes.fill_between(depth, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)


def _betas(axes: Axes, study: ParticleStudy) -> None:
    """A dot for every head at the state that it made, filled by R²."""
    found = [(one.layer, head.matched, head.slope, head.r2) for one in study.attentions for head in one.heads]
    matched = [(at, b) for at, b, _, _ in found if math.isfinite(b)]
    slopes = [(at, s, r2) for at, _, s, r2 in found if math.isfinite(s)]
    if matched:
        axes.plot(*zip(*matched, strict=True), "o", mfc="none", color=_COLOURS[0], ms=4, label="matched")
    if slopes:
        at, value, r2 = (np.array(v) for v in zip(*slopes, strict=True))
        colours = np.clip(r2, 0, 1)
        dots = axes.scatter(
            at + 0.12, value, c=colours, cmap="YlOrRd", vmin=0, vmax=1, s=16, ec=_GREY, lw=0.4
        )
        dots.set_label("slope, coloured by R²")
        bar = axes.figure.colorbar(dots, ax=axes, location="right", pad=0.01, aspect=12)
        bar.ax.tick_params(labelsize=6)
    if not matched and not slopes:
        axes.text(0.5, 0.5, "no effective β", transform=axes.transAxes, ha="center", color=_GREY, fontsize=9)
    else:
        axes.legend(fontsize=7, frameon=False, ncols=2)
        axes.axhline(0, color="#e2e8f0", lw=0.8, zorder=0)
    axes.set_title("effective β of the heads", fontsize=9, loc="left")


def _colour(k: int, labels: Tensor) -> Any:
    """Of a class; more than twenty share some."""
    return _COLOURS[k] if int(labels.max()) < len(_COLOURS) else colormaps["tab20"](k % 20)


def _state(i: int, study: ParticleStudy) -> str:
    return "input" if i == 0 else f"state {i} of {len(study.layers) - 1}"
