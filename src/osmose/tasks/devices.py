"""The accelerator (device, precision, processes), seeds, and work that only the main process does."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch._dynamo  # before a process group exists: imported later, it keeps the group's threads alive to the end
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import broadcast_object_list

from osmose.tasks.config import TrainConfig
from osmose.tasks.recipes import check_name

T = TypeVar("T")


def make_accelerator(config: TrainConfig, *, tracking: Path | None = None) -> Accelerator:
    """Accelerator for these settings; `tracking` is the folder in which trackers keep their files.

    Raises ValueError for a precision that the device does not have and for unknown or missing trackers.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    if config.precision == "fp16" and on_cpu:
        raise ValueError("--precision fp16 needs a GPU; on the CPU use --precision bf16 or no")
    for name in config.trackers:
        check_name(name, LOGGER_TYPE_TO_CLASS, "tracker")
    AcceleratorState._reset_state()  # a process may train with one precision, then with another
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.precision,
        log_with=list(config.trackers) if config.trackers else None,
        project_dir=str(tracking) if tracking else None,
    )
    available = {getattr(tracker, "value", tracker) for tracker in accelerator.log_with}
    missing = [name for name in config.trackers if name not in available]
    if missing:
        raise ValueError(
            f"--trackers {' '.join(missing)}: the package is not installed; try pip install {missing[0]}"
        )
    return accelerator


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that draw from the global state
    torch.manual_seed(seed)


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run `work` on the main process and give its result, or raise its error, on every process."""
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
