"""Files into arrays and tables, with errors that name the file. No pickles, ever."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import DataError, DataNotFoundError, some

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""Cells that count as missing, in any case."""
_DELIMITERS = ",;\t"


def existing(path: Path, what: str) -> Path:
    """`path`, or an error that says which argument or file it was."""
    if not path.exists():
        raise DataNotFoundError(
            f"{what} {path} does not exist; check the path (working folder: {Path.cwd()})"
        )
    return path


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`."""
    content = _load(path, "numpy.savez(path, x=..., y=...)")
    if isinstance(content, np.ndarray):
        raise DataError(
            f"{path} is a single array, not an .npz; save it with numpy.savez(path, x=..., y=...)"
        )
    return content


def load_npy(path: Path) -> np.ndarray:
    """The array of a `.npy`."""
    array = _load(path, "numpy.save(path, array)")
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an .npz, not a single array; name it .npz or save it with numpy.save")
    return array


def _load(path: Path, how: str) -> np.ndarray | dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except Exception as error:  # a damaged file fails in any of a dozen ways, from zip flags to array headers
        raise _unreadable(path, error, how) from error


def _unreadable(path: Path, error: BaseException, how: str) -> DataError:
    hint = (
        "object arrays are pickles, which are never loaded; convert to numbers or strings"
        if "allow_pickle" in str(error)
        else f"the file is damaged or of another kind; write it with {how}"
    )
    return DataError(f"{path} cannot be read ({type(error).__name__}: {error}): {hint}")


@dataclass
class Table:
    """A CSV file as text: the names of the columns and, column by column, the cells (stripped)."""

    path: Path
    header: list[str]
    columns: list[list[str]]

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def column(self, name: str) -> list[str]:
        return self.columns[self.header.index(name)]


def read_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV file (comma, semicolon or tab), blank lines left out, all of one length."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as CSV in UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check the path and its permissions") from error
    if "\0" in text:
        raise DataError(f"{path} holds NUL bytes: it is not a CSV text file; save it as CSV in UTF-8")
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; check the quotes of this line") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a header line and one line for each row")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}, line {line}: {len(row)} cells; expected {len(rows[0])} as in the first line. "
                "Quote cells that hold the separator"
            )
    return rows


def read_table(path: Path) -> Table:
    """A CSV file with a header line. The first column may lack a name: row numbers, as data frames write them."""
    header, *rows = read_rows(path)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: the header names {some(twice)} more than once; give every column its own name"
        )
    if "" in header[1:]:
        raise DataError(f"{path}: column {header.index('', 1) + 1} has no name; name it or remove it")
    if not rows:
        raise DataError(f"{path} has a header but no rows; expected one line for each row")
    return Table(path, header, [list(column) for column in zip(*rows, strict=True)])


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def number(cell: str) -> float | None:
    """The number in a cell, or None when it holds none."""
    try:
        return float(cell)
    except ValueError:
        return None


def numbers(cells: list[str]) -> np.ndarray | None:
    """Cells as float64 with NaN where one is missing; None when a cell is neither missing nor a number."""
    try:
        return np.array([cell or "nan" for cell in cells]).astype(np.float64)
    except ValueError:  # another spelling of missing, or text
        values = [float("nan") if is_missing(cell) else number(cell) for cell in cells]
        return None if None in values else np.array(values, dtype=np.float64)
