"""Time series from `.ts` files: sets of the UEA archive by name, the user's own by path."""

from __future__ import annotations

import http.client
import io
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache import cache_dir, download_failed, find_raw, replacing
from .catalog import BEST_ON_TEST, SERIES_PROTOCOLS
from .errors import DataError, DataNotFoundError, nearest, some
from .labels import encode
from .node import Split, check_split
from .own import own_splits
from .sequence import SequenceData
from .series import interpolate, join, refit_of, standardise
from .splits import holdout
from .ts import Series, read_ts

_FOLDER = {
    "japanese-vowels": "JapaneseVowels",
    "scp1": "SelfRegulationSCP1",
    "basic-motions": "BasicMotions",
}
_URL = "https://www.timeseriesclassification.com/aeon-toolkit/{}.zip"


def load_uea(name: str, protocol: str, *, splits: int, seed: int, root: Path | None) -> SequenceData:
    """A set of the UEA archive (Bagnall et al., https://arxiv.org/abs/1811.00075), with its fixed training and test files."""
    folder = _FOLDER[name]
    pair = find_raw([f"uea/{folder}", folder], root) or _downloaded(name, folder)
    files = _files(pair)
    if files.test is None:
        raise DataNotFoundError(
            f"load({name!r}): {pair} lacks {folder}_TEST.ts; complete the folder or remove it"
        )
    return _load(name, files, protocol, splits=splits, seed=seed, labels_per_class=None)


def load_ts(
    path: Path, *, protocol: str | None, splits: int | None, seed: int, labels_per_class: int | None
) -> SequenceData:
    """The user's own series: `X_TRAIN.ts` with `X_TEST.ts` beside it, a folder with both, or one `.ts` file."""
    files = _files(path)
    if files.test is not None:
        if labels_per_class is not None:
            raise DataError(f"{path}: labels_per_class is for a single file; here train and test are given")
        if protocol is not None and protocol not in SERIES_PROTOCOLS:
            raise DataError(
                f"{path}: protocol is {protocol!r}; expected one of {', '.join(map(repr, SERIES_PROTOCOLS))}"
                + nearest(protocol, SERIES_PROTOCOLS)
            )
        protocol = protocol or next(iter(SERIES_PROTOCOLS))
    name = files.train.stem.removesuffix("_TRAIN")
    return _load(name, files, protocol, splits=splits, seed=seed, labels_per_class=labels_per_class)


def new_ts(path: Path, preprocessing: dict[str, Any]) -> SequenceData:
    """Series for a trained model, standardised as its training data were; classes may be missing."""
    found = read_ts(path)
    if found.dimensions != preprocessing["channels"]:
        raise DataError(
            f"{path} has {found.dimensions} dimensions; the model was trained on {preprocessing['channels']}"
        )
    raw, ptr = join(found.values)
    raw, notes = interpolate(raw, ptr)
    y, classes = encode(found.labels, f"{path}, classes", preprocessing["classes"])
    return SequenceData(
        name=path.stem,
        protocol="new",
        values=standardise(raw, preprocessing["mean"], preprocessing["scale"]),
        ptr=ptr,
        y=y,
        vocab=None,
        splits=[],
        classes=classes,
        preprocessing=preprocessing,
        notes=notes,
    )


@dataclass
class _Files:
    train: Path
    test: Path | None


def _files(path: Path) -> _Files:
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() == ".ts")
        starts = [p for p in inside if p.stem.upper().endswith("_TRAIN")] or inside
        if len(starts) != 1:
            raise DataError(
                f"folder {path} holds {some([p.name for p in inside]) or 'no .ts files'}; expected one X_TRAIN.ts with "
                "its X_TEST.ts, or one .ts file. Give the path of the file"
            )
        path = starts[0]
    stem = path.stem.upper()
    beside = {p.name.upper(): p for p in path.parent.iterdir()}
    if stem.endswith("_TEST") and (train := beside.get(f"{stem[:-5]}_TRAIN.TS")):
        raise DataError(f"{path} is the test part of {train}; give {train.name} (both are read)")
    return _Files(path, beside.get(f"{stem[:-6]}_TEST.TS") if stem.endswith("_TRAIN") else None)


def _load(
    name: str,
    files: _Files,
    protocol: str | None,
    *,
    splits: int | None,
    seed: int,
    labels_per_class: int | None,
) -> SequenceData:
    parts = [read_ts(path) for path in (files.train, files.test) if path is not None]
    _check_parts(parts)
    where = " and ".join(str(part.path) for part in parts)
    y, classes = encode([label for part in parts for label in part.labels], f"{where}, classes")
    if files.test is None:
        protocol, drawn = own_splits(files.train, y, None, protocol, splits, seed, labels_per_class)
    else:
        assert protocol is not None
        drawn = _splits_of_pair(y, len(parts[0].values), protocol, 5 if splits is None else splits, seed)
    for split in drawn:
        check_split(where, split, y, classes, what="series", reused=protocol == BEST_ON_TEST)
    raw, ptr = join([one for part in parts for one in part.values])
    raw, notes = interpolate(raw, ptr)
    fixed = {"kind": "sequences", "form": "series", "channels": raw.shape[1], "classes": classes}
    refit = refit_of(raw, ptr, fixed)
    values, preprocessing = refit(drawn[0])
    unlabelled = int((y < 0).sum())
    if unlabelled:
        notes.append(f"{unlabelled} series without class: in no split, predicted all the same")
    return SequenceData(
        name=name,
        protocol=protocol,
        values=values,
        ptr=ptr,
        y=y,
        vocab=None,
        splits=drawn,
        classes=classes,
        preprocessing=preprocessing,
        notes=notes,
        refit=refit,
    )


def _check_parts(parts: list[Series]) -> None:
    for part in parts:
        if all(label is None for label in part.labels):
            raise DataError(
                f"{part.path} gives no classes; expected '@classLabel true ...' in the header and the class after the "
                "last colon of every line"
            )
        if part.dimensions != parts[0].dimensions:
            raise DataError(
                f"{part.path} has {part.dimensions} dimensions and {parts[0].path} has {parts[0].dimensions}; "
                "expected the same number"
            )


def _splits_of_pair(y: Tensor, train: int, protocol: str, splits: int, seed: int) -> list[Split]:
    labelled = y >= 0
    first = torch.arange(len(y)) < train
    known, test = (labelled & first).nonzero().flatten(), (labelled & ~first).nonzero().flatten()
    if protocol == BEST_ON_TEST:
        return [Split(known, test, test)]
    return holdout(y, known, test, splits=splits, seed=seed)


def _downloaded(name: str, folder: str) -> Path:
    """The two files, from the cache folder or from the archive."""
    home = cache_dir() / "uea" / folder
    names = [f"{folder}_{part}.ts" for part in ("TRAIN", "TEST")]
    if all((home / file).is_file() for file in names):
        return home
    try:
        with urllib.request.urlopen(_URL.format(folder), timeout=60) as reply:
            archive = zipfile.ZipFile(io.BytesIO(reply.read()))
        content = {file: archive.read(file) for file in names}
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as error:
        wanted = f"uea/{folder}/{names[0]} and {names[1]}, from {_URL.format(folder)}"
        raise download_failed(name, error, wanted) from error
    home.mkdir(parents=True, exist_ok=True)
    for file, payload in content.items():
        with replacing(home / file) as part:
            part.write(payload)
    return home
