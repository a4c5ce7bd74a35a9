"""`osmose positions`: what every position encoding makes of two toy tasks, in the length learned and beyond."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json
from osmose.cli.train import default_folder


@dataclass(frozen=True)
class PositionsCommand:
    """Train one layer on A, (x[j-1] + x[j+2]) mod 12, and B, x[j-1], for every position and mixer, and test it longer.

    What is finished is kept: after an interruption the same command goes on, and cells may be added to a folder.
    """

    tasks: tuple[str, ...] = ("A", "B")
    """A and B, or one of them"""
    options: tuple[str, ...] = (
        "none",
        "learned",
        "sinusoidal",
        "relative",
        "t5",
        "alibi",
        "rope",
        "shift",
        "shift-mixture",
        "shift-score",
    )
    """positions; also short-conv and fixed-shift"""
    mixers: tuple[str, ...] = ("softmax", "diffusion", "flow")
    """mixers; also linear, mean and diffusion-sigmoid"""
    seeds: int = 5
    """models of every cell; intervals are over them"""
    steps: int | None = None
    """training steps, instead of the task's own (A 1500, B 2500)"""
    jobs: int = 1
    """processes, of one thread each"""
    out: Path | None = None
    """folder; without it runs/positions, or the next free number when that one is finished"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the study that is in the folder"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(PositionsCommand, "positions", arguments)
    from osmose.tasks.position_study import PositionStudy, run_study
    from osmose.tasks.progress import Reporter
    from osmose.tasks.signals import Interrupted, StopRequest

    study = PositionStudy(command.tasks, command.options, command.mixers, command.seeds, command.steps)
    path = command.out or default_folder("positions", resume=False, overwrite=command.overwrite)
    try:
        with StopRequest() as stop, Reporter(quiet=command.output.json) as reporter:
            result = run_study(
                study, path, jobs=command.jobs, overwrite=command.overwrite, reporter=reporter, stop=stop
            )
    except Interrupted as interrupted:
        again = [entry for entry in arguments if entry != "--overwrite"]
        print(f"osmose: {interrupted}. Go on with: osmose positions {shlex.join(again)}", file=sys.stderr)
        raise SystemExit(130) from None
    _print(
        {"run": str(path), "figure": str(path / "figures" / "positions.png"), **result},
        json=command.output.json,
    )


def _print(result: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(result)
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for name, task in result["tasks"].items():
        rows = {(row["option"], row["mixer"]): row for row in result["rows"] if row["task"] == name}
        title = f"{name}: {task['rule']}, {task['steps']} steps at length {task['length']}; accuracy in % (a guess: {100 * task['chance']:.1f})"
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("position")
        for mixer in result["mixers"]:
            table.add_column(f"{mixer}, {task['length']}", justify="right")
            table.add_column(f"{task['longer']}", justify="right")
        table.add_column("parameters", justify="right")
        for option in result["options"]:
            found = [rows[option, mixer] for mixer in result["mixers"]]
            cells = [_told(row[key]) for row in found for key in ("accuracy", "longer")]
            table.add_row(option, *cells, f"{found[0]['parameters']:,}")
        console.print(table)
    how = (
        "one seed"
        if result["seeds"] == 1
        else f"mean ± half the 95 % interval (Student's t) over {result['seeds']} seeds"
    )
    seconds = [row["seconds"] for row in result["rows"]]
    console.print(f"{how}; a cell took {min(seconds):.0f} to {max(seconds):.0f} s of one thread.")
    console.print(f"figure: {result['figure']}", soft_wrap=True)
    console.print(f"run folder: {result['run']}", soft_wrap=True)


def _told(measured: dict[str, Any]) -> str:
    mean = f"{100 * measured['mean']:.1f}"
    return mean if measured["ci95"] is None else f"{mean} ± {100 * measured['ci95']:.1f}"
