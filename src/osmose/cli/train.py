"""`osmose train TASK-or-PATH`: train on every split and report mean and deviation."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from osmose.cli.errors import main_process
from osmose.cli.options import (
    DataOptions,
    FlatOutput,
    ModelOptions,
    Output,
    parse_with_recipe,
    print_json,
)
from osmose.models.config import settings_of
from osmose.tasks.config import RunConfig, Task, TrainConfig
from osmose.tasks.recipes import default_models, recipe


@dataclass(frozen=True)
class TrainCommand:
    """Train a model and keep everything in a run folder.

    Options that are not given come from the recipe of the task and model (`osmose train TASK --help` shows it).
    Ctrl-C saves the state; --resume continues it exactly.
    """

    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    train: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainConfig)
    out: Path | None = None
    """run folder; without it runs/TASK-MODEL, or the next free number"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """continue the run in the folder (without --out: the latest of this task and model)"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the run that is in the folder"""
    output: FlatOutput = field(default_factory=Output)

    def config(self) -> RunConfig:
        """The settings of the run."""
        return RunConfig(self.data.plain(), self.model.plain(), self.train)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse_with_recipe(TrainCommand, "train", arguments, _with_defaults, _for_source)
    if not command.data.source:
        raise ValueError(
            "train: which data? Name a data set (`osmose list`) or give a path: osmose train digits"
        )
    config = command.config()
    config.train.validate()
    if not command.resume:
        _check_settings(config)
    _execute(command, config)


def _check_settings(config: RunConfig) -> None:
    """Refuse a setting that was given and that the model, or its kind of data, does not have."""
    from osmose.data import kind

    data, model = config.data, config.model
    form = kind(data.source, data.task)
    usual, _ = recipe(data.source, model.name, data.task)
    known = settings_of(model.name, form)
    for entry in dataclasses.fields(model):
        if entry.name not in known and getattr(model, entry.name) != getattr(usual, entry.name):
            options = ", ".join("--" + name.replace("_", "-") for name in sorted(known - {"name"}))
            raise ValueError(
                f"--{entry.name.replace('_', '-')} is not a setting of {model.name} for {form}; it has {options}"
            )


def _execute(command: TrainCommand, config: RunConfig) -> None:
    from osmose.tasks.progress import Reporter
    from osmose.tasks.run import run
    from osmose.tasks.run_folder import RunFolder
    from osmose.tasks.signals import Interrupted, StopRequest

    folder = RunFolder(_folder(command))
    try:
        with StopRequest() as stop, Reporter(quiet=command.output.json or not main_process()) as reporter:
            result = run(
                config,
                folder,
                resume=command.resume,
                overwrite=command.overwrite,
                reporter=reporter,
                stop=stop,
            )
    except Interrupted as interrupted:
        processes = os.environ.get("WORLD_SIZE", "1")
        start = (
            "osmose"
            if processes == "1"
            else f"torchrun --standalone --nproc-per-node {processes} -m osmose.cli"
        )
        source = [command.data.source, *(["--data", command.data.data] if command.data.data else [])]
        again = f"{start} train {shlex.join(source)} --out {shlex.quote(str(folder.path))} --resume"
        if main_process():
            print(f"osmose: {interrupted}. Continue with: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    if main_process():
        report({"run": str(folder.path), **result}, json=command.output.json)


def report(result: dict[str, Any], *, json: bool) -> None:
    """Print the outcome of a run."""
    if json:
        print_json(result)
        return
    from rich.console import Console

    from osmose.tasks.measures import REPORTS

    console = Console(highlight=False)
    number = len(result["splits"])
    spread = f" (mean ± sample deviation over {number} splits)" if number > 1 else ""
    console.print(f"[bold]{result['source']}[/] ({result['protocol']}), {result['model']}")
    for note in result["notes"]:
        console.print(f"  note: {note}", markup=False)
    for name, measure in REPORTS[result["kind"]].named().items():
        what = f"{name.split('_')[0].replace('valid', 'validation')} {measure.title}"
        console.print(f"  {what:<24} {measure.of(result[name])} {measure.unit}{spread}")
    console.print(f"  {result['parameters']:,} parameters, {result['seconds']:.1f} s")
    console.print(f"  run folder: {result['run']}", soft_wrap=True, markup=False)


def _for_source(source: str) -> TrainCommand:
    own = "." if source in get_args(Task) else None  # any path: the kind alone decides
    return TrainCommand(data=DataOptions(source=source, data=own))


def _with_defaults(command: TrainCommand) -> TrainCommand:
    """Defaults for what was chosen: the run's own settings when it is resumed, else the recipe."""
    if command.resume and command.overwrite:
        raise ValueError("train: --resume continues the run and --overwrite deletes it; give one of them")
    if command.resume:
        from osmose.tasks.run_folder import RunFolder, RunFolderError

        path = _folder(command)
        folder = RunFolder(path)
        if not folder.exists:
            raise RunFolderError(f"nothing to resume: there is no run at {path}")
        saved = folder.config()
        data = DataOptions(**dataclasses.asdict(saved.data))
        return TrainCommand(data, ModelOptions.of(saved.model), saved.train)
    chosen = command.data.plain()
    model, train = recipe(chosen.source, _model(command), chosen.task)
    return TrainCommand(model=ModelOptions.of(model), train=train)


def _folder(command: TrainCommand) -> Path:
    if command.out is not None:
        return command.out
    title = re.sub(r"[^\w.-]+", "-", Path(command.data.plain().source).stem) or "data"
    return default_folder(f"{title}-{_model(command)}", resume=command.resume, overwrite=command.overwrite)


def _model(command: TrainCommand) -> str:
    data = command.data.plain()
    return command.model.name or default_models(data.source, data.task)[0]


def default_folder(name: str, *, resume: bool, overwrite: bool) -> Path:
    """runs/NAME; a finished run there is left alone and runs/NAME-2, -3 ... used. Resume and overwrite take the latest."""
    base = Path("runs")
    candidates = [base / name]
    while candidates[-1].exists():
        candidates.append(base / f"{name}-{len(candidates) + 1}")
    free, used = candidates[-1], candidates[:-1]
    if not used:
        return free
    if resume or overwrite or not (used[-1] / "result.json").is_file():
        return used[-1]
    return free
