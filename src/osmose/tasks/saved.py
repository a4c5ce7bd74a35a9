"""The model that a run has saved: built again, measured again, applied to new rows or nodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osmose.data import DataError, NodeData, load_new
from osmose.models import build, sparse_features
from osmose.tasks import checkpoint, sources
from osmose.tasks.config import RunConfig
from osmose.tasks.evaluate import final_metrics
from osmose.tasks.run_folder import RunFolder, RunFolderError


@dataclass(frozen=True)
class SavedModel:
    """The best model of a run, in evaluation mode on the CPU, with what is needed to use it."""

    model: nn.Module
    config: RunConfig
    split: int
    epoch: int
    channels: int
    classes: list[str]
    preprocessing: dict[str, Any]

    @torch.no_grad()
    def logits(self, data: NodeData) -> Tensor:
        """One forward pass over all nodes of `data`: (n, classes) in float32."""
        graph = None
        if data.edge_index is not None:
            graph = self.model.prepare_graph(data.edge_index, data.edge_weight, len(data.x))  # type: ignore[operator]
        return self.model(sparse_features(data.x), graph).float()


def open_model(folder: RunFolder) -> SavedModel:
    """Load the best model of a run. Raises RunFolderError without one, CheckpointError for a damaged file."""
    if not folder.model_file.is_file():
        folder.config()  # says so if this is no run at all
        raise RunFolderError(f"{folder.path} has no saved model yet: continue the run with --resume")
    weights, meta = checkpoint.load(folder.model_file)
    config = RunConfig.from_dict(meta["run"])
    model = build(config.model, meta["channels"], len(meta["classes"]))
    checkpoint.load_weights(model, weights, folder.model_file)
    model.eval()
    return SavedModel(
        model, config, meta["split"], meta["epoch"], meta["channels"], meta["classes"], meta["preprocessing"]
    )


def evaluate_saved(folder: RunFolder) -> dict[str, Any]:
    """Measure the saved model on the run's data again; `recorded` holds what the run itself found, if finished."""
    saved = open_model(folder)
    data = sources.load(saved.config.data, saved.config.train.splits)
    number = saved.split % len(data.splits)
    data = data.for_split(number)
    _check_channels(saved, data, saved.config.data.source)
    found = final_metrics(saved.logits(data), data.y, data.splits[number])
    result: dict[str, Any] = {
        "run": str(folder.path),
        "source": saved.config.data.source,
        "protocol": data.protocol,
        "model": saved.config.model.name,
        "split": saved.split,
        "epoch": saved.epoch,
        **found,
    }
    if folder.finished:
        recorded = next(row for row in folder.result()["splits"] if row["split"] == saved.split)
        result["recorded"] = {name: recorded[name] for name in found}
    return result


@dataclass(frozen=True)
class Predictions:
    """Class and probabilities for every row; `classes` names the columns of `probabilities` (n, classes)."""

    classes: list[str]
    probabilities: Tensor
    labels: Tensor
    """(n,) true class where the data tell it, -1 elsewhere"""

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
    if source is None:
        loaded = sources.load(saved.config.data, saved.config.train.splits)
        data = loaded.for_split(saved.split % len(loaded.splits))
    else:
        data = load_new(source, saved.preprocessing, edges=edges)
    _check_channels(saved, data, str(source or saved.config.data.source))
    return Predictions(saved.classes, saved.logits(data).softmax(dim=1), data.y)


def _check_channels(saved: SavedModel, data: NodeData, source: str) -> None:
    if data.x.shape[1] != saved.channels:
        raise DataError(
            f"{source} has {data.x.shape[1]} features; the model was trained with {saved.channels}"
        )


def write_predictions(predictions: Predictions, path: Path) -> None:
    """CSV: row number, predicted class, one probability column per class."""
    header = ["row", "predicted", *(f"p_{name}" for name in predictions.classes)]
    lines = [",".join(_quoted(name) for name in header)]
    for row, (label, values) in enumerate(
        zip(predictions.predicted, predictions.probabilities.tolist(), strict=True)
    ):
        lines.append(",".join([str(row), _quoted(label), *(f"{value:.6f}" for value in values)]))
    checkpoint.replace_file(path, ("\n".join(lines) + "\n").encode())


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text
