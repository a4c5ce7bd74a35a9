"""ListOps, generated: nested operators on digits, whose value is the class.

Rules of Long Range Arena (Tay et al., https://arxiv.org/abs/2011.04006, after Nangia and Bowman,
https://arxiv.org/abs/1804.06028). `tree(depth)`, the root at depth 1: with probability `operators`, and only above
`max_depth`, an operator with 2 to `max_args` arguments, each `tree(depth + 1)`; else a digit. Trees of at most
`min_length` or at least `max_length` tokens are left out, and so are repetitions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from .cache import cache_dir, kept_arrays, replacing
from .errors import DataError
from .node import Split
from .sequence import SequenceData

SYMBOLS = [*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]"]
"""Names of the tokens by id."""
_MIN, _MAX, _MED, _SM, _CLOSE = range(10, 15)
SIZE = 100_000
_SMALLEST = 100
_TREES = 8192  # grown at a time; part of what a seed means


@dataclass(frozen=True)
class Rules:
    """What is generated."""

    max_depth: int = 10
    max_args: int = 10
    operators: float = 0.25
    min_length: int = 500
    max_length: int = 2000
    seed: int = 0


def load_listops(*, size: int | None) -> SequenceData:
    """`size` expressions of 500 to 2000 tokens, 96 / 2 / 2 % for train, valid and test; kept in the cache folder.

    A smaller size gives the first expressions of a larger one.
    """
    number = SIZE if size is None else size
    if not _SMALLEST <= number <= SIZE:
        raise DataError(f"load('listops'): size is {number}; expected {_SMALLEST} to {SIZE}")
    path = cache_dir() / f"listops-{number}.npz"
    arrays = kept_arrays(path, {"values", "ptr", "y"})
    if arrays is None:
        values, ptr, y = generate(number, Rules())
        arrays = {"values": values, "ptr": ptr, "y": y}
        with replacing(path) as part:
            np.savez(part, allow_pickle=False, **arrays)
    valid = test = number // 50
    bounds = torch.arange(number).split([number - valid - test, valid, test])
    return SequenceData(
        name="listops",
        protocol="generated",
        values=torch.from_numpy(arrays["values"]),
        ptr=torch.from_numpy(arrays["ptr"]),
        y=torch.from_numpy(arrays["y"]),
        vocab=len(SYMBOLS),
        splits=[Split(*bounds)],
        classes=SYMBOLS[:10],
        preprocessing={
            "kind": "sequences",
            "form": "symbols",
            "vocab": len(SYMBOLS),
            "classes": SYMBOLS[:10],
        },
        notes=[f"{number} expressions, generated with seed {Rules().seed}"],
    )


def generate(size: int, rules: Rules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (total,) uint8 of `size` different expressions, their bounds (size + 1,) and values (size,).

    Cost: linear in the tokens; 100,000 expressions, 104 million tokens, take about a quarter of a minute.
    """
    rng = np.random.default_rng(rules.seed)
    pieces: list[np.ndarray] = []
    answers: list[int] = []
    seen: set[bytes] = set()
    while len(pieces) < size:
        tokens, ptr, values = _forest(_TREES, rules, rng)
        for start, end, value in zip(ptr[:-1], ptr[1:], values, strict=True):
            mark = hashlib.blake2b(tokens[start:end].tobytes(), digest_size=16).digest()
            if mark not in seen and len(pieces) < size:
                seen.add(mark)
                pieces.append(tokens[start:end])
                answers.append(int(value))
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    return np.concatenate(pieces), np.concatenate([[0], lengths.cumsum()]), np.array(answers, dtype=np.int64)


@dataclass
class _Level:
    """All nodes of one depth of all trees; the children of an operator stand side by side in the next level."""

    symbol: np.ndarray
    """(n,) digit or operator"""
    starts: np.ndarray
    """(operators,) first child in the next level"""
    counts: np.ndarray
    """(operators,) number of children"""

    @property
    def is_operator(self) -> np.ndarray:
        return self.symbol >= _MIN


def _forest(trees: int, rules: Rules, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, bounds and values of those of `trees` random trees that have the right length."""
    levels = _grow(trees, rules, rng)
    lengths, values = _measure(levels)
    keep = (lengths[0] > rules.min_length) & (lengths[0] < rules.max_length)
    ptr = np.concatenate([[0], lengths[0][keep].cumsum()])
    return _write(levels, lengths, keep, ptr), ptr, values[keep]


def _grow(trees: int, rules: Rules, rng: np.random.Generator) -> list[_Level]:
    levels, n = [], trees
    for depth in range(1, rules.max_depth + 1):
        operator = rng.random(n) <= rules.operators if depth < rules.max_depth else np.zeros(n, dtype=bool)
        symbol = np.where(operator, rng.integers(_MIN, _CLOSE, n), rng.integers(0, 10, n))
        counts = rng.integers(2, rules.max_args + 1, int(operator.sum()))
        levels.append(_Level(symbol, counts.cumsum() - counts, counts))
        n = int(counts.sum())
        if n == 0:
            break
    return levels


def _measure(levels: list[_Level]) -> tuple[list[np.ndarray], np.ndarray]:
    """Tokens of the subtree of every node, level by level, and the values of the roots."""
    lengths: list[np.ndarray] = []
    below_length = below_value = np.empty(0, dtype=np.int64)
    for level in reversed(levels):
        length, value = np.ones(len(level.symbol), dtype=np.int64), level.symbol.copy()
        if len(level.counts):
            length[level.is_operator] = 2 + np.add.reduceat(below_length, level.starts)
            value[level.is_operator] = _apply(level, below_value)
        lengths.insert(0, length)
        below_length, below_value = length, value
    return lengths, below_value


def _apply(level: _Level, below: np.ndarray) -> np.ndarray:
    """Values of the operators of a level from those of their children. The median of an even number is rounded down."""
    parent = np.repeat(np.arange(len(level.counts)), level.counts)
    ordered = below[np.argsort(parent * 10 + below, kind="stable")]
    low = ordered[level.starts + (level.counts - 1) // 2]
    high = ordered[level.starts + level.counts // 2]
    return np.select(
        [level.symbol[level.is_operator] == name for name in (_MIN, _MAX, _MED)],
        [ordered[level.starts], ordered[level.starts + level.counts - 1], (low + high) // 2],
        np.add.reduceat(below, level.starts) % 10,
    )


def _write(levels: list[_Level], lengths: list[np.ndarray], keep: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """Tokens of the trees in `keep`, each in its place: an operator, its arguments, the closing token."""
    out = np.empty(ptr[-1], dtype=np.uint8)
    place = np.zeros(len(keep), dtype=np.int64)
    place[keep] = ptr[:-1]
    for level, length, below in zip(levels, lengths, [*lengths[1:], None], strict=True):
        out[place[keep]] = level.symbol[keep]
        operator = level.is_operator
        ends = operator & keep
        out[place[ends] + length[ends] - 1] = _CLOSE
        if below is None or not len(level.counts):
            break
        before = below.cumsum() - below
        before -= np.repeat(before[level.starts], level.counts)  # tokens of the earlier siblings
        place = np.repeat(place[operator] + 1, level.counts) + before
        keep = np.repeat(keep[operator], level.counts)
    return out
