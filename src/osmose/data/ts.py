"""The `.ts` files of the UEA archive: a header of `@` lines, then one series a line, `dim1:dim2:...:class`.

Format: https://www.timeseriesclassification.com. Dimensions are separated by colons, the values of one by commas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import DataError, DataNotFoundError, nearest, some
from .read import number

_FLAGS = ("timestamps", "univariate", "classlabel", "targetlabel")
_NO_LABEL = ("", "?")


@dataclass
class Header:
    """What the `@` lines say."""

    dimensions: int | None = None
    labelled: bool = False
    classes: list[str] = field(default_factory=list)
    """declared class names; empty where the file lists none"""


@dataclass
class Series:
    """The content of one file."""

    path: Path
    values: list[np.ndarray]
    """(length, dimensions) float64 each; NaN where a value is missing"""
    labels: list[str | None]
    """class of each series; None where the file gives none"""

    @property
    def dimensions(self) -> int:
        return self.values[0].shape[1]


def read_ts(path: Path) -> Series:
    """Read a `.ts` file.

    `?` and NaN are missing values, `?` or nothing in the place of the class is an unlabelled series. Lengths may
    differ between series, not between the dimensions of one; what the header says of lengths and of missing values
    is not relied on.

    Raises:
        DataError: a malformed line, with file, line number and reason; time stamps; a target to regress on.
    """
    header, series, labels = Header(), [], []
    in_data = False
    for line, text in _lines(path):
        where = f"{path}, line {line}"
        if in_data:
            values, label = _series(text, header, where)
            header.dimensions = values.shape[1]
            series.append(values)
            labels.append(label)
        elif text.lower() == "@data":
            in_data = True
        elif text.startswith("@"):
            _read_header(text, header, where)
        else:
            raise DataError(
                f"{where}: {_short(text)} stands before @data; expected header lines such as '@dimensions 12', then "
                "'@data', then the series"
            )
    if not in_data:
        raise DataError(f"{path} has no line '@data'; expected a header, '@data', then one series a line")
    if not series:
        raise DataError(f"{path} holds no series after '@data'; expected one a line")
    return Series(path, series, labels)


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """Number and text of the lines that are neither blank nor comments."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number_, text in enumerate(file, start=1):
                text = text.strip()
                if text and not text.startswith(("#", "%")):
                    yield number_, text
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); expected a .ts file") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check the path and its permissions") from error


def _read_header(text: str, header: Header, where: str) -> None:
    name, *words = text[1:].split()
    name = name.lower()
    if name in _FLAGS:
        if not words or words[0].lower() not in ("true", "false"):
            raise DataError(f"{where}: {text!r}; expected '@{name} true' or '@{name} false'")
        is_true = words[0].lower() == "true"
        if name == "timestamps" and is_true:
            raise DataError(
                f"{where}: the file has time stamps, which are not read; resample the series to equal steps and "
                "write '@timeStamps false'"
            )
        if name == "targetlabel" and is_true:
            raise DataError(
                f"{where}: the file has numbers as targets; expected classes ('@classLabel true ...')"
            )
        if name == "univariate" and is_true:
            header.dimensions = 1
        if name == "classlabel":
            header.labelled, header.classes = is_true, words[1:]
    elif name in ("dimensions", "dimension"):
        value = int(words[0]) if len(words) == 1 and words[0].isdecimal() else 0
        if value < 1:
            raise DataError(f"{where}: {text!r}; expected '@dimensions' and one whole number from 1")
        if header.dimensions == 1 < value:
            raise DataError(
                f"{where}: {text!r}, but an earlier line says '@univariate true'; mend the header"
            )
        header.dimensions = value


def _series(text: str, header: Header, where: str) -> tuple[np.ndarray, str | None]:
    parts = text.split(":")
    label: str | None = None
    if header.labelled:
        label = parts.pop().strip()
        if header.classes and label not in (*header.classes, *_NO_LABEL):
            raise DataError(
                f"{where}: class {_short(label)} is not one of the header's ({some(header.classes, 10)})"
                f"{nearest(label, header.classes)}; expected the class after the last colon, '?' where it is unknown"
            )
        label = None if label in _NO_LABEL else label
    if header.dimensions is not None and len(parts) != header.dimensions:
        raise DataError(
            f"{where}: {len(parts)} dimensions{' before the class' if header.labelled else ''}; expected "
            f"{header.dimensions}, separated by colons. Check '@dimensions' and '@classLabel' in the header"
        )
    if not parts:
        raise DataError(f"{where}: {_short(text)} holds a class and no values; expected 'values:class'")
    columns = [_dimension(part, d, where) for d, part in enumerate(parts, start=1)]
    for d, column in enumerate(columns[1:], start=2):
        if len(column) != len(columns[0]):
            raise DataError(
                f"{where}: dimension {d} has {len(column)} values and dimension 1 has {len(columns[0])}; expected "
                "the same number. Write '?' where a value is missing"
            )
    return np.stack(columns, axis=1), label


def _dimension(text: str, d: int, where: str) -> np.ndarray:
    cells = text.split(",")
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:  # a missing value, or something that is no number
        values = np.array([_value(cell.strip(), i, d, where) for i, cell in enumerate(cells, start=1)])
    if np.isinf(values).any():
        i = int(np.isinf(values).argmax())
        raise DataError(
            f"{where}: value {i + 1} of dimension {d} is infinite; expected finite numbers or '?'"
        )
    return values


def _value(cell: str, i: int, d: int, where: str) -> float:
    if cell == "?":
        return float("nan")
    value = number(cell)
    if value is None:
        came = "is empty" if not cell else f"is {_short(cell)}"
        raise DataError(
            f"{where}: value {i} of dimension {d} {came}; expected a number, or '?' where it is missing"
        )
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:27] + "...")
