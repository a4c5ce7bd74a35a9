"""Edge lists from files: arrays of indices, or CSV lines `source, target[, weight]`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, nearest
from .read import existing, load_npy, number, read_rows

_HEADER = {"source", "target", "src", "dst", "from", "to", "node1", "node2", "id1", "id2", "u", "v", "a", "b"}
"""First cells of a header line, where nodes have names."""


def from_array(array: np.ndarray, where: str, num_nodes: int) -> Tensor:
    """(2, e) int64 from an integer array (2, e) or (e, 2); of shape (2, 2), rows are source and target."""
    if array.size == 0:
        return torch.zeros(2, 0, dtype=torch.int64)
    if array.ndim != 2 or 2 not in array.shape:
        raise DataError(
            f"{where} has shape {array.shape}; expected (2, e): row 0 the sources, row 1 the targets"
        )
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{where} is of type {array.dtype}; expected integers, the row numbers of the nodes from 0. "
            "If they are whole numbers, save them with .astype('int64')"
        )
    if array.shape[0] != 2:
        array = array.T
    wrong = ((array < 0) | (array >= num_nodes)).any(0)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{where}: {int(wrong.sum())} edges leave the nodes, the first number {first}, "
            f"{tuple(array[:, first].tolist())}; expected 0 to {num_nodes - 1}, because there are {num_nodes} rows. "
            "Count nodes from 0"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def from_file(path: Path, num_nodes: int, ids: list[str] | None = None) -> tuple[Tensor, Tensor | None]:
    """Edges (2, e) and weights (e,) or None from `.npy` or CSV; `ids` names the nodes, None: row numbers from 0."""
    existing(path, "edges:")
    if path.suffix == ".npy":
        return from_array(load_npy(path), str(path), num_nodes), None
    if path.stat().st_size == 0:
        return torch.zeros(2, 0, dtype=torch.int64), None
    rows = read_rows(path)
    if len(rows[0]) not in (2, 3):
        raise DataError(f"{path} has {len(rows[0])} columns; expected source, target and, if wanted, weight")
    row_of = {name: i for i, name in enumerate(map(str, range(num_nodes)) if ids is None else ids)}
    first = 1 if _is_header(rows[0], row_of, ids is None) else 0
    ends = [[row_of.get(row[end], -1) for row in rows[first:]] for end in (0, 1)]
    pairs = np.array(ends, dtype=np.int64)
    if (pairs < 0).any():
        edge = int((pairs < 0).any(0).argmax())
        cell = rows[first + edge][0 if pairs[0, edge] < 0 else 1]
        raise DataError(_unknown_node(path, first + edge, cell, num_nodes, ids))
    weight = _weights(path, rows[first:]) if len(rows[0]) == 3 else None
    return torch.from_numpy(pairs), weight


def _is_header(row: list[str], row_of: dict[str, int], numbered: bool) -> bool:
    """Where nodes are row numbers a line without numbers is a header; among names only the usual words are."""
    if row[0] in row_of or row[1] in row_of:
        return False
    if numbered:
        return all(number(cell) is None for cell in row[:2])
    return all(cell.lower() in _HEADER for cell in row[:2])


def _unknown_node(path: Path, line: int, cell: str, num_nodes: int, ids: list[str] | None) -> str:
    where = f"{path}, edge line {line + 1}: node {cell!r}"
    if ids is not None:
        return (
            f"{where} is not in the id column{nearest(cell, ids)}; give every node a row in the table "
            "(a header line should say source,target)"
        )
    if number(cell) is None:
        return f"{where} is no row number; count rows from 0, or name the column of ids (id=..., or --id)"
    return f"{where} is no row of the data; expected whole numbers 0 to {num_nodes - 1} (or name the column of ids)"


def _weights(path: Path, rows: list[list[str]]) -> Tensor:
    values = [number(row[2]) for row in rows]
    if None in values:
        bad = values.index(None)
        raise DataError(f"{path}: edge weight {rows[bad][2]!r} is no number; expected numbers, at least 0")
    return torch.tensor(values, dtype=torch.float32)
