"""`osmose predict RUN DATA`: classes and probabilities for new rows or nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json


@dataclass(frozen=True)
class PredictCommand:
    """Apply the best model of a run and write a CSV file: row, id (if the data name their rows), class,
    one probability per class."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    data: tyro.conf.Positional[str | None] = None
    """new rows, nodes, sequences or images, in the format of the training data, labels optional; without it, all of the
    run's data"""
    edges: Path | None = None
    """edge list of the new nodes"""
    out: Path = Path("predictions.csv")
    """file to write"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(PredictCommand, "predict", arguments)
    if command.data is None and command.edges is not None:
        raise ValueError("predict: --edges belongs to new nodes, but no DATA was given")
    if not command.out.parent.is_dir():
        raise FileNotFoundError(
            f"predict: --out {command.out}: the folder {command.out.parent} does not exist"
        )
    from osmose.tasks.run_folder import RunFolder
    from osmose.tasks.saved import check_replaceable, predict, write_predictions

    check_replaceable(command.out)
    found = predict(RunFolder(command.run), command.data, command.edges)
    write_predictions(found, command.out)
    counts = dict(Counter(found.predicted).most_common())
    if command.output.json:
        accuracy = found.accuracy
        rows = len(found.predicted)
        print_json(
            {
                "out": str(command.out),
                "rows": rows,
                "counts": counts,
                "accuracy": accuracy,
                "notes": found.notes,
            }
        )
        return
    print(f"{len(found.predicted)} rows predicted, written to {command.out}")
    for note in found.notes:
        print(f"  note: {note}")
    for name, count in counts.items():
        print(f"  {name:<20} {count}")
    if found.accuracy is not None:
        print(f"  accuracy on the rows that carry a label: {100 * found.accuracy:.2f} %")
