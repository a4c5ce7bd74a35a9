"""Names, protocols and arguments: what is known without torch, and what is refused with the nearest name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from osmose import data
from osmose.data import OWN_PROTOCOLS, PROTOCOLS, DataError, DataNotFoundError, load, names


def test_names_and_protocols():
    series = ["japanese-vowels", "scp1", "basic-motions"]
    symbols = ["digits-pixels", "imdb", "listops", "cifar-pixels"]
    images = ["digits-images", "cifar-images"]
    control = ["hopper", "half-cheetah", "walker2d", "ant"]
    nodes = ["digits", "cora", "citeseer", "chameleon", "20news"]
    assert list(names()) == [*nodes, *series, *symbols, *images, "tinyshakespeare", *control]
    assert set(names()) == set(PROTOCOLS)
    assert {name: next(iter(known)) for name, known in PROTOCOLS.items()} == {
        "digits": "few-label",
        "cora": "random",
        "citeseer": "random",
        "chameleon": "fixed",
        "20news": "few-label",
        **dict.fromkeys(series, "holdout"),
        "digits-pixels": "stratified",
        "imdb": "holdout",
        "listops": "generated",
        "cifar-pixels": "holdout",
        "digits-images": "stratified",
        "cifar-images": "holdout",
        "tinyshakespeare": "holdout",
        **dict.fromkeys(control, "blocks"),
    }
    assert list(OWN_PROTOCOLS) == ["given", "stratified", "few-label"]


def test_public_surface():
    classes = {
        "DataError",
        "DataNotFoundError",
        "EpisodeData",
        "ImageData",
        "NodeData",
        "SequenceData",
        "Spans",
        "Split",
        "TextData",
        "Windows",
    }
    assert set(data.__all__) == classes | {
        "CONTROL_PROTOCOLS",
        "OWN_PROTOCOLS",
        "PROTOCOLS",
        "kind",
        "load",
        "load_episodes",
        "load_new",
        "names",
    }
    assert all(hasattr(data, name) for name in data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = data.nothing


def test_names_import_nothing_heavy():
    code = (
        "import sys; from osmose.data import names, PROTOCOLS, load, load_episodes, load_new, kind, DataError; names(); kind('scp1'); kind('hopper');"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'torch_geometric', 'pandas') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (
            "coar",
            {},
            r"'coar' is neither a known data set nor a path; did you mean 'cora'\?; known: digits, cora",
        ),
        ("20newsgroup", {}, r"did you mean '20news'"),
        ("no/such/folder", {}, r"'no/such/folder' does not exist \(working folder"),
        ("table.csv", {}, r"'table.csv' does not exist"),
        (
            "cora",
            {"protocol": "publik"},
            r"protocol is 'publik'; expected one of 'random', 'public'; did you mean 'public'",
        ),
        ("digits", {"protocol": "public"}, r"expected one of 'few-label'"),
        ("digits", {"splits": 0}, r"splits is 0; expected at least 1"),
        ("digits", {"seed": -3}, r"seed is -3"),
        ("digits", {"labels_per_class": 170}, r"take fewer labels a class"),
        ("digits", {"knn": 0}, r"knn is 0"),
        (
            "digits",
            {"label": "y", "ignore": ("a",)},
            r"load\('digits'\): label, ignore is for the user's own data",
        ),
        ("digits", {"edges": "e.csv"}, r"edges is for the user's own data"),
        ("digits", {"size": 5}, r"size is for listops, imdb, cifar-pixels, cifar-images; leave it out"),
        ("listops", {"length": 5}, r"length is for imdb"),
        ("listops", {"size": 99}, r"size is 99; expected 100 to 100000"),
        ("scp1", {"size": 5}, r"size is for listops"),
        ("digits-images", {"size": 5}, r"size is for listops"),
        ("digits-images", {"knn": 5}, r"knn is for tables and graphs, not for images"),
        ("digits-images", {"labels_per_class": 5}, r"labels_per_class is for protocols that draw"),
        ("digits-images", {"protocol": "holdout"}, r"expected one of 'stratified'"),
        ("imdb", {"labels_per_class": 5}, r"labels_per_class is for protocols that draw"),
        ("digits", {"directed": True}, r"directed is for"),
        ("cora", {"knn": 5}, r"knn is for data without edges"),
        (
            "cora",
            {"protocol": "public", "labels_per_class": 5},
            r"labels_per_class is for protocols that draw splits",
        ),
        ("chameleon", {"labels_per_class": 5}, r"labels_per_class is for protocols that draw splits"),
        (__file__, {}, r"unknown kind; expected a .csv"),
    ],
)
def test_refused(source, arguments, message):
    with pytest.raises(DataError, match=message):
        load(source, **arguments)


def test_label_of_arrays(tmp_path):
    with pytest.raises(DataError, match=r"label is for CSV tables"):
        load(tmp_path, label="y")


def test_raw_folder_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataNotFoundError, match=r"root names .*none, which is no folder"):
        load("cora", root=tmp_path / "none")
    monkeypatch.setenv("OSMOSE_DATA", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"OSMOSE_DATA names"):
        load("cora")
