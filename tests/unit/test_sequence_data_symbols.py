"""Sets of symbols: ListOps by its rules, digits and images as pixels, reviews as bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from osmose.data import DataError, DataNotFoundError, load, load_new
from osmose.data.listops import SYMBOLS, Rules, _forest, generate
from osmose.data.symbols import thin

# ---- ListOps: read and evaluated by recursion, as the paper describes it, without the generator's arrays

OPERATORS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(np.median(values)),
    "[SM": lambda values: sum(values) % 10,
}


def evaluate(words: Iterator[str], word: str, depth: int, rules: Rules) -> int:
    """The value of the expression that starts with `word` and goes on in `words`."""
    if word.isdigit():
        return int(word)
    assert depth < rules.max_depth, "no operator at the greatest depth"
    arguments = []
    while (inner := next(words)) != "]":
        arguments.append(evaluate(words, inner, depth + 1, rules))
    assert 2 <= len(arguments) <= rules.max_args
    return OPERATORS[word](arguments)


SMALL = Rules(max_depth=5, min_length=5, max_length=60, seed=3)


@pytest.mark.parametrize("rules", [Rules(), SMALL, replace(SMALL, max_args=3, operators=0.5)])
def test_listops_values(rules):
    tokens, ptr, y = generate(150, rules)
    lengths = np.diff(ptr)
    assert len(y) == 150
    assert ptr[0] == 0
    assert ptr[-1] == len(tokens)
    assert lengths.min() > rules.min_length
    assert lengths.max() < rules.max_length
    texts = [[SYMBOLS[t] for t in tokens[a:b]] for a, b in pairwise(ptr)]
    for words, value in zip(texts, y, strict=True):
        rest = iter(words)
        assert evaluate(rest, next(rest), 1, rules) == value
        assert next(rest, None) is None, "one expression and nothing behind it"
    assert len({tuple(words) for words in texts}) == 150
    assert {word for words in texts for word in words} == set(SYMBOLS)


def test_listops_follow_the_distribution_of_the_rules():
    """Shares of operators, arguments and digits where the length leaves the choice free: all small trees."""
    rules = replace(SMALL, min_length=0, max_length=10**9, max_depth=3)
    tokens, ptr, _ = _forest(20_000, rules, np.random.default_rng(0))
    first = tokens[ptr[:-1]]
    assert (first >= 10).mean() == pytest.approx(0.25, abs=0.01)
    assert np.bincount(first[first >= 10] - 10) / (first >= 10).sum() == pytest.approx([0.25] * 4, abs=0.03)
    assert np.bincount(tokens[tokens < 10]) / (tokens < 10).sum() == pytest.approx([0.1] * 10, abs=0.01)
    # a node has one token, or two and the tokens of six children on average
    expected = 1.0
    for _ in range(2):
        expected = 0.75 + 0.25 * (2 + 6 * expected)
    assert len(tokens) / 20_000 == pytest.approx(expected, rel=0.03)


def test_listops_are_kept_and_a_smaller_size_is_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path))
    data = load("listops", size=300)
    (split,) = data.splits
    assert [len(part) for part in split.parts().values()] == [288, 6, 6]
    assert data.vocab == 15
    first = (tmp_path / "listops-300.npz").read_bytes()
    assert load("listops", size=300).values.equal(data.values)
    (tmp_path / "listops-300.npz").write_bytes(first[:1000])
    assert load("listops", size=300).values.equal(data.values), "a damaged file is made again"
    some = load("listops", size=200)
    assert some.values.equal(data.values[: data.ptr[200]])
    assert some.y.equal(data.y[:200])


# ---- pixels and bytes


def test_digits_are_their_pixels():
    data = load("digits-pixels", splits=2)
    pixels, digit = load_digits(return_X_y=True)
    x, lengths = data.batch(torch.tensor([5, 1700]))
    assert x.tolist() == pixels[[5, 1700]].astype(int).tolist()
    assert lengths.tolist() == [64, 64]
    assert data.y.tolist() == digit.tolist()
    assert data.vocab == 17
    assert len(data.splits) == 2


def archive(path, files: dict[str, bytes], mode="w:xz"):
    with tarfile.open(path, mode) as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """Twenty reviews of a part and class, of 3 to 22 bytes, some beyond ASCII."""
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path / "cache"))
    files = {"aclImdb/README": b"no review", "aclImdb/train/unsup/0_0.txt": b"unlabelled"}
    for part in ("train", "test"):
        for name in ("pos", "neg"):
            for i in range(20):
                files[f"aclImdb/{part}/{name}/{i}_7.txt"] = f"{part[1]}{name[0]}é".encode()[:3] + b"x" * i
    (tmp_path / "raw" / "imdb").mkdir(parents=True)
    archive(tmp_path / "raw" / "imdb" / "aclImdb_v1.tar.gz", files, "w:gz")
    return tmp_path / "raw"


def test_reviews_are_bytes(reviews):
    data = load("imdb", root=reviews, length=5, splits=2)
    assert data.num_sequences == 80
    assert (data.vocab, data.classes) == (257, ["neg", "pos"])
    x, lengths = data.batch(torch.arange(80))
    assert lengths.max() == 5
    for row, length, label, i in zip(x, lengths.tolist(), data.y.tolist(), range(80), strict=True):
        text = bytes((row[:length] - 1).tolist())
        assert text[:2] == (b"r" if i < 40 else b"e") + b"np"[label : label + 1]
    assert data.notes == ["68 of 80 reviews cut at 5 bytes"]
    for split in data.splits:
        assert sorted(torch.cat([split.train, split.valid]).tolist()) == list(range(40))
        assert len(split.valid) == 4
        assert split.test.tolist() == list(range(40, 80))
    (optimistic,) = load("imdb", root=reviews, protocol="best-on-test").splits
    assert optimistic.valid.equal(optimistic.test)


def test_fewer_reviews_and_the_cache(reviews, monkeypatch):
    monkeypatch.setenv("OSMOSE_DATA", str(reviews))
    some = load("imdb", size=40)
    assert some.y[some.splits[0].test].bincount().tolist() == [10, 10]
    assert len(some.splits[0].train) + len(some.splits[0].valid) == 20
    (reviews / "imdb" / "aclImdb_v1.tar.gz").unlink()
    assert load("imdb").num_sequences == 80, "read once"
    with pytest.raises(DataNotFoundError, match=r"no archive of the reviews; fetch https://ai.stanford"):
        load("imdb", root=reviews)
    with pytest.raises(DataError, match=r"size is 81; expected 1 to 80"):
        load("imdb", size=81)
    with pytest.raises(DataError, match=r"size is 1, too small for an example of every class"):
        load("imdb", size=1)
    with pytest.raises(DataError, match=r"length is 0"):
        load("imdb", length=0)


def test_new_texts(reviews, tmp_path):
    data = load("imdb", root=reviews, length=6)
    preprocessing = json.loads(json.dumps(data.preprocessing))
    (tmp_path / "new.csv").write_text('text,label\n"good, é",pos\nbad,\n')
    new = load_new(tmp_path / "new.csv", preprocessing)
    x, lengths = new.batch(torch.arange(2))
    assert bytes((x[0, : lengths[0]] - 1).tolist()) == b"good, "
    assert bytes((x[1, : lengths[1]] - 1).tolist()) == b"bad"
    assert new.y.tolist() == [1, -1]
    assert new.notes == ["1 texts cut at 6 bytes"]
    (tmp_path / "bad.csv").write_text("words,label\na,pos\n")
    with pytest.raises(DataError, match=r"expected a column 'text'"):
        load_new(tmp_path / "bad.csv", preprocessing)
    (tmp_path / "bad.csv").write_text("text,label\n,pos\n")
    with pytest.raises(DataError, match=r"row 0 has no text"):
        load_new(tmp_path / "bad.csv", preprocessing)
    (tmp_path / "bad.csv").write_text("text,label\na,good\n")
    with pytest.raises(DataError, match=r"not trained on: 'good'"):
        load_new(tmp_path / "bad.csv", preprocessing)


def test_a_damaged_archive_is_named(reviews):
    path = reviews / "imdb" / "aclImdb_v1.tar.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"aclImdb_v1.tar.gz cannot be read as an archive"):
        load("imdb", root=reviews)
    archive(path, {"other.txt": b"x"}, "w:gz")
    with pytest.raises(DataError, match=r"holds no \*/train/pos"):
        load("imdb", root=reviews)


def test_images_are_gray_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path / "cache"))
    files = {}
    for part in ("train", "test"):
        for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
            for i in range(10):
                memory = io.BytesIO()
                Image.new("RGB", (32, 32), colour).save(memory, "JPEG", quality=95)
                files[f"{part}/{name}/{i:04}.jpg"] = memory.getvalue()
    archive(tmp_path / "cifar10_jpeg.tar.xz", files)
    data = load("cifar-pixels", root=tmp_path, splits=1)
    assert (data.vocab, data.classes) == (256, ["cat", "dog"])
    x, lengths = data.batch(torch.tensor([0, 10]))
    assert lengths.tolist() == [1024, 1024]
    red, blue = x.float().mean(1).tolist()
    assert red == pytest.approx(0.299 * 200, abs=3)
    assert blue == pytest.approx(0.114 * 200, abs=3)
    assert [len(part) for part in data.splits[0].parts().values()] == [18, 2, 20]
    assert "JPEG" in data.notes[0]
    assert load("cifar-pixels", root=tmp_path, size=20).y.bincount().tolist() == [10, 10]
    files["train/dog/0000.jpg"] = b"no image"
    archive(tmp_path / "cifar10_jpeg.tar.xz", files)
    with pytest.raises(DataError, match=r"cannot be read as an archive of images"):
        load("cifar-pixels", root=tmp_path)
    (tmp_path / "cifar10_jpeg.tar.xz").unlink()
    with pytest.raises(DataNotFoundError, match=r"no cifar10_jpeg.tar.xz with train/CLASS"):
        load("cifar-pixels", root=tmp_path)


def test_a_share_of_every_class():
    y = torch.tensor([0] * 30 + [1] * 10 + [0] * 15 + [1] * 5)
    parts = thin(y, [torch.arange(40), torch.arange(40, 60)], 12)
    assert [y[part].bincount().tolist() for part in parts] == [[6, 2], [3, 1]]
    assert all(bool((part.diff() > 0).all()) for part in parts)
