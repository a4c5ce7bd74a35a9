"""The user's own arrays: one `.npz`, or a folder of `.npy` and `.csv` files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import edges as edge_lists
from .errors import DataError, DataNotFoundError
from .labels import cells_of_array, cells_of_text, encode
from .node import Split
from .read import load_npy, load_npz, number, read_rows

_VALID = ("valid", "val")
_NAMES: dict[str, tuple[str, ...]] = {
    "x": ("x", "features", "node_features"),
    "ptr": ("ptr",),
    "y": ("y", "labels", "label", "node_labels"),
    "edges": ("edge_index", "edges"),
    "weight": ("edge_weight", "edge_weights"),
    "train_mask": ("train_mask", "train_masks"),
    "valid_mask": tuple(f"{v}_mask{s}" for v in _VALID for s in ("", "s")),
    "test_mask": ("test_mask", "test_masks"),
    "train_index": ("train_index", "train_idx", "train"),
    "valid_index": tuple(f"{v}{s}" for v in _VALID for s in ("_index", "_idx", "")),
    "test_index": ("test_index", "test_idx", "test"),
}
"""What an array is called, in an `.npz` or as the stem of a file; the first name is the one in the documentation."""


@dataclass
class Arrays:
    """Arrays found in one place, by role, each with its origin for errors."""

    place: Path
    found: dict[str, np.ndarray] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    text_labels: list[str | None] | None = None
    edge_file: Path | None = None

    def features(self) -> Tensor:
        """(n, c) float32."""
        x = self.found["x"]
        if x.ndim != 2:
            raise DataError(f"{self.origin['x']} has shape {x.shape}; expected (n, c): one row for each node")
        if x.dtype.kind not in "iufb":
            raise DataError(f"{self.origin['x']} is of type {x.dtype}; expected numbers")
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    def labels(self, classes: list[str] | None = None) -> tuple[Tensor, list[str]]:
        """Labels (n,) and class names; without labels all are -1 (only where `classes` are known)."""
        n = self.found["x"].shape[0]
        if self.text_labels is None and "y" not in self.found:
            return torch.full((n,), -1), list(classes or [])
        where = self.origin["y"]
        cells = self.text_labels if self.text_labels is not None else cells_of_array(self.found["y"], where)
        if len(cells) != n:
            raise DataError(
                f"{where} has {len(cells)} labels but {self.origin['x']} has {n} rows; expected {n} labels"
            )
        return encode(cells, where, classes)

    def edges(self, num_nodes: int) -> Tensor | None:
        return self.edges_and_weight(num_nodes)[0]

    def edges_and_weight(self, num_nodes: int) -> tuple[Tensor | None, Tensor | None]:
        """(2, e) and (e,), each None where there is none."""
        weight = None
        if self.edge_file is not None:
            edges, weight = edge_lists.from_file(self.edge_file, num_nodes)
        elif "edges" in self.found:
            edges = edge_lists.from_array(self.found["edges"], self.origin["edges"], num_nodes)
        else:
            edges = None
        if "weight" in self.found:
            weight = self._weight(edges)
        return edges, weight

    def _weight(self, edges: Tensor | None) -> Tensor:
        array, where = self.found["weight"], self.origin["weight"]
        if edges is None:
            raise DataError(f"{where} came without edges; give edge_index too")
        if array.shape != (edges.shape[1],) or array.dtype.kind not in "iuf":
            raise DataError(
                f"{where} is {array.shape} {array.dtype}; expected ({edges.shape[1]},) numbers, one for each edge"
            )
        return torch.from_numpy(array.astype(np.float32))


def read_npz(path: Path) -> Arrays:
    """Arrays of an `.npz`, whatever of the usual names they bear."""
    content = load_npz(path)
    arrays = Arrays(path)
    for role, names in _NAMES.items():
        for name in names:
            if name in content:
                arrays.found[role] = content[name]
                arrays.origin[role] = f"{path}: {name}"
                break
    if "x" not in arrays.found:
        raise DataError(
            f"{path} holds {sorted(content)}; expected x (n, c), y (n,), and if wanted edge_index (2, e), "
            "edge_weight (e,), train_mask, valid_mask, test_mask"
        )
    return arrays


def read_folder(folder: Path) -> Arrays:
    """Arrays of a folder: features.(npy|csv|npz), labels.(npy|csv), edges.(npy|csv), masks or index files."""
    arrays = Arrays(folder)
    path = _find(folder, "x", (".npy", ".csv", ".npz"))
    if path is None:
        inside = sorted(p.name for p in folder.iterdir())[:10]
        raise DataNotFoundError(
            f"folder {folder} lacks the features. Looked for {_wanted('x', ('.npy', '.csv', '.npz'))}; then for "
            f"{_wanted('y')}; {_wanted('edges')}; {_wanted('train_mask')} or {_wanted('train_index')}, and the same "
            f"for valid and test. The folder holds {inside or 'nothing'}"
        )
    arrays.found["x"], arrays.origin["x"] = _matrix(path), str(path)
    for role in _NAMES:
        found = None if role == "x" else _find(folder, role, (".npy", ".csv"))
        if found is None:
            continue
        arrays.origin[role] = str(found)
        if role == "edges" and found.suffix == ".csv":
            arrays.edge_file = found
        elif role == "y" and found.suffix == ".csv":
            arrays.text_labels = _label_column(found, arrays.found["x"].shape[0])
        elif found.suffix == ".csv":
            matrix = _matrix(found)
            arrays.found[role] = matrix[:, 0] if matrix.shape[1] == 1 else matrix
            if role.endswith(("mask", "index")):
                arrays.found[role] = _whole(arrays.found[role], str(found))
        else:
            arrays.found[role] = load_npy(found)
    return arrays


def read_features(path: Path) -> Arrays:
    """Only features: a `.npy` or a CSV file of numbers."""
    return Arrays(path, {"x": load_npy(path) if path.suffix == ".npy" else _matrix(path)}, {"x": str(path)})


def splits_of(arrays: Arrays, num_nodes: int) -> list[Split] | None:
    """Splits from masks ((n,), (n, s) or (s, n) booleans) or from index arrays; None where there are none."""
    for kind, read in (("mask", _masks), ("index", _indices)):
        roles = [f"{part}_{kind}" for part in ("train", "valid", "test")]
        there = [role for role in roles if role in arrays.found]
        if not there:
            continue
        if len(there) < 3:
            missing = next(role for role in roles if role not in there)
            raise DataError(
                f"{arrays.place}: {', '.join(there)} came without {missing}; give all three of "
                f"{', '.join(roles)}, or none (then 60 / 20 / 20 is drawn)"
            )
        parts = [read(arrays.found[role], arrays.origin[role], num_nodes) for role in roles]
        counts = [len(part) for part in parts]
        if len(set(counts)) > 1:
            raise DataError(f"{arrays.place}: {roles} hold {counts} splits; expected the same number in each")
        return [Split(*split) for split in zip(*parts, strict=True)]
    return None


def _masks(mask: np.ndarray, where: str, n: int) -> list[Tensor]:
    if mask.dtype.kind in "iu" and mask.size and set(np.unique(mask).tolist()) <= {0, 1}:
        mask = mask.astype(bool)
    if mask.dtype != np.bool_:
        raise DataError(
            f"{where} is of type {mask.dtype}; expected booleans (True = node belongs to this part)"
        )
    if mask.ndim == 2 and mask.shape[0] == n:
        mask = mask.T
    elif mask.shape == (n,):
        mask = mask[None]
    if mask.ndim != 2 or mask.shape[1] != n:
        raise DataError(
            f"{where} has shape {mask.shape}; expected ({n},), or ({n}, s) for s splits: one flag a row"
        )
    return [torch.from_numpy(np.flatnonzero(row)) for row in mask]


def _indices(index: np.ndarray, where: str, n: int) -> list[Tensor]:
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise DataError(
            f"{where} is {index.shape} {index.dtype}; expected (k,) row numbers from 0 to {n - 1}"
        )
    return [torch.from_numpy(index.astype(np.int64))]


def _find(folder: Path, role: str, suffixes: tuple[str, ...]) -> Path | None:
    there = [
        folder / f"{name}{s}" for name in _NAMES[role] for s in suffixes if (folder / f"{name}{s}").is_file()
    ]
    if len(there) > 1:
        raise DataError(f"{folder} holds {' and '.join(p.name for p in there)}, both for one thing; keep one")
    return there[0] if there else None


def _wanted(role: str, suffixes: tuple[str, ...] = (".npy", ".csv")) -> str:
    return "|".join(_NAMES[role]) + f"({'|'.join(suffixes)})"


def _matrix(path: Path) -> np.ndarray:
    """Numbers of a file as an array (n, c); a CSV header is skipped."""
    if path.suffix == ".npy":
        return load_npy(path)
    if path.suffix == ".npz":
        content = load_npz(path)
        if {"data", "shape", "format"} <= set(content):
            from scipy import sparse

            return sparse.load_npz(path).toarray()
        if len(content) != 1:
            raise DataError(
                f"{path} holds {sorted(content)}; expected one array, or a sparse matrix of SciPy"
            )
        return next(iter(content.values()))
    rows = read_rows(path)
    if all(number(cell) is None for cell in rows[0]):
        rows = rows[1:]
    values = np.empty((len(rows), len(rows[0]) if rows else 0))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            value = number(cell)
            if value is None:
                raise DataError(
                    f"{path}, row {i}, column {j}: {cell!r} is no number; expected numbers only. Tables with text, "
                    "empty cells and a label column load as one CSV file: osmose train table.csv"
                )
            values[i, j] = value
    return values


def _whole(values: np.ndarray, where: str) -> np.ndarray:
    if (values != np.round(values)).any():
        raise DataError(f"{where} holds fractions; expected 0 and 1 (a mask) or row numbers")
    return values.astype(np.int64)


def _label_column(path: Path, n: int) -> list[str | None]:
    rows = read_rows(path)
    if len(rows[0]) != 1:
        raise DataError(f"{path} has {len(rows[0])} columns; expected one, the class of every row")
    cells = [row[0] for row in rows]
    if len(cells) == n + 1:
        cells = cells[1:]
    return [None if c == "-1" else c for c in cells_of_text(cells)]
