"""The study of positions: every cell (task, mixer, option, seed) once, in any number of processes, and what they say.

positions.json      what all cells of the folder share
environment.json    versions, commit, machine, command
cells/              one file for each finished cell; a study goes on with those that are missing
result.json, figures/positions.png   the outcome
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import multiprocessing
import shutil
import signal
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from osmose.mixers import MIXERS
from osmose.tasks import environment, figures
from osmose.tasks.checkpoint import replace_file
from osmose.tasks.positions import OPTIONS, TASKS, ToyModel, settings_for, train_cell
from osmose.tasks.progress import Reporter
from osmose.tasks.recipes import check_name
from osmose.tasks.run_folder import RunFolderError, make_folder
from osmose.tasks.signals import Interrupted, StopRequest

_MARK = "positions.json"

Cell = tuple[str, str, str, int]  # task, mixer, option, seed


@dataclass(frozen=True)
class PositionStudy:
    """Which cells there are."""

    tasks: tuple[str, ...]
    options: tuple[str, ...]
    mixers: tuple[str, ...]
    seeds: int = 5
    steps: int | None = None
    """training steps, instead of every task's own"""

    def validate(self) -> None:
        """Raise ValueError for a study that cannot be made, before anything is trained."""
        for name, given, known in (
            ("task", self.tasks, TASKS),
            ("option", self.options, OPTIONS),
            ("mixer", self.mixers, MIXERS),
        ):
            for one in given:
                check_name(one, known, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(
                    f"--{name}s is {' '.join(given) or 'empty'}; expected different names of {name}s"
                )
        for name, value in (("seeds", self.seeds), ("steps", self.steps)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; expected 1 or more")
        for task, mixer, option, _ in self.cells():
            ToyModel(TASKS[task], mixer, settings_for(option, TASKS[task]))

    def cells(self) -> Iterator[Cell]:
        """All cells; seeds outermost, so that an early look shows every option."""
        for seed in range(self.seeds):
            for task in self.tasks:
                for mixer in self.mixers:
                    for option in self.options:
                        yield task, mixer, option, seed


def run_study(
    study: PositionStudy,
    path: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Train what is missing in the folder ``path``, ``jobs`` cells at a time with one thread each.

    Raises ValueError for a study that cannot be made, RunFolderError for a folder that holds something else, Interrupted
    after a stop request: cells in hand are finished and kept.
    """
    study.validate()
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; expected 1 or more processes")
    reporter, stop = reporter or Reporter(quiet=True), stop or StopRequest()
    _open(study, path, overwrite=overwrite)
    cells = list(study.cells())
    missing = [cell for cell in cells if not _file(path, cell).is_file()]
    done = len(cells) - len(missing)
    for result in _train(missing, study.steps, jobs, stop):
        done += 1
        cell = result["task"], result["mixer"], result["option"], result["seed"]
        replace_file(_file(path, cell), (json.dumps(result, indent=1) + "\n").encode())
        reporter.line(
            f"{done}/{len(cells)}  {cell[0]} {cell[1]} {cell[2]} seed {cell[3]}: {100 * result['accuracy']:.1f} %, "
            f"longer {100 * result['longer']:.1f} % ({result['seconds']:.0f} s)"
        )
    if stop.asked and done < len(cells):
        raise Interrupted(f"stopped after {done} of {len(cells)} cells; they are kept")
    outcome = summary(study, [json.loads(_file(path, cell).read_text()) for cell in cells])
    figures.positions(outcome, path / "figures" / "positions.png")
    replace_file(path / "result.json", (json.dumps(outcome, indent=2) + "\n").encode())
    return outcome


def _open(study: PositionStudy, path: Path, *, overwrite: bool) -> None:
    """Make the folder, or see that it holds cells of this study."""
    shared = {"steps": study.steps}
    mark = path / _MARK
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not mark.is_file():
        raise RunFolderError(
            f"{path} exists and is not a study of positions; choose another folder with --out"
        )
    if mark.is_file() and overwrite:
        shutil.rmtree(path)
    elif mark.is_file():
        before = json.loads(mark.read_text())
        if before != shared:
            raise RunFolderError(
                f"{path} holds cells with --steps {before['steps']}, not {study.steps}. Use the same to go on with it "
                "(tasks, options, mixers and seeds may change), --overwrite to replace it, or another folder with --out"
            )
        return
    make_folder(path / "cells")
    replace_file(
        path / "environment.json", (json.dumps(environment.describe("cpu"), indent=2) + "\n").encode()
    )
    replace_file(mark, (json.dumps(shared) + "\n").encode())


def _file(path: Path, cell: Cell) -> Path:
    task, mixer, option, seed = cell
    return path / "cells" / f"{task}-{mixer}-{option}-{seed}.json"


def _train(cells: list[Cell], steps: int | None, jobs: int, stop: StopRequest) -> Iterator[dict[str, Any]]:
    """Results as they come; after a stop request those of the cells that had begun."""
    # seeds are trained one by one: five at once by vmap took 10.4 ms of a thread for a step and model, against 8.6
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for cell in cells:
                if stop.asked:
                    return
                yield _one(cell, steps)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its threads
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_start_worker) as pool:
        waiting = iter(cells)
        running = {pool.submit(_one, cell, steps) for cell in itertools.islice(waiting, jobs)}
        while running:
            ended, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            if not stop.asked:
                running |= {pool.submit(_one, cell, steps) for cell in itertools.islice(waiting, len(ended))}
            for future in ended:
                yield future.result()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    torch.set_num_threads(1)


def _one(cell: Cell, steps: int | None) -> dict[str, Any]:
    task, mixer, option, seed = cell
    return train_cell(TASKS[task], mixer, option, seed, steps)


def summary(study: PositionStudy, results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Mean and 95 % confidence interval over seeds for every task, mixer and option."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["task"], result["option"], result["mixer"]), []).append(result)
    rows = []
    for (task, option, mixer), group in groups.items():
        measured = {name: interval([one[name] for one in group]) for name in ("accuracy", "longer")}
        rows.append(
            {
                "task": task,
                "option": option,
                "mixer": mixer,
                **measured,
                "parameters": group[0]["parameters"],
                "seconds": statistics.fmean(one["seconds"] for one in group),
            }
        )
    described = {
        name: {
            "rule": task.rule,
            "length": task.length,
            "longer": task.longer,
            "steps": task.steps if study.steps is None else study.steps,
            "chance": 1 / task.symbols,
        }
        for name, task in TASKS.items()
        if name in study.tasks
    }
    return {
        "tasks": described,
        "options": list(study.options),
        "mixers": list(study.mixers),
        "seeds": study.seeds,
        "rows": rows,
    }


def interval(values: list[float]) -> dict[str, Any]:
    """Mean, and half the width of the 95 % interval of Student's t; None for one value."""
    half = None
    if len(values) > 1:
        spread = statistics.stdev(values) / len(values) ** 0.5
        half = float(stats.t.ppf(0.975, len(values) - 1)) * spread
    return {"mean": statistics.fmean(values), "ci95": half, "values": values}
