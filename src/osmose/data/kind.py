"""Nodes or sequences? Told from the name or the path alone, without torch and without reading the data."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path
from typing import Literal

from .catalog import CATALOG

Kind = Literal["nodes", "sequences"]


def kind(source: str | Path) -> Kind:
    """Whether `load(source)` gives `NodeData` or `SequenceData`.

    Sequences are the named sets of that kind, `.ts` files, folders that hold some, and an `.npz` with `ptr` or an `x`
    of three dimensions. What is not there or cannot be read counts as nodes: `load` says what is wrong with it.
    """
    if isinstance(source, str) and source.lower() in CATALOG:
        return "sequences" if CATALOG[source.lower()].kind == "sequences" else "nodes"
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            found = any(p.suffix.lower() == ".ts" for p in path.iterdir())
        elif path.suffix.lower() == ".npz":
            found = _is_sequences(path)
        else:
            found = path.suffix.lower() == ".ts"
    except (OSError, ValueError, SyntaxError, KeyError, zipfile.BadZipFile):
        return "nodes"
    return "sequences" if found else "nodes"


def _is_sequences(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        if "ptr.npy" in archive.namelist():
            return True
        with archive.open("x.npy") as stream:
            start = stream.read(10)  # magic, version, and two of the header's length's bytes (NEP 1)
            version, size = start[6], int.from_bytes(start[8:10], "little")
            if version > 1:
                size += int.from_bytes(stream.read(2), "little") << 16
            header = ast.literal_eval(stream.read(size).decode("latin-1"))
    return len(header["shape"]) == 3
