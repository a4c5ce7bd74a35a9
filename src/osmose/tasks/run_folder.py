"""The folder of a run: settings, metrics, checkpoint, best model, environment, figures, result.

config.toml         all settings; a run is continued and evaluated with these
environment.json    versions, commit, machine, command
metrics.jsonl       one line per evaluated epoch
checkpoint.safetensors  where to continue; removed when the run is finished
model.safetensors   the best model by validation, over epochs and splits
result.json         the outcome; there only when the run is finished
figures/            learning curves
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import tomli_w

from osmose.tasks.checkpoint import replace_file
from osmose.tasks.config import RunConfig

_MARK = "config.toml"


class RunFolderError(ValueError):
    """A run folder that exists, is missing, or is not what was expected."""


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it. Raises RunFolderError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"the folder {path} cannot be made: {error.strerror}; choose another one with --out"
        ) from error


class RunFolder:
    """Paths and files of one run. Making the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / _MARK
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoint_file = path / "checkpoint.safetensors"
        self.model_file = path / "model.safetensors"
        self.result_file = path / "result.json"
        self.figures = path / "figures"
        self.trackers = path / "trackers"
        self._metrics: IO[str] | None = None

    @property
    def exists(self) -> bool:
        """There is something in the folder."""
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    @property
    def finished(self) -> bool:
        """The run has a result."""
        return self.result_file.is_file()

    def create(self, config: RunConfig, environment: dict[str, Any], *, overwrite: bool = False) -> None:
        """Start a new run here.

        Raises RunFolderError when the folder holds something, unless `overwrite` is set and it holds a run.
        """
        if self.exists:
            if not overwrite:
                raise RunFolderError(
                    f"{self.path} exists. To continue that run add --resume, to replace it --overwrite, "
                    "or choose another folder with --out"
                )
            self.remove()
        make_folder(self.path)
        replace_file(self.config_file, tomli_w.dumps(config.to_dict()).encode())
        self.write_json("environment.json", environment)

    def remove(self) -> None:
        """Delete the run. Raises RunFolderError for a folder that is not a run: it is left alone."""
        if not self.config_file.is_file():
            raise RunFolderError(
                f"{self.path} holds no {_MARK}, so it is not a run; --overwrite leaves it alone. "
                "Choose another folder with --out"
            )
        shutil.rmtree(self.path)

    def config(self) -> RunConfig:
        """The settings of the run. Raises RunFolderError for a folder without readable settings."""
        if not self.config_file.is_file():
            raise RunFolderError(f"{self.path} is not a run: it has no {_MARK}")
        try:
            return RunConfig.from_dict(tomllib.loads(self.config_file.read_text(encoding="utf-8")))
        except ValueError as error:  # no TOML, no text, or no settings of ours
            raise RunFolderError(
                f"{self.config_file} cannot be read: {error}. Mend it, or start a new run with --out"
            ) from error

    def write_config(self, config: RunConfig) -> None:
        """Note settings that changed when the run was continued (more epochs, say)."""
        replace_file(self.config_file, tomli_w.dumps(config.to_dict()).encode())

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON file of the run, as a whole."""
        replace_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any]:
        """The outcome. Raises RunFolderError when the run is not finished."""
        if not self.finished:
            raise RunFolderError(f"{self.path} has no result yet: continue the run with --resume")
        try:
            content: dict[str, Any] = json.loads(self.result_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(
                f"{self.result_file} is damaged ({error}); restore it from a copy, or train again with another --out"
            ) from error
        return content

    def metrics(self) -> list[dict[str, Any]]:
        """All evaluated epochs; a last line that was cut off by a crash is passed over.

        Raises RunFolderError for a damaged file.
        """
        if not self.metrics_file.is_file():
            return []
        try:
            lines = self.metrics_file.read_text(encoding="utf-8").split("\n")
            return [json.loads(line) for line in lines[:-1] if line]
        except ValueError as error:
            raise RunFolderError(
                f"{self.metrics_file} is damaged ({error}); restore it from a copy, or train again with another --out"
            ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Append one evaluated epoch."""
        if self._metrics is None:
            self._metrics = open(self.metrics_file, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._metrics.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Make what was logged visible to readers."""
        if self._metrics is None:
            return
        try:
            self._metrics.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {self.metrics_file}: {error.strerror}; the last checkpoint is whole. "
                "Free some space and resume",
            ) from error

    def keep_metrics(self, split: int, epoch: int) -> None:
        """Drop the epochs after (split, epoch): they will be trained again."""
        kept = [record for record in self.metrics() if (record["split"], record["epoch"]) <= (split, epoch)]
        self.close()
        replace_file(self.metrics_file, _lines(kept).encode())

    def close(self) -> None:
        """Close the metrics file."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
