"""20 Newsgroups, ten topics: few-label text classification."""

from __future__ import annotations

import tarfile
import warnings
from pathlib import Path

import numpy as np
import torch

from .cache import cache_dir, download_failed, find_raw, kept_arrays, replacing
from .catalog import CATALOG
from .errors import DataError
from .graph import knn_graph
from .node import NodeData
from .splits import per_class

TOPICS = [
    "alt.atheism",
    "comp.sys.ibm.pc.hardware",
    "misc.forsale",
    "rec.autos",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "talk.politics.guns",
]
_ARCHIVES = [f"{folder}20news-bydate.tar.{kind}" for kind in ("xz", "gz") for folder in ("", "20news/")]
_CACHED = "20news-10-tfidf.npz"


def load_newsgroups(
    *, splits: int, seed: int, labels_per_class: int, knn: int, root: Path | None
) -> NodeData:
    """9607 messages (headers kept, latin-1), TF-IDF of the 236 words found in at least 5 % of them.

    `CountVectorizer(stop_words="english", min_df=0.05)`, then `TfidfTransformer(smooth_idf=False)`; the order of
    messages is that of their names in the archive. The result is kept in the cache folder.
    """
    x, y, words, idf = _vectors(root)
    return NodeData(
        name="20news",
        protocol="few-label",
        x=x,
        y=y,
        edge_index=knn_graph(x, knn),
        edge_weight=None,
        splits=per_class(
            y, labels_per_class=labels_per_class, valid=CATALOG["20news"].valid, splits=splits, seed=seed
        ),
        classes=TOPICS,
        preprocessing={
            "kind": "named",
            "name": "20news",
            "features": x.shape[1],
            "normalize": None,
            "knn": knn,
            "words": words,
            "idf": idf,
        },
        notes=[f"graph: {knn} nearest neighbours of every message"],
    )


def _vectors(root: Path | None) -> tuple[torch.Tensor, torch.Tensor, list[str], list[float]]:
    path = cache_dir() / _CACHED
    arrays = kept_arrays(path, {"x", "y", "words", "idf"}) if root is None else None
    if arrays is None:
        documents, labels = _documents(root)
        arrays = _vectorize(documents) | {"y": labels}
        with replacing(path) as part:
            np.savez_compressed(part, allow_pickle=False, **arrays)
    words, idf = arrays["words"].tolist(), arrays["idf"].tolist()
    return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]), words, idf


def _vectorize(documents: list[str]) -> dict[str, np.ndarray]:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    counter = CountVectorizer(stop_words="english", min_df=0.05)
    weigher = TfidfTransformer(smooth_idf=False)
    x = weigher.fit_transform(counter.fit_transform(documents))
    words = counter.get_feature_names_out().astype(str)
    return {"x": x.toarray().astype(np.float32), "words": words, "idf": weigher.idf_}


def tfidf(documents: list[str], words: list[str], idf: list[float]) -> torch.Tensor:
    """Rows of unit length for new documents, with the words and weights of the training set."""
    from sklearn.feature_extraction.text import CountVectorizer

    counts = CountVectorizer(stop_words="english", vocabulary=words).fit_transform(documents).toarray()
    x = counts * np.asarray(idf)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(x / np.where(length == 0, 1, length)).float()


def _documents(root: Path | None) -> tuple[list[str], np.ndarray]:
    archive = find_raw(_ARCHIVES, root)
    named = _read_archive(archive) if archive is not None else _download()
    named.sort()
    if not named:
        raise DataError(
            f"{archive}: no messages of the ten topics inside; expected folders such as */{TOPICS[0]}/"
        )
    topic = np.array([TOPICS.index(name[1]) for name, _ in named], dtype=np.int64)
    return [text for _, text in named], topic


def _read_archive(path: Path) -> list[tuple[tuple[str, ...], str]]:
    """((part, topic, number), text) of the messages of the ten topics."""
    found: list[tuple[tuple[str, ...], str]] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = _name(member.name)
                if member.isfile() and len(name) == 3 and name[1] in TOPICS:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    found.append((name, stream.read().decode("latin-1")))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as an archive ({error}); fetch it again") from error
    return found


def _download() -> list[tuple[tuple[str, ...], str]]:
    from sklearn.datasets import fetch_20newsgroups

    home = str(cache_dir() / "sklearn")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Retry downloading")
            found = fetch_20newsgroups(data_home=home, subset="all", categories=TOPICS, shuffle=False)
    except OSError as error:
        raise download_failed("20news", error, _ARCHIVES[-1]) from error
    return [(_name(name), text) for name, text in zip(found.filenames, found.data, strict=True)]


def _name(path: str) -> tuple[str, ...]:
    """(part, topic, number) of a message, from its path."""
    return Path(path).parts[-3:]
