"""Ways to divide labelled nodes. Split `i` of a seed is the same however many splits are drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .node import Split

_FRACTIONS = "ttvte"  # of five rows of a class: three for train, one valid, one test


def _generator(seed: int, index: int) -> np.random.Generator:
    if seed < 0:
        raise DataError(f"seed is {seed}; expected 0 or more")
    return np.random.default_rng([seed, index])


def _check_number(splits: int) -> None:
    if splits < 1:
        raise DataError(f"splits is {splits}; expected at least 1")


def _split(train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> Split:
    return Split(*(torch.from_numpy(np.sort(part).astype(np.int64)) for part in (train, valid, test)))


def per_class(
    y: Tensor,
    *,
    labels_per_class: int,
    valid: int | None,
    test: int | None = None,
    splits: int = 5,
    seed: int = 123,
) -> list[Split]:
    """`labels_per_class` random nodes of every class for train; of the rest `valid` and `test` random nodes.

    Args:
        y: labels (n,), -1 = unlabelled, never drawn.
        labels_per_class: a class with fewer labelled nodes gives all it has.
        valid: size of the validation part; None: half of the rest.
        test: size of the test part; None: all that is left.
    """
    _check_number(splits)
    if labels_per_class < 1:
        raise DataError(f"labels_per_class is {labels_per_class}; expected at least 1")
    labels = y.numpy()
    out = []
    for i in range(splits):
        rng = _generator(seed, i)
        order = rng.permutation(np.flatnonzero(labels >= 0))
        train = np.concatenate(
            [order[labels[order] == c][:labels_per_class] for c in np.unique(labels[order])]
        )
        rest = order[~np.isin(order, train)]
        n_valid = len(rest) // 2 if valid is None else valid
        n_test = len(rest) - n_valid if test is None else test
        if n_valid < 1 or n_test < 1 or n_valid + n_test > len(rest):
            raise DataError(
                f"labels_per_class = {labels_per_class} leaves {len(rest)} labelled nodes of {len(order)}, too few "
                f"for {n_valid} validation and {'the test' if test is None else n_test} nodes; "
                "take fewer labels a class"
            )
        out.append(_split(train, rest[:n_valid], rest[n_valid : n_valid + n_test]))
    return out


def stratified(y: Tensor, *, splits: int = 5, seed: int = 123) -> list[Split]:
    """60 / 20 / 20 of the labelled nodes, in every class as near as whole nodes allow; every class is in train."""
    _check_number(splits)
    labels = y.numpy()
    known = np.flatnonzero(labels >= 0)
    if len(known) < 3:
        raise DataError(
            f"{len(known)} labelled rows; expected at least 3, one each for train, valid and test. "
            "Label more rows, or check the label column"
        )
    out = []
    for i in range(splits):
        rng = _generator(seed, i)
        order = rng.permutation(known)
        order = order[np.argsort(rng.permutation(labels.max() + 1)[labels[order]], kind="stable")]
        part = np.resize(np.array(list(_FRACTIONS)), len(order))
        part = _train_has_all(part, labels[order])
        out.append(_split(order[part == "t"], order[part == "v"], order[part == "e"]))
    return out


def holdout(
    y: Tensor, train: Tensor, test: Tensor, *, share: float = 0.2, splits: int = 5, seed: int = 123
) -> list[Split]:
    """`share` of the labelled indices `train` for validation, class by class, a new draw for every split; `test` as it is.

    A class keeps at least one index in train; validation gets at least one.
    """
    _check_number(splits)
    labels = y.numpy()
    out = []
    for i in range(splits):
        order = _generator(seed, i).permutation(train.numpy())
        groups = [order[labels[order] == c] for c in np.unique(labels[order])]
        sizes = [min(round(share * len(group)), len(group) - 1) for group in groups]
        if groups and not any(sizes):
            largest = max(range(len(groups)), key=lambda k: len(groups[k]))
            sizes[largest] = 1
            if len(groups[largest]) < 2:
                raise DataError(
                    f"{len(order)} labelled training examples, one a class, are too few to draw a validation part from; "
                    "label more"
                )
        valid = [group[:size] for group, size in zip(groups, sizes, strict=True)]
        rest = [group[size:] for group, size in zip(groups, sizes, strict=True)]
        empty = np.empty(0, dtype=np.int64)
        out.append(_split(np.concatenate([empty, *rest]), np.concatenate([empty, *valid]), test.numpy()))
    return out


def _train_has_all(part: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give train a node of every class, and valid and test at least one node each."""
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        if not (part[rows] == "t").any():
            part[rows[0]] = "t"
    for name in "ve":
        if (part == name).any():
            continue
        for spare in np.flatnonzero(part == "t"):
            if (part[labels == labels[spare]] == "t").sum() > 1:
                part[spare] = name
                break
        else:
            raise DataError(
                "too few labelled rows for a split: every class must be in train and valid and test need a row "
                "each. Label more rows, or give masks"
            )
    return part
