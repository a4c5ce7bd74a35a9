"""Everything that decides how a run goes on, as tensors and JSON: taken from a trainer, put back into one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osmose.tasks.checkpoint import CheckpointError, load_weights
from osmose.tasks.loop import EarlyStopping, SplitTrainer
from osmose.tasks.run_folder import RunFolder


def capture(trainer: SplitTrainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON of a trainer: weights, best weights, optimizer, random states, epoch, early stopping.

    Every process must call it: the random states of all of them are gathered.
    """
    tensors = {f"model.{name}": value for name, value in trainer.live.items()}
    tensors |= {f"best.{name}": value for name, value in trainer.best.items()}
    optimizer = trainer.optimizer.state_dict()
    for index, state in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    meta = trainer.progress()
    meta["optimizer"] = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer["param_groups"]
    ]
    if trainer.accelerator.scaler is not None:
        meta["scaler"] = trainer.accelerator.scaler.state_dict()
    random_tensors, meta["random"] = _capture_random(trainer)
    return tensors | random_tensors, meta


def restore(
    trainer: SplitTrainer, tensors: dict[str, Tensor], meta: dict[str, Any], folder: RunFolder
) -> None:
    """Put a captured state into a fresh trainer of the same settings. Raises CheckpointError for another model."""
    source = folder.checkpoint_file
    load_weights(trainer.model, _under("model.", tensors), source)
    for name, value in _under("best.", tensors).items():
        trainer.best[name].copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = trainer.optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, meta["optimizer"], strict=True):
        group.update(
            {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
        )
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(meta["scaler"])
    trainer.epoch = meta["epoch"]
    trainer.stopping = EarlyStopping(**{**meta["stopping"], "patience": trainer.settings.patience})
    _restore_random(trainer, tensors, meta["random"], source)


def _capture_random(trainer: SplitTrainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    accelerator = trainer.accelerator
    mine = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    tensors: dict[str, Tensor] = {}
    for kind, state in mine.items():
        everyone = accelerator.gather(state.to(accelerator.device)[None]).cpu()
        tensors |= {f"random.{kind}.{rank}": row for rank, row in enumerate(everyone)}
    name, keys, *numbers = np.random.get_state()  # noqa: NPY002 - the global state is what is saved
    tensors["random.numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, words, gauss = random.getstate()
    tensors["random.python"] = torch.tensor(words, dtype=torch.int64)
    meta = {"numpy": [name, *numbers], "python": [version, gauss], "processes": accelerator.num_processes}
    return tensors, meta


def _restore_random(
    trainer: SplitTrainer, tensors: dict[str, Tensor], meta: dict[str, Any], source: object
) -> None:
    accelerator = trainer.accelerator
    if meta["processes"] != accelerator.num_processes:
        raise CheckpointError(
            f"{source} was written by {meta['processes']} processes and is resumed by {accelerator.num_processes}; "
            f"start {meta['processes']}"
        )
    rank = accelerator.process_index
    torch.set_rng_state(tensors[f"random.cpu.{rank}"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"random.cuda.{rank}"], accelerator.device)
    name, *numbers = meta["numpy"]
    words = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, words, *numbers))  # noqa: NPY002
    version, gauss = meta["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
