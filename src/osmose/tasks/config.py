"""Settings of a run: plain data, no torch, documented in place (the text is the command line's help)."""

from __future__ import annotations

import types
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from osmose.models.config import ModelConfig

Task = Literal["nodes", "series", "images", "text", "control"]
"""What a user may say that a file holds."""


@dataclass(frozen=True)
class DataConfig:
    """Which data, read how."""

    source: str
    """name of a data set (`osmose list`), or the path of a folder, .npz or CSV file"""
    task: Task | None = None
    """what your own file holds; without it, told from the file"""
    protocol: str | None = None
    """how to split a named data set; without it the data set's default"""
    label: str | None = None
    """label column of a CSV table"""
    edges: str | None = None
    """edge list (CSV or .npy) that belongs to the data"""
    labels_per_class: int | None = None
    """number of training labels per class, where the protocol draws them"""
    knn: int | None = None
    """edges to this many nearest neighbours; without it 5 for digits and 20news, none for your own data"""
    id: str | None = None
    """column of a CSV table with the names that an edge list uses; without it `id`, or row numbers from 0"""
    ignore: tuple[str, ...] = ()
    """columns of a CSV table to leave out"""
    directed: bool = False
    """keep the direction of your own edges; else both directions are stored"""
    split_seed: int = 123
    """seed of the random splits"""
    env: str | None = None
    """gymnasium's environment of your own recorded episodes; without it, that of the file, if it names one"""
    size: int | None = None
    """number of examples of listops, imdb, cifar-pixels or cifar-images, the same share of every part; without it, all"""
    length: int | None = None
    """imdb: bytes at which a review is cut, without it 1000; text: symbols of a training window, without it 256"""


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    lr: float = 0.01
    """learning rate"""
    weight_decay: float = 5e-4
    """L2 penalty"""
    epochs: int = 500
    """most epochs per split"""
    patience: int = 100
    """stop a split after this many epochs without a better validation result; 0: never"""
    eval_every: int = 1
    """epochs between evaluations"""
    batch_size: int | None = None
    """nodes (as an induced subgraph), sequences, images or windows per random mini-batch; without it, full batch"""
    optimizer: Literal["adam", "radam", "adamw"] = "adam"
    """adam and radam add the L2 penalty to the gradient, adamw takes it from the weights"""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine lowers the learning rate to 0 over the epochs"""
    warmup: float = 0.0
    """share of all epochs in which the learning rate rises from 0"""
    clip: float = 0.0
    """largest norm of a step's gradient; 0: as it is"""
    splits: int = 1
    """number of splits to train on; where the data have fewer, they are used again with the next seed"""
    seed: int = 0
    """seed of the first split; split i uses seed + i"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision"""
    device: Literal["auto", "cpu"] = "auto"
    """auto: the accelerator if there is one"""
    threads: int | None = None
    """CPU threads; without it, torch's choice"""
    checkpoint_seconds: float = 30.0
    """seconds between checkpoints (0: after every epoch)"""
    trackers: tuple[str, ...] = ()
    """experiment trackers by name: tensorboard, wandb, mlflow ..."""

    def validate(self) -> None:
        """Raise ValueError for settings that cannot be trained with."""
        _require(self.lr > 0, "--lr", self.lr, "a positive number")
        _require(self.weight_decay >= 0, "--weight-decay", self.weight_decay, "0 or more")
        for name in ("epochs", "eval_every", "splits"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')}", value, "1 or more")
        _require(0 <= self.warmup < 1, "--warmup", self.warmup, "a share in [0, 1)")
        _require(self.clip >= 0, "--clip", self.clip, "0 (no clipping) or more")
        _require(self.patience >= 0, "--patience", self.patience, "0 (never stop early) or more")
        _require(self.checkpoint_seconds >= 0, "--checkpoint-seconds", self.checkpoint_seconds, "0 or more")
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name.replace('_', '-')}", value, "1 or more")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """As TOML and JSON can hold it: settings that are None are left out."""
        return {
            section: {key: _plain(value) for key, value in values.items() if value is not None}
            for section, values in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, sections: dict[str, dict[str, Any]]) -> RunConfig:
        """The inverse of `to_dict`. Raises ValueError for settings that are unknown, missing or of the wrong type."""
        try:
            return cls(
                data=_read(DataConfig, sections["data"]),
                model=_read(ModelConfig, sections["model"]),
                train=_read(TrainConfig, sections["train"]),
            )
        except KeyError as error:
            raise ValueError(f"run settings: section or setting {error} is missing") from None

    def differences(self, other: RunConfig, *, ignore: frozenset[str] = frozenset()) -> list[str]:
        """Settings that differ, as lines `model.hidden: 64, not 32`; `ignore` names settings to pass over."""
        found = []
        for section in fields(self):
            mine, theirs = asdict(getattr(self, section.name)), asdict(getattr(other, section.name))
            for key, value in mine.items():
                name = f"{section.name}.{key}"
                if name not in ignore and _plain(value) != _plain(theirs[key]):
                    found.append(f"{name}: {value}, not {theirs[key]}")
        return found


# What may change when a run is continued: none of it alters an epoch that was already trained.
RESUMABLE = frozenset(
    {
        "train.splits",
        "train.threads",
        "train.checkpoint_seconds",
        "train.trackers",
    }
)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _read(kind: Any, values: dict[str, Any]) -> Any:
    known = {entry.name for entry in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"run settings: unknown {kind.__name__} settings {unknown}; known: {sorted(known)}")
    if kind is DataConfig and "source" not in values:
        raise KeyError("data.source")
    hints = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            hint = hints[key]
            expected = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
            raise ValueError(f"run settings: {kind.__name__} {key} is {value!r}; expected {expected}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    """The value is what the annotation says; lists stand for tuples, and integers for floats."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _require(condition: bool, option: str, came: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{option} is {came}; expected {expected}")
