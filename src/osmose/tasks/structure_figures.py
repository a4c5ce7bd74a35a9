"""Figures of structure: what `osmose identify` and `osmose rank` found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from osmose.tasks.figures import _COLOURS, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from osmose.diagnostics.identify import Identification
    from osmose.tasks.ranks import FactorRanks, LayerRanks


def identification(found: Identification, path: Path, title: str) -> None:
    """The size of the value at every offset, who reaches whom, and the singular values of the map."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    offsets, reach, values = figure.subplots(1, 3)
    _offsets(offsets, found)
    count = (found.phi.ndim - 2) // 2
    strength = torch.linalg.vector_norm(found.phi, dim=(-2, -1)).flatten(count).flatten(0, count - 1)
    image = reach.imshow(strength.cpu().numpy(), cmap="Blues", aspect="auto", interpolation="nearest", vmin=0)
    figure.colorbar(image, ax=reach, shrink=0.8)
    reach.set(xlabel="source m", ylabel="target n", title="|Phi[n, m]|")
    for axis in (reach.xaxis, reach.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    spectrum = (found.spectrum / found.spectrum.max().clamp(min=1e-300)).clamp(min=1e-18).tolist()
    values.semilogy(range(1, len(spectrum) + 1), spectrum, "o-", color=_COLOURS[0], ms=4, lw=1)
    values.axhline(found.tolerance, color="#4a5568", lw=0.8, ls=":")
    values.annotate(
        "counts as 0 below", (1, found.tolerance), xytext=(0, 3), textcoords="offset points", fontsize=8
    )
    values.set_ylim(min(1e-12, 0.1 * found.tolerance), 3)
    values.xaxis.set_major_locator(MaxNLocator(integer=True))
    values.set(xlabel="term", ylabel="singular value / largest", title=f"mixed-product rank {found.rank}")
    _save(figure, path, title)


def _offsets(axes: Axes, found: Identification) -> None:
    norms = found.norms.tolist()
    if len(found.axes) == 1:
        axes.bar([int(d) for d in found.offsets], norms, width=0.7, color=_COLOURS[0])  # type: ignore[arg-type]
        axes.axvline(0, color="#4a5568", lw=0.6)
        axes.set(xlabel="offset d = source - target", ylabel="|Theta_d|")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif len(found.axes) == 2 and norms:
        rows, columns = zip(*found.offsets, strict=True)
        spread = max(max(map(abs, rows)), max(map(abs, columns))) + 0.6
        points = axes.scatter(
            columns, rows, c=norms, cmap="Blues", s=220, marker="s", vmin=0, edgecolors="#4a5568"
        )
        axes.figure.colorbar(points, ax=axes, shrink=0.8)
        axes.set(
            xlim=(-spread, spread),
            ylim=(spread, -spread),
            xlabel="offset along the width",
            ylabel="along the height",
        )
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.bar(range(len(norms)), norms, color=_COLOURS[0])
        axes.set(xlabel="offset, in the order of the table", ylabel="|Theta_d|")
    axes.set_title(
        "size of the value at every offset"
        + ("" if found.shift_invariant else f"\n{found.residual:.0%} is no shift")
    )


def rank_spectra(layers: list[LayerRanks], path: Path, title: str) -> None:
    """Singular values over the largest, a line for every head or tap, a colour for every layer from first to last."""
    attention = [layer for layer in layers if any(f.role == "scores" for f in layer.families)]
    others = [layer for layer in layers if layer not in attention]
    panels = [
        (
            "values of heads, Theta_k",
            [(layer.name, f) for layer in attention for f in layer.families if f.role == "values"],
        ),
        (
            "scores of heads, Lambda_k",
            [(layer.name, f) for layer in attention for f in layer.families if f.role == "scores"],
        ),
        ("convolutions and linear layers", [(layer.name, layer.families[0]) for layer in others]),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(1 + 4.6 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, families) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _spectra(axes, families)
        axes.set(xlabel="index", ylabel="singular value / largest", title=name)
    _save(figure, path, title)


def _spectra(axes: Axes, families: list[tuple[str, FactorRanks]]) -> None:
    colours = colormaps["viridis"]
    lowest = 1.0
    for place, (name, family) in enumerate(families):
        colour = colours(0.9 * place / max(1, len(families) - 1))
        for number, values in enumerate(family.spectra):
            top = float(values.max())
            shares = (values / top).clamp(min=1e-8).tolist() if top > 0 else [1e-8] * len(values)
            lowest = min(lowest, shares[-1])
            label = (name or "(itself)") if number == 0 else None
            axes.semilogy(
                range(1, len(shares) + 1),
                shares,
                color=colour,
                lw=1,
                alpha=0.8,
                label=label,
                marker="." if len(shares) < 2 else None,
            )
    axes.set_ylim(max(3e-9, 0.5 * lowest), 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(families) <= 12:
        axes.legend(fontsize=7, frameon=False, loc="lower left")
