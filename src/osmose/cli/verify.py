"""`osmose verify`: our layers against those of others, with the errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@dataclass(frozen=True)
class VerifyCommand:
    """Known layers as mixed products, each beside the layer that others wrote, with the same parameters.

    Errors are the largest differences relative to the largest number on the other side: of the output, of the gradient
    into the input, and of the sum formed operator by operator from dense matrices. The exit code is 1 where one is
    over the tolerance.
    """

    against: tuple[Literal["torch", "pyg", "published"], ...] = ("torch", "pyg", "published")
    """whose layers: torch, pyg (torch_geometric), published (formulas of the papers' code)"""
    out: Path | None = None
    """folder for verify.json, verify.md (the table for a page) and verify.png; without it runs/verify"""
    output: Annotated[FlatOutput, tyro.conf.OmitArgPrefixes] = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(VerifyCommand, "verify", arguments)
    import json

    rows = measured(command.against)
    failed = [row["name"] for row in rows if not row["holds"]]
    folder = command.out or Path("runs") / "verify"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"tolerance": TOLERANCE, "failed": failed, "equalities": rows}
    (folder / "verify.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / "verify.md").write_text(markdown(rows), encoding="utf-8")
    _draw(rows, folder / "verify.png")
    if command.output.json:
        print_json({**found, "figure": str(folder / "verify.png")})
    else:
        _print(rows, folder)
    if failed:
        raise SystemExit(1)


def measured(against: tuple[str, ...] = ("torch", "pyg", "published")) -> list[dict[str, Any]]:
    """All equalities with their errors, and whether they hold."""
    import warnings

    import torch

    from osmose.equalities import equalities

    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other side, about its own arguments
        for equality in equalities(against):
            row = equality.measure(torch.float64)
            single = equality.measure(torch.float32)
            row["float32_error"] = max(single[key] for key in ("error", "gradient_error", "parts_error"))
            double = max(row[key] for key in ("error", "gradient_error", "parts_error"))
            row["holds"] = double <= TOLERANCE["float64"] and row["float32_error"] <= TOLERANCE["float32"]
            rows.append(row)
    return rows


HEAD = ("layer", "other side", "operators A_k", "K", "Theta", "output", "gradient", "from parts", "float32")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table, as texts."""
    errors = (
        f"{row[key]:.0e}" if row[key] else "0"
        for key in ("error", "gradient_error", "parts_error", "float32_error")
    )
    return (
        row["name"], row["against"], row["structure"], str(row["operators"]), row["values"], *errors
    )  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The tables for a page, one for each other side."""
    head = [name for name in HEAD if name != "other side"]
    parts = []
    for against in dict.fromkeys(row["against"] for row in rows):
        lines = [f"Against {_TITLES[against]}:", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in (row for row in rows if row["against"] == against):
            layer, _, *rest = cells(row)
            texts = [layer, *(text.replace("e-", "e\N{NON-BREAKING HYPHEN}") for text in rest)]
            lines.append("| " + " | ".join(texts) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_TITLES = {"torch": "torch", "pyg": "PyG", "published": "the formulas of the papers' code"}


def _print(rows: list[dict[str, Any]], folder: Path) -> None:
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Equalities, float64 (last column float32)", title_justify="left", box=box.SIMPLE_HEAD
    )
    for name in HEAD:
        table.add_column(name, justify="left" if name in HEAD[:3] or name == "Theta" else "right")
    for row in rows:
        table.add_row(*cells(row), style=None if row["holds"] else "bold red")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    console.print(table)
    good = sum(row["holds"] for row in rows)
    console.print(
        f"{good} of {len(rows)} hold (at most {TOLERANCE['float64']:.0e} in float64, {TOLERANCE['float32']:.0e} in float32)"
    )
    console.print(f"figure: {folder / 'verify.png'}", soft_wrap=True)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.21 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(rows))
    marks = (
        ("error", "output", "o", "#2b6cb0"),
        ("gradient_error", "gradient", "s", "#c05621"),
        ("parts_error", "sum from dense operators", "^", "#2f855a"),
        ("float32_error", "float32, largest of the three", ".", "#4a5568"),
    )
    for key, label, marker, colour in marks:
        values = [max(row[key], 1e-18) for row in rows]
        axes.plot(values, places, marker, color=colour, ms=4, label=label)
    for value, text in ((TOLERANCE["float64"], "float64"), (TOLERANCE["float32"], "float32")):
        axes.axvline(value, color="#a0aec0", lw=1, ls="--")
        axes.text(
            value,
            -1.0,
            f" bound, {text}",
            ha="left" if text == "float64" else "right",
            va="center",
            fontsize=7,
            color="#4a5568",
        )
    axes.set(
        xscale="log",
        yticks=list(places),
        ylim=(len(rows) - 0.5, -1.5),
        xlabel="relative error (0 drawn at 1e-18)",
    )
    axes.set_yticklabels([f"{row['name']} ({row['against']})" for row in rows], fontsize=7)
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.05), ncols=4)
    figure.savefig(path, dpi=130)
