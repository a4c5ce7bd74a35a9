"""Text as a row of symbols for language models: tinyshakespeare, and any text file of the user's."""

from __future__ import annotations

import http.client
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .cache import cache_dir, download_failed, find_raw, replacing
from .catalog import BEST_ON_TEST, TEXT_PROTOCOLS
from .errors import DataError, some

WINDOW = 256
_FILE = "input.txt"
_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_SHARES = {"holdout": (0.9, 0.05), BEST_ON_TEST: (0.9, 0.0)}


@dataclass(frozen=True)
class Parts:
    """Where a text is cut: its first symbols train, those in the middle choose the epoch, the last are reported."""

    train: range
    valid: range
    test: range

    def parts(self) -> dict[str, range]:
        """The three parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


@dataclass(repr=False)
class TextData:
    """A text of n symbols, `values` (n,) with ids below `num_symbols`, cut into parts of one piece each.

    Raises `DataError` where a part has fewer than two symbols: there is nothing to predict in it.
    """

    kind: ClassVar[str] = "text"

    name: str
    protocol: str
    values: Tensor
    alphabet: str
    """the symbols, in the order of their ids"""
    window: int
    """symbols of a training window"""
    splits: list[Parts]
    preprocessing: dict[str, Any]
    """What `encode` redoes on a prompt; JSON-serialisable."""
    notes: list[str] = field(default_factory=list)
    """What the loader did to the data that a user may want to know, one sentence each."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise DataError(
                f"{self.name}: length is {self.window}; expected 1 or more symbols of a training window"
            )
        for split in self.splits:
            for part, where in split.parts().items():
                if len(where) < 2:
                    raise DataError(
                        f"{self.name}: {len(self.values)} symbols leave {len(where)} for {part}; expected 2 or more. "
                        "Take a longer text"
                    )

    def __repr__(self) -> str:
        return (
            f"TextData({self.name!r}, protocol {self.protocol!r}: {len(self.values)} symbols, "
            f"{self.num_features} different ones, windows of {self.window})"
        )

    @property
    def num_features(self) -> int:
        """The number of different symbols."""
        return len(self.alphabet)

    @property
    def classes(self) -> list[str]:
        """What is predicted: the symbols."""
        return list(self.alphabet)

    def for_split(self, index: int) -> TextData:
        """The data themselves: nothing in them depends on the split."""
        return self

    def windows(self, part: range, phase: int = 0) -> Tensor:
        """Starts (k,) of windows side by side in `part`, the first `phase` symbols after its begin.

        A window predicts `window` symbols, or those that are left at the end of the part, each from what is before it.
        """
        return torch.arange(part.start + phase, part.stop - 1, self.window)

    def batch(self, starts: Tensor, part: range) -> tuple[Tensor, Tensor]:
        """Inputs and targets, ids (B, window) int64; targets beyond the end of the part are -1."""
        at = starts.unsqueeze(1) + torch.arange(self.window + 1)
        ids = self.values[at.clamp_max(part.stop - 1)].long().where(at < part.stop, -1)
        return ids[:, :-1].clamp_min(0), ids[:, 1:]


def encode(text: str, preprocessing: dict[str, Any]) -> Tensor:
    """Ids (n,) of a text in the alphabet of a model.

    Raises DataError for an empty text and for symbols that the alphabet lacks.
    """
    if not text:
        raise DataError("the prompt is empty; expected at least one symbol to start from")
    place = {symbol: i for i, symbol in enumerate(preprocessing["alphabet"])}
    unknown = sorted(set(text) - set(place))
    if unknown:
        raise DataError(
            f"the prompt has symbols that the model has not seen: {some(unknown)}; it knows "
            f"{preprocessing['alphabet']!r}"
        )
    return torch.tensor([place[symbol] for symbol in text])


def decode(ids: Tensor, preprocessing: dict[str, Any]) -> str:
    """The text of ids (n,)."""
    return "".join(preprocessing["alphabet"][i] for i in ids.tolist())


def load_text(path: Path, *, name: str | None = None, protocol: str | None, length: int | None) -> TextData:
    """A UTF-8 file as characters: the first 90 % train, then 5 % for validation, the last 5 % are the test part.

    The alphabet is that of the whole file. Raises DataError for a file that is empty or no text.
    """
    protocol = next(iter(TEXT_PROTOCOLS)) if protocol is None else protocol
    if protocol not in TEXT_PROTOCOLS:
        raise DataError(
            f"{path}: protocol is {protocol!r}; expected one of {', '.join(map(repr, TEXT_PROTOCOLS))}"
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected one text file. Join several into one")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}; convert it, for example "
            "with `iconv -t utf-8`"
        ) from error
    if not text:
        raise DataError(f"{path} is empty; expected a text")
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    symbols, ids = np.unique(codes, return_inverse=True)
    alphabet = symbols.astype(np.uint32).tobytes().decode("utf-32-le")
    values = torch.from_numpy(ids.astype(np.uint8 if len(symbols) <= 256 else np.int32))
    window = WINDOW if length is None else length
    return TextData(
        name=name or path.stem,
        protocol=protocol,
        values=values,
        alphabet=alphabet,
        window=window,
        splits=[_cut(len(values), *_SHARES[protocol])],
        preprocessing={"kind": "text", "alphabet": alphabet, "window": window},
        notes=[],
    )


def _cut(n: int, train: float, valid: float) -> Parts:
    """Parts of n symbols by their shares; without a share for validation it is the test part."""
    first, second = int(n * train), int(n * (train + valid))
    test = range(second, n)
    return Parts(range(first), range(first, second) if valid else test, test)


def load_tinyshakespeare(*, protocol: str, length: int | None, root: Path | None) -> TextData:
    """1,115,390 characters of Shakespeare's plays, 65 different ones."""
    path = find_raw([f"tinyshakespeare/{_FILE}", _FILE], root)
    if path is None:
        path = cache_dir() / "tinyshakespeare.txt"
        if not path.is_file():
            try:
                with urllib.request.urlopen(_URL, timeout=30) as reply:
                    content = reply.read()
            except (OSError, http.client.HTTPException) as error:
                raise download_failed("tinyshakespeare", error, f"tinyshakespeare/{_FILE}") from error
            with replacing(path) as part:
                part.write(content)
    return load_text(path, name="tinyshakespeare", protocol=protocol, length=length)
