"""What the verbs share: flat options with the recipe of the chosen task and model as defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tyro

from osmose.models.config import ModelConfig
from osmose.tasks.config import DataConfig, Task
from osmose.tasks.recipes import MODELS

T = TypeVar("T")


@dataclass(frozen=True)
class DataOptions(DataConfig):
    """Data."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK-or-PATH")] = ""
    """a data set (`osmose list`), or your own folder, .npz, CSV or .ts file; with --data what that holds: nodes,
    series, images, text or control"""
    data: str | None = None
    """your own file or folder, read as TASK says: osmose train text --data book.txt"""
    task: Annotated[Task | None, tyro.conf.Suppress] = None

    def plain(self) -> DataConfig:
        """The settings themselves; a path is made absolute so that the run can be evaluated from anywhere."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(DataConfig)}
        words = get_args(Task)
        if self.data is not None:
            if self.source not in words:
                raise ValueError(
                    f"--data {self.data}: TASK is {self.source!r}; expected what it holds: {', '.join(words)}"
                )
            if not Path(self.data).expanduser().exists():
                raise FileNotFoundError(
                    f"--data {self.data} does not exist (working folder: {Path.cwd()}); check the path"
                )
            values |= {"source": self.data, "task": self.source}
        elif self.source in words and not Path(self.source).exists():
            raise ValueError(f"{self.source} needs a file: {self.source} --data FILE, or name a data set")
        if values["task"] is None and _named(values["source"]):
            values["source"] = values["source"].lower()
        elif Path(values["source"]).exists():
            values["source"] = str(Path(values["source"]).resolve())
        if values["edges"]:
            values["edges"] = str(Path(values["edges"]).resolve())
        return DataConfig(**values)


@dataclass(frozen=True)
class ModelOptions(ModelConfig):
    """Model."""

    name: Annotated[str, tyro.conf.arg(name="model", metavar="{" + ",".join(MODELS) + "}")] = ""  # type: ignore[assignment]
    """which model (without it difformer-s, for all but nodes flowformer); baselines: mean (the attention replaced by the
    mean over all tokens), gcn, mlp; for all but nodes transformer and linear-transformer, of the same size"""

    @classmethod
    def of(cls, config: ModelConfig) -> ModelOptions:
        """The options that stand for `config`."""
        return cls(**dataclasses.asdict(config))

    def plain(self) -> ModelConfig:
        """The settings themselves."""
        return ModelConfig(**dataclasses.asdict(self))


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print one JSON object on stdout and nothing else"""


FlatOutput = Annotated[Output, tyro.conf.OmitArgPrefixes]


def parse(kind: type[T], verb: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Parse the arguments of one verb."""
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(kind, prog=f"osmose {verb}", args=list(arguments), **extra)
    except SystemExit as stop:
        if stop.code and "--json" in arguments:
            print_json({"error": f"osmose {verb}: the arguments cannot be read; stderr says why"})
        raise


def parse_with_recipe(
    kind: type[T], verb: str, arguments: Sequence[str], adapt: Callable[[T], T], first: Callable[[str], T]
) -> T:
    """Parse, look up the defaults that belong to what was chosen, and parse again on top of them.

    `adapt` gives the options' defaults for a parse result; `first` makes options for a source or a kind of data, used so
    that `osmose VERB TASK --help` shows the recipe of that task.
    """
    if "-h" in arguments or "--help" in arguments:
        source = next((entry for entry in arguments if _named(entry) or entry in get_args(Task)), None)
        return parse(kind, verb, arguments, None if source is None else adapt(first(source)))
    return parse(kind, verb, arguments, adapt(parse(kind, verb, arguments)))


def print_json(content: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(content, indent=2))


def _named(source: str) -> bool:
    from osmose.data import names

    return source.lower() in names()
