"""How the fast path cuts packed sets into blocks of rows that stay in cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

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
