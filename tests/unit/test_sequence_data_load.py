"""Series and sequences from files: splits, statistics of the training part only, new data, what is refused."""

from __future__ import annotations

import io
import json
import urllib.request
import zipfile

import numpy as np
import pytest
import torch

from osmose.data import DataError, DataNotFoundError, SequenceData, kind, load, load_new

HEADER = "@dimensions 2\n@classLabel true a b\n@data\n"


def lines(n: int, seed: int, shift: float = 0.0) -> list[str]:
    """Series of 1 to 4 steps with the classes in turn."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        values = rng.normal(size=(2, rng.integers(1, 5))) * [[1], [100]] + shift
        out.append(":".join(",".join(f"{v:.4f}" for v in row) for row in values) + ":" + "ab"[i % 2])
    return out


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "T_TRAIN.ts").write_text(HEADER + "\n".join(lines(20, 0)) + "\n")
    (tmp_path / "T_TEST.ts").write_text(HEADER + "\n".join(lines(10, 1, shift=50)) + "\n")
    return tmp_path


def of(data: SequenceData, index) -> torch.Tensor:
    return torch.cat([data.values[data.ptr[i] : data.ptr[i + 1]] for i in index.tolist()])


def test_a_pair_of_files(pair):
    data = load(pair / "T_TRAIN.ts")
    assert (data.name, data.protocol, data.num_sequences, data.classes) == ("T", "holdout", 30, ["a", "b"])
    assert len(data.splits) == 5
    for split in data.splits:
        assert split.test.tolist() == list(range(20, 30))
        assert sorted(split.train.tolist() + split.valid.tolist()) == list(range(20))
        assert data.y[split.valid].bincount().tolist() == [2, 2]
    assert len({tuple(split.valid.tolist()) for split in data.splits}) > 1
    assert load(pair).values.equal(data.values)
    fewer = load(pair, splits=2)
    assert [s.valid.tolist() for s in fewer.splits] == [s.valid.tolist() for s in data.splits[:2]]


def test_statistics_are_those_of_the_training_part_of_each_split(pair):
    data = load(pair)
    for i, split in enumerate(data.splits):
        prepared = data.for_split(i)
        train = of(prepared, split.train)
        torch.testing.assert_close(train.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(train.std(0, correction=0), torch.ones(2))
        assert of(prepared, split.test).mean() > 5, "the shifted test file has no part in them"
    changed = (pair / "T_TEST.ts").read_text().replace(":a\n", ":b\n")
    (pair / "T_TEST.ts").write_text(changed)
    assert load(pair).preprocessing == data.preprocessing


def test_best_on_test_says_what_it_is(pair):
    data = load(pair, protocol="best-on-test")
    (split,) = data.splits
    assert split.valid.equal(split.test)
    assert split.train.tolist() == list(range(20))


def test_one_file_is_divided(pair):
    alone = pair / "alone.ts"
    (pair / "T_TRAIN.ts").rename(alone)
    data = load(alone)
    assert data.protocol == "stratified"
    assert [len(part) for part in data.splits[0].parts().values()] == [12, 4, 4]
    assert load(alone, labels_per_class=3).protocol == "few-label"


def test_new_series_are_prepared_as_the_training_data_were(pair):
    data = load(pair)
    preprocessing = json.loads(json.dumps(data.for_split(1).preprocessing))
    new = load_new(pair / "T_TEST.ts", preprocessing)
    assert new.protocol == "new"
    assert new.splits == []
    assert new.values.equal(of(data.for_split(1), data.splits[1].test))
    assert new.y.equal(data.y[20:])
    unlabelled = [line.rsplit(":", 1)[0] for line in lines(3, 5)]
    (pair / "new.ts").write_text("@classLabel false\n@data\n" + "\n".join(unlabelled) + "\n")
    assert load_new(pair / "new.ts", preprocessing).y.tolist() == [-1, -1, -1]


def test_missing_values_are_filled_within_a_series_and_dimension(tmp_path):
    rows = ["0,?,?,6:?,?,?,?:a", "?,1,?:4,?,8:b", "5,5:1,1:a", "1,1:1,3:b", "2,2:2,2:a", "3,3:2,2:b"]
    (tmp_path / "m.ts").write_text(HEADER + "\n".join(rows) + "\n")
    data = load(tmp_path / "m.ts")
    shift, scale = (torch.tensor(data.preprocessing[key]) for key in ("mean", "scale"))
    first = of(data, torch.tensor([0]))
    torch.testing.assert_close(first[:, 0] * scale[0] + shift[0], torch.tensor([0.0, 2, 4, 6]))
    assert not first[:, 1].any(), "a dimension that is not there"
    second = of(data, torch.tensor([1])) * scale + shift
    torch.testing.assert_close(second, torch.tensor([[1.0, 4], [1, 6], [1, 8]]))
    assert "9 missing values: interpolated" in data.notes[0]
    assert "1 times a series lacks a whole dimension" in data.notes[1]


def test_unlabelled_series_are_in_no_split(pair):
    text = (pair / "T_TRAIN.ts").read_text().rstrip("\n")
    (pair / "T_TRAIN.ts").write_text(text[:-1] + "?\n")
    data = load(pair)
    assert data.y[19] == -1
    assert all(19 not in part for split in data.splits for part in split.parts().values())
    assert "1 series without class" in data.notes[-1]


def rewrite(pair, name, old, new):
    text = (pair / name).read_text()
    assert old in text
    (pair / name).write_text(text.replace(old, new))


def test_refused(pair):
    path = pair / "T_TRAIN.ts"
    with pytest.raises(DataError, match=r"T_TEST.ts is the test part of .*T_TRAIN.ts; give T_TRAIN.ts"):
        load(pair / "T_TEST.ts")
    with pytest.raises(DataError, match=r"protocol is 'holdut'; expected .*did you mean 'holdout'"):
        load(path, protocol="holdut")
    with pytest.raises(DataError, match=r"labels_per_class is for a single file"):
        load(path, labels_per_class=2)
    with pytest.raises(DataError, match=r"label, edges, knn is for tables and graphs, not for sequences"):
        load(path, label="y", edges="e.csv", knn=3)
    with pytest.raises(DataError, match=r"root is for public data sets"):
        load(path, root=pair)
    preprocessing = load(pair).preprocessing
    with pytest.raises(DataError, match=r"edges = .*leave it out"):
        load_new(path, preprocessing, edges="e.csv")
    with pytest.raises(DataError, match=r"'cora' is a named data set"):
        load_new("cora", preprocessing)
    with pytest.raises(DataError, match=r"expected new sequences as a .ts file or an .npz"):
        load_new(__file__, preprocessing)
    (pair / "wide.ts").write_text("@classLabel false\n@data\n1:2:3\n")
    with pytest.raises(DataError, match=r"has 3 dimensions; the model was trained on 2"):
        load_new(pair / "wide.ts", preprocessing)
    (pair / "other.ts").write_text("@classLabel true\n@data\n1:2:c\n")
    with pytest.raises(DataError, match=r"classes that the model was not trained on: 'c'"):
        load_new(pair / "other.ts", preprocessing)
    (pair / "more.ts").write_text(HEADER + "1:2:a\n")
    (pair / "U_TRAIN.ts").write_text(HEADER + "1:2:a\n")
    with pytest.raises(DataError, match=r"expected one X_TRAIN.ts with its X_TEST.ts"):
        load(pair)


def test_parts_that_do_not_fit(pair):
    (pair / "T_TEST.ts").write_text("@classLabel true a b\n@data\n1:a\n2:b\n")
    with pytest.raises(DataError, match=r"T_TEST.ts has 1 dimensions and .*T_TRAIN.ts has 2"):
        load(pair)
    (pair / "T_TEST.ts").write_text("@classLabel false\n@data\n1:2\n")
    with pytest.raises(DataError, match=r"T_TEST.ts gives no classes"):
        load(pair)
    (pair / "T_TEST.ts").write_text("@classLabel true\n@data\n1:2:c\n")
    with pytest.raises(DataError, match=r"test has classes that train lacks: 'c'"):
        load(pair)


def test_too_few_for_a_holdout(tmp_path):
    (tmp_path / "T_TRAIN.ts").write_text(HEADER + "1:2:a\n1:2:b\n")
    (tmp_path / "T_TEST.ts").write_text(HEADER + "1:2:a\n")
    with pytest.raises(DataError, match=r"too few to draw a validation part from"):
        load(tmp_path)
    (tmp_path / "T_TRAIN.ts").write_text(HEADER + "1:2:a\n1:2:b\n3:3:b\n")
    assert load(tmp_path).splits[0].valid.numel() == 1


@pytest.mark.parametrize(
    ("name", "size", "train", "channels", "longest"),
    [("japanese-vowels", 640, 270, 12, 29), ("scp1", 561, 268, 6, 896), ("basic-motions", 80, 40, 6, 100)],
)
def test_named_sets(benchmark_data, name, size, train, channels, longest):
    data = load(name, root=benchmark_data, splits=1)
    assert (data.num_sequences, data.num_features, int(data.lengths.max())) == (size, channels, longest)
    split = data.splits[0]
    assert split.test.tolist() == list(range(train, size))
    assert len(split.valid) == round(0.2 * train)
    (optimistic,) = load(name.upper(), root=benchmark_data, protocol="best-on-test").splits
    assert optimistic.valid.equal(optimistic.test)


def test_a_set_that_is_not_there_is_fetched_once(pair, tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path / "cache"))
    with io.BytesIO() as memory:
        with zipfile.ZipFile(memory, "w") as archive:
            for part in ("TRAIN", "TEST"):
                archive.write(pair / f"T_{part}.ts", f"BasicMotions_{part}.ts")
        payload = memory.getvalue()
    asked = []

    def reply(url, timeout):
        asked.append(url)
        return io.BytesIO(payload)

    monkeypatch.setattr(urllib.request, "urlopen", reply)
    first = load("basic-motions", root=tmp_path / "raw")
    assert first.num_sequences == 30
    assert load("basic-motions", root=tmp_path / "raw").values.equal(first.values)
    assert asked == ["https://www.timeseriesclassification.com/aeon-toolkit/BasicMotions.zip"]
    payload = b"<html>"
    with pytest.raises(
        DataNotFoundError, match=r"download failed.*uea/JapaneseVowels/JapaneseVowels_TRAIN.ts"
    ):
        load("japanese-vowels", root=tmp_path / "raw")


def test_sequences_in_an_npz(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    path = tmp_path / "own.npz"
    x = rng.normal(3, 2, size=(20, 5, 2))
    np.savez(path, x=x, y=y)
    data = load(path)
    assert (data.num_sequences, data.num_features, data.protocol) == (20, 2, "stratified")
    torch.testing.assert_close(of(data, data.splits[0].train).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    ptr = np.concatenate([[0], np.cumsum(rng.integers(1, 6, size=20))])
    np.savez(path, x=np.arange(ptr[-1]) % 7, ptr=ptr, y=y)
    text = load(path)
    assert text.vocab == text.num_features == 7
    assert text.batch(torch.tensor([1]))[0][0].tolist() == (np.arange(ptr[1], ptr[2]) % 7).tolist()
    new = tmp_path / "new.npz"
    np.savez(new, x=np.array([6, 0, 7]), ptr=np.array([0, 1, 3]))
    with pytest.raises(DataError, match=r"sequence 1, step 1 is symbol 7; expected 0 to 6"):
        load_new(new, text.preprocessing)
    with pytest.raises(DataError, match=r"holds symbols; the model was trained on series"):
        load_new(new, data.preprocessing)
    np.savez(new, x=x[:2, :3])
    again = load_new(new, json.loads(json.dumps(data.preprocessing)))
    torch.testing.assert_close(again.batch(torch.tensor([1]))[0][0], data.batch(torch.tensor([1]))[0][0, :3])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2, 2))}, r"holds no labels"),
        (
            {"x": np.ones((4, 2)), "ptr": np.array([0, 2, 5]), "y": [0, 1]},
            r"ptr is \[0, 2, 5\].*rise from 0 to 4",
        ),
        ({"x": np.ones((4, 2)), "ptr": np.array([0, 4, 4]), "y": [0, 1]}, r"at least one step a sequence"),
        (
            {"x": np.ones((4, 2)), "ptr": np.array([0.0, 4]), "y": [0]},
            r"float64; expected \(n \+ 1,\) integers",
        ),
        (
            {"x": np.ones((2, 2, 2, 2)), "ptr": np.array([0, 2]), "y": [0]},
            r"shape \(2, 2, 2, 2\); expected x",
        ),
        ({"x": np.full((3, 2, 2), np.inf), "y": [0, 1, 0]}, r"holds infinite values"),
        ({"x": np.ones((3, 2, 2)), "y": [0, 1]}, r"has 2 labels for 3 sequences"),
    ],
)
def test_npz_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "bad.npz")


def test_kind_is_told_without_reading(pair, tmp_path):
    np.savez(tmp_path / "nodes.npz", x=np.ones((3, 2)), y=[0, 1, 0])
    np.savez_compressed(tmp_path / "series.npz", x=np.ones((3, 2, 1)))
    np.savez(tmp_path / "flat.npz", x=np.ones(3), ptr=[0, 3])
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    (tmp_path / "empty").mkdir()
    expected = {
        "nodes.npz": "nodes",
        "series.npz": "sequences",
        "flat.npz": "sequences",
        "broken.npz": "nodes",
    }
    expected |= {"T_TRAIN.ts": "sequences", ".": "sequences", "empty": "nodes", "none.npz": "nodes"}
    assert {name: kind(tmp_path / name) for name in expected} == expected
    assert [kind(name) for name in ("digits", "scp1", "Japanese-Vowels", "nothing")] == [
        "nodes",
        "sequences",
        "sequences",
        "nodes",
    ]
