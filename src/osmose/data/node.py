"""Node data: features, labels, an optional graph and the splits, checked once when they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import DataError, some
from .graph import knn_graph


@dataclass(repr=False)
class Split:
    """Indices of the nodes, sequences or images to train on, to choose the epoch with, and to report."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def __repr__(self) -> str:
        return f"Split(train={self.train.numel()}, valid={self.valid.numel()}, test={self.test.numel()})"

    def parts(self) -> dict[str, Tensor]:
        """The three parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


@dataclass(repr=False)
class NodeData:
    """One set of nodes (rows, documents, images), with or without edges between them.

    Shapes: `x` (n, c) float32; `y` (n,) int64, class index or -1 = unlabelled; `edge_index` (2, e) int64,
    row 0 the source and row 1 the target of an edge, both directions stored for an undirected graph, no
    self-loops; `edge_weight` (e,) float32, finite and not negative. Isolated nodes and e = 0 are fine.

    Raises `DataError` when a shape, type, index or value is not as stated, when a split is empty, overlaps
    another part, holds unlabelled nodes, or has a class in valid or test that is absent from train.
    """

    kind: ClassVar[str] = "nodes"

    name: str
    protocol: str
    x: Tensor
    y: Tensor
    edge_index: Tensor | None
    edge_weight: Tensor | None
    splits: list[Split]
    classes: list[str]
    preprocessing: dict[str, Any]
    """What `load_new` redoes on new rows; JSON-serialisable."""
    notes: list[str] = field(default_factory=list)
    """What the loader did to the data that a user may want to know, one sentence each."""
    ids: list[str] | None = None
    """Names of the nodes from the id column of a table."""
    refit: Callable[[Split], tuple[Tensor, dict[str, Any]]] | None = None
    """Features and preprocessing with statistics from the training rows of a split; None where they have none."""

    def __post_init__(self) -> None:
        self.validate()

    def __repr__(self) -> str:
        edges = "no" if self.edge_index is None else self.edge_index.shape[1]
        return (
            f"NodeData({self.name!r}, protocol {self.protocol!r}: {self.num_nodes} nodes, {self.num_features} "
            f"features, {edges} edges, {self.num_classes} classes, {len(self.splits)} splits)"
        )

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        return self.x.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def for_split(self, index: int) -> NodeData:
        """The same data with features prepared for split `index` (statistics from its training rows only).

        `x` of the data as loaded is prepared for split 0. Widths and classes do not change, so one model
        shape serves all splits; a nearest-neighbour graph is made anew from the new features. Data without such
        statistics come back as they are.
        """
        if not 0 <= index < len(self.splits):
            raise DataError(
                f"{self.name}: split {index} of {len(self.splits)}; expected 0 to {len(self.splits) - 1}"
            )
        if self.refit is None or index == 0:
            return self
        x, preprocessing = self.refit(self.splits[index])
        edge_index = knn_graph(x, preprocessing["knn"]) if preprocessing.get("knn") else self.edge_index
        return replace(self, x=x, edge_index=edge_index, preprocessing=preprocessing)

    def validate(self) -> None:
        """Raise `DataError` on the first thing that is not as the class states."""
        _check_features(self.name, self.x)
        n = self.num_nodes
        if self.ids is not None and len(self.ids) != n:
            raise DataError(f"{self.name}: {len(self.ids)} ids for {n} rows; expected one a row")
        check_labels(self.name, self.y, n, len(self.classes))
        _check_edges(self.name, self.edge_index, self.edge_weight, n)
        for i, split in enumerate(self.splits):
            where = f"{self.name}: split {i}" if len(self.splits) > 1 else self.name
            check_split(where, split, self.y, self.classes)


def _check_features(name: str, x: Tensor) -> None:
    if x.dim() != 2 or x.dtype != torch.float32:
        raise DataError(f"{name}: x is {tuple(x.shape)} {x.dtype}; expected (n, c) torch.float32")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise DataError(f"{name}: x has shape {tuple(x.shape)}; expected at least one row and one feature")
    bad = ~torch.isfinite(x)
    if bad.any():
        where = bad.nonzero()
        r, c = (int(v) for v in where[0])
        raise DataError(
            f"{name}: features hold {where.shape[0]} NaN or infinite values, the first at row {r}, column {c} "
            f"({x[r, c].item()}); expected finite numbers. Fill or drop these rows (a CSV table with empty cells "
            "is filled by the loader)"
        )


def check_labels(name: str, y: Tensor, n: int, classes: int) -> None:
    """Raise `DataError` unless `y` is (n,) int64 with class indices or -1."""
    if y.shape != (n,) or y.dtype != torch.int64:
        raise DataError(f"{name}: labels have shape {tuple(y.shape)} {y.dtype}; expected ({n},) torch.int64")
    if int(y.min()) < -1 or int(y.max()) >= classes:
        raise DataError(
            f"{name}: labels run from {int(y.min())} to {int(y.max())}; expected -1 (unlabelled) "
            f"or 0 to {classes - 1} ({classes} classes)"
        )


def _check_edges(name: str, edges: Tensor | None, weight: Tensor | None, n: int) -> None:
    if edges is None:
        if weight is not None:
            raise DataError(f"{name}: edge_weight without edge_index; give both or none")
        return
    if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise DataError(
            f"{name}: edge_index is {tuple(edges.shape)} {edges.dtype}; expected (2, e) torch.int64"
        )
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= n):
        column = int(((edges < 0) | (edges >= n)).any(0).nonzero()[0])
        raise DataError(
            f"{name}: edge {column} is {tuple(edges[:, column].tolist())}; expected node indices from 0 to {n - 1}, "
            f"because x has {n} rows. Count nodes from 0 and give every node a row"
        )
    if weight is None:
        return
    if weight.shape != (edges.shape[1],) or not weight.is_floating_point():
        raise DataError(
            f"{name}: edge_weight is {tuple(weight.shape)} {weight.dtype}; expected ({edges.shape[1]},) float, "
            "one for each edge"
        )
    if not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()):
        raise DataError(
            f"{name}: edge_weight holds negative, NaN or infinite values; expected finite, at least 0"
        )


def check_split(
    where: str, split: Split, y: Tensor, classes: list[str], *, what: str = "node", reused: bool = False
) -> None:
    """Raise `DataError` unless `split` can be trained, validated and tested on.

    Args:
        what: the thing that is divided, for errors.
        reused: valid is test, as a named protocol may have it.
    """
    if reused and not torch.equal(split.valid, split.test):
        raise DataError(f"{where}: valid and test differ; expected the same {what}s in both")
    n = y.shape[0]
    owner = torch.full((n,), -1, device=y.device)
    for k, (part, index) in enumerate(split.parts().items()):
        if reused and part == "test":
            continue
        if index.dim() != 1 or index.dtype != torch.int64:
            raise DataError(
                f"{where}: {part} is {tuple(index.shape)} {index.dtype}; expected (k,) torch.int64"
            )
        if index.numel() == 0:
            raise DataError(
                f"{where}: {part} is empty; expected at least one labelled {what} in train, valid and test"
            )
        if int(index.min()) < 0 or int(index.max()) >= n:
            raise DataError(
                f"{where}: {part} holds {what} {int(index.max() if index.max() >= n else index.min())}; "
                f"expected 0 to {n - 1}"
            )
        if index.unique().numel() != index.numel():
            raise DataError(f"{where}: {part} names a {what} twice; expected every {what} at most once")
        taken = owner[index] >= 0
        if bool(taken.any()):
            other = list(split.parts())[int(owner[index][taken][0])]
            raise DataError(
                f"{where}: {int(taken.sum())} {what}s stand in {part} and {other}, the first {int(index[taken][0])}; "
                "expected disjoint parts"
            )
        owner[index] = k
        unlabelled = index[y[index] < 0]
        if unlabelled.numel():
            raise DataError(
                f"{where}: {part} holds {unlabelled.numel()} unlabelled {what}s ({some(unlabelled.tolist())}); "
                "leave them out of every part: they are predicted all the same"
            )
    seen = torch.zeros(len(classes), dtype=torch.bool, device=y.device)
    seen[y[split.train]] = True
    for part, index in (("valid", split.valid), ("test", split.test)):
        absent = y[index][~seen[y[index]]].unique()
        if absent.numel():
            raise DataError(
                f"{where}: {part} has classes that train lacks: {some(classes[int(c)] for c in absent)}; "
                f"a model cannot learn them. Add such {what}s to train or drop the class"
            )
