"""The model that a run has saved: built again, measured again, applied to new rows or nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osmose.data import DataError, EpisodeData, NodeData, TextData, load_new
from osmose.models import DecisionModel, Shape, build, sparse_features
from osmose.tasks import checkpoint, sources
from osmose.tasks.config import RESUMABLE, RunConfig
from osmose.tasks.evaluate import final_metrics
from osmose.tasks.loop import Data
from osmose.tasks.loop import shape as shape_of
from osmose.tasks.measures import kind_of
from osmose.tasks.run_folder import RunFolder, RunFolderError
from osmose.tasks.trainers import Classified, batch_logits, control_metrics, text_metrics


@dataclass(frozen=True)
class SavedModel:
    """The best model of a run, in evaluation mode on the CPU, with what is needed to use it."""

    model: nn.Module
    config: RunConfig
    split: int
    epoch: int
    shape: Shape
    classes: list[str]
    preprocessing: dict[str, Any]

    @torch.no_grad()
    def logits(self, data: Classified) -> Tensor:
        """All nodes, sequences or images of `data`: (n, classes) in float32."""
        if not isinstance(data, NodeData):
            size = min(256, self.config.train.batch_size or 256)
            return batch_logits(self.model, data, torch.arange(len(data.y)), torch.device("cpu"), size)
        graph = None
        if data.edge_index is not None:
            graph = self.model.prepare_graph(data.edge_index, data.edge_weight, len(data.x))  # type: ignore[operator]
        return self.model(sparse_features(data.x), graph).float()


def open_model(folder: RunFolder) -> SavedModel:
    """Load the best model of a run.

    Raises RunFolderError without one, CheckpointError for a damaged file or the model of another run.
    """
    if not folder.model_file.is_file():
        folder.config()  # says so if this is no run at all
        raise RunFolderError(f"{folder.path} has no saved model yet: continue the run with --resume")
    weights, meta = checkpoint.load(folder.model_file)
    if meta.get("kind") != "model":
        raise checkpoint.CheckpointError(
            f"{folder.model_file} is a checkpoint of kind {meta.get('kind')!r}; expected the saved model of a run"
        )
    config = RunConfig.from_dict(meta["run"])
    if folder.config_file.is_file() and (different := folder.config().differences(config, ignore=RESUMABLE)):
        raise checkpoint.CheckpointError(
            f"{folder.model_file} is the model of another run than {folder.config_file} describes "
            f"({'; '.join(different[:3])}); bring the run's own files back together"
        )
    bounds = meta["shape"]["action_range"]
    shape = Shape(**meta["shape"] | {"action_range": None if bounds is None else tuple(bounds)})
    model = build(config.model, shape)
    checkpoint.load_weights(model, weights, folder.model_file)
    model.eval()
    return SavedModel(
        model, config, meta["split"], meta["epoch"], shape, meta["classes"], meta["preprocessing"]
    )


def evaluate_saved(folder: RunFolder) -> dict[str, Any]:
    """Measure the saved model on the run's data again; `recorded` holds what the run itself found, if finished."""
    saved = open_model(folder)
    data = sources.load(saved.config.data, saved.config.train.splits)
    number = saved.split % len(data.splits)
    data = data.for_split(number)
    _check_channels(saved, data, saved.config.data.source)
    found = _final_metrics(saved, data, number)
    result: dict[str, Any] = {
        "run": str(folder.path),
        "source": saved.config.data.source,
        "protocol": data.protocol,
        "kind": kind_of(data),
        "model": saved.config.model.name,
        "split": saved.split,
        "epoch": saved.epoch,
        **found,
    }
    if folder.finished:
        recorded = next(row for row in folder.result()["splits"] if row["split"] == saved.split)
        result["recorded"] = {name: recorded[name] for name in found}
    return result


def _final_metrics(saved: SavedModel, data: Data, number: int) -> dict[str, float]:
    if isinstance(data, TextData):
        parts = {part: where for part, where in data.splits[number].parts().items() if part != "train"}
        return text_metrics(saved.model, data, parts, torch.device("cpu"))
    if isinstance(data, EpisodeData):
        assert isinstance(saved.model, DecisionModel)
        return control_metrics(saved.model, data)
    return final_metrics(saved.logits(data), data.y, data.splits[number])


@dataclass(frozen=True)
class Predictions:
    """Class and probabilities for every row; `classes` names the columns of `probabilities` (n, classes)."""

    classes: list[str]
    probabilities: Tensor
    labels: Tensor
    """(n,) true class where the data tell it, -1 elsewhere"""
    ids: list[str] | None = None
    """names of the rows, where the data give them"""
    notes: list[str] = field(default_factory=list)
    """what was done to the new rows that a user may want to know"""

    @property
    def predicted(self) -> list[str]:
        """The most probable class of every row."""
        return [self.classes[k] for k in self.probabilities.argmax(dim=1).tolist()]

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions among the labelled rows; None where no row has a label."""
        known = self.labels >= 0
        if not bool(known.any()):
            return None
        return (self.probabilities.argmax(dim=1) == self.labels)[known].float().mean().item()


def predict(folder: RunFolder, source: str | Path | None, edges: Path | None = None) -> Predictions:
    """Apply a run's model to new rows or nodes, or with `source` None to all nodes of the run's own data.

    New rows are one set of their own: all-pair models let them interact with each other, not with the training rows.
    Raises DataError where the new data do not have the features of the training data.
    """
    saved = open_model(folder)
    instead = {
        "text": "a language model: `osmose generate` goes on with a text",
        "control": "a model that acts: `osmose eval`",
    }
    if (form := saved.shape.form) in instead:
        raise ValueError(f"{folder.path} predicts no classes, it holds {instead[form]}")
    data: Data
    if source is None:
        loaded = sources.load(saved.config.data, saved.config.train.splits)
        data = loaded.for_split(saved.split % len(loaded.splits))
    else:
        data = load_new(source, saved.preprocessing, edges=edges)
    assert isinstance(data, Classified)
    _check_channels(saved, data, str(source or saved.config.data.source))
    return Predictions(saved.classes, saved.logits(data).softmax(dim=1), data.y, data.ids, data.notes)


def _check_channels(saved: SavedModel, data: Data, source: str) -> None:
    if (came := shape_of(data).in_channels) != (expected := saved.shape.in_channels):
        raise DataError(f"{source} has {came} features; the model was trained with {expected}")


def write_predictions(predictions: Predictions, path: Path) -> None:
    """CSV: row number, id where the data give ids, predicted class, one probability column per class.

    Raises FileExistsError where `path` holds something else than earlier predictions: it is left alone.
    """
    check_replaceable(path)
    named = predictions.ids is not None
    header = ["row", *(["id"] if named else []), "predicted", *(f"p_{name}" for name in predictions.classes)]
    lines = [",".join(_quoted(name) for name in header)]
    for row, (label, values) in enumerate(
        zip(predictions.predicted, predictions.probabilities.tolist(), strict=True)
    ):
        name = [] if predictions.ids is None else [_quoted(predictions.ids[row])]
        lines.append(",".join([str(row), *name, _quoted(label), *(f"{value:.6f}" for value in values)]))
    checkpoint.replace_file(path, ("\n".join(lines) + "\n").encode())


def check_replaceable(path: Path) -> None:
    """Raise FileExistsError unless `path` is free or holds predictions written earlier."""
    if not path.exists():
        return
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(16)
        if not start or start.startswith((b"row,predicted,", b"row,id,predicted")):
            return
    raise FileExistsError(
        f"--out {path} exists and holds no predictions, so it is left alone; expected a new file (or one of earlier "
        "predictions). Name another with --out"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text
