"""The user's own data: a CSV table, an `.npz`, or a folder of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import arrays as array_files
from . import edges as edge_lists
from . import table as tables
from .catalog import OWN_PROTOCOLS
from .errors import DataError, nearest
from .graph import canonical, knn_graph
from .labels import cells_of_text, encode
from .node import NodeData, Split, check_split
from .read import Table, read_table
from .splits import per_class, stratified


def load_table(
    path: Path,
    *,
    protocol: str | None,
    splits: int | None,
    seed: int,
    labels_per_class: int | None,
    label: str | None,
    edges: Path | None,
    id: str | None,
    ignore: tuple[str, ...],
    knn: int | None,
    directed: bool,
) -> NodeData:
    """A CSV table: a row is a node. Numbers are standardised and texts one-hot with statistics of training rows."""
    table = read_table(path)
    roles = tables.find_roles(table, label, id, ignore)
    assert roles.label is not None
    columns, parsed = tables.parse(table, roles.features)
    where = f"{path}, label column {roles.label!r}"
    y, classes = encode(cells_of_text(table.column(roles.label)), where)
    ids = table.column(roles.id) if roles.id else None
    edge_index, weight = None, None
    linked: list[str] = []
    if edges is not None:
        edge_index, weight = edge_lists.from_file(edges, len(table), ids)
        edge_index, weight, linked = canonical(edge_index, weight, len(table), directed=directed)
    given = _split_column(table, roles.split)
    protocol, drawn = own_splits(path, y, given, protocol, splits, seed, labels_per_class)
    for split in drawn:
        check_split(str(path), split, y, classes)
    common: dict[str, Any] = {
        "kind": "table",
        "label": roles.label,
        "id": roles.id,
        "classes": classes,
        "directed": directed,
    }
    common |= {"knn": knn, "edges": edges is not None}

    def refit(split: Split) -> tuple[Tensor, dict[str, Any]]:
        x, fitted = columns.fit(split.train)
        return x, common | fitted

    x, preprocessing = refit(drawn[0])
    edge_index, extra = _maybe_knn(x, edge_index, knn)
    return NodeData(
        name=path.stem,
        protocol=protocol,
        x=x,
        y=y,
        edge_index=edge_index,
        edge_weight=weight,
        splits=drawn,
        classes=classes,
        preprocessing=preprocessing,
        notes=roles.notes + parsed + linked + extra + _unlabelled(y),
        ids=ids,
        refit=refit,
    )


def load_arrays(
    path: Path,
    *,
    protocol: str | None,
    splits: int | None,
    seed: int,
    labels_per_class: int | None,
    edges: Path | None,
    knn: int | None,
    directed: bool,
) -> NodeData:
    """An `.npz` or a folder of arrays; features are used as they are."""
    arrays = read_arrays(path)
    if "y" not in arrays.origin:
        looked = "labels.npy or labels.csv" if path.is_dir() else "an array y"
        raise DataError(
            f"{path} holds no labels; looked for {looked}. Give -1 (or an empty cell) where unknown"
        )
    x = arrays.features()
    n = x.shape[0]
    y, classes = arrays.labels()
    edge_index, weight, notes = read_edges(arrays, edges, n, directed)
    protocol, drawn = own_splits(
        path, y, array_files.splits_of(arrays, n), protocol, splits, seed, labels_per_class
    )
    linked = edge_index is not None
    edge_index, extra = _maybe_knn(x, edge_index, knn)
    return NodeData(
        name=path.stem if path.is_file() else path.name,
        protocol=protocol,
        x=x,
        y=y,
        edge_index=edge_index,
        edge_weight=weight,
        splits=drawn,
        classes=classes,
        preprocessing={
            "kind": "arrays",
            "features": x.shape[1],
            "classes": classes,
            "directed": directed,
            "knn": knn,
            "edges": linked,
        },
        notes=notes + extra + _unlabelled(y),
    )


def read_arrays(path: Path) -> array_files.Arrays:
    """Arrays of a folder or an `.npz`."""
    return array_files.read_folder(path) if path.is_dir() else array_files.read_npz(path)


def read_edges(
    arrays: array_files.Arrays, edges: Path | None, n: int, directed: bool
) -> tuple[Tensor | None, Tensor | None, list[str]]:
    """Edges from the file `edges`, else from the arrays, in canonical form."""
    if edges is not None:
        if "edges" in arrays.origin:
            raise DataError(
                f"edges = {edges}, but {arrays.origin['edges']} holds edges too; give one of them"
            )
        edge_index, weight = edge_lists.from_file(edges, n)
    else:
        found, weight = arrays.edges_and_weight(n)
        if found is None:
            return None, None, []
        edge_index = found
    return canonical(edge_index, weight, n, directed=directed)


def own_splits(
    path: Path,
    y: Tensor,
    given: list[Split] | None,
    protocol: str | None,
    splits: int | None,
    seed: int,
    labels_per_class: int | None,
) -> tuple[str, list[Split]]:
    """The protocol and its splits: `given` where the data bring splits, else drawn."""
    if protocol is None:
        protocol = "given" if given else "few-label" if labels_per_class is not None else "stratified"
    if protocol not in OWN_PROTOCOLS:
        raise DataError(
            f"{path}: protocol is {protocol!r}; expected one of {', '.join(map(repr, OWN_PROTOCOLS))}"
            + nearest(protocol, OWN_PROTOCOLS)
        )
    if (labels_per_class is not None) != (protocol == "few-label"):
        raise DataError(
            f"{path}: protocol {protocol!r} with labels_per_class = {labels_per_class}; labels_per_class goes "
            "with protocol 'few-label', and only there"
        )
    number = 5 if splits is None else splits
    if protocol == "few-label":
        assert labels_per_class is not None
        return protocol, per_class(y, labels_per_class=labels_per_class, valid=None, splits=number, seed=seed)
    if protocol == "stratified":
        return protocol, stratified(y, splits=number, seed=seed)
    if given is None:
        raise DataError(
            f"{path}: protocol 'given' but the data hold no splits; give train, valid and test masks (or a column "
            "'split' in a table), or use protocol 'stratified'"
        )
    return protocol, given[:splits]


def _split_column(table: Table, name: str | None) -> list[Split] | None:
    if name is None:
        return None
    part = np.array([cell.lower() for cell in table.column(name)])
    parts = (part == "train", np.isin(part, ("valid", "val")), part == "test")
    return [Split(*(torch.from_numpy(np.flatnonzero(p)) for p in parts))]


def _maybe_knn(x: Tensor, edge_index: Tensor | None, knn: int | None) -> tuple[Tensor | None, list[str]]:
    if knn is None:
        return edge_index, []
    if edge_index is not None:
        raise DataError(
            f"knn = {knn}, but the data have edges; a graph of nearest neighbours is for data without"
        )
    return knn_graph(x, knn), [f"graph: {knn} nearest neighbours of every row"]


def _unlabelled(y: Tensor) -> list[str]:
    count = int((y < 0).sum())
    return [f"{count} rows without label: in no split, predicted all the same"] if count else []
