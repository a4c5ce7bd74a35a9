"""How fast paths cut packed sets into blocks of rows that stay in cache, and the buffers and products of a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 20  # one operand of a block on a CPU, half of a second-level cache
BLOCK_BYTES_GPU = 1 << 27


@dataclass(frozen=True)
class Block:
    """Rows ``start:stop``, made of consecutive pieces: which set of the group, and how many rows."""

    start: int
    stop: int
    sets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Consecutive sets ``first:last`` swept together: small ones in one block, or one set in many blocks."""

    first: int
    last: int
    targets: tuple[Block, ...]
    sources: tuple[Block, ...]


def block_rows(heads: int, width: int, itemsize: int, device_type: str) -> int:
    """Rows of a block of ``heads`` x ``width`` numbers."""
    budget = BLOCK_BYTES if device_type == "cpu" else BLOCK_BYTES_GPU
    return max(64, budget // (max(heads, 1) * width * itemsize))


@lru_cache(maxsize=64)
def plan(targets: tuple[int, ...], sources: tuple[int, ...], rows: int) -> tuple[Group, ...]:
    """Groups that cover the sets bounded by ``targets`` and ``sources``, about ``rows`` rows to a block."""
    return tuple(_groups(targets, sources, rows))


def _groups(targets: tuple[int, ...], sources: tuple[int, ...], rows: int) -> Iterator[Group]:
    first, sets = 0, len(targets) - 1
    while first < sets:
        last = first + 1
        while (
            last < sets
            and targets[last + 1] - targets[first] <= rows
            and sources[last + 1] - sources[first] <= rows
        ):
            last += 1
        yield Group(first, last, _blocks(targets, first, last, rows), _blocks(sources, first, last, rows))
        first = last


def _blocks(bounds: tuple[int, ...], first: int, last: int, rows: int) -> tuple[Block, ...]:
    start, stop = bounds[first], bounds[last]
    if last - first > 1:
        sets = tuple(i for i in range(last - first) if bounds[first + i + 1] > bounds[first + i])
        sizes = tuple(bounds[first + i + 1] - bounds[first + i] for i in sets)
        return (Block(start, stop, sets, sizes),) if sets else ()
    cuts = [*range(start, stop, rows), stop]
    return tuple(Block(a, b, (0,), (b - a,)) for a, b in pairwise(cuts))


class Workspace:
    """Block buffers, made once for a sweep. Rows begin at multiples of 64 bytes.

    ``rows_first`` lays a buffer out as ``(rows, lead, width)``, as token-major points are: what is computed elementwise
    then runs over memory without a break.
    """

    def __init__(
        self, like: Tensor, lead: tuple[int, ...], rows: int, dtype: torch.dtype, rows_first: bool = False
    ):
        self.like, self.lead, self.rows, self.dtype = like, lead, rows, dtype
        self.rows_first = rows_first
        self.buffers: dict[str, Tensor] = {}

    def get(self, name: str, rows: int, width: int) -> Tensor:
        """An uninitialised ``(..., rows, width)``."""
        if name not in self.buffers:
            shape = (self.rows, *self.lead) if self.rows_first else (*self.lead, self.rows)
            buffer = self.like.new_empty((*shape, -(-width // 16) * 16), dtype=self.dtype)
            self.buffers[name] = buffer.movedim(0, -2) if self.rows_first else buffer
        return self.buffers[name][..., :rows, :width]


def pieces(x: Tensor, block: Block) -> tuple[Tensor, ...]:
    """The rows ``(..., L, c)`` of a block set by set."""
    return (x,) if len(block.sizes) == 1 else x.split(block.sizes, -2)


def product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """``out = a b (+ bias)``; heads one by one on a CPU, whose batched product is slow on strided operands."""
    if out.ndim == 3 and out.device.type == "cpu":
        for h in range(len(out)):
            product(a[h], b[h], out[h], None if bias is None else bias[h])
    elif bias is not None:
        (torch.addmm if out.ndim == 2 else torch.baddbmm)(bias, a, b, out=out)
    else:
        (torch.mm if out.ndim == 2 else torch.bmm)(a, b, out=out)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a b``"""
    if out.ndim == 2:
        out.addmm_(a, b)
    else:
        out.baddbmm_(a, b)
