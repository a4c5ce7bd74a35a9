"""The public sets against the facts known of them, and what happens when they cannot be had."""

from __future__ import annotations

import json
import shutil
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from osmose.data import DataError, DataNotFoundError, load, load_new, newsgroups
from osmose.data.catalog import CATALOG

FACTS = {  # nodes, directed edges, features, class sizes
    "cora": (2708, 2 * 5278, 1433, [351, 217, 418, 818, 426, 298, 180]),
    "citeseer": (3327, 2 * 4552, 3703, [249, 590, 668, 701, 596, 508]),
    "chameleon": (890, 2 * 8854, 2325, [242, 134, 209, 164, 141]),
    "20news": (9607, None, 236, [799, 982, 975, 990, 999, 991, 984, 990, 987, 910]),
}


@pytest.fixture(scope="module")
def sets(benchmark_data):
    """Public sets, each loaded once from the benchmark data."""
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = load(name)
        return loaded[name]

    patch = pytest.MonkeyPatch()
    patch.setenv("OSMOSE_DATA", str(benchmark_data))
    yield get
    patch.undo()


def mirrored(data):
    pairs = set(map(tuple, data.edge_index.T.tolist()))
    return all((b, a) in pairs for a, b in pairs) and all(a != b for a, b in pairs) and len(pairs)


@pytest.mark.parametrize("name", FACTS)
def test_facts(sets, name):
    data = sets(name)
    nodes, edges, features, sizes = FACTS[name]
    assert (data.num_nodes, data.num_features) == (nodes, features)
    assert data.y[data.y >= 0].bincount().tolist() == sizes
    assert data.num_classes == len(sizes)
    found = mirrored(data)
    assert found == edges if edges else found
    assert data.preprocessing == json.loads(json.dumps(data.preprocessing))
    assert data.preprocessing["classes"] == data.classes


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_random_protocol(sets, name):
    data = sets(name)
    assert data.protocol == "random"
    assert len(data.splits) == 5
    for split in data.splits:
        assert data.y[split.train].bincount().tolist() == [20] * data.num_classes
        assert (split.valid.numel(), split.test.numel()) == (500, 1000)
    assert not torch.equal(data.splits[0].train, data.splits[1].train)
    rows = data.x.sum(1)
    assert torch.allclose(rows[data.y >= 0], torch.ones(()), atol=1e-5)


def test_citeseer_papers_without_content_have_no_label(sets):
    data = sets("citeseer")
    empty = data.x.sum(1) == 0
    assert int(empty.sum()) == 15
    assert torch.equal(empty, data.y == -1)


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_public_protocol_is_the_fixed_split(benchmark_data, name):
    data = load(name, protocol="public", root=benchmark_data, splits=5)
    (split,) = data.splits
    train = 20 * data.num_classes
    assert split.train.tolist() == list(range(train))
    assert split.valid.tolist() == list(range(train, train + 500))
    index = np.loadtxt(benchmark_data / data.name.replace("cora", "Cora").replace("citeseer", "CiteSeer") / "raw"
                       / f"ind.{name}.test.index", dtype=int)  # fmt: skip
    assert sorted(index.tolist()) == split.test.tolist()
    assert any("5 splits asked" in note for note in data.notes)


def test_chameleon_masks_are_those_of_the_file(sets, benchmark_data):
    data = sets("chameleon")
    file = np.load(benchmark_data / "heterophilous" / "chameleon_filtered.npz")
    assert len(data.splits) == 10
    for i, split in enumerate(data.splits):
        for part, key in (("train", "train_masks"), ("valid", "val_masks"), ("test", "test_masks")):
            assert split.parts()[part].tolist() == np.flatnonzero(file[key][i]).tolist()
    assert set(map(tuple, file["edges"].tolist())) <= set(map(tuple, data.edge_index.T.tolist()))


@pytest.mark.parametrize("per_class", [100, 400])
def test_newsgroups_protocol(sets, per_class):
    sets("20news")
    data = load("20news", labels_per_class=per_class, splits=2, knn=1)
    for split in data.splits:
        assert data.y[split.train].bincount().tolist() == [per_class] * 10
        assert split.valid.numel() == 1000
        assert sum(p.numel() for p in split.parts().values()) == 9607


def test_newsgroups_new_messages_get_the_training_vectors(sets, benchmark_data, tmp_path):
    data = sets("20news")
    documents = newsgroups._documents(benchmark_data)[0][:3]
    clean = [text.replace("\0", "").replace('"', "'") for text in documents]
    path = tmp_path / "new.csv"
    path.write_text("text\n" + "".join(f'"{text}"\n' for text in clean), encoding="utf-8")
    new = load_new(path, data.preprocessing)
    assert torch.allclose(new.x, data.x[:3], atol=1e-6)
    assert new.y.tolist() == [-1] * 3


def test_newsgroups_damaged_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path))
    kept = tmp_path / "20news-10-tfidf.npz"
    kept.write_bytes(b"not an archive")
    documents = ["apple pear", "pear plum", "plum"]
    monkeypatch.setattr(newsgroups, "_documents", lambda root: (documents, np.array([0, 1, 1])))
    x, y, words, idf = newsgroups._vectors(None)
    assert words == ["apple", "pear", "plum"]
    assert torch.allclose(newsgroups.tfidf(documents, words, idf), x)
    monkeypatch.setattr(newsgroups, "_documents", None)
    again = newsgroups._vectors(None)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)
    assert list(tmp_path.iterdir()) == [kept]


def test_raw_folder_stays_as_it_is(benchmark_data, tmp_path):
    shutil.copytree(benchmark_data / "Cora", tmp_path / "Cora")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    load("cora", root=tmp_path, splits=1)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def test_digits():
    data = load("digits", seed=7)
    assert (data.num_nodes, data.num_features, data.num_classes) == (1797, 64, 10)
    assert data.protocol == "few-label"
    assert float(data.x.min()) == 0
    assert float(data.x.max()) == 1
    for split in data.splits:
        assert data.y[split.train].bincount().tolist() == [10] * 10
        assert (split.valid.numel(), split.test.numel()) == (500, 1197)
    degree = data.edge_index[1].bincount(minlength=1797)
    assert int(degree.min()) >= 5
    assert mirrored(data)
    assert load("Digits", knn=2, splits=1).edge_index.shape[1] < data.edge_index.shape[1]


def test_new_nodes_of_a_named_set(tmp_path):
    data = load("digits")
    again = load_new("digits", json.loads(json.dumps(data.preprocessing)))
    assert torch.equal(again.x, data.x)
    assert again.splits == []
    np.save(tmp_path / "some.npy", data.x[:40].numpy())
    new = load_new(tmp_path / "some.npy", data.preprocessing)
    assert torch.equal(new.x, data.x[:40])
    assert new.edge_index.max() < 40
    with pytest.raises(DataError, match="trained on 'digits', not on 'cora'"):
        load_new("cora", data.preprocessing)
    np.save(tmp_path / "narrow.npy", np.zeros((3, 5)))
    with pytest.raises(DataError, match=r"narrow.npy has 5 features; the model was trained on 64"):
        load_new(tmp_path / "narrow.npy", data.preprocessing)


def test_rows_of_new_papers_are_normalised(benchmark_data, tmp_path):
    data = load("cora", splits=1, root=benchmark_data)
    np.savez(tmp_path / "new.npz", x=(data.x[:6] > 0).numpy(), edge_index=np.array([[0, 1], [1, 2]]))
    new = load_new(tmp_path / "new.npz", data.preprocessing)
    assert torch.allclose(new.x, data.x[:6], atol=1e-6)
    assert new.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]


def test_downloads_are_kept_and_read_again(sets, benchmark_data, tmp_path, monkeypatch):
    empty = tmp_path / "raw"
    empty.mkdir()
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path / "cache"))
    asked = []

    def planetoid(self):
        asked.append(self.name)
        shutil.copytree(benchmark_data / self.name / "raw", self.raw_dir, dirs_exist_ok=True)

    def http(url, timeout):
        asked.append(url.rsplit("/")[-1])
        return (benchmark_data / "heterophilous" / asked[-1]).open("rb")

    monkeypatch.setattr("torch_geometric.datasets.Planetoid.download", planetoid)
    monkeypatch.setattr("urllib.request.urlopen", http)
    for name in ("cora", "chameleon", "cora", "chameleon"):
        data = load(name, root=empty)
        assert torch.equal(data.x, sets(name).x)
        assert torch.equal(data.edge_index, sets(name).edge_index)
    assert asked == ["Cora", "chameleon_filtered.npz"]
    (tmp_path / "cache" / "planetoid" / "Cora" / "processed" / "data.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"planetoid/Cora cannot be read .*remove this folder"):
        load("cora", root=empty)


def test_downloaded_messages_are_those_of_the_archive(benchmark_data, tmp_path, monkeypatch):
    empty = tmp_path / "raw"
    empty.mkdir()
    documents, topics = newsgroups._documents(benchmark_data)
    archive = newsgroups._read_archive(benchmark_data / "20news" / "20news-bydate.tar.xz")

    def fetch(data_home, subset, categories, shuffle):
        assert (subset, categories, shuffle) == ("all", newsgroups.TOPICS, False)
        return SimpleNamespace(
            filenames=[str(Path(data_home, *name)) for name, _ in archive], data=[text for _, text in archive]
        )

    monkeypatch.setattr("sklearn.datasets.fetch_20newsgroups", fetch)
    again, labels = newsgroups._documents(empty)
    assert again == documents
    assert labels.tolist() == topics.tolist()


@pytest.mark.parametrize("name", ["cora", "chameleon", "20news"])
def test_failed_download_says_what_to_do(name, tmp_path, monkeypatch):
    empty = tmp_path / "raw"
    empty.mkdir()
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path / "cache"))

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("sklearn.datasets.fetch_20newsgroups", offline)
    monkeypatch.setattr("torch_geometric.datasets.Planetoid.download", offline)
    with pytest.raises(DataNotFoundError, match=r"download failed \(URLError.*OSMOSE_DATA: it should hold"):
        load(name, root=empty)
    leftovers = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert leftovers == []


def test_damaged_raw_files_are_named(tmp_path):
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"):
        (raw / f"ind.cora.{part}").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"Cora/raw cannot be read .*eight ind"):
        load("cora", root=tmp_path)
    (raw / "ind.cora.tx").unlink()
    with pytest.raises(DataNotFoundError, match=r"Cora/raw lacks 'ind.cora.tx'"):
        load("cora", root=tmp_path)
    (tmp_path / "20news-bydate.tar.xz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"20news-bydate.tar.xz cannot be read as an archive"):
        load("20news", root=tmp_path)
    (tmp_path / "chameleon_filtered.npz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"chameleon_filtered.npz cannot be read"):
        load("chameleon", root=tmp_path)


def test_cache_that_cannot_be_written(benchmark_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cache folder .* cannot be made .*OSMOSE_CACHE"):
        load("cora", root=benchmark_data)


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    from osmose.data.cache import replacing

    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path))
    (tmp_path / "kept").write_text("old")

    def fail_half_way():
        with replacing(tmp_path / "kept") as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"No space left.*OSMOSE_CACHE"):
        fail_half_way()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_every_catalogued_set_is_described():
    for name, entry in CATALOG.items():
        assert entry.line
        assert entry.protocols
        assert entry.splits >= 1
        assert name == name.lower()
