"""What the closed forms share: floats or arrays in, floats or arrays out, and checks that name the argument.

A function of this package takes floats, sequences, numpy arrays or tensors on the CPU, computes in float64, and returns
a float where every argument was a scalar, else an array of their broadcast shape.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

Model = Literal["SA", "USA"]
"""``SA``: attention rows sum to one (law ``row``); ``USA``: the sum is over n (law ``mean``)."""

Numbers = Any
"""A float for scalar arguments, else a float64 array."""


def floats(x: ArrayLike) -> np.ndarray:
    return np.asarray(x, dtype=np.float64)


def plain(x: ArrayLike) -> Numbers:
    """A 0-dimensional array as a float."""
    x = np.asarray(x)
    return x.item() if x.ndim == 0 else x


def check_model(what: str, model: str) -> None:
    if model not in ("SA", "USA"):
        raise ValueError(f"{what}: model is {model!r}; expected 'SA' (row law) or 'USA' (mean law).")


def check_count(what: str, name: str, value: int, least: int) -> None:
    if int(value) != value or value < least:
        raise ValueError(f"{what}: {name} is {value}; expected an integer of at least {least}.")


def check_range(
    what: str, name: str, value: ArrayLike, low: float, high: float, *, open_low: bool = False
) -> None:
    x = floats(value)
    good = (x > low if open_low else x >= low) & (x <= high)
    if not bool(good.all()):
        left = "(" if open_low else "["
        raise ValueError(
            f"{what}: {name} holds {float(x[~good].flat[0]):.6g}; expected values in {left}{low:g}, {high:g}]."
        )
