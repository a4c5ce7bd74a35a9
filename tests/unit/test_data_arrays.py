"""An `.npz` or a folder of arrays: the same data either way, masks of every shape, bad files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from osmose.data import DataError, DataNotFoundError, load, load_new

N = 12
X = np.random.default_rng(0).normal(size=(N, 3))
Y = np.array([0, 1, 2] * 3 + [-1] * 3)
EDGES = np.array([[0, 1, 2, 11], [1, 2, 0, 3]])
MASKS = {
    "train_mask": np.arange(N) < 3,
    "valid_mask": (np.arange(N) >= 3) & (np.arange(N) < 6),
    "test_mask": (np.arange(N) >= 6) & (np.arange(N) < 9),
}


def npz(path, **arrays):
    np.savez(path, **({"x": X, "y": Y} | arrays))
    return path


def folder(path, **files):
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        file = path / f"{stem}.{suffix}"
        if isinstance(content, str):
            file.write_text(content)
        elif suffix == "npz":
            sparse.save_npz(file, content)
        else:
            np.save(file, content)
    return path


def csv(array):
    return "\n".join(",".join(map(repr, row)) for row in np.atleast_2d(array).tolist()) + "\n"


def same(a, b):
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.edge_index, b.edge_index)
    assert a.classes == b.classes
    for s, t in zip(a.splits, b.splits, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(s.parts().values(), t.parts().values(), strict=True))


def test_npz(tmp_path):
    data = load(npz(tmp_path / "d.npz", edge_index=EDGES, edge_weight=np.array([1, 2, 3, 4]), **MASKS))
    assert (data.name, data.protocol) == ("d", "given")
    assert np.allclose(data.x.numpy(), X, atol=1e-6)
    assert data.y.tolist() == Y.tolist()
    assert data.edge_index.tolist() == [[0, 0, 1, 1, 2, 2, 3, 11], [1, 2, 0, 2, 0, 1, 11, 3]]
    assert data.edge_weight.tolist() == [1, 3, 1, 2, 3, 2, 4, 4]
    assert [p.tolist() for p in data.splits[0].parts().values()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    directed = load(tmp_path / "d.npz", directed=True)
    assert sorted(map(tuple, directed.edge_index.T.tolist())) == sorted(map(tuple, EDGES.T.tolist()))
    json.dumps(data.preprocessing)


def test_folder_is_the_same_as_npz(tmp_path):
    expected = load(npz(tmp_path / "d.npz", edge_index=EDGES, **MASKS))
    numbers = {f"{k}_npy": v for k, v in MASKS.items()}
    same(load(folder(tmp_path / "a", features_npy=X, labels_npy=Y, edges_npy=EDGES.T, **numbers)), expected)
    index = {
        f"{part}_csv": csv(np.flatnonzero(MASKS[f"{part}_mask"])[:, None])
        for part in ("train", "valid", "test")
    }
    text = folder(
        tmp_path / "b",
        features_csv="f,g,h\n" + csv(X),
        labels_csv="class\n" + csv(Y[:, None]),
        edges_csv="source,target\n" + csv(EDGES.T),
        **index,
    )
    same(load(text), expected)
    packed = folder(tmp_path / "c", features_npz=sparse.csr_matrix(X), labels_csv=csv(Y[:, None]), **numbers)
    np.save(packed / "edge_index.npy", EDGES)
    same(load(packed), expected)
    bits = {f"{k}_csv": csv(v[:, None].astype(int)) for k, v in MASKS.items()}
    same(load(folder(tmp_path / "d", x_npy=X, y_npy=Y, edges_npy=EDGES, **bits)), expected)


@pytest.mark.parametrize("layout", ["(n, s)", "(s, n)"])
def test_several_masks_under_other_names(tmp_path, layout):
    stack = {
        "train_masks": np.stack([MASKS["train_mask"], MASKS["valid_mask"]]),
        "val_masks": np.stack([MASKS["valid_mask"], MASKS["train_mask"]]),
        "test_masks": np.stack([MASKS["test_mask"]] * 2),
    }
    if layout == "(n, s)":
        stack = {k: v.T for k, v in stack.items()}
    data = load(npz(tmp_path / "d.npz", **stack))
    assert [s.train.tolist() for s in data.splits] == [[0, 1, 2], [3, 4, 5]]
    assert len(load(tmp_path / "d.npz", splits=1).splits) == 1


def test_without_masks_a_split_is_drawn(tmp_path):
    data = load(npz(tmp_path / "d.npz"), splits=2, seed=5)
    assert data.protocol == "stratified"
    assert len(data.splits) == 2
    assert data.edge_index is None
    assert load(tmp_path / "d.npz", protocol="few-label", labels_per_class=1).protocol == "few-label"
    npz(tmp_path / "m.npz", **MASKS)
    assert load(tmp_path / "m.npz", protocol="stratified").splits[0].train.tolist() != [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "classes", "y"),
    [
        (["b", "a", "", "b"], ["a", "b"], [1, 0, -1, 1]),
        ([10, 9, 9, -1], ["9", "10"], [1, 0, 0, -1]),
        ([1.0, 0.0, np.nan, 1.0], ["0", "1"], [1, 0, -1, 1]),
        ([True, False, True, True], ["0", "1"], [1, 0, 1, 1]),
        ([[0], [1], [1], [0]], ["0", "1"], [0, 1, 1, 0]),
        ([b"x", b"y", b"x", b"y"], ["x", "y"], [0, 1, 0, 1]),
    ],
)
def test_kinds_of_labels(tmp_path, labels, classes, y):
    data = load(
        npz(tmp_path / "d.npz", x=np.eye(40, 4), y=np.array(labels * 10 if len(labels) == 4 else labels))
    )
    assert data.classes == classes
    assert data.y[:4].tolist() == y


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.float16, np.float64, bool])
def test_kinds_of_features(tmp_path, kind):
    assert load(npz(tmp_path / "d.npz", x=(X > 0).astype(kind))).x.dtype == torch.float32


def test_new_nodes(tmp_path):
    data = load(npz(tmp_path / "d.npz", y=np.array(["u", "v", "w"] * 4), edge_index=EDGES))
    kept = json.loads(json.dumps(data.preprocessing))
    np.savez(tmp_path / "new.npz", x=X[:4], y=np.array(["w", "", "u", "w"]), edges=EDGES[:, :2])
    new = load_new(tmp_path / "new.npz", kept)
    assert new.y.tolist() == [2, -1, 0, 2]
    assert new.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    np.save(tmp_path / "only.npy", X[:4])
    new = load_new(tmp_path / "only.npy", kept)
    assert (new.y.tolist(), new.edge_index.shape) == ([-1] * 4, (2, 0))
    (tmp_path / "only.csv").write_text(csv(X[:4]))
    (tmp_path / "links.csv").write_text("0,1\n")
    assert load_new(tmp_path / "only.csv", kept, edges=tmp_path / "links.csv").edge_index.shape == (2, 2)
    for arrays, message in [
        ({"x": X[:, :2]}, r"x has 2 features; the model was trained on 3"),
        ({"x": X, "y": np.array(["q"] * N)}, r"not trained on: 'q'"),
    ]:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(DataError, match=message):
            load_new(tmp_path / "bad.npz", kept)
    with pytest.raises(DataError, match=r"unknown kind; expected an .npz, a folder"):
        load_new(__file__, kept)


BAD = [
    ({"x": X[:, 0]}, r"d.npz: x has shape \(12,\); expected \(n, c\)"),
    ({"x": X.astype(str)}, r"x is of type <U\d+; expected numbers"),
    ({"x": np.where(np.arange(N)[:, None] == 2, np.nan, X)}, r"3 NaN or infinite values, the first at row 2"),
    ({"x": X * 1e300}, r"NaN or infinite"),
    ({"y": Y[:5]}, r"y has 5 labels but .*x has 12 rows; expected 12"),
    ({"y": np.eye(N, 3)}, r"y has shape \(12, 3\); expected \(n,\).*argmax"),
    ({"y": Y + 0.5}, r"fractions or infinities"),
    ({"y": Y - 1}, r"y holds -2; expected classes from 0, or -1"),
    ({"y": np.where(np.arange(N) < 6, -1, 1)}, r"only -1 and 1, and -1 means unlabelled"),
    ({"y": np.full(N, -1)}, r"holds no label at all"),
    ({"y": Y.astype(complex)}, r"y is of type complex128"),
    ({"y": np.array([{}] * N)}, r"object arrays are pickles, which are never loaded"),
    ({"edge_index": EDGES + 1}, r"edge_index: 1 edges leave the nodes, the first number 3, \(12, 4\)"),
    ({"edge_index": EDGES.astype(float)}, r"edge_index is of type float64; expected integers"),
    ({"edge_index": EDGES, "edge_weight": np.ones(3)}, r"edge_weight is \(3,\) float64; expected \(4,\)"),
    ({"edge_index": EDGES, "edge_weight": -np.ones(4)}, r"edge_weight holds negative"),
    ({"edge_weight": np.ones(4)}, r"edge_weight came without edges"),
    ({"train_mask": MASKS["train_mask"]}, r"train_mask came without valid_mask; give all three"),
    (MASKS | {"train_mask": np.arange(N)}, r"train_mask is of type int64; expected booleans"),
    (
        MASKS | {"train_mask": MASKS["train_mask"][:5]},
        r"train_mask has shape \(5,\); expected \(12,\), or \(12, s\)",
    ),
    (MASKS | {"test_mask": np.stack([MASKS["test_mask"]] * 3)}, r"hold \[1, 1, 3\] splits"),
    (MASKS | {"test_mask": np.zeros(N, bool)}, r"test is empty"),
    (MASKS | {"test_mask": np.ones(N, bool)}, r"6 nodes stand in test and train"),
    (MASKS | {"test_mask": np.arange(N) > 6}, r"test holds 3 unlabelled nodes"),
    (MASKS | {"y": np.where(MASKS["train_mask"], 0, Y)}, r"valid has classes that train lacks: '1', '2'"),
    (
        {"train": np.ones((2, 2), int), "valid": Y, "test": Y},
        r"train is \(2, 2\) int64; expected \(k,\) row numbers",
    ),
    ({"train": np.array([0, 1, 2]), "valid": np.array([99]), "test": np.array([4])}, r"valid holds node 99"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD)
def test_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path / "d.npz", **arrays))


def test_npz_without_features_or_labels(tmp_path):
    np.savez(tmp_path / "d.npz", y=Y)
    with pytest.raises(DataError, match=r"holds \['y'\]; expected x \(n, c\), y"):
        load(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x=X)
    with pytest.raises(DataError, match=r"holds no labels; looked for an array y"):
        load(tmp_path / "d.npz")


def test_file_that_is_no_npz(tmp_path):
    np.save(tmp_path / "d.npy", X)
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    with pytest.raises(DataError, match=r"is a single array, not an .npz"):
        load(tmp_path / "d.npz")
    npz(tmp_path / "d.npz")
    content = (tmp_path / "d.npz").read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 5):
        (tmp_path / "d.npz").write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"d.npz cannot be read .*damaged or of another kind"):
            load(tmp_path / "d.npz")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_npz_with_a_changed_byte_loads_or_is_refused(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    npz(path, edge_index=EDGES, **MASKS)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(bytes(content))
    try:
        data = load(path)
    except DataError:
        return
    assert data.x.shape == (N, 3)


def test_folder_without_files_lists_what_was_looked_for(tmp_path):
    (tmp_path / "readme.md").write_text("hello")
    with pytest.raises(
        DataNotFoundError, match=r"lacks the features. Looked for x\|features.*labels.*readme.md"
    ):
        load(tmp_path)
    np.save(tmp_path / "features.npy", X)
    with pytest.raises(DataError, match=r"holds no labels; looked for labels.npy or labels.csv"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"features_csv": "1,2\n"}, r"features.npy and features.csv, both for one thing"),
        ({"labels_csv": "a,b\n1,2\n"}, r"labels.csv has 2 columns; expected one"),
        ({"labels_csv": "a\nb\n"}, r"labels.csv has 2 labels but .*features.npy has 12 rows"),
        ({"labels_npy": Y, "train_mask_csv": "0.5\n" * N}, r"train_mask.csv holds fractions"),
        ({"labels_npy": Y, "edges_csv": "0,1\n0,77\n"}, r"edges.csv, edge line 2: node '77' is no row"),
        ({"labels_npy": np.array([{}] * N)}, r"labels.npy cannot be read .*pickles"),
    ],
)
def test_folder_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        load(folder(tmp_path, features_npy=X, **files))


def test_text_among_features(tmp_path):
    with pytest.raises(DataError, match=r"features.csv, row 1, column 1: 'x' is no number.*one CSV file"):
        load(folder(tmp_path, features_csv="1,2\n3,x\n", labels_csv="0\n1\n"))


def test_edges_twice(tmp_path):
    (tmp_path / "e.csv").write_text("0,1\n")
    with pytest.raises(DataError, match=r"edge_index holds edges too; give one"):
        load(npz(tmp_path / "d.npz", edge_index=EDGES), edges=tmp_path / "e.csv")
    assert load(npz(tmp_path / "d.npz"), edges=tmp_path / "e.csv").edge_index.shape == (2, 2)
