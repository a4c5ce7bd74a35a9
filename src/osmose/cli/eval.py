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
    for part in ("train", "valid", "test"):
        line = f"  {part:<6} accuracy {100 * found[f'{part}_accuracy']:6.2f} %"
        line += f"   macro F1 {100 * found[f'{part}_macro_f1']:6.2f} %   loss {found[f'{part}_loss']:.4f}"
        if "recorded" in found:
            line += f"   (the run recorded {100 * found['recorded'][f'{part}_accuracy']:.2f} %)"
        print(line)
