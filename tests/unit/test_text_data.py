"""Texts: every symbol is predicted once, parts do not overlap, and what is no text is refused."""

import pytest
import torch

from osmose.data import DataError, kind, load
from osmose.data.text import decode, encode


def write(folder, text, name="book.txt"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path, "the quick brown fox. " * 50)


@pytest.fixture
def book(path):
    return load(path, task="text", length=7)


def test_parts_follow_each_other_and_cover_the_text(path, book):
    parts = book.splits[0]
    assert [*parts.train, *parts.valid, *parts.test] == list(range(1050))
    assert len(parts.train) == 945
    other = load(path, task="text", protocol="best-on-test").splits[0]
    assert other.train == parts.train
    assert other.valid == other.test == range(945, 1050)


@pytest.mark.parametrize("phase", [0, 3])
@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_every_symbol_after_the_first_is_predicted_once_from_the_one_before(book, part, phase):
    where = book.splits[0].parts()[part]
    ids, target = book.batch(book.windows(where, phase), where)
    assert ids.shape == target.shape
    assert ids.shape[1] == 7
    known = target >= 0
    text = book.values[where.start : where.stop].long()
    assert torch.equal(target[known], text[1 + phase :])
    assert torch.equal(ids[known], text[phase:-1])


def test_a_text_comes_back_from_its_symbols(book):
    assert decode(encode("quick fox", book.preprocessing), book.preprocessing) == "quick fox"
    assert decode(book.values[:9], book.preprocessing) == "the quick"


def test_symbols_beyond_one_byte_and_beyond_256(tmp_path):
    text = "".join(chr(0x4E00 + i % 400) for i in range(900)) + "𝄞é" * 20
    data = load(write(tmp_path, text), task="text")
    assert data.num_features == 402
    assert decode(data.values, data.preprocessing) == text


def test_the_task_says_what_a_txt_is(tmp_path):
    path = write(tmp_path, "a,b\n1,2\n")
    assert kind(path) == "nodes"
    assert kind(path, "text") == "text"
    assert kind(path, "series") == "sequences"


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (b"", {}, "is empty; expected a text"),
        (b"\xff\xfe\x00abc", {}, r"is not UTF-8 text: byte 0xff at 0.*iconv"),
        (b"short", {}, "5 symbols leave 0 for valid; expected 2 or more"),
        (b"x" * 500, {"length": 0}, "length is 0; expected 1 or more symbols"),
        (
            b"x" * 500,
            {"protocol": "public"},
            "protocol is 'public'; expected one of 'holdout', 'best-on-test'",
        ),
        (b"x" * 500, {"size": 3}, "size is for"),
        (b"x" * 500, {"knn": 3}, "knn is for tables and graphs, not for text"),
        (b"x" * 500, {"labels_per_class": 3}, "labels_per_class is for data with labels"),
        (
            b"x" * 500,
            {"task": "txt"},
            "task is 'txt'; expected one of nodes, series, images, text, control; did you mean 'text'",
        ),
    ],
)
def test_bad_input_says_what_to_do(tmp_path, content, arguments, says):
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        load(path, **{"task": "text", **arguments})


def test_a_named_set_needs_no_task():
    with pytest.raises(DataError, match="task is 'text', but this is a named data set"):
        load("tinyshakespeare", task="text")


def test_prompts_that_a_model_cannot_read(book):
    with pytest.raises(DataError, match="the prompt is empty"):
        encode("", book.preprocessing)
    with pytest.raises(DataError, match=r"has not seen: 'Q', 'é'; it knows ' \.b"):
        encode("Qé", book.preprocessing)


def test_tinyshakespeare(benchmark_data, monkeypatch):
    monkeypatch.setenv("OSMOSE_DATA", str(benchmark_data))
    data = load("tinyshakespeare")
    assert (len(data.values), data.num_features, data.window) == (1_115_390, 65, 256)
    assert decode(data.values[:13], data.preprocessing) == "First Citizen"
    assert len(load("tinyshakespeare", protocol="best-on-test").splits[0].test) == 111_539
