"""`osmose eval RUN`: measure the saved model of a run again, on the data it was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.tasks.measures import Measure


@dataclass(frozen=True)
class EvalCommand:
    """Load the run's data and best model, and measure the parts of its split; on episodes of control, play some."""

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
    from osmose.tasks.measures import ACCURACY, CROSS_ENTROPY, MACRO_F1, REPORTS

    known = found.get("recorded", {})

    def told(name: str, measure: Measure) -> str:
        recorded = f" (the run recorded {measure.text(known[name])})" if name in known else ""
        return f"{measure.title} {measure.text(found[name])} {measure.unit}{recorded}"

    if found["kind"] in ("control", "returns", "actions"):
        for name, measure in REPORTS[found["kind"]].named().items():
            print(f"  {name.split('_')[0]:<6} {told(name, measure)}")
        return
    for part in ("train", "valid", "test"):
        measures = {f"{part}_{one.key}": one for one in (ACCURACY, MACRO_F1, CROSS_ENTROPY)}
        texts = [told(name, one) for name, one in measures.items() if name in found]
        if texts:
            print(f"  {part:<6} " + "   ".join(texts))
