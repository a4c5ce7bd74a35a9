"""Where raw files come from and where prepared files go. Raw folders are read, never written to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import DataError, DataNotFoundError
from .read import load_npz


def cache_dir() -> Path:
    """`OSMOSE_CACHE`, else the user's cache folder of the platform, made when missing."""
    named = os.environ.get("OSMOSE_CACHE")
    if named:
        path = Path(named).expanduser()
    elif sys.platform == "win32":
        path = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "osmose" / "cache"
    elif sys.platform == "darwin":
        path = Path.home() / "Library" / "Caches" / "osmose"
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osmose"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataNotFoundError(
            f"cache folder {path} cannot be made ({error}); name a folder that can be written in OSMOSE_CACHE"
        ) from error
    return path


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """A failed write (full disk, no permission) becomes an error that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"cache folder {cache_dir()} cannot be written ({error}); free some space, or name another folder in "
            "OSMOSE_CACHE"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is whole."""
    with writing():
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(part, "wb") as file:
                yield file
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def kept_arrays(path: Path, names: set[str]) -> dict[str, np.ndarray] | None:
    """The arrays in a file of the cache; None where there are none, or where they are damaged and must be made again."""
    try:
        arrays = load_npz(path)
    except DataError:
        return None
    return arrays if set(arrays) == names else None


def raw_folders(root: Path | None) -> list[Path]:
    """Folders to look into for raw files: `root`, else `OSMOSE_DATA`, else `../shared/datasets` of a checkout."""
    for named, origin in ((root, "root"), (os.environ.get("OSMOSE_DATA"), "OSMOSE_DATA")):
        if named:
            path = Path(named).expanduser()
            if not path.is_dir():
                raise DataNotFoundError(
                    f"{origin} names {path}, which is no folder; name the folder of raw data"
                )
            return [path]
    checkout = Path(__file__).resolve().parents[3]
    beside = checkout.parent / "shared" / "datasets"
    return [beside] if (checkout / "pyproject.toml").is_file() and beside.is_dir() else []


def find_raw(names: list[str], root: Path | None) -> Path | None:
    """The first of the relative paths `names` that a raw folder holds."""
    for folder in raw_folders(root):
        for name in names:
            if (folder / name).exists():
                return folder / name
    return None


def download_failed(name: str, error: BaseException, wanted: str) -> DataNotFoundError:
    """The error for a public set that is neither there nor to be had; `wanted` says which file goes where."""
    return DataNotFoundError(
        f"load({name!r}): download failed ({type(error).__name__}: {error}). Check the connection and try again, or "
        f"fetch the data elsewhere and name the folder in OSMOSE_DATA: it should hold {wanted}. "
        "`digits` needs no download"
    )
