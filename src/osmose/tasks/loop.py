"""The training loop for one split: an explicit loop over epochs, nothing hidden.

Shapes: x (n, c), y (n,), logits (n, classes). One forward pass per evaluation serves every part of the split.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from osmose.data import NodeData, Split
from osmose.models import build, sparse_features
from osmose.tasks.batches import mini_batches
from osmose.tasks.config import RunConfig
from osmose.tasks.devices import seed_everything


class TrainingDivergedError(ValueError):
    """The loss became NaN or infinite."""


@dataclass
class EarlyStopping:
    """Keeps the best validation result: highest accuracy, ties broken by the lower loss."""

    patience: int
    epoch: int = 0
    accuracy: float = -1.0
    loss: float = math.inf

    def update(self, epoch: int, accuracy: float, loss: float) -> bool:
        """Note a result; True if it is the best so far, which starts the patience anew."""
        if (accuracy, -loss) <= (self.accuracy, -self.loss):
            return False
        self.epoch, self.accuracy, self.loss = epoch, accuracy, loss
        return True

    def exhausted(self, epoch: int) -> bool:
        """True once `patience` epochs have passed since the best one."""
        return self.patience > 0 and epoch - self.epoch >= self.patience


def move(data: NodeData, device: torch.device) -> NodeData:
    """The same data on `device` (the object itself when they are there already)."""
    if data.x.device.type == device.type:
        return data
    tensors = {name: getattr(data, name) for name in ("x", "y", "edge_index", "edge_weight")}
    moved = {name: None if value is None else value.to(device) for name, value in tensors.items()}
    there = copy.copy(data)  # not built anew: the data were checked when they were made
    vars(there).update(moved)
    there.splits = [Split(*(part.to(device) for part in split.parts().values())) for split in data.splits]
    return there


def check_trainable(data: NodeData, config: RunConfig, processes: int) -> None:
    """Raise ValueError where data, model settings and processes do not go together; takes milliseconds."""
    if processes > 1 and config.train.batch_size is None:
        raise ValueError(
            f"full-batch training cannot be shared by {processes} processes: give --batch-size, or start one process"
        )
    if config.model.name == "gcn" and data.edge_index is None:
        raise ValueError(
            f"{data.name} has no edges, and gcn needs them: give --edges or --knn, or another --model"
        )
    if not 0 <= config.model.dropout < 1:
        raise ValueError(f"--dropout is {config.model.dropout}; expected a probability in [0, 1)")
    with torch.device("meta"):  # parameters without storage: only the settings are checked
        build(config.model, data.x.shape[1], len(data.classes))


class SplitTrainer:
    """A model, its optimizer and its best state on one split.

    Split `index` trains on `data.splits[index % len(data.splits)]` with seed `config.train.seed + index`. Raises ValueError
    where the data cannot be trained on as asked.
    """

    def __init__(self, data: NodeData, config: RunConfig, index: int, accelerator: Accelerator) -> None:
        self.index, self.accelerator, self.settings = index, accelerator, config.train
        check_trainable(data, config, accelerator.num_processes)
        number = index % len(data.splits)
        data = move(data.for_split(number), accelerator.device)
        self.data, self.split = data, data.splits[number]
        self.seed = self.settings.seed + index
        seed_everything(self.seed)
        self.model: nn.Module = build(config.model, data.x.shape[1], len(data.classes))
        self.parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.stepper, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.graph = self._prepare_graph(data.edge_index, data.edge_weight, len(data.x))
        self.features = sparse_features(data.x)
        self.live = self.model.state_dict()  # views of the parameters, not copies
        self.best = {name: value.clone() for name, value in self.live.items()}
        self.stopping = EarlyStopping(self.settings.patience)
        self.epoch = 0
        if accelerator.num_processes > 1:  # every process drops out other units
            torch.manual_seed(self.seed + 7919 * (accelerator.process_index + 1))

    def _prepare_graph(self, edge_index: Tensor | None, edge_weight: Tensor | None, num_nodes: int) -> Any:
        if edge_index is None:
            return None
        return self.model.prepare_graph(edge_index, edge_weight, num_nodes)  # type: ignore[operator]

    @property
    def finished(self) -> bool:
        """No epoch is left to train."""
        return self.epoch >= self.settings.epochs or self.stopping.exhausted(self.epoch)

    def fit(
        self,
        on_evaluation: Callable[[dict[str, Any]], None] = lambda record: None,
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Train until the epochs or the patience are used up.

        `on_evaluation` gets the metrics of every evaluated epoch. `after_epoch` runs when the state is complete (a
        checkpoint taken there continues exactly) and may raise to interrupt. Raises TrainingDivergedError.
        """
        while not self.finished:
            loss = self._train_epoch()
            self._check_finite(loss, "training loss", self.epoch + 1)
            self.epoch += 1
            if self.epoch % self.settings.eval_every == 0 or self.epoch == self.settings.epochs:
                on_evaluation(self._evaluate(loss))
            after_epoch()

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

    def _step(self, loss: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def _evaluate(self, train_loss: float) -> dict[str, Any]:
        parts = [self.split.train, self.split.valid]
        if self.accelerator.num_processes == 1:
            results = _measure(self.logits(), self.data.y, parts).tolist()
        else:  # one process looks, all hear the same numbers, so that all stop at the same epoch
            table = torch.zeros(2, 2, dtype=torch.float64, device=self.data.x.device)
            if self.accelerator.is_main_process:
                table = _measure(self.logits(), self.data.y, parts)
            results = broadcast(table).tolist()
        (_, train_accuracy), (valid_loss, valid_accuracy) = results
        self._check_finite(valid_loss, "validation loss", self.epoch)
        improved = self.stopping.update(self.epoch, valid_accuracy, valid_loss)
        if improved:
            for name, value in self.live.items():
                self.best[name].copy_(value)
        return {
            "split": self.index,
            "epoch": self.epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "valid_loss": valid_loss,
            "valid_accuracy": valid_accuracy,
            "best": improved,
        }

    @torch.no_grad()
    def logits(self) -> Tensor:
        """One forward pass over all nodes with the current weights, without dropout."""
        self.model.eval()
        return self.model(self.features, self.graph).float()

    def use_best(self) -> None:
        """Put the best state into the model."""
        self.model.load_state_dict(self.best)

    def _check_finite(self, value: float, what: str, epoch: int) -> None:
        if math.isfinite(value):
            return
        best = (
            f"the best model so far (epoch {self.stopping.epoch}, validation accuracy "
            f"{self.stopping.accuracy:.4f}) is kept"
            if self.stopping.epoch
            else "no epoch had been evaluated before"
        )
        advice = f"lower --lr (now {self.settings.lr:g})"
        if self.settings.precision != "no":
            advice += f" or train without --precision {self.settings.precision}"
        raise TrainingDivergedError(
            f"{what} is {value} at epoch {epoch} of split {self.index}: {advice}; {best}"
        )

    def progress(self) -> dict[str, Any]:
        """What a checkpoint says about this split, besides tensors."""
        return {"split": self.index, "epoch": self.epoch, "stopping": asdict(self.stopping)}


def _measure(logits: Tensor, y: Tensor, parts: list[Tensor]) -> Tensor:
    """(parts, 2) in float64: mean cross-entropy and accuracy on each part."""
    rows = []
    for index in parts:
        chosen, target = logits[index], y[index]
        rows.append(F.cross_entropy(chosen, target).double())
        rows.append((chosen.argmax(dim=1) == target).double().mean())
    return torch.stack(rows).view(len(parts), 2)
