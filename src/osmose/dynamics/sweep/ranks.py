"""Chunks over processes: which are this one's, and how all get all of them. The engine is ``torch.distributed``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=30)  # ranks wait for the slowest one


class Ranks:
    """The processes that share a sweep; one alone is rank 0 of 1."""

    def __init__(self, rank: int = 0, world: int = 1, group: Any = None):
        self.rank, self.world, self.group = rank, world, group

    def owns(self, number: int) -> bool:
        """Whether a chunk is this process's: they take turns, whatever is finished already, so that all agree."""
        return number % self.world == self.rank

    def all(self, mine: dict[int, Any]) -> dict[int, Any]:
        """What all processes have, in each of them."""
        if self.world == 1:
            return mine
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, mine, group=self.group)
        return {k: v for part in parts for k, v in part.items()}


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes as ``torch.distributed`` or the environment (``torchrun``) has them.

    The group of processes that is made here is taken down again.
    """
    begun = dist.is_available() and dist.is_initialized()
    world = dist.get_world_size() if begun else int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or not (begun or "RANK" in os.environ):
        yield Ranks()
        return
    # whatever the backend of a group that is there, objects go through one of the CPU that waits
    group = dist.new_group(backend="gloo", timeout=PATIENCE) if begun else _begun()
    try:
        yield Ranks(dist.get_rank(), world, group)
    finally:
        dist.destroy_process_group(group)


_STORES: list[Any] = []  # where the processes of this environment meet: one, once it is made
_GROUPS = count()


def _begun() -> Any:
    """The processes of the environment as a group. Each time under names of its own, or a process meets traces of the last one."""
    if not _STORES:
        _STORES.append(next(dist.rendezvous("env://")))
    store, rank, world = _STORES[0]
    names = dist.PrefixStore(f"osmose.sweep/{next(_GROUPS)}", store)
    dist.init_process_group("gloo", store=names, rank=rank, world_size=world, timeout=PATIENCE)
    return dist.group.WORLD


def chosen_device(asked: str | torch.device) -> torch.device:
    """``auto`` is this process's GPU where there is one (``LOCAL_RANK``), else the CPU."""
    if str(asked) != "auto":
        device = torch.device(asked)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"sweep: device is {str(asked)!r} and there is no GPU here; expected 'cpu' or 'auto'."
            )
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
