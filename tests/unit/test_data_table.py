"""CSV tables: roles of columns, statistics of training rows only, missing cells, bad files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osmose.data import DataError, load, load_new
from osmose.data.graph import knn_graph


def write(path, header, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(50):
        size = "" if i % 10 == 3 else f"{rng.normal(5, 2):.4f}"
        colour = ["red", "green", "blue", "NA"][rng.integers(4)]
        species = "" if i % 10 == 7 else ["cat", "dog"][i % 2]
        rows.append([f"n{i}", size, colour, 7, species])
    return write(tmp_path / "pets.csv", ["id", "size", "colour", "constant", "species"], rows)


def test_columns_labels_and_notes(table):
    data = load(table, label="species")
    assert (data.name, data.protocol) == ("pets", "stratified")
    assert data.classes == ["cat", "dog"]
    assert data.x.shape == (50, 2 + 3)
    assert data.ids[:2] == ["n0", "n1"]
    assert data.edge_index is None
    unlabelled = set(range(7, 50, 10))
    assert set((data.y == -1).nonzero().flatten().tolist()) == unlabelled
    assert not unlabelled & set(torch.cat(list(data.splits[0].parts().values())).tolist())
    said = " | ".join(data.notes)
    for part in (
        "id column: 'id'",
        "'size': 5 missing numbers set to the mean of the training",
        "5 rows without label",
    ):
        assert part in said
    assert not data.x[:, 1].any()  # a constant column


def test_statistics_come_from_the_training_rows_of_each_split(table):
    data = load(table, label="species", splits=3)
    cells = [line.split(",")[1] for line in table.read_text().splitlines()[1:]]
    raw = np.array([float(c) if c else np.nan for c in cells])
    for i, split in enumerate(data.splits):
        x = data.for_split(i).x[:, 0].numpy()
        train = raw[split.train.numpy()]
        expected = (raw - np.nanmean(train)) / np.nanstd(train)
        assert np.allclose(x, np.nan_to_num(expected), atol=1e-5)
    assert not torch.equal(data.for_split(1).x, data.x)


def test_a_category_that_training_rows_lack_is_no_category(tmp_path):
    rows = [
        [c, s, p] for c, s, p in zip("aabbc", "xyxyx", ["train"] * 2 + ["valid", "test", "test"], strict=True)
    ]
    data = load(write(tmp_path / "t.csv", ["kind", "label", "split"], rows))
    assert data.protocol == "given"
    assert data.x.tolist() == [[1, 0, 0]] * 2 + [[0, 0, 0]] * 3
    assert [p.tolist() for p in data.splits[0].parts().values()] == [[0, 1], [2], [3, 4]]


def test_new_rows_are_prepared_as_the_training_rows(table, tmp_path):
    data = load(table, label="species")
    kept = json.loads(json.dumps(data.preprocessing))
    again = load_new(table, kept)
    assert torch.equal(again.x, data.x)
    assert torch.equal(again.y, data.y)
    assert (again.splits, again.ids) == ([], data.ids)
    header = ["colour", "extra", "constant", "size"]
    new = load_new(write(tmp_path / "new.csv", header, [["red", 1, 7, 5.0], ["pink", 2, 8, ""]]), kept)
    mean, scale = kept["numeric"][0]["mean"], kept["numeric"][0]["scale"]
    assert torch.allclose(new.x, torch.tensor([[(5 - mean) / scale, 0, 0, 0, 1], [0, 1, 0, 0, 0]]))
    assert new.y.tolist() == [-1, -1]
    assert any("'pink' not in the training rows" in note for note in new.notes)


def test_new_rows_refused(table, tmp_path):
    kept = load(table, label="species").preprocessing
    for header, row, message in [
        (["size", "color", "constant"], [1, "red", 7], r"lacks the columns 'colour'.*did you mean 'color'"),
        (["size", "colour", "constant"], ["big", "red", 7], r"column 'size', row 0: 'big' is no number"),
        (
            ["size", "colour", "constant", "species"],
            [1, "red", 7, "dgo"],
            r"not trained on: 'dgo'; did you mean 'dog'",
        ),
    ]:
        with pytest.raises(DataError, match=message):
            load_new(write(tmp_path / "new.csv", header, [row]), kept)
    np.save(tmp_path / "x.npy", np.zeros((2, 5)))
    with pytest.raises(DataError, match=r"trained on a CSV table; expected a .csv"):
        load_new(tmp_path / "x.npy", kept)
    with pytest.raises(DataError, match=r"kind None; expected 'named'"):
        load_new(table, {})


def test_edges_by_id_and_by_row(table, tmp_path):
    by_id = write(tmp_path / "ids.csv", ["source", "target"], [["n0", "n1"], ["n1", "n2"]])
    data = load(table, label="species", edges=by_id)
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert load(table, label="species", edges=by_id, directed=True).edge_index.tolist() == [[0, 1], [1, 2]]
    alone = load_new(table, data.preprocessing)
    assert alone.edge_index.shape == (2, 0)
    assert any("stands alone" in note for note in alone.notes)
    assert load_new(table, data.preprocessing, edges=by_id).edge_index.equal(data.edge_index)
    weighted = write(tmp_path / "rows.csv", ["a", "b", "w"], [[0, 1, 0.5], [1, 0, 2]])
    plain = load(table, label="species", ignore=("id",), edges=weighted)
    assert plain.ids is None
    assert plain.edge_weight.tolist() == [2, 2]


def test_knn_graph_on_request(table):
    data = load(table, label="species", knn=3)
    assert int(data.edge_index[1].bincount(minlength=50).min()) >= 3
    for i in range(2):
        one = data.for_split(i)
        assert torch.equal(one.edge_index, knn_graph(one.x, 3))
        assert torch.equal(load_new(table, one.preprocessing).edge_index, one.edge_index)


def test_few_labels_a_class(table):
    data = load(table, label="species", labels_per_class=4)
    assert data.protocol == "few-label"
    assert data.y[data.splits[0].train].bincount().tolist() == [4, 4]


def test_semicolons_quotes_byte_order_mark_and_index_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(
        '\ufeff;"a;b";class\r\n0;1,5;10\r\n1;2,5;9\r\n\r\n2;x;9\r\n3;"say ""hi""";10\r\n'.encode()
    )
    data = load(path, splits=1)
    assert data.classes == ["9", "10"]  # numbers in numeric order
    assert [c["name"] for c in data.preprocessing["categorical"]] == ["a;b"]
    assert 'say "hi"' in data.preprocessing["categorical"][0]["categories"]
    assert any("no name" in note for note in data.notes)


def test_one_class_does_not_crash(tmp_path):
    data = load(write(tmp_path / "t.csv", ["a", "y"], [[i, "only"] for i in range(5)]))
    assert data.num_classes == 1
    assert data.splits[0].train.numel() == 3


def test_huge_numbers_stay_finite(tmp_path):
    data = load(
        write(tmp_path / "t.csv", ["a", "b", "y"], [[i * 1e300, 1e-300 * i, i % 2] for i in range(20)])
    )
    assert torch.isfinite(data.x).all()
    train = data.x[data.splits[0].train]
    assert torch.allclose(train.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(train.std(0, correction=0), torch.ones(2), atol=1e-5)


MANY = [[f"name {i}", i, i % 2] for i in range(30)]
BAD = [
    ("", {}, r"is empty; expected a header"),
    ("\n\n", {}, r"is empty"),
    ("a,y\n", {}, r"has a header but no rows"),
    ("a,a,y\n1,2,3\n", {}, r"names 'a' more than once"),
    ("a,,y\n1,2,3\n", {}, r"column 2 has no name"),
    ("a,y\n1,0\n1,0,5\n", {}, r"line 3: 3 cells; expected 2"),
    ("a,y\n1,0\n1\n", {}, r"line 3: 1 cells"),
    ('a,y\n"1,0\n', {}, r"check the quotes"),
    ("a,y\n1,\0\n", {}, r"NUL bytes"),
    ("a,b\n1,2\n", {}, r"no column is called label, class or target; name the label column"),
    ("class,y\n1,2\n", {}, r"columns 'class', 'y' could all be the label"),
    ("a,species\n1,2\n", {"label": "specie"}, r"no column 'specie' \(label\); did you mean 'species'\?"),
    ("a,y\n1,2\n", {"id": "b"}, r"no column 'b' \(id\)"),
    ("a,y\n1,2\n", {"ignore": "b"}, r"no column 'b' \(ignore\)"),
    ("a,y\n1,2\n", {"ignore": ("a",)}, r"no column left for features"),
    ("a,n,y\n1,2,0\n1,2,0\n", {"id": "n"}, r"id column 'n' holds empty or repeated cells"),
    ("a,y\n,0\n,0\n", {}, r"all feature columns are empty"),
    ("a,y\n1,\n2,?\n", {}, r"label column 'y' holds no label at all"),
    ("a,y\n1,0\n2,1\n", {}, r"2 labelled rows; expected at least 3"),
    ("a,y\n1,0\n2,1\n3,2\n", {}, r"too few labelled rows for a split"),
    ("a,y\n1,0\ninf,1\n3,1\n", {}, r"column 'a', row 1: 'inf' is infinite"),
    ("a,y\n" + "".join(f"1,{i / 7}\n" for i in range(30)), {}, r"30 different fractional numbers"),
    (
        "name,b,y\n" + "".join(f"{a},{b},{c}\n" for a, b, c in MANY),
        {},
        r"too many different texts.*'name' \(30\)",
    ),
    ("a,y\n1,0\n", {"protocol": "given"}, r"protocol 'given' but the data hold no splits"),
    ("a,y\n1,0\n", {"protocol": "stratifed"}, r"'stratifed'; expected one of .* did you mean 'stratified'"),
    ("a,y\n1,0\n", {"protocol": "stratified", "labels_per_class": 3}, r"goes with protocol 'few-label'"),
    ("a,y\n1,0\n", {"protocol": "few-label"}, r"labels_per_class = None"),
    ("a,y,split\n1,0,train\n1,0,train\n", {}, r"valid is empty"),
    ("a,y,split\n1,0,train\n1,1,valid\n1,0,test\n", {}, r"valid has classes that train lacks: '1'"),
    ("a,y\n1,0\n", {"root": "."}, r"root is for public data sets"),
]


@pytest.mark.parametrize(("text", "arguments", "message"), BAD)
def test_refused(tmp_path, text, arguments, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(path, **arguments)
    assert "t.csv" in str(caught.value) or "splits" in message or "labelled rows" in message


def test_not_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,y\n\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"t.csv is not UTF-8 text"):
        load(path)


def test_knn_besides_edges(table, tmp_path):
    edges = write(tmp_path / "e.csv", ["a", "b"], [["n0", "n1"]])
    with pytest.raises(DataError, match=r"knn = 3, but the data have edges"):
        load(table, label="species", edges=edges, knn=3)


CELLS = st.sampled_from(
    ["", "0", "1", "2.5", "-1", "a", "b", "NA", "1e300", "inf", "nan", "train", "\u2028", " c "]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=12))
def test_any_table_loads_or_is_refused(tmp_path_factory, rows):
    path = write(tmp_path_factory.getbasetemp() / "cells.csv", ["a", "b", "y"], rows)
    try:
        data = load(path, splits=2)
    except DataError:
        return
    assert data.num_nodes == sum(any(c.strip() for c in row) for row in rows)
    assert torch.isfinite(data.for_split(1).x).all()
    assert torch.equal(load_new(path, data.preprocessing).x, data.x)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(st.text(alphabet="ay,;\t\"\n\r 01.-e'é\0", max_size=60), st.binary(max_size=60)))
def test_any_file_loads_or_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        data = load(path, splits=1)
    except DataError:
        return
    assert torch.isfinite(data.x).all()
