"""The columns of a table into features: numbers standardised, texts one-hot, both fitted on training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, nearest, some
from .read import Table, is_missing, number, numbers

_LABELS = ("label", "labels", "class", "target", "y")
_IDS = ("id", "node", "node_id")
_MOST_CATEGORIES = 256


@dataclass
class Roles:
    """What each column is."""

    label: str | None
    id: str | None
    split: str | None
    features: list[str]
    notes: list[str]


def find_roles(table: Table, label: str | None, id: str | None, ignore: tuple[str, ...]) -> Roles:
    """Label, id and split columns by name or by guess; all others but `ignore` are features."""
    for argument, name in (("label", label), ("id", id), *(("ignore", i) for i in ignore)):
        if name is not None and name not in table.header:
            raise DataError(
                f"{table.path} has no column {name!r} ({argument}){nearest(name, table.header)}; "
                f"it has {some(table.header, 20)}"
            )
    notes = []
    if label is None:
        label = _guess_label(table)
        notes.append(f"label column: {label!r}")
    if id is None:
        id = next((n for n in table.header if n.lower() in _IDS and n != label and n not in ignore), None)
        if id is not None and not _distinct(table, id):
            id = None
    if id is not None and not _distinct(table, id):
        raise DataError(
            f"{table.path}: id column {id!r} holds empty or repeated cells; expected a different id a row"
        )
    split = next((n for n in table.header if n.lower() == "split" and n != label and n not in ignore), None)
    if split is not None and not {c.lower() for c in table.column(split)} <= {
        "train",
        "valid",
        "val",
        "test",
        "",
    }:
        split = None
    features = [n for n in table.header if n not in (label, id, split, "") and n not in ignore]
    if not features:
        raise DataError(
            f"{table.path} has no column left for features besides {some(table.header)}; add columns"
        )
    if id is not None:
        notes.append(f"id column: {id!r}, not a feature")
    if "" in table.header:
        notes.append("the first column has no name: taken as row numbers, not as a feature")
    return Roles(label, id, split, features, notes)


def _guess_label(table: Table) -> str:
    found = [n for n in table.header if n.lower() in _LABELS]
    if len(found) == 1:
        return found[0]
    problem = (
        f"columns {some(found)} could all be the label"
        if found
        else "no column is called label, class or target"
    )
    raise DataError(
        f"{table.path}: {problem}; name the label column (label=..., or --label). Columns: {some(table.header, 20)}"
    )


def _distinct(table: Table, name: str) -> bool:
    cells = table.column(name)
    return len(set(cells)) == len(cells) and not any(map(is_missing, cells))


@dataclass
class Columns:
    """Feature columns of one table, parsed: numbers with NaN for a missing cell, texts with "" for one."""

    numeric: dict[str, np.ndarray]
    text: dict[str, np.ndarray]
    categories: dict[str, list[str]]

    def fit(self, train: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Features (n, c) with statistics of the rows `train`, and what `transform` needs to redo them."""
        rows = train.numpy()
        numeric = []
        for name, values in self.numeric.items():
            known = values[rows][~np.isnan(values[rows])]
            size = float(np.abs(known).max(initial=0.0)) or 1.0
            mean = float((known / size).mean()) * size if known.size else 0.0
            scale = float((known / size).std()) * size if known.size else 0.0
            constant = scale <= 1e-12 * size
            numeric.append({"name": name, "mean": mean, "scale": 1.0 if constant else scale})
        categorical = [
            {
                "name": name,
                "categories": self.categories[name],
                "seen": sorted(set(cells[rows].tolist()) - {""}),
            }
            for name, cells in self.text.items()
        ]
        fitted = {"numeric": numeric, "categorical": categorical}
        return transform(self.numeric, self.text, fitted), fitted


def parse(table: Table, features: list[str]) -> tuple[Columns, list[str]]:
    """Numeric where every present cell is a number, else categorical; notes on missing cells."""
    columns, notes, wide = Columns({}, {}, {}), [], []
    for name in features:
        values = numbers(table.column(name))
        if values is not None:
            gaps = int(np.isnan(values).sum())
            if gaps == len(table):
                notes.append(f"column {name!r} is empty: left out")
                continue
            columns.numeric[name] = _finite(table, name, values)
            if gaps:
                notes.append(f"column {name!r}: {gaps} missing numbers set to the mean of the training rows")
            continue
        columns.text[name] = cells = _texts(table, name)
        columns.categories[name] = kinds = sorted(set(cells.tolist()) - {""})
        if len(kinds) > _MOST_CATEGORIES or len(kinds) == len(table) > 20:
            wide.append(f"{name!r} ({len(kinds)})")
        if gaps := int((cells == "").sum()):
            notes.append(f"column {name!r}: {gaps} missing texts, no category set")
    if wide:
        raise DataError(
            f"{table.path}: text columns with too many different texts to be categories: {', '.join(wide)} in "
            f"{len(table)} rows. Names or numbers with stray text? Clean them or leave them out (ignore=..., or --ignore)"
        )
    if not columns.numeric and not columns.text:
        raise DataError(f"{table.path}: all feature columns are empty; fill at least one")
    return columns, notes


def transform(numeric: dict[str, np.ndarray], text: dict[str, np.ndarray], fitted: dict[str, Any]) -> Tensor:
    """Features (n, c): (value - mean) / scale, 0 for a missing number; one column a category, all 0 for a
    missing text, a new one, or one that the training rows did not hold."""
    parts = []
    for column in fitted["numeric"]:
        values = (numeric[column["name"]] - column["mean"]) / column["scale"]
        parts.append(np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)[:, None])
    for column in fitted["categorical"]:
        cells, seen = text[column["name"]], set(column["seen"])
        kinds = [c if c in seen else None for c in column["categories"]]
        parts.append(
            np.stack([cells == c if c is not None else np.zeros(len(cells), bool) for c in kinds], 1)
        )
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.concatenate([p.astype(np.float32) for p in parts], axis=1))


def apply(table: Table, fitted: dict[str, Any]) -> tuple[Tensor, list[str]]:
    """Features of a new table with the columns and statistics of the training table."""
    wanted = [c["name"] for c in fitted["numeric"] + fitted["categorical"]]
    missing = [name for name in wanted if name not in table.header]
    if missing:
        raise DataError(
            f"{table.path} lacks the columns {some(missing)} that the model was trained on"
            f"{nearest(missing[0], table.header)}; it has {some(table.header, 20)}"
        )
    numeric = {c["name"]: _numbers(table, c["name"]) for c in fitted["numeric"]}
    text = {c["name"]: _texts(table, c["name"]) for c in fitted["categorical"]}
    notes = []
    for column in fitted["categorical"]:
        new = sorted(set(text[column["name"]].tolist()) - {""} - set(column["seen"]))
        if new:
            notes.append(f"column {column['name']!r}: {some(new)} not in the training rows, no category set")
    return transform(numeric, text, fitted), notes


def _numbers(table: Table, name: str) -> np.ndarray:
    values = numbers(table.column(name))
    if values is None:
        cells = enumerate(table.column(name))
        row, cell = next((i, c) for i, c in cells if not is_missing(c) and number(c) is None)
        raise DataError(
            f"{table.path}, column {name!r}, row {row}: {cell!r} is no number; expected one, or empty"
        )
    return _finite(table, name, values)


def _finite(table: Table, name: str, values: np.ndarray) -> np.ndarray:
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        cell = table.column(name)[row]
        raise DataError(
            f"{table.path}, column {name!r}, row {row}: {cell!r} is infinite; expected a finite number"
        )
    return values


def _texts(table: Table, name: str) -> np.ndarray:
    return np.array(["" if is_missing(c) else c for c in table.column(name)], dtype=object)
