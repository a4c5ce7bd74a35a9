"""What data are there: nodes, sequences, images, text, episodes? Told from the name or the path alone, without torch and
without reading the data."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path

from .catalog import CATALOG, Kind
from .errors import DataError, nearest

IMAGE_FILES = (".png", ".jpg", ".jpeg")
_ARRAY_FILES = (".npy", ".npz", ".csv")


TASKS: dict[str, Kind] = {
    "nodes": "nodes",
    "series": "sequences",
    "images": "images",
    "text": "text",
    "control": "control",
}
"""What a user may say that a file holds."""


def kind(source: str | Path, task: str | None = None) -> Kind:
    """Whether `load(source)` gives `NodeData`, `SequenceData`, `ImageData`, `TextData` or, for control, `EpisodeData`.

    Sequences are the named sets of that kind, `.ts` files, folders that hold some, and an `.npz` with `ptr` or an `x`
    of three dimensions. Images are the named sets, an `.npz` with an `x` of four dimensions, image files, and folders
    with image files in them or in their folders, but no arrays. Control are the named sets of that kind and an `.npz` with
    `observations` or `observation_0`. A file is a text where `task` says so. What is not there or cannot be read counts as nodes:
    `load` says what is wrong with it.
    """
    if isinstance(source, str) and source.lower() in CATALOG:
        return CATALOG[source.lower()].kind
    if task is not None:
        if task not in TASKS:
            raise DataError(f"task is {task!r}; expected one of {', '.join(TASKS)}{nearest(task, TASKS)}")
        return TASKS[task]
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.suffix.lower() == ".npz":
            return _of_arrays(path)
    except (OSError, ValueError, SyntaxError, KeyError, zipfile.BadZipFile):
        return "nodes"
    if path.suffix.lower() in IMAGE_FILES:
        return "images"
    return "sequences" if path.suffix.lower() == ".ts" else "nodes"


def _of_folder(path: Path) -> Kind:
    inside = list(path.iterdir())
    suffixes = {p.suffix.lower() for p in inside}
    if ".ts" in suffixes:
        return "sequences"
    if not suffixes.isdisjoint(_ARRAY_FILES):
        return "nodes"
    below = (p for folder in inside if folder.is_dir() for p in folder.iterdir())
    found = not suffixes.isdisjoint(IMAGE_FILES) or any(p.suffix.lower() in IMAGE_FILES for p in below)
    return "images" if found else "nodes"


def _of_arrays(path: Path) -> Kind:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "observations.npy" in names or "observation_0.npy" in names:
            return "control"
        if "ptr.npy" in names:
            return "sequences"
        with archive.open("x.npy") as stream:
            start = stream.read(10)  # magic, version, and two of the header's length's bytes (NEP 1)
            version, size = start[6], int.from_bytes(start[8:10], "little")
            if version > 1:
                size += int.from_bytes(stream.read(2), "little") << 16
            header = ast.literal_eval(stream.read(size).decode("latin-1"))
    by_dimensions: dict[int, Kind] = {3: "sequences", 4: "images"}
    return by_dimensions.get(len(header["shape"]), "nodes")
