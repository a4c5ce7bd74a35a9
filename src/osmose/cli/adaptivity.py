"""`osmose adaptivity RUN`: how much of each layer's attention depends on the input, and whether the task needs it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.tasks.measures import Measure


@dataclass(frozen=True)
class AdaptivityCommand:
    """Three views of the same question, layer by layer: the parts of the attention matrices (uniform, fixed shift, fixed
    absolute, adaptive shift, content); how far the layer's Jacobian J is from the operator Phi that its matrices make, which
    is J where they do not depend on the input; and the score on the validation part with the matrices frozen at their mean.
    """

    run: tyro.conf.Positional[Path]
    """folder of a run on text, sequences or images"""
    sequences: int = 64
    """inputs of the training part to read"""
    length: int | None = None
    """symbols of a window of text (without it, the run's), or steps to which sequences are cut"""
    samples: int = 4
    """inputs on which |J - Phi| / |J| is measured"""
    probes: int = 32
    """random vectors that estimate it"""
    scored: int | None = None
    """windows, sequences or images of the validation part that score; without it all"""
    seed: int = 0
    """of the inputs and random vectors"""
    out: Path | None = None
    """file of the figure; without it among the run's figures"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(AdaptivityCommand, "adaptivity", arguments)
    for name, value in (("--samples", command.samples), ("--probes", command.probes)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    from osmose.tasks.attention import adaptivity_of
    from osmose.tasks.attention_figures import adaptivity_figure
    from osmose.tasks.run_folder import RunFolder
    from osmose.tasks.subject import open_subject

    subject = open_subject(
        RunFolder(command.run),
        sequences=command.sequences,
        length=command.length,
        scored=command.scored,
        seed=command.seed,
    )
    result = adaptivity_of(subject, samples=command.samples, probes=command.probes, seed=command.seed)
    path = command.out or command.run / "figures" / "adaptivity.png"
    adaptivity_figure(
        result, path, f"{subject.measure.title} ({subject.measure.unit})", subject.measure.scale
    )
    result["figure"] = str(path)
    if command.output.json:
        print_json(result)
        return
    _print(result, subject.measure)


def _print(result: dict[str, Any], measure: Measure) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from osmose.cli.heads import changed
    from osmose.diagnostics import COMPONENTS
    from osmose.tasks.attention_figures import short

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    length = f" of {result['length']}" if "length" in result else ""
    title = (
        f"{result['model']} on {result['source']}, {result['sequences']} inputs{length}: shares of E|A|² in %"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    names = [part.replace(" ", "\n") for part in COMPONENTS]
    for name in [*names, "depends\non input", "|J-Phi|\n/ |J|", "frozen Δ"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["layers"]:
        shares = [f"{100 * row[part]:.0f}" for part in COMPONENTS]
        gap = "-" if row["jacobian_gap"] is None else f"{row['jacobian_gap']:.2f}"
        depends = f"{100 * row['depends_on_input']:.0f}"
        table.add_row(short(row["layer"]), *shares, depends, gap, changed(row["frozen"], measure))
    table.add_row("all layers", *[""] * (len(COMPONENTS) + 2), changed(result["all_frozen"], measure))
    console.print(table)
    value = next(iter(result["score"].values()))
    console.print(
        f"frozen Δ: change of the validation {measure.title} ({measure.unit}) with A at its mean over the inputs; "
        f"as it is: {measure.text(value)}"
    )
    console.print(
        f"|J-Phi| / |J|: by {result['probes']} random vectors on {result['samples']} inputs; 0 where A does not depend on the "
        "input",
        style="dim",
    )
    console.print(f"figure: {result['figure']}", soft_wrap=True)
