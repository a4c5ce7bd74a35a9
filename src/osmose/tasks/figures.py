"""Figures of runs and comparisons, drawn without a display and without pyplot's global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from osmose.tasks.measures import Report

_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#285e61")


def learning_curves(records: list[dict[str, Any]], report: Report, path: Path, title: str) -> None:
    """Loss (train, validation), and what validation chooses by, over epochs; one colour per split, best epoch marked."""
    chosen = report.valid
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, choices = figure.subplots(1, 2)
    for split in sorted({record["split"] for record in records}):
        mine = [record for record in records if record["split"] == split]
        colour = _COLOURS[split % len(_COLOURS)]
        epochs = [record["epoch"] for record in mine]
        losses.plot(epochs, [r["train_loss"] for r in mine], color=colour, lw=0.8, alpha=0.5)
        losses.plot(epochs, [r["valid_loss"] for r in mine], color=colour, lw=1.4)
        values = [chosen.scale * r[f"valid_{chosen.key}"] for r in mine]
        choices.plot(epochs, values, color=colour, lw=1.2, label=f"split {split}")
        best = [record for record in mine if record["best"]]
        if best:
            value = chosen.scale * best[-1][f"valid_{chosen.key}"]
            choices.plot(best[-1]["epoch"], value, "o", color=colour, ms=6, mec="white")
    losses.set(xlabel="epoch", ylabel="loss", title="loss: training (thin), validation (thick)")
    choices.set(
        xlabel="epoch",
        ylabel=f"{chosen.title}, {chosen.unit}",
        title=f"validation {chosen.title} (best epoch marked)",
    )
    choices.legend(fontsize=8, frameon=False)
    _save(figure, path, title)


def comparison(rows: list[dict[str, Any]], report: Report, path: Path, title: str) -> None:
    """One bar per model: mean of what is reported first, sample deviation, and a point for every split."""
    name, measure = next(iter(report.named().items()))
    figure = Figure(figsize=(1.5 + 1.3 * len(rows), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scale = measure.scale
    everything = [scale * value for row in rows for value in row["values"]]
    for place, row in enumerate(rows):
        summary = row[name]
        mean, deviation = scale * summary["mean"], scale * (summary["sd"] or 0.0)
        colour = _COLOURS[place % len(_COLOURS)]
        axes.bar(place, mean, width=0.62, color=colour, alpha=0.35, edgecolor=colour)
        if summary["sd"] is not None:
            axes.errorbar(place, mean, yerr=deviation, color="black", capsize=5, lw=1.2)
        points = [scale * value for value in row["values"]]
        steps = [place + 0.36 * (i + 0.5) / len(points) - 0.18 for i in range(len(points))]
        axes.plot(steps, points, "o", color=colour, ms=5, mec="white", mew=0.6)
        above = max([mean + deviation, *points])
        axes.annotate(
            measure.text(summary["mean"]),
            (place, above),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    spread = max(max(everything) - min(everything), 0.02 * abs(max(everything)))
    low = min(everything) - 0.5 * spread
    axes.set_ylim(max(0.0, low) if min(everything) >= 0 else low, max(everything) + 0.35 * spread)
    axes.set_xticks(range(len(rows)), [row["model"] for row in rows])
    better = "" if measure.higher else ", lower is better"
    axes.set_ylabel(
        f"{name.split('_')[0]} {measure.title}, {measure.unit}{better}\n(axis does not start at 0)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, title)


def positions(result: dict[str, Any], path: Path) -> None:
    """Accuracy of every position, one panel for each task; a colour for each mixer, filled in length and open beyond."""
    tasks, mixers, options = result["tasks"], result["mixers"], result["options"]
    height = 1.6 + 0.13 * len(options) * (len(mixers) + 1)
    figure = Figure(figsize=(1.5 + 4.6 * len(tasks), height), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, (name, task) in zip(every, tasks.items(), strict=True):
        rows = {(row["option"], row["mixer"]): row for row in result["rows"] if row["task"] == name}
        for i, mixer in enumerate(mixers):
            step = 0.7 * ((i + 0.5) / len(mixers) - 0.5)
            colour = _COLOURS[i % len(_COLOURS)]
            for key, fill in (("longer", "white"), ("accuracy", colour)):
                found = [rows[option, mixer][key] for option in options]
                drawn = axes.errorbar(
                    [100 * one["mean"] for one in found],
                    [place + step for place in range(len(options))],
                    xerr=[100 * (one["ci95"] or 0.0) for one in found],
                    fmt="o", color=colour, mfc=fill, ms=5, lw=1, clip_on=False,
                    label=f"{mixer}, {'in length' if key == 'accuracy' else 'longer'}",
                )  # fmt: skip
                for bars in drawn.lines[2]:
                    bars.set_clip_on(True)
        axes.axvline(100 * task["chance"], color="#4a5568", lw=0.8, ls=":")
        axes.set(xlim=(0, 102), xlabel="accuracy, % of tokens (dotted: a guess)")
        axes.set_title(
            f"{name}: {task['rule']}; learned at {task['length']}, longer is {task['longer']}", fontsize=9
        )
        axes.set_yticks(range(len(options)), options)
        axes.set_ylim(len(options) - 0.5, -0.5)
        for place in range(1, len(options)):
            axes.axhline(place - 0.5, color="#e2e8f0", lw=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(mixers), fontsize=8, frameon=False)
    spread = " and 95 % interval" if result["seeds"] > 1 else ""
    _save(
        figure,
        path,
        f"positions: mean{spread} over {result['seeds']} seed{'s' if result['seeds'] > 1 else ''}",
    )


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
