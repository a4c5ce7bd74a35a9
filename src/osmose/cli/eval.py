"""`osmose eval RUN`: measure the saved model of a run again, on the data it was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json


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
        if not measures:
            continue
        texts = [f"{one.title} {one.text(found[f'{part}_{one.key}'])} {one.unit}" for one in measures]
        if "recorded" in found:
            first = measures[0]
            texts[0] += f" (the run recorded {first.text(found['recorded'][f'{part}_{first.key}'])})"
        print(f"  {part:<6} " + "   ".join(texts))
