"""`osmose compare TASK-or-PATH`: several models on one data set, under equal conditions."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from osmose.cli.options import DataOptions, FlatOutput, Output, parse, print_json
from osmose.cli.train import default_folder
from osmose.tasks.recipes import MODELS, check_name, default_models


@dataclass(frozen=True)
class CompareCommand:
    """Train several models on the same splits with the same seeds; a table, a figure and all runs are kept.

    Without --trials every model uses its recipe. With --trials N every model gets N trials over the same space
    (learning rate, L2, dropout, width, layers), chosen by validation. What is finished is kept: after an
    interruption the same command goes on.
    """

    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="{" + ",".join(MODELS) + "} ...")] = ()
    """the models, in the order of the table; without it difformer-s mean gcn mlp, for sequences flowformer transformer
    linear-transformer"""
    splits: int = 5
    """number of splits"""
    trials: int = 0
    """Optuna trials per model; 0: no search, every model uses its recipe"""
    search_splits: int = 1
    """splits on whose validation nodes the trials are judged"""
    seed: int = 0
    """seed of the first split (split i uses seed + i) and of the search"""
    normalization: Literal["row", "frobenius", "none"] | None = None
    """normalization of queries and keys, instead of every recipe's own"""
    epochs: int | None = None
    """most epochs per split, instead of every recipe's own"""
    patience: int | None = None
    """patience, instead of every recipe's own"""
    batch_size: int | None = None
    """nodes or sequences per random mini-batch, instead of every recipe's own"""
    device: Literal["auto", "cpu"] | None = None
    """cpu, or auto: the accelerator if there is one"""
    threads: int | None = None
    """CPU threads, instead of every recipe's own"""
    out: Path | None = None
    """folder; without it runs/compare-TASK, or the next free number when that one is finished"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the comparison that is in the folder"""
    output: FlatOutput = field(default_factory=Output)


_OVERRIDES = ("normalization", "epochs", "patience", "batch_size", "device", "threads")


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(CompareCommand, "compare", arguments)
    if not command.data.source:
        raise ValueError(
            "compare: which data? Name a data set (`osmose list`) or give a path: osmose compare digits"
        )
    data = command.data.plain()
    models = command.models or default_models(data.source, data.task)
    for name in models:
        check_name(name, MODELS, "model")
    from osmose.tasks.compare import Comparison, compare
    from osmose.tasks.progress import Reporter
    from osmose.tasks.signals import Interrupted, StopRequest

    given = ((name, getattr(command, name)) for name in _OVERRIDES)
    overrides = tuple((name, value) for name, value in given if value is not None)
    comparison = Comparison(
        data=data,
        models=models,
        splits=command.splits,
        trials=command.trials,
        search_splits=command.search_splits,
        seed=command.seed,
        overrides=overrides,
    )
    title = re.sub(r"[^\w.-]+", "-", Path(data.source).stem)
    path = command.out or default_folder(f"compare-{title}", resume=False, overwrite=command.overwrite)
    try:
        with StopRequest() as stop, Reporter(quiet=command.output.json) as reporter:
            result = compare(comparison, path, overwrite=command.overwrite, reporter=reporter, stop=stop)
    except Interrupted as interrupted:
        again = [entry for entry in arguments if entry != "--overwrite"]
        print(f"osmose: {interrupted}. Go on with: osmose compare {shlex.join(again)}", file=sys.stderr)
        raise SystemExit(130) from None
    _print(
        {"run": str(path), "figure": str(path / "figures" / "comparison.png"), **result},
        json=command.output.json,
    )


def _print(result: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(result)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from osmose.tasks.compare import cells, columns, how

    table = Table(
        title=f"{result['source']} ({result['protocol']})", title_justify="left", box=box.SIMPLE_HEAD
    )
    for name in columns(result):
        settings = name.startswith("settings")
        table.add_column(
            name, justify="left" if settings or name == "model" else "right", no_wrap=not settings
        )
    for row in cells(result):
        table.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(how(result))
    for note in result["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(f"figure: {result['figure']}", soft_wrap=True)
    console.print(f"run folder: {result['run']}", soft_wrap=True)
