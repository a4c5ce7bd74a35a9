"""New rows, sequences or images for a trained model, prepared with the statistics of its training data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import edges as edge_lists
from .arrays import Arrays, read_features
from .errors import DataError, some
from .graph import canonical, knn_graph
from .images import ImageData
from .kind import IMAGE_FILES
from .labels import cells_of_text, encode
from .node import NodeData
from .own import read_arrays, read_edges
from .read import read_table
from .resolve import TABLES, existing_source, load_source, named
from .sequence import SequenceData
from .table import apply


def load_new_source(
    source: str | Path, preprocessing: dict[str, Any], *, edges: Path | None, root: Path | None
) -> NodeData | SequenceData | ImageData:
    """`osmose.data.load_new`."""
    kind = preprocessing.get("kind")
    if kind not in ("named", "arrays", "table", "sequences", "images"):
        raise DataError(
            f"preprocessing is of kind {kind!r}; expected 'named', 'arrays', 'table', 'sequences' or 'images', as `load` "
            "gives it"
        )
    if kind in ("sequences", "images"):
        if edges is not None:
            raise DataError(
                f"edges = {edges}, but the model was trained on {kind}, which have none; leave it out"
            )
        return (_sequences if kind == "sequences" else _images)(source, preprocessing)
    name = named(source)
    if name is not None:
        return _whole_set(name, preprocessing, edges, root)
    path = existing_source(source)
    if kind == "table":
        return _table(path, preprocessing, edges)
    if preprocessing.get("words") and path.suffix.lower() in TABLES:
        return _texts(path, preprocessing)
    return _arrays(path, preprocessing, edges)


def _sequences(source: str | Path, preprocessing: dict[str, Any]) -> SequenceData:
    form = preprocessing["form"]
    other = {"series": "a .ts file or ", "bytes": "a CSV with a column 'text' or "}.get(form, "")
    wanted = f"new sequences as {other}an .npz"
    name = named(source)
    if name is not None:
        raise DataError(f"{name!r} is a named data set; expected {wanted}")
    path = existing_source(source)
    if path.suffix.lower() == ".ts" and form == "series" and path.is_file():
        from .uea import new_ts

        return new_ts(path, preprocessing)
    if path.suffix.lower() in TABLES and form == "bytes" and path.is_file():
        from .imdb import new_texts

        return new_texts(path, preprocessing)
    if path.suffix.lower() == ".npz" and path.is_file():
        from .sequence_arrays import new_sequence_arrays

        return new_sequence_arrays(path, preprocessing)
    raise DataError(f"{path}: the model was trained on sequences; expected {wanted}")


def _images(source: str | Path, preprocessing: dict[str, Any]) -> ImageData:
    wanted = "new images as an .npz, a .png or .jpg file, or a folder of them"
    name = named(source)
    if name is not None:
        raise DataError(f"{name!r} is a named data set; expected {wanted}")
    path = existing_source(source)
    if not path.is_dir() and path.suffix.lower() not in (".npz", *IMAGE_FILES):
        raise DataError(f"{path}: the model was trained on images; expected {wanted}")
    from .own_images import new_images

    return new_images(path, preprocessing)


def _whole_set(name: str, preprocessing: dict[str, Any], edges: Path | None, root: Path | None) -> NodeData:
    trained = preprocessing.get("name")
    if trained != name:
        own = "your own table" if preprocessing["kind"] == "table" else "your own arrays"
        raise DataError(
            f"the model was trained on {own if trained is None else repr(trained)}, not on {name!r}; "
            "give rows or nodes of the same form as its training data"
        )
    data = load_source(
        name,
        protocol=None,
        splits=None,
        edges=edges,
        root=root,
        label=None,
        id=None,
        ignore=(),
        directed=False,
        seed=0,
        labels_per_class=None,
        knn=preprocessing.get("knn"),
    )
    assert isinstance(data, NodeData)
    return replace(data, splits=[], protocol="new")


def _table(path: Path, preprocessing: dict[str, Any], edges: Path | None) -> NodeData:
    if not path.is_file() or path.suffix.lower() not in TABLES:
        raise DataError(
            f"{path}: the model was trained on a CSV table; expected a .csv with the same columns"
        )
    table = read_table(path)
    x, notes = apply(table, preprocessing)
    label, id = preprocessing["label"], preprocessing["id"]
    cells: list[str | None] = [None] * len(table)
    if label in table.header:
        cells = cells_of_text(table.column(label))
    y, classes = encode(cells, f"{path}, label column {label!r}", preprocessing["classes"])
    ids = table.column(id) if id in table.header else None
    found, weight = (None, None) if edges is None else edge_lists.from_file(edges, len(table), ids)
    linked = (
        None if found is None else canonical(found, weight, len(table), directed=preprocessing["directed"])
    )
    return _new(path, x, y, classes, linked, preprocessing, notes, ids)


def _arrays(path: Path, preprocessing: dict[str, Any], edges: Path | None) -> NodeData:
    arrays: Arrays
    if path.is_file() and path.suffix.lower() in (".npy", *TABLES):
        arrays = read_features(path)
    elif path.is_dir() or path.suffix.lower() == ".npz":
        arrays = read_arrays(path)
    else:
        raise DataError(
            f"{path} is of an unknown kind; expected an .npz, a folder, or a .npy or .csv of features"
        )
    x = arrays.features()
    if x.shape[1] != preprocessing["features"]:
        raise DataError(
            f"{arrays.origin['x']} has {x.shape[1]} features; the model was trained on {preprocessing['features']}"
        )
    if preprocessing.get("normalize") == "row":
        from .planetoid import row_normalize

        x = row_normalize(x)
    y, classes = arrays.labels(preprocessing["classes"])
    edge_index, weight, notes = read_edges(arrays, edges, x.shape[0], preprocessing.get("directed", False))
    linked = None if edge_index is None else (edge_index, weight, notes)
    return _new(path, x, y, classes, linked, preprocessing, [], None)


def _texts(path: Path, preprocessing: dict[str, Any]) -> NodeData:
    from .newsgroups import tfidf

    table = read_table(path)
    if "text" not in table.header:
        raise DataError(
            f"{path} has columns {some(table.header)}; expected a column 'text' with the messages"
        )
    x = tfidf(table.column("text"), preprocessing["words"], preprocessing["idf"])
    y = torch.full((len(table),), -1)
    return _new(path, x, y, preprocessing["classes"], None, preprocessing, [], None)


def _new(
    path: Path,
    x: Tensor,
    y: Tensor,
    classes: list[str],
    linked: tuple[Tensor, Tensor | None, list[str]] | None,
    preprocessing: dict[str, Any],
    notes: list[str],
    ids: list[str] | None,
) -> NodeData:
    """Assemble; a model that had edges in training gets an empty graph where none came."""
    edge_index, weight = None, None
    if linked is not None:
        edge_index, weight, more = linked
        notes = notes + more
    elif preprocessing.get("knn"):
        edge_index = knn_graph(x, preprocessing["knn"])
        notes = [*notes, f"graph: {preprocessing['knn']} nearest neighbours among the new rows"]
    elif preprocessing.get("edges") or preprocessing["kind"] == "named":
        edge_index = torch.zeros(2, 0, dtype=torch.int64)
        notes = [*notes, "no edges came with the new rows: every node stands alone in the graph term"]
    return NodeData(
        name=path.stem,
        protocol="new",
        x=x,
        y=y,
        edge_index=edge_index,
        edge_weight=weight,
        splits=[],
        classes=classes,
        preprocessing=preprocessing,
        notes=notes,
        ids=ids,
    )
