"""`.ts` files: what is read from hand-written ones, and what is said about malformed ones."""

from __future__ import annotations

import numpy as np
import pytest

from osmose.data import DataError, DataNotFoundError
from osmose.data.ts import read_ts

HEADER = """# a comment
@problemName Toy
@timeStamps false
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down
@data
"""


def write(path, text):
    path.write_text(text)
    return path


def test_a_file_by_hand(tmp_path):
    text = HEADER + "1,2,3:4,5,6:up\n\n% another comment\n-1.5e1,2:0,0.25:down\n7:8:?\n"
    found = read_ts(write(tmp_path / "a.ts", text))
    assert [one.tolist() for one in found.values] == [
        [[1, 4], [2, 5], [3, 6]],
        [[-15, 0], [2, 0.25]],
        [[7, 8]],
    ]
    assert found.labels == ["up", "down", None]
    assert found.dimensions == 2


def test_a_small_header_is_enough(tmp_path):
    found = read_ts(
        write(tmp_path / "a.ts", "@univariate true\r\n@classLabel true\r\n@DATA\r\n1, 2 ,3:x y\r\n")
    )
    assert found.values[0].tolist() == [[1], [2], [3]]
    assert found.labels == ["x y"]


def test_no_classes(tmp_path):
    found = read_ts(write(tmp_path / "a.ts", "@classLabel false\n@data\n1,2:3,4\n5:6\n"))
    assert found.dimensions == 2
    assert found.labels == [None, None]


def test_missing_values_are_nan(tmp_path):
    found = read_ts(write(tmp_path / "a.ts", HEADER + "1,?,NaN:?,?,?:up\n"))
    assert np.isnan(found.values[0]).tolist() == [[False, True], [True, True], [True, True]]


def test_a_real_file_value_by_value(benchmark_data):
    path = benchmark_data / "uea" / "JapaneseVowels" / "JapaneseVowels_TRAIN.ts"
    found = read_ts(path)
    lines = path.read_text().split("@data\n")[1].splitlines()
    assert len(found.values) == len(lines) == 270
    for line, values, label in zip(lines, found.values, found.labels, strict=True):
        *dimensions, name = line.split(":")
        assert label == name
        assert values.T.tolist() == [[float(cell) for cell in one.split(",")] for one in dimensions]


MALFORMED = [
    ("1,2:3,4:up\n1,x:3,4:up\n", r"a.ts, line 10: value 2 of dimension 1 is 'x'; expected a number, or '\?'"),
    ("1,:3,4:up\n", r"line 9: value 2 of dimension 1 is empty"),
    (":3,4:up\n", r"line 9: value 1 of dimension 1 is empty"),
    ("1,2:3:up\n", r"line 9: dimension 2 has 1 values and dimension 1 has 2"),
    ("1,2:up\n", r"line 9: 1 dimensions before the class; expected 2"),
    ("1:2:3:up\n", r"line 9: 3 dimensions before the class; expected 2"),
    (
        "1:2:dwon\n",
        r"line 9: class 'dwon' is not one of the header's \('up', 'down'\); did you mean 'down'\?",
    ),
    ("1:2:3\n", r"line 9: class '3' is not one of"),
    ("1,inf:2,3:up\n", r"line 9: value 2 of dimension 1 is infinite"),
    ("1:?,-inf:up\n", r"line 9: value 2 of dimension 2 is infinite"),
    ("", r"a.ts holds no series after '@data'"),
]


@pytest.mark.parametrize(("lines", "message"), MALFORMED)
def test_malformed_lines(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read_ts(write(tmp_path / "a.ts", HEADER + lines))


HEADERS = [
    ("@timeStamps true\n@data\n", r"line 1: the file has time stamps, which are not read"),
    ("@targetLabel true\n@data\n", r"line 1: the file has numbers as targets"),
    ("@univariate maybe\n", r"line 1: '@univariate maybe'; expected '@univariate true' or"),
    ("@classLabel\n", r"line 1: '@classLabel'; expected"),
    ("@dimensions two\n", r"line 1: '@dimensions two'; expected '@dimensions' and one whole number"),
    ("@dimensions 0\n", r"'@dimensions 0'; expected"),
    (
        "@univariate true\n@dimensions 3\n",
        r"line 2: '@dimensions 3', but an earlier line says '@univariate true'",
    ),
    ("\n1,2:3,4:a\n", r"line 2: '1,2:3,4:a' stands before @data"),
    ("@problemName x\n", r"has no line '@data'"),
    ("@classLabel true\n@data\na\n", r"line 3: 'a' holds a class and no values"),
    ("@classLabel true\n@data\n1:a\n1:2:a\n", r"line 4: 2 dimensions before the class; expected 1"),
]


@pytest.mark.parametrize(("text", "message"), HEADERS)
def test_malformed_headers(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_ts(write(tmp_path / "a.ts", text))


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"none.ts does not exist"):
        read_ts(tmp_path / "none.ts")
    (tmp_path / "a.ts").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_ts(tmp_path / "a.ts")
