"""IMDB reviews as bytes: a long text, positive or negative."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cache import cache_dir, find_raw, kept_arrays, replacing
from .catalog import BEST_ON_TEST
from .errors import DataError, DataNotFoundError, some
from .labels import cells_of_text, encode
from .node import Split
from .read import read_table
from .sequence import SequenceData
from .splits import holdout
from .symbols import select, thin

LENGTH = 1000
VOCAB = 257
_CLASSES = ["neg", "pos"]
_ARCHIVES = [
    f"{folder}{name}" for name in ("aclImdb_labeled.tar.xz", "aclImdb_v1.tar.gz") for folder in ("imdb/", "")
]
_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"


def load_imdb(
    protocol: str, *, splits: int, seed: int, size: int | None, length: int | None, root: Path | None
) -> SequenceData:
    """50,000 reviews (Maas et al., ACL 2011) as bytes, cut at `length` (1000); the symbol of a byte is its value + 1.

    Symbol 0 stays free, as in Long Range Arena. The archive is read once; the bytes are kept in the cache folder.
    """
    most = _length(length)
    arrays = _reviews(root)
    y, is_train = torch.from_numpy(arrays["y"]), torch.from_numpy(arrays["train"])
    parts = thin(y, [is_train.nonzero().flatten(), (~is_train).nonzero().flatten()], size)
    chosen = torch.cat(parts)
    raw, ptr = select(arrays["bytes"], arrays["ptr"], chosen.numpy(), most)
    y = y[chosen]
    known, test = torch.arange(len(chosen)).split([len(part) for part in parts])
    drawn = (
        [Split(known, test, test)]
        if protocol == BEST_ON_TEST
        else holdout(y, known, test, share=0.1, splits=splits, seed=seed)
    )
    cut = int((arrays["ptr"][chosen.numpy() + 1] - arrays["ptr"][chosen.numpy()] > most).sum())
    notes = [f"{cut} of {len(chosen)} reviews cut at {most} bytes"]
    if size is not None:
        notes.append(f"{len(known)} training and {len(test)} test reviews drawn from 25000 each")
    preprocessing = {
        "kind": "sequences",
        "form": "bytes",
        "vocab": VOCAB,
        "length": most,
        "classes": _CLASSES,
    }
    return SequenceData(
        name="imdb",
        protocol=protocol,
        values=_symbols(raw),
        ptr=ptr,
        y=y,
        vocab=VOCAB,
        splits=drawn,
        classes=_CLASSES,
        preprocessing=preprocessing,
        notes=notes,
    )


def new_texts(path: Path, preprocessing: dict[str, Any]) -> SequenceData:
    """Texts for a trained model: a CSV with a column `text` and, if wanted, `label`."""
    table = read_table(path)
    if "text" not in table.header:
        raise DataError(
            f"{path} has columns {some(table.header)}; expected a column 'text' and, if wanted, 'label'"
        )
    texts = [cell.encode() for cell in table.column("text")]
    if not all(texts):
        raise DataError(f"{path}: row {texts.index(b'')} has no text; fill it or leave it out")
    most = preprocessing["length"]
    ptr = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    raw, bounds = select(np.frombuffer(b"".join(texts), np.uint8), ptr, np.arange(len(texts)), most)
    cells: list[str | None] = [None] * len(texts)
    if "label" in table.header:
        cells = cells_of_text(table.column("label"))
    y, classes = encode(cells, f"{path}, label column 'label'", preprocessing["classes"])
    cut = sum(len(text) > most for text in texts)
    return SequenceData(
        name=path.stem,
        protocol="new",
        values=_symbols(raw),
        ptr=bounds,
        y=y,
        vocab=preprocessing["vocab"],
        splits=[],
        classes=classes,
        preprocessing=preprocessing,
        notes=[f"{cut} texts cut at {most} bytes"] if cut else [],
    )


def _symbols(raw: np.ndarray) -> Tensor:
    return torch.from_numpy(raw.astype(np.int16) + np.int16(1))


def _length(length: int | None) -> int:
    if length is not None and length < 1:
        raise DataError(f"load('imdb'): length is {length}; expected at least 1 byte")
    return LENGTH if length is None else length


def _reviews(root: Path | None) -> dict[str, np.ndarray]:
    path = cache_dir() / "imdb-bytes.npz"
    arrays = kept_arrays(path, {"bytes", "ptr", "y", "train"}) if root is None else None
    if arrays is None:
        archive = find_raw(_ARCHIVES, root)
        if archive is None:
            raise DataNotFoundError(
                f"load('imdb'): no archive of the reviews; fetch {_URL} (84 MB) and name its folder in OSMOSE_DATA"
            )
        arrays = _read_archive(archive)
        with replacing(path) as part:
            np.savez(part, allow_pickle=False, **arrays)
    return arrays


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    found: list[tuple[str, bytes]] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                names = Path(member.name).parts
                if member.isfile() and names[-3:-1] in {(p, c) for p in ("train", "test") for c in _CLASSES}:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    found.append(("/".join(names[-3:]), stream.read()))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as an archive ({error}); fetch it again: {_URL}") from error
    found = sorted((name, text) for name, text in found if text)
    if not found:
        raise DataError(f"{path} holds no */train/pos/*.txt and the like; expected the archive {_URL}")
    lengths = np.array([len(text) for _, text in found], dtype=np.int64)
    return {
        "bytes": np.frombuffer(b"".join(text for _, text in found), np.uint8),
        "ptr": np.concatenate([[0], lengths.cumsum()]),
        "y": np.array([_CLASSES.index(name.split("/")[1]) for name, _ in found], dtype=np.int64),
        "train": np.array([name.startswith("train") for name, _ in found]),
    }
