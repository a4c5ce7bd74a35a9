"""The training loop for one split: an explicit loop over epochs, the same for every kind of data (trainers.py)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from osmose.data import EpisodeData, ImageData, NodeData, SequenceData, TextData
from osmose.models import build, is_for_sequences
from osmose.models.config import Shape
from osmose.tasks.config import RunConfig, TrainConfig
from osmose.tasks.devices import seed_everything
from osmose.tasks.measures import report_of
from osmose.tasks.rollout import make_environment


class TrainingDivergedError(ValueError):
    """The loss became NaN or infinite."""


@dataclass
class EarlyStopping:
    """Keeps the best validation result: the highest score (accuracy, return), ties broken by the lower loss, or only the
    lowest loss."""

    patience: int
    by_loss: bool = False
    epoch: int = 0
    score: float = -math.inf
    loss: float = math.inf

    def update(self, epoch: int, score: float, loss: float) -> bool:
        """Note a result; True if it is the best so far, which starts the patience anew."""
        if self.rank(score, loss) <= self.rank(self.score, self.loss):
            return False
        self.epoch, self.score, self.loss = epoch, score, loss
        return True

    def rank(self, score: float, loss: float) -> tuple[float, ...]:
        """What is compared; higher is better."""
        return (-loss,) if self.by_loss else (score, -loss)

    def exhausted(self, epoch: int) -> bool:
        """True once `patience` epochs have passed since the best one."""
        return self.patience > 0 and epoch - self.epoch >= self.patience


Data = NodeData | SequenceData | ImageData | TextData | EpisodeData


def check_trainable(data: Data, config: RunConfig, processes: int) -> None:
    """Raise ValueError where data, model settings and processes do not go together; takes milliseconds."""
    name = config.model.name
    if is_for_sequences(name) == isinstance(data, NodeData):
        holds, others = (
            ("nodes or rows", "sequences") if data.kind == "nodes" else (data.kind, "nodes or rows")
        )
        raise ValueError(
            f"{data.name} holds {holds}, and {name} is a model of {others}: choose another --model (`osmose list`)"
        )
    if processes > 1 and config.train.batch_size is None:
        raise ValueError(
            f"full-batch training cannot be shared by {processes} processes: give --batch-size, or start one process"
        )
    if processes > 1 and not isinstance(data, NodeData):
        raise ValueError(
            f"{data.kind} are trained by one process, not {processes}: start it without torchrun"
        )
    if name == "gcn" and isinstance(data, NodeData) and data.edge_index is None:
        raise ValueError(
            f"{data.name} has no edges, and gcn needs them: give --edges or --knn, or another --model"
        )
    if isinstance(data, SequenceData) and (shortest := int(data.lengths.min())) < config.model.patch:
        raise ValueError(
            f"--patch is {config.model.patch}, and the shortest sequence of {data.name} has {shortest} steps; expected at most that"
        )
    if not 0 <= config.model.dropout < 1:
        raise ValueError(f"--dropout is {config.model.dropout}; expected a probability in [0, 1)")
    with torch.device("meta"):  # parameters without storage: only the settings are checked
        build(config.model, shape(data))
    if isinstance(data, EpisodeData) and data.env is not None:
        with make_environment(data.env, data.preprocessing):
            pass  # it can be made and fits the data


def shape(data: Data) -> Shape:
    """What the data decide about their model."""
    if isinstance(data, NodeData):
        return Shape("nodes", data.num_features, data.num_classes)
    if isinstance(data, TextData):
        return Shape("text", data.num_features, data.num_features)
    if isinstance(data, EpisodeData):
        longest = max(int(data.lengths.max()), 1000)
        return Shape("control", data.state_dim, data.action_dim, data.action_range, longest)
    if isinstance(data, ImageData):
        return Shape("images", data.num_features, data.num_classes)
    return Shape("series" if data.vocab is None else "symbols", data.num_features, data.num_classes)


class SplitTrainer(ABC):
    """A model, its optimizer and its best state on one split: what all kinds of data share.

    Split `index` trains on `data.splits[index % len(data.splits)]` with seed `config.train.seed + index`. Raises ValueError
    where the data cannot be trained on as asked.
    """

    def __init__(self, data: Data, config: RunConfig, index: int, accelerator: Accelerator) -> None:
        self.index, self.accelerator, self.settings = index, accelerator, config.train
        check_trainable(data, config, accelerator.num_processes)
        number = index % len(data.splits)
        self.prepared = data.for_split(number)
        self.shape, self.preprocessing = shape(data), self.prepared.preprocessing
        self.number = number
        self.seed = self.settings.seed + index
        seed_everything(self.seed)
        self.model: nn.Module = build(config.model, self.shape)
        self.parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.stepper, self.optimizer = accelerator.prepare(
            self.model, make_optimizer(self.model, self.settings)
        )
        self._prepare()
        self.live = self.model.state_dict()  # views of the parameters, not copies
        self.best = {name: value.clone() for name, value in self.live.items()}
        chosen = report_of(data).valid
        self.chosen = f"valid_{chosen.key}"
        self.stopping = EarlyStopping(self.settings.patience, by_loss=not chosen.higher)
        self.epoch = 0
        if accelerator.num_processes > 1:  # every process drops out other units
            torch.manual_seed(self.seed + 7919 * (accelerator.process_index + 1))

    @abstractmethod
    def _prepare(self) -> None:
        """Put the data where training wants them."""

    @abstractmethod
    def _train_epoch(self) -> float:
        """All steps of one epoch; gives the mean training loss."""

    @abstractmethod
    def _results(self) -> dict[str, float]:
        """Measures of the current weights, `valid_loss` and what validation chooses by among them."""

    @abstractmethod
    def final_metrics(self) -> dict[str, float]:
        """Everything that is reported of the current weights, the test part included."""

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
            self._set_rate(0.5)
            loss = self._train_epoch()
            self._check_finite(loss, "training loss", self.epoch + 1)
            self.epoch += 1
            if self.epoch % self.settings.eval_every == 0 or self.epoch == self.settings.epochs:
                on_evaluation(self._evaluate(loss))
            after_epoch()

    def _step(self, loss: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.settings.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        return loss.detach()

    def _set_rate(self, share: float) -> None:
        """The learning rate after this share of the epoch."""
        settings = self.settings
        at = (self.epoch + share) / settings.epochs
        rate = settings.lr * (min(1.0, at / settings.warmup) if settings.warmup else 1.0)
        if settings.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * at))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _evaluate(self, train_loss: float) -> dict[str, Any]:
        found = self._results()
        self._check_finite(found["valid_loss"], "validation loss", self.epoch)
        improved = self.stopping.update(self.epoch, found[self.chosen], found["valid_loss"])
        if improved:
            for name, value in self.live.items():
                self.best[name].copy_(value)
        return {
            "split": self.index,
            "epoch": self.epoch,
            "train_loss": train_loss,
            **found,
            "best": improved,
        }

    def use_best(self) -> None:
        """Put the best state into the model."""
        self.model.load_state_dict(self.best)

    def _check_finite(self, value: float, what: str, epoch: int) -> None:
        if math.isfinite(value):
            return
        best = (
            f"the best model so far (epoch {self.stopping.epoch}, validation loss {self.stopping.loss:.4f}) is kept"
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


def make_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer by its name; the L2 penalty goes into the gradient, but for adamw."""
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "radam":
        return torch.optim.RAdam(model.parameters(), **common)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), fused=True, **common)
