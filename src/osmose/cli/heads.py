"""`osmose heads RUN`: what every attention head does, and whether it can be replaced."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.tasks.measures import Measure

Kind = Literal["mean", "toeplitz", "shift"]


@dataclass(frozen=True)
class HeadsCommand:
    """Read the attention matrices of a run's best model on inputs of its training part, and split each head's energy:
    uniform, fixed shift, fixed absolute, adaptive shift, content. With --replace, put a matrix that depends on no input in
    the place of each head, and tell the change of the score on the validation part.
    """

    run: tyro.conf.Positional[Path]
    """folder of a run on text, sequences or images"""
    sequences: int = 64
    """inputs of the training part to read"""
    length: int | None = None
    """symbols of a window of text (without it, the run's), or steps to which sequences are cut"""
    null: int = 99
    """permutations for the p-value of the fixed shift; 0: none"""
    replace: Annotated[tuple[Kind, ...], tyro.conf.arg(metavar="{mean,toeplitz,shift} ...")] = ()
    """replace heads by their mean, its Toeplitz projection, a hard shift: singly and together"""
    scored: int | None = None
    """windows, sequences or images of the validation part that score; without it all"""
    seed: int = 0
    """of the inputs and permutations"""
    out: Path | None = None
    """file of the figure; without it among the run's figures"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(HeadsCommand, "heads", arguments)
    if command.null < 0:
        raise ValueError(f"--null is {command.null}; expected 0 or more permutations")
    from osmose.tasks.attention import heads_of
    from osmose.tasks.attention_figures import heads_figure
    from osmose.tasks.run_folder import RunFolder
    from osmose.tasks.subject import open_subject

    subject = open_subject(
        RunFolder(command.run),
        sequences=command.sequences,
        length=command.length,
        scored=command.scored,
        seed=command.seed,
    )

    def told(done: int, of: int) -> None:
        if not command.output.json and sys.stderr.isatty():
            print(f"\rreplacement {done} of {of}", end="" if done < of else "\n", file=sys.stderr, flush=True)

    replace = tuple(dict.fromkeys(command.replace))
    result, found = heads_of(subject, null=command.null, replace=replace, seed=command.seed, told=told)
    path = command.out or command.run / "figures" / "heads.png"
    heads_figure(result, found, path, grids=subject.grids)
    result["figure"] = str(path)
    if command.output.json:
        print_json(result)
        return
    _print(result, replace, subject.measure)


def _print(result: dict[str, Any], replace: tuple[str, ...], measure: Measure) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from osmose.diagnostics import COMPONENTS
    from osmose.tasks.attention_figures import short

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    length = f" of {result['length']}" if "length" in result else ""
    title = (
        f"{result['model']} on {result['source']}, {result['sequences']} inputs{length}: shares of E|A|² in %"
    )
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("layer", no_wrap=True)
    columns = ["head", *(part.replace(" ", "\n") for part in COMPONENTS), "d*", "mass", "eff.\noff.", "sink"]
    columns += ["shift\nscore", *(["p"] if "p" in result["heads"][0] else [])]
    for name in [*columns, *(f"{kind}\nΔ" for kind in replace)]:
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in result["heads"]:
        shares = [f"{100 * row[part]:.0f}" for part in COMPONENTS]
        shares[COMPONENTS.index(row["dominant"])] = f"[bold]{100 * row[row['dominant']]:.0f}[/bold]"
        cells = [str(row["head"]), *shares, _offset(row["top_offset"]), f"{row['top_mass']:.2f}"]
        cells += [f"{row['effective_offsets']:.1f}", f"{row['sink']}: {row['sink_share']:.2f}"]
        cells += [f"{row['shift_score']:.2f}", *([f"{row['p']:.3g}"] if "p" in row else [])]
        cells += [changed(row["change"][kind], measure) for kind in replace]
        table.add_row("" if row["layer"] == before else short(row["layer"]), *cells)
        before = row["layer"]
    console.print(table)
    console.print(
        "d*: the offset (source - target) with most mass; eff. off.: e^entropy of the mass over offsets; sink: the most used "
        "source and its share; shift score: the fixed shift in what is not uniform, above chance; p: of the fixed shift, "
        "columns permuted",
        style="dim",
    )
    if replace:
        value = next(iter(result["score"].values()))
        console.print(
            f"Δ: change of the validation {measure.title} ({measure.unit}) when a head is replaced; as it is: "
            f"{measure.text(value)}"
        )
        together = Table(title="replaced together", title_justify="left", box=box.SIMPLE_HEAD)
        together.add_column("heads")
        for name in ("number", *(f"{kind} Δ" for kind in replace)):
            together.add_column(name, justify="right")
        for row in result["together"]:
            name = row["heads"] if row["heads"] == "all heads" else f"mostly {row['heads']}"
            together.add_row(
                name, str(row["number"]), *(changed(row["change"][kind], measure) for kind in replace)
            )
        console.print(together)
    console.print(f"figure: {result['figure']}", soft_wrap=True)


def changed(value: float, measure: Measure) -> str:
    """A change of a score in its unit, with its sign."""
    return f"{measure.scale * value:+.{measure.digits}f}"


def _offset(label: Any) -> str:
    return f"{label:+d}" if isinstance(label, int) and label else str(label)
