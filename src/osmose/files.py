"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write beside ``path`` that takes its place once it is whole and on the disk; interrupted, it is removed.

    Its suffix is that of ``path``, which tells many writers the format.
    """
    part = path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
