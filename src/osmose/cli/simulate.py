"""`osmose simulate NAME`: tokens as particles, from a named system or from its parameters."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.dynamics import Solution
    from osmose.dynamics.observables import Recorder
    from osmose.dynamics.registry import Problem, System

ROWS = 9
SCALE = 0.1


@dataclass(frozen=True)
class SimulateCommand:
    """Run tokens as interacting particles: a named system with its canonical parameters, or with others.

    osmose simulate movie/sphere --set beta=9 n=128 --movie gif
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """a system: `osmose simulate --list`"""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """name the systems, with their parameters and sources"""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """parameters in place of the canonical ones: --set beta=4 n=32"""
    movie: Literal["none", "gif", "mp4"] = "none"
    """also make a movie"""
    payload: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """also write the run as JSON for the visual lab: positions, energy, clusters, inner products, attention"""
    out: Path | None = None
    """folder; without it runs/simulate/NAME"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(SimulateCommand, "simulate", arguments)
    if command.list:
        return _list(command)
    if not command.name:
        raise ValueError("simulate: which system? `osmose simulate --list` names them")
    from osmose.dynamics.registry import named

    if sum(entry == "--set" or entry.startswith("--set=") for entry in arguments) > 1:
        raise ValueError("--set is given twice; expected once, with all parameters: --set beta=4 n=32")
    if command.movie == "mp4":
        from osmose.dynamics.pictures.movie import ffmpeg

        ffmpeg()  # before the run: says what to install where it is missing
    system = named(command.name, **_parameters(command.set))
    folder = command.out or Path("runs") / "simulate" / command.name
    problem = system.problem()
    watched = _recorder(problem)
    folder.mkdir(
        parents=True, exist_ok=True
    )  # before the run: a folder that cannot be is no reason to lose one
    solution = problem.simulate(observe=watched)
    files = _written(command, system, problem, solution, folder)
    told = {
        "name": command.name,
        "title": system.title,
        "source": system.source,
        "parameters": system.parameters,
        "status": _statuses(solution),
        "notes": list(solution.notes),
        "steps": int(solution.steps.max()),
        "events": {name: when.flatten().tolist() for name, when in solution.events.items()},
        "files": files,
    }
    rows = _rows(solution)
    if command.output.json:
        from osmose.dynamics.registry.report import plain

        print_json(plain({**told, "observables": rows}))
    else:
        _print(told, rows)


def _parameters(given: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for entry in given:
        key, equals, value = entry.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"--set {entry}: expected KEY=VALUE, e.g. --set beta=4 n=32")
        out[key] = value
    return out


def _recorder(problem: Problem) -> Recorder:
    """What the table shows: of points on a sphere the usual observables, of others how far they spread."""
    from functools import partial

    from osmose.dynamics import Euclidean, Rescaled
    from osmose.dynamics.observables import (
        Observable,
        Recorder,
        cluster_count,
        cluster_scale,
        diameter,
        effective_rank,
        standard_observables,
    )

    if isinstance(problem.space, Euclidean | Rescaled):
        width = float(diameter(problem.x0).max())
        return Recorder(
            [
                Observable("diameter", diameter),
                Observable("effective_rank", effective_rank),
                Observable("clusters", partial(cluster_count, scale=max(1e-2 * width, 1e-300))),
            ]
        )
    beta = problem.beta if problem.beta is not None and problem.beta > 0 else None
    scale = cluster_scale(beta, SCALE) if beta is not None else SCALE
    watched = standard_observables(1.0 if beta is None else beta, scale=scale)
    return Recorder([w for w in watched if beta is not None or w.name != "normalised_energy"])


def _written(
    command: SimulateCommand, system: System, problem: Problem, solution: Solution, folder: Path
) -> dict[str, str]:
    import numpy as np

    from osmose.dynamics.pictures import movie, overview
    from osmose.files import whole

    files = {"states": str(folder / "run.npz"), "figure": str(folder / "figure.png")}
    arrays = {name: value.numpy() for name, value in solution.results.items()}
    arrays |= {"times": solution.times.numpy(), "states": solution.states.numpy()}
    with whole(folder / "run.npz") as part:
        np.savez_compressed(part, **arrays)
    with whole(folder / "figure.png") as part:
        overview(solution, problem.field).savefig(part, dpi=130)
    if command.movie != "none":
        files["movie"] = str(movie(solution, folder / f"movie.{command.movie}"))
    if command.payload:
        from osmose.lab import payload, write_payload

        content = payload(
            solution,
            problem.field,
            name=command.name,
            title=system.title,
            source=system.source,
            parameters=system.parameters,
            beta=problem.beta,
        )
        files["payload"] = str(write_payload(folder / "payload.json", content))
    return files


def _statuses(solution: Solution) -> dict[str, int]:
    from osmose.dynamics import Status

    counts = {status.name.lower(): int((solution.status == status).sum()) for status in Status}
    return {name: count for name, count in counts.items() if count}


def _rows(solution: Solution) -> list[dict[str, Any]]:
    """Observables of some output times; of a batch the mean over its systems."""
    times = solution.times
    chosen = sorted({round(k * (len(times) - 1) / (ROWS - 1)) for k in range(ROWS)})
    series = {name: value for name, value in solution.results.items() if name != "time"}
    return [
        {"t": float(times[k]), **{name: float(value[k].double().mean()) for name, value in series.items()}}
        for k in chosen
    ]


def _print(told: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(f"{told['name']}: {told['title']}", style="bold")
    console.print("parameters: " + ", ".join(f"{k}={v}" for k, v in told["parameters"].items()))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.6g}" for value in row.values()))
    console.print(table)
    status = ", ".join(f"{count} {name}" for name, count in told["status"].items())
    console.print(f"status: {status}; {told['steps']} steps")
    for note in told["notes"]:
        console.print(f"note: {note}", style="yellow")
    for name, when in told["events"].items():
        console.print(f"event {name}: " + ", ".join(f"{t:.6g}" for t in when[:8]))
    for name, path in told["files"].items():
        console.print(f"{name}: {path}", soft_wrap=True)


def _list(command: SimulateCommand) -> None:
    from osmose.dynamics.registry import SYSTEMS

    if command.output.json:
        print_json(
            {
                "systems": [
                    {"name": name, "title": s.title, "source": s.source, "parameters": s.parameters}
                    for name, s in SYSTEMS.items()
                ]
            }
        )
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("system", "what it shows", "parameters", "source"):
        table.add_column(name, overflow="fold", no_wrap=name == "system")
    for name, s in SYSTEMS.items():
        table.add_row(name, s.title, " ".join(f"{k}={v}" for k, v in s.parameters.items()), s.source)
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
