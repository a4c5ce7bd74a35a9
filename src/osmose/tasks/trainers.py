"""What each kind of data brings to the training loop: its batches, its loss, and the scores of its parts.

Shapes: n nodes, sequences or images, logits (n, classes); B windows of a text.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from osmose.data import EpisodeData, ImageData, NodeData, SequenceData, Split, TextData, Windows
from osmose.models import DecisionModel, sparse_features
from osmose.tasks.batches import mini_batches
from osmose.tasks.config import RunConfig
from osmose.tasks.evaluate import final_metrics
from osmose.tasks.loop import Data, SplitTrainer
from osmose.tasks.rollout import evaluate_policy


def make_trainer(data: Data, config: RunConfig, index: int, accelerator: Accelerator) -> SplitTrainer:
    """The trainer of one split for this kind of data."""
    return _TRAINERS[data.kind](data, config, index, accelerator)


Classified = NodeData | SequenceData | ImageData
"""Data of which each has one class."""


class ClassTrainer(SplitTrainer):
    """What has one class each, divided by index."""

    def _prepare(self) -> None:
        device, data = self.accelerator.device, self.prepared
        assert isinstance(data, Classified)
        self.y = data.y.to(device)
        self.split = Split(*(part.to(device) for part in data.splits[self.number].parts().values()))

    @abstractmethod
    def logits(self) -> Tensor:
        """``(n, classes)`` in float32 for everything there is, without dropout, with the current weights."""

    def final_metrics(self) -> dict[str, float]:
        return final_metrics(self.logits(), self.y, self.split)


class NodeTrainer(ClassTrainer):
    """Nodes of one set: full batch, or random mini-batches as induced subgraphs. Evaluation is always of the whole set."""

    def _prepare(self) -> None:
        super()._prepare()
        assert isinstance(self.prepared, NodeData)
        self.data = move(self.prepared, self.accelerator.device)
        self.graph = self._prepare_graph(self.data.edge_index, self.data.edge_weight, len(self.data.x))
        self.features = sparse_features(self.data.x)

    def _prepare_graph(self, edge_index: Tensor | None, edge_weight: Tensor | None, num_nodes: int) -> Any:
        if edge_index is None:
            return None
        return self.model.prepare_graph(edge_index, edge_weight, num_nodes)  # type: ignore[operator]

    def _train_epoch(self) -> float:
        self.stepper.train()
        if self.settings.batch_size is None:
            logits = self.stepper(self.features, self.graph)
            train = self.split.train
            return self._step(F.cross_entropy(logits[train].float(), self.data.y[train])).item()
        losses = [self._step(loss) for loss in self._batch_losses()]
        mean = torch.stack(losses).mean()
        return self.accelerator.reduce(mean, "mean").item()

    def _batch_losses(self) -> Any:
        for batch in mini_batches(
            num_nodes=len(self.data.x),
            edge_index=self.data.edge_index,
            edge_weight=self.data.edge_weight,
            train=self.split.train,
            batch_size=self.settings.batch_size or len(self.data.x),
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch),
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        ):
            graph = self._prepare_graph(batch.edge_index, batch.edge_weight, len(batch.nodes))
            logits = self.stepper(self.data.x[batch.nodes], graph)[batch.labelled].float()
            target = self.data.y[batch.nodes[batch.labelled]]
            # A process without a label in this step still takes part: its loss is 0 and its gradients are 0.
            yield F.cross_entropy(logits, target, reduction="sum") * batch.scale

    def _results(self) -> dict[str, float]:
        (_, train_accuracy), (valid_loss, valid_accuracy) = self._table()
        return {"train_accuracy": train_accuracy, "valid_loss": valid_loss, "valid_accuracy": valid_accuracy}

    def _table(self) -> list[list[float]]:
        parts = [self.split.train, self.split.valid]
        if self.accelerator.num_processes == 1:
            return _measure(self.logits(), self.y, parts).tolist()
        # one process looks, all hear the same numbers, so that all stop at the same epoch
        table = torch.zeros(2, 2, dtype=torch.float64, device=self.y.device)
        if self.accelerator.is_main_process:
            table = _measure(self.logits(), self.y, parts)
        return broadcast(table).tolist()

    @torch.no_grad()
    def logits(self) -> Tensor:
        self.model.eval()
        return self.model(self.features, self.graph).float()


class BatchTrainer(ClassTrainer):
    """Sequences, padded to the longest of a batch, or images: random mini-batches of the training part."""

    def _prepare(self) -> None:
        super()._prepare()
        assert isinstance(self.prepared, SequenceData | ImageData)
        self.data = self.prepared
        self.right = 0  # of the training part in the last epoch, while the model was trained

    def _train_epoch(self) -> float:
        self.stepper.train()
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        train = self.split.train.cpu()
        order = train[torch.randperm(len(train), generator=draw)]
        total = torch.zeros((), device=self.y.device)
        self.right = 0
        batches = order.split(self.settings.batch_size or len(order))
        for i, index in enumerate(batches):
            self._set_rate((i + 0.5) / len(batches))
            logits = forward(self.stepper, self.data, index, self.accelerator.device)
            target = self.y[index.to(self.y.device)]
            total += self._step(F.cross_entropy(logits, target)) * len(index)
            self.right += int((logits.detach().argmax(1) == target).sum())
        return total.item() / len(order)

    def _results(self) -> dict[str, float]:
        valid = self.split.valid
        [[loss, accuracy]] = _measure(
            self._of(valid.cpu()), self.y[valid], [torch.arange(len(valid))]
        ).tolist()
        train_accuracy = self.right / len(self.split.train)
        return {"train_accuracy": train_accuracy, "valid_loss": loss, "valid_accuracy": accuracy}

    def logits(self) -> Tensor:
        return self._of(torch.arange(len(self.data.y)))

    def _of(self, index: Tensor) -> Tensor:
        size = min(256, self.settings.batch_size or 256)  # what fits in training fits here
        return batch_logits(self.model, self.data, index, self.accelerator.device, size)


class TextTrainer(SplitTrainer):
    """Windows of a text side by side in random order, each epoch from another beginning; the next symbol is predicted."""

    def _prepare(self) -> None:
        assert isinstance(self.prepared, TextData)
        self.data = self.prepared
        self.parts = self.data.splits[self.number]

    def _train_epoch(self) -> float:
        self.stepper.train()
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        train = self.parts.train
        phase = int(torch.randint(min(self.data.window, len(train) - 1), (1,), generator=draw))
        starts = self.data.windows(train, phase)
        batches = starts[torch.randperm(len(starts), generator=draw)].split(
            self.settings.batch_size or len(starts)
        )
        total, count = torch.zeros((), device=self.accelerator.device), 0
        for i, batch in enumerate(batches):
            self._set_rate((i + 0.5) / len(batches))
            ids, target = (part.to(self.accelerator.device) for part in self.data.batch(batch, train))
            known = int((target >= 0).sum())
            loss = F.cross_entropy(self.stepper(ids).flatten(0, 1).float(), target.flatten(), ignore_index=-1)
            total, count = total + self._step(loss) * known, count + known
        return total.item() / count

    def _results(self) -> dict[str, float]:
        return self._measured({"valid": self.parts.valid})

    def final_metrics(self) -> dict[str, float]:
        return self._measured({"valid": self.parts.valid, "test": self.parts.test})

    def _measured(self, parts: dict[str, range]) -> dict[str, float]:
        size = min(64, self.settings.batch_size or 64)
        return text_metrics(self.model, self.data, parts, self.accelerator.device, size)


class ControlTrainer(SplitTrainer):
    """Windows of recorded episodes, drawn as in the Decision Transformer; the recorded action is predicted.

    An epoch is as many windows as there are steps to train on.
    """

    def _prepare(self) -> None:
        assert isinstance(self.prepared, EpisodeData)
        assert isinstance(self.model, DecisionModel)
        self.data, self.actor = self.prepared, self.model

    def _train_epoch(self) -> float:
        self.stepper.train()
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        steps = int(self.data.splits[self.number].train.diff(dim=1).sum())
        size = self.settings.batch_size or steps
        batches, total = max(steps // size, 1), torch.zeros((), device=self.accelerator.device)
        for i in range(batches):
            self._set_rate((i + 0.5) / batches)
            windows = self.data.sample(size, self.actor.context, generator=draw).to(self.accelerator.device)
            total += self._step(action_error(self.stepper, windows).mean())
        return total.item() / batches

    def _results(self) -> dict[str, float]:
        return control_metrics(self.actor, self.data, {"valid": PLAYED["valid"]})

    def final_metrics(self) -> dict[str, float]:
        return control_metrics(self.actor, self.data)


_TRAINERS: dict[str, type[SplitTrainer]] = {
    "nodes": NodeTrainer,
    "sequences": BatchTrainer,
    "images": BatchTrainer,
    "text": TextTrainer,
    "control": ControlTrainer,
}

PLAYED = {"valid": (3, 1_000_000), "test": (10, 0)}
"""How many episodes are played to choose an epoch and to report, and the seed of the first: they share none."""


def action_error(model: nn.Module, windows: Windows) -> Tensor:
    """Squares ``(k, A)`` of the distance from the recorded actions, of the steps that exist."""
    return (model(*windows).float() - windows.actions)[windows.mask].square()


@torch.no_grad()
def valid_error(model: DecisionModel, data: EpisodeData, batch_size: int = 256) -> float:
    """Mean square error of the actions of the validation part, every step once, without dropout."""
    model.eval()
    device = model.states.weight.device
    parts = [
        action_error(model, data.windows(starts, model.context, part="valid").to(device)).double()
        for starts in data.tiles(model.context).split(batch_size)
    ]
    return torch.cat(parts).mean().item()


def control_metrics(
    model: DecisionModel, data: EpisodeData, parts: dict[str, tuple[int, int]] | None = None
) -> dict[str, float]:
    """The error on the validation part and, where the data name their environment, the mean return of some episodes of which
    the best recorded return is asked, for validation and test others (`PLAYED`); each is cut after the steps of the longest
    recorded one, or 1000."""
    found = {"valid_loss": valid_error(model, data)}
    if data.env is None:
        return found
    for part, (episodes, seed) in (parts or PLAYED).items():
        # an environment may run longer than any recorded episode: beyond the learned timesteps the model cannot act
        most = None if model.timesteps is None else model.timesteps.num_embeddings
        played = evaluate_policy(model, data.preprocessing, episodes=episodes, seed=seed, max_steps=most)
        found |= {f"{part}_return": played.mean, f"{part}_return_sd": played.std}
        if part == "test" and played.score is not None:
            found["test_score"] = played.score / 100
    return found


@torch.no_grad()
def text_metrics(
    model: nn.Module, data: TextData, parts: dict[str, range], device: torch.device, batch_size: int = 64
) -> dict[str, float]:
    """Mean cross-entropy in nats a symbol, and the share of symbols guessed right, without dropout.

    Windows stand side by side, so that every symbol but the first of a part is predicted once, from its window alone.
    """
    model.eval()
    found: dict[str, float] = {}
    for name, part in parts.items():
        loss, right = torch.zeros(2, dtype=torch.float64).unbind()
        for starts in data.windows(part).split(batch_size):
            ids, target = (piece.to(device) for piece in data.batch(starts, part))
            logits = model(ids).flatten(0, 1).float()
            loss += F.cross_entropy(logits, target.flatten(), ignore_index=-1, reduction="sum").double().cpu()
            right += (logits.argmax(-1) == target.flatten()).sum().cpu()
        found |= {
            f"{name}_loss": loss.item() / (len(part) - 1),
            f"{name}_accuracy": right.item() / (len(part) - 1),
        }
    return found


def forward(model: nn.Module, data: SequenceData | ImageData, index: Tensor, device: torch.device) -> Tensor:
    """Logits of some sequences or images as one batch, in float32."""
    return model(*(part.to(device) for part in data.batch(index))).float()


@torch.no_grad()
def batch_logits(
    model: nn.Module,
    data: SequenceData | ImageData,
    index: Tensor,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """Logits ``(k, classes)`` of what is in ``index``, without dropout, sequences of similar lengths side by side."""
    model.eval()
    order = (
        torch.arange(len(index)) if isinstance(data, ImageData) else data.lengths[index].argsort(stable=True)
    )
    parts = [forward(model, data, part, device) for part in index[order].split(batch_size)]
    out = torch.cat(parts)
    return out[order.argsort().to(out.device)]


def move(data: NodeData, device: torch.device) -> NodeData:
    """The same data on `device` (the object itself when they are there already)."""
    if data.x.device.type == device.type:
        return data
    there = copy.copy(data)  # not built anew: the data were checked when they were made
    for name in ("x", "y", "edge_index", "edge_weight"):
        value = getattr(data, name)
        setattr(there, name, None if value is None else value.to(device))
    return there


def _measure(logits: Tensor, y: Tensor, parts: list[Tensor]) -> Tensor:
    """(parts, 2) in float64: mean cross-entropy and accuracy on each part."""
    rows = []
    for index in parts:
        chosen, target = logits[index], y[index]
        rows.append(F.cross_entropy(chosen, target).double())
        rows.append((chosen.argmax(dim=1) == target).double().mean())
    return torch.stack(rows).view(len(parts), 2)
