"""NodeData refuses what cannot be trained on, and says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from osmose.data import DataError, NodeData, Split


def index(*values):
    return torch.tensor(values, dtype=torch.int64)


def make(**changes):
    parts = {
        "name": "set",
        "protocol": "given",
        "x": torch.ones(6, 2),
        "y": index(0, 1, 0, 1, 0, -1),
        "edge_index": torch.tensor([[0, 1], [1, 0]]),
        "edge_weight": None,
        "splits": [Split(index(0, 1), index(2), index(3))],
        "classes": ["a", "b"],
        "preprocessing": {},
    }
    return NodeData(**(parts | changes))


def split(train=(0, 1), valid=(2,), test=(3,)):
    return {"splits": [Split(index(*train), index(*valid), index(*test))]}


def with_nan():
    x = torch.ones(6, 2)
    x[4, 1] = float("nan")
    x[5, 0] = float("inf")
    return x


BAD = [
    ({"x": torch.ones(6)}, r"x is \(6,\) torch.float32; expected \(n, c\)"),
    ({"x": torch.ones(6, 2, dtype=torch.float64)}, r"torch.float64; expected"),
    ({"x": torch.ones(6, 0)}, r"shape \(6, 0\); expected at least one row and one feature"),
    ({"x": with_nan()}, r"2 NaN or infinite values, the first at row 4, column 1 \(nan\)"),
    ({"y": index(0, 1)}, r"labels have shape \(2,\) torch.int64; expected \(6,\)"),
    ({"y": torch.ones(6)}, r"torch.float32; expected \(6,\) torch.int64"),
    ({"y": index(0, 1, 0, 2, 0, 0)}, r"labels run from 0 to 2; expected -1 \(unlabelled\) or 0 to 1"),
    ({"y": index(0, 1, 0, 1, -2, 0)}, r"labels run from -2"),
    (
        {"edge_index": torch.tensor([[0.0], [1.0]])},
        r"edge_index is \(2, 1\) torch.float32; expected \(2, e\)",
    ),
    ({"edge_index": torch.tensor([[0, 1, 2]])}, r"edge_index is \(1, 3\)"),
    (
        {"edge_index": torch.tensor([[0, 1], [1, 6]])},
        r"edge 1 is \(1, 6\); expected node indices from 0 to 5",
    ),
    ({"edge_index": torch.tensor([[0, -1], [1, 5]])}, r"edge 1 is \(-1, 5\)"),
    ({"edge_weight": torch.ones(3)}, r"edge_weight is \(3,\) torch.float32; expected \(2,\)"),
    ({"edge_weight": torch.ones(2, dtype=torch.int64)}, r"edge_weight is \(2,\) torch.int64"),
    ({"edge_weight": torch.tensor([1.0, -1.0])}, r"negative, NaN or infinite"),
    ({"edge_weight": torch.tensor([1.0, float("nan")])}, r"negative, NaN or infinite"),
    ({"edge_index": None, "edge_weight": torch.ones(2)}, r"edge_weight without edge_index"),
    ({"ids": ["a"]}, r"1 ids for 6 rows"),
    (split(valid=()), r"valid is empty"),
    (split(test=(9,)), r"test holds node 9; expected 0 to 5"),
    (split(valid=(-1,)), r"valid holds node -1"),
    (split(train=(0, 1, 1)), r"train names a node twice"),
    (split(test=(1, 3)), r"1 nodes stand in test and train, the first 1"),
    (split(train=(0, 1, 5)), r"train holds 1 unlabelled nodes \(5\); leave them out"),
    (split(train=(0, 2), valid=(4,)), r"test has classes that train lacks: 'b'"),
    ({"splits": [Split(torch.ones(6, dtype=torch.bool), index(2), index(3))]}, r"train is \(6,\) torch.bool"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_second_split_is_named():
    with pytest.raises(DataError, match="set: split 1: valid is empty"):
        make(splits=split()["splits"] + split(valid=())["splits"])


@pytest.mark.parametrize(
    "changes",
    [
        {"edge_index": torch.zeros(2, 0, dtype=torch.int64)},
        {"edge_index": None},
        {"splits": []},
        {"y": index(0, 0, 0, 0, 0, -1), "classes": ["only"]},
        {"edge_weight": torch.tensor([0.0, 2.0])},
    ],
    ids=["empty graph", "no graph", "no splits", "one class", "weights"],
)
def test_allowed(changes):
    assert make(**changes).num_nodes == 6


def test_for_split_refits_on_the_rows_of_the_split():
    two = split()["splits"] + split(train=(2, 3), valid=(0,), test=(1,))["splits"]
    data = make(
        splits=two, refit=lambda s: (torch.full((6, 2), float(s.train.sum())), {"train": s.train.tolist()})
    )
    again = data.for_split(1)
    assert (again.x == 5).all()
    assert again.preprocessing == {"train": [2, 3]}
    assert data.for_split(0) is data
    assert make(splits=two).for_split(1).x.equal(data.x)
    with pytest.raises(DataError, match="split 2 of 2; expected 0 to 1"):
        data.for_split(2)


def test_text_is_short():
    data = make()
    assert (
        repr(data) == "NodeData('set', protocol 'given': 6 nodes, 2 features, 2 edges, 2 classes, 1 splits)"
    )
    assert repr(data.splits[0]) == "Split(train=2, valid=1, test=1)"
    assert "no edges" in repr(replace(data, edge_index=None))
