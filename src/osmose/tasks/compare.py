"""Several models on one data set under equal conditions: the same splits, seeds and, if asked, search.

comparison.json     settings of the comparison
environment.json    versions, commit, machine, command
MODEL/              run folder of each model
search/MODEL.db     its trials (Optuna, SQLite)
result.json, table.md, figures/comparison.png   the outcome, when all models are finished
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmose.tasks import environment, figures, sources
from osmose.tasks.checkpoint import replace_file
from osmose.tasks.config import DataConfig, RunConfig
from osmose.tasks.devices import make_accelerator
from osmose.tasks.loop import Data, check_trainable
from osmose.tasks.measures import REPORTS, Measure, kind_of, report_of
from osmose.tasks.progress import Reporter
from osmose.tasks.recipes import recipe
from osmose.tasks.run import run
from osmose.tasks.run_folder import RunFolder, RunFolderError, make_folder
from osmose.tasks.search import SPACE, describe, search, with_settings
from osmose.tasks.signals import StopRequest

_MARK = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how."""

    data: DataConfig
    models: tuple[str, ...]
    splits: int = 5
    trials: int = 0
    search_splits: int = 1
    seed: int = 0
    overrides: tuple[tuple[str, Any], ...] = ()
    """settings of model or training that replace those of every recipe, such as ("epochs", 200)"""

    def validate(self) -> None:
        """Raise ValueError for a comparison that cannot be made."""
        if not self.models or len(set(self.models)) != len(self.models):
            raise ValueError(
                f"--models is {' '.join(self.models) or 'empty'}; expected different names of models"
            )
        for name in ("trials", "splits", "search_splits"):
            least = 0 if name == "trials" else 1
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {least} or more")
        if self.trials and self.search_splits > self.splits:
            raise ValueError(
                f"--search-splits is {self.search_splits}; expected at most --splits {self.splits}"
            )
        for model in self.models:
            self.run_config(model).train.validate()

    def run_config(self, model: str) -> RunConfig:
        """The recipe of `model`, with what is common to all models."""
        settings, train = recipe(self.data.source, model, self.data.task)
        common: dict[str, Any] = {"splits": self.splits, "seed": self.seed, **dict(self.overrides)}
        of_model = {entry.name for entry in dataclasses.fields(settings)}
        settings = dataclasses.replace(settings, **{k: v for k, v in common.items() if k in of_model})
        train = dataclasses.replace(train, **{k: v for k, v in common.items() if k not in of_model})
        return RunConfig(self.data, settings, train)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; two comparisons are the same if these are equal."""
        return {
            "data": {key: value for key, value in dataclasses.asdict(self.data).items() if value is not None},
            "models": list(self.models),
            "splits": self.splits,
            "trials": self.trials,
            "search_splits": self.search_splits if self.trials else None,
            "seed": self.seed,
            "overrides": dict(self.overrides),
            "space": {name: list(values) for name, values in SPACE.items()} if self.trials else None,
            "recipes": {name: self.run_config(name).to_dict() for name in self.models},
        }


def compare(
    comparison: Comparison,
    path: Path,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Make the comparison in the folder `path`; what is finished there already is kept.

    Every model is trained on the same splits with the same seeds, and its test nodes are looked at once per split.
    With `trials`, settings are searched first (`osmose.tasks.search`). Raises ValueError for what cannot be compared
    and for a folder that holds something else, Interrupted after a stop request (finished models and trials stay).
    """
    comparison.validate()
    reporter, stop = reporter or Reporter(quiet=True), stop or StopRequest()
    processes = make_accelerator(comparison.run_config(comparison.models[0]).train).num_processes
    if processes > 1:
        raise ValueError(
            f"a comparison is one process's work, not that of {processes}: start it without torchrun"
        )
    if is_finished(path) and not overwrite and _same(comparison, path):
        return _read(path / "result.json")
    _check_folder(comparison, path, overwrite=overwrite)
    data = sources.load(comparison.data, comparison.splits)
    for name in comparison.models:  # all of them, before the first is trained
        check_trainable(data, comparison.run_config(name), processes)
    _create(comparison, path, overwrite=overwrite)
    rows = [_row(comparison, name, path, data, reporter, stop) for name in comparison.models]
    return _finish(comparison, path, data, rows)


def is_finished(path: Path) -> bool:
    """The folder holds a comparison with its result."""
    return (path / _MARK).is_file() and (path / "result.json").is_file()


def _check_folder(comparison: Comparison, path: Path, *, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / _MARK).is_file():
        raise RunFolderError(f"{path} exists and is not a comparison; choose another folder with --out")
    before, now = _read(path / _MARK), _plain(comparison)
    different = [key for key in now if key not in ("models", "recipes") and before.get(key) != now[key]]
    different += [
        f"recipe of {name}"
        for name, settings in now["recipes"].items()
        if before["recipes"].get(name, settings) != settings
    ]
    if different and not overwrite:
        raise RunFolderError(
            f"{path} holds a comparison with other settings ({', '.join(different)}). Use the same ones to go on with "
            "it (models may be added or left out), --overwrite to replace it, or another folder with --out"
        )


def _plain(comparison: Comparison) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(comparison.to_dict()))
    return content


def _same(comparison: Comparison, path: Path) -> bool:
    return _read(path / _MARK) == _plain(comparison)


def _create(comparison: Comparison, path: Path, *, overwrite: bool) -> None:
    if overwrite and (path / _MARK).is_file():
        shutil.rmtree(path)
    if (path / _MARK).is_file() and _same(comparison, path):
        return
    make_folder(path)
    (path / "result.json").unlink(missing_ok=True)  # of other models
    accelerator = make_accelerator(comparison.run_config(comparison.models[0]).train)
    _write(path / "environment.json", environment.describe(str(accelerator.device)))
    _write(path / _MARK, comparison.to_dict())


def _row(
    comparison: Comparison, name: str, path: Path, data: Data, reporter: Reporter, stop: StopRequest
) -> dict[str, Any]:
    """Search (if asked), then train one model on all splits; both go on from what is there."""
    config = comparison.run_config(name)
    found = None
    if comparison.trials:
        found = search(
            config,
            data,
            path / "search" / f"{name}.db",
            trials=comparison.trials,
            splits=comparison.search_splits,
            seed=comparison.seed,
            reporter=reporter,
            stop=stop,
        )
        config = with_settings(config, found["settings"])
    result = run(config, RunFolder(path / name), resume=True, reporter=reporter, stop=stop, data=data)
    first, *_ = measures = report_of(data).named()
    return {
        "model": name,
        **{measure: result[measure] for measure in measures},
        "values": [record[first] for record in result["splits"]],
        "settings": _settings(config),
        "search": found,
        "parameters": result["parameters"],
        "seconds": result["seconds"],
    }


def _settings(config: RunConfig) -> dict[str, Any]:
    values = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.train)}
    return {name: values[name] for name in SPACE}


def _finish(comparison: Comparison, path: Path, data: Data, rows: list[dict[str, Any]]) -> dict[str, Any]:
    result = {
        "source": comparison.data.source,
        "protocol": data.protocol,
        "kind": kind_of(data),
        "comparison": comparison.to_dict(),
        "models": rows,
        "notes": data.notes,
    }
    number = comparison.splits
    title = f"{data.name} ({data.protocol}), {number} split{'s' if number > 1 else ''}"
    figures.comparison(rows, report_of(data), path / "figures" / "comparison.png", title)
    replace_file(path / "table.md", table(result).encode())
    _write(path / "result.json", result)
    return _read(path / "result.json")


def columns(result: dict[str, Any]) -> tuple[str, ...]:
    """The heads of the table's columns."""
    parts = [f"{name.split('_')[0]}, {one.unit}" for name, one in _told(result)]
    return ("model", *parts, "settings (layers x hidden)", "params", "seconds")


def _told(result: dict[str, Any]) -> list[tuple[str, Measure]]:
    """The measures that have a column: of the test part, if there is one, and of validation."""
    return list(REPORTS[result["kind"]].named().items())[:2]


def cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows as text, in the order of `columns`."""
    return [
        (
            row["model"],
            *(one.of(row[name]) for name, one in _told(result)),
            describe(row["settings"]),
            f"{row['parameters']:,}",
            f"{row['seconds']:.1f}",
        )
        for row in result["models"]
    ]


def how(result: dict[str, Any]) -> str:
    """One sentence on how the figures came about."""
    made = result["comparison"]
    splits = made["splits"]
    text = f"Mean ± sample standard deviation (ddof 1) over {splits} splits" if splits > 1 else "One split"
    epoch = "best epoch by validation, test looked at once per split"
    if result["protocol"] == "best-on-test":
        epoch = "validation is the test part: the best epoch on test, for published tables that did the same"
    text += f"; {result['protocol']} protocol; {epoch}; "
    if made["trials"]:
        chosen = (
            "the first split" if made["search_splits"] == 1 else f"the first {made['search_splits']} splits"
        )
        return text + f"settings: best of {made['trials']} Optuna trials per model by validation on {chosen}."
    return text + "settings: each model's recipe."


def table(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    heads = columns(result)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in cells(result)]
    return "\n".join([f"**{result['source']}.** {how(result)}", "", *lines, ""])


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} cannot be read ({error}); --overwrite starts again") from error
    return content


def _write(path: Path, content: Any) -> None:
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode())
