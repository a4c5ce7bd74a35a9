"""The error of this package: it names the file or argument, what came, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used as they are; the message says which, why, and what to do."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A file, folder or public data set that is not there and could not be fetched."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'cora'?`, or nothing when no known word is near."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    found = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[found[0]]!r}?" if found else ""


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few items as text, and how many more there are."""
    items = list(items)
    shown = ", ".join(repr(i) if isinstance(i, str) else str(i) for i in items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")
