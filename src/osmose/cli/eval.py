"""`osmose eval RUN`: measure the saved model of a run again, on the data it was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.tasks.measures import Measure


@dataclass(frozen=True)
class EvalCommand:
    """Load the run's data and best model, and measure training, validation and test nodes of its split."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(EvalCommand, "eval", arguments)
    from osmose.tasks.run_folder import RunFolder
    from osmose.tasks.saved import evaluate_saved

    found = evaluate_saved(RunFolder(command.run))
    if command.output.json:
        print_json(found)
        return
    print(
        f"{found['source']} ({found['protocol']}), {found['model']}, split {found['split']}, epoch {found['epoch']}"
    )
    from osmose.tasks.measures import ACCURACY, CROSS_ENTROPY, MACRO_F1

    for part in ("train", "valid", "test"):
        measures = [one for one in (ACCURACY, MACRO_F1, CROSS_ENTROPY) if f"{part}_{one.key}" in found]
        if measures:
            print(f"  {part:<6} " + "   ".join(_measured(found, part, one) for one in measures))


def _measured(found: dict[str, Any], part: str, measure: Measure) -> str:
    name = f"{part}_{measure.key}"
    text = f"{measure.title} {measure.text(found[name])} {measure.unit}"
    if "recorded" in found and found["recorded"][name] != found[name]:
        text += f" (the run recorded {measure.text(found['recorded'][name])})"
    return text
