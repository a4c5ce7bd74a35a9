"""Figures of attention heads: the shares of their parts, and at which offsets they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from osmose.diagnostics import COMPONENTS, StructureAnova

COLOURS = ("#cbd5e0", "#2b6cb0", "#805ad5", "#38b2ac", "#dd6b20")
"""Of the components: grey uniform, then fixed shift, fixed absolute, adaptive shift, content."""
_MOST_OFFSETS = 32


def short(layer: str) -> str:
    """A name of an attention without what all have in common."""
    name = layer.removesuffix(".self_attn").replace("blocks.", "block ").replace("stages.", "stage ")
    return name.replace(".", ", ")


def heads_figure(
    result: dict[str, Any], found: dict[str, StructureAnova], path: Path, *, grids: bool
) -> None:
    """Stacked shares of every head, and beside them its mass over offsets: a heat map, or small images of (dy, dx)."""
    rows = result["heads"]
    height = 0.27 * len(rows) if not grids else max(0.27 * len(rows), 1.35 * -(-len(rows) // 4))
    figure = Figure(figsize=(11, 1.6 + height), layout="constrained")
    FigureCanvasAgg(figure)
    names = [f"{short(row['layer'])}: {row['head']}" for row in rows]
    if grids:
        halves = figure.add_gridspec(1, 2)
        left, right = (figure.add_subfigure(halves[i]) for i in (0, 1))
        _stacked(left.subplots(), rows, names)
        _grids(right, rows, found)
    else:
        shares, offsets = figure.subplots(1, 2)
        _stacked(shares, rows, names)
        _offsets(figure, offsets, rows, found)
    figure.suptitle(_title(result), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def adaptivity_figure(result: dict[str, Any], path: Path, unit: str, scale: float) -> None:
    """Stacked shares of every layer, |J - Phi| / |J|, and what freezing costs."""
    rows = result["layers"]
    names = [short(row["layer"]) for row in rows]
    figure = Figure(figsize=(11, 2.2 + 0.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    shares, gaps, frozen = figure.subplots(1, 3, width_ratios=(2, 1, 1.2))
    _stacked(shares, rows, names)
    places = np.arange(len(rows))
    gaps.barh(places, [row["jacobian_gap"] or 0.0 for row in rows], color="#4a5568", height=0.7)
    gaps.set(xlim=(0, None))
    gaps.set_title("|J - Φ| / |J|", fontsize=9)
    values = [scale * value for value in [*(row["frozen"] for row in rows), result["all_frozen"]]]
    frozen.barh(np.arange(len(values)), values, color="#c05621", height=0.7)
    frozen.axvline(0, color="black", lw=0.8)
    frozen.set_title(f"A frozen at its mean:\nchange of {unit}", fontsize=9)
    for axes, labels in ((gaps, names), (frozen, [*names, "all"])):
        axes.set_yticks(np.arange(len(labels)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(result), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _stacked(axes: Axes, rows: list[dict[str, Any]], names: list[str]) -> None:
    places, left = np.arange(len(rows)), np.zeros(len(rows))
    for component, colour in zip(COMPONENTS, COLOURS, strict=True):
        width = np.array([row[component] for row in rows])
        axes.barh(places, width, left=left, color=colour, height=0.8, label=component)
        left += width
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="share of E|A|²")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=3, fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _offsets(
    figure: Figure, axes: Axes, rows: list[dict[str, Any]], found: dict[str, StructureAnova]
) -> None:
    """A row for each head, offsets across, near ones only; the colour is the mass, on a scale of its own for each head."""
    layers = {name: anova.heads() for name, anova in found.items()}
    labels = sorted({label for about in layers.values() for label in about.offsets}, key=abs)
    labels = sorted(labels[:_MOST_OFFSETS])
    table = np.array(
        [
            [
                float(about.profile[row["head"], about.offsets.index(label)])
                if label in about.offsets
                else 0.0
                for label in labels
            ]
            for row in rows
            for about in [layers[row["layer"]]]
        ]
    )
    top = np.maximum(table.max(1, keepdims=True), 1e-12)
    image = axes.imshow(table / top, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    shown = [place for place, label in enumerate(labels) if label in (-1, 0, 1) or label % 5 == 0]
    axes.set_xticks(shown, [str(labels[place]) for place in shown], fontsize=8)
    axes.set_yticks([])
    for place, row in enumerate(rows):
        axes.text(
            len(labels),
            place,
            f" {row['top_offset']}: {row['top_mass']:.2f}",
            fontsize=7,
            va="center",
            ha="left",
        )
    axes.set_title("mass by offset, source − target (each head by its largest; d*: mass)", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.5, pad=0.12)


def _grids(part: Any, rows: list[dict[str, Any]], found: dict[str, StructureAnova]) -> None:
    """A small image for each head: rows dy, columns dx, the target in the middle."""
    columns = 4
    grid = part.subplots(-(-len(rows) // columns), columns, squeeze=False, gridspec_kw={"hspace": 0.1})
    layers = {name: anova.heads() for name, anova in found.items()}
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows, strict=False):
        about = layers[row["layer"]]
        ys, xs = (sorted({label[i] for label in about.offsets}) for i in (0, 1))
        image = about.profile[row["head"]].view(len(ys), len(xs)).numpy()
        axes.imshow(
            image, cmap="Blues", vmin=0, extent=(xs[0] - 0.5, xs[-1] + 0.5, ys[-1] + 0.5, ys[0] - 0.5)
        )
        axes.plot(0, 0, "+", color="#c05621", ms=6)
        axes.set_title(f"{short(row['layer'])}: {row['head']}; d* {row['top_offset']}", fontsize=6)
    part.suptitle("mass by offset (dy, dx) of the source; + is the target", fontsize=9)


def _title(result: dict[str, Any]) -> str:
    length = f" of {result['length']}" if "length" in result else ""
    return f"{result['model']} on {Path(result['source']).stem}: {result['sequences']} inputs{length}"
