"""Edges in canonical form, edge lists from files, nearest neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osmose.data import DataError
from osmose.data.edges import from_array, from_file
from osmose.data.graph import canonical, knn_graph

EDGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 9)), max_size=25)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(EDGES, st.booleans())
def test_canonical_is_the_dense_matrix(triples, directed):
    edges = torch.tensor([[a, b] for a, b, _ in triples], dtype=torch.int64).reshape(-1, 2).T
    weight = torch.tensor([w for *_, w in triples], dtype=torch.float32)
    dense = np.zeros((7, 7))
    for a, b, w in triples:
        dense[a, b] = max(dense[a, b], w)
    dense = dense if directed else np.maximum(dense, dense.T)
    np.fill_diagonal(dense, 0)
    found, weights, notes = canonical(edges, weight, 7, directed=directed)
    again = np.zeros((7, 7))
    again[found[0], found[1]] = weights
    assert np.array_equal(again, dense)
    assert found.shape[1] == np.count_nonzero(dense)
    assert any("self-loops" in n for n in notes) == any(a == b for a, b, _ in triples)


def test_canonical_says_what_it_did():
    edges = torch.tensor([[0, 1, 2, 2, 2], [1, 0, 2, 0, 0]])
    found, weight, notes = canonical(edges, None, 3)
    assert found.tolist() == [[0, 0, 1, 2], [1, 2, 0, 0]]
    assert weight is None
    assert notes[0].startswith("1 self-loops removed")
    assert notes[1:] == ["1 duplicate edges merged", "graph made undirected: 1 reverse edges added"]


@pytest.mark.parametrize("k", [1, 3, 50])
def test_knn_is_brute_force(k):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3))).float()
    distance = torch.cdist(x.double(), x.double())
    distance.fill_diagonal_(float("inf"))
    near = torch.zeros(20, 20, dtype=torch.bool)
    near.scatter_(1, distance.argsort(1)[:, : min(k, 19)], True)
    near |= near.T.clone()
    assert knn_graph(x, k).tolist() == near.nonzero().T.tolist()


def test_knn_of_equal_rows_and_of_one_row():
    edges = knn_graph(torch.zeros(5, 2), 2)
    assert (edges[0] != edges[1]).all()
    assert knn_graph(torch.zeros(1, 2), 5).shape == (2, 0)
    with pytest.raises(DataError, match="knn is 0"):
        knn_graph(torch.zeros(4, 2), 0)


def test_array_in_both_orientations():
    pairs = np.array([[0, 1], [1, 2], [2, 0]])
    assert from_array(pairs, "e", 3).tolist() == pairs.T.tolist()
    assert from_array(pairs.T, "e", 3).tolist() == pairs.T.tolist()
    assert from_array(np.array([[0, 1], [2, 2]], dtype=np.uint8), "e", 3).tolist() == [[0, 1], [2, 2]]
    assert from_array(np.zeros((0, 2)), "e", 3).shape == (2, 0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, 1.0], [1.0, 2.0]]), r"e is of type float64; expected integers.*astype"),
        (
            np.array([[0, 1, 5], [1, 2, 3]]),
            r"1 edges leave the nodes, the first number 2, \(5, 3\); expected 0 to 2",
        ),
        (np.array([[0, -1], [1, 2]]), r"\(-1, 2\)"),
        (np.array([0, 1, 2]), r"shape \(3,\); expected \(2, e\)"),
        (np.zeros((3, 3), dtype=int), r"shape \(3, 3\); expected \(2, e\)"),
    ],
)
def test_array_refused(array, message):
    with pytest.raises(DataError, match=message):
        from_array(array, "e", 3)


@pytest.mark.parametrize(
    ("text", "ids", "edges", "weight"),
    [
        ("0,1\n1,2\n", None, [[0, 1], [1, 2]], None),
        ("source,target\n0,1\n", None, [[0], [1]], None),
        ("a;b;w\n0;1;0.5\n2;1;2\n", None, [[0, 2], [1, 1]], [0.5, 2.0]),
        ("from\tto\nx\ty\nz\tx\n", ["x", "y", "z"], [[0, 2], [1, 0]], None),
        ("x,y\n", ["x", "y"], [[0], [1]], None),
        ("", None, [[], []], None),
        ("source,target\n", None, [[], []], None),
    ],
)
def test_edge_list(tmp_path, text, ids, edges, weight):
    path = tmp_path / "e.csv"
    path.write_text(text)
    found, weights = from_file(path, 3, ids)
    assert found.tolist() == edges
    assert (None if weights is None else weights.tolist()) == weight


@pytest.mark.parametrize(
    ("text", "ids", "message"),
    [
        ("0,1\n1,3\n", None, r"edge line 2: node '3' is no row of the data; expected whole numbers 0 to 2"),
        ("0,1.5\n", None, r"node '1.5' is no row of the data"),
        ("5,7\n0,1\n", None, r"edge line 1: node '5' is no row"),
        ("a,b\nx,y\n", None, r"edge line 2: node 'x' is no row number.*id="),
        (
            "node1,node2\nnode1,node4\n",
            ["node1", "node2"],
            r"'node4' is not in the id column; did you mean 'node",
        ),
        (
            "node3,node4\nnode1,node2\n",
            ["node1", "node2"],
            r"edge line 1: node 'node3' is not in.*should say source",
        ),
        ("0,1,2,3\n", None, r"has 4 columns; expected source, target"),
        ("0,1,heavy\n", None, r"edge weight 'heavy' is no number"),
        ("0\n", None, r"has 1 columns"),
    ],
)
def test_edge_list_refused(tmp_path, text, ids, message):
    path = tmp_path / "e.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        from_file(path, 3, ids)


def test_edge_list_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"edges: .*none.csv does not exist"):
        from_file(tmp_path / "none.csv", 3)
