"""Splits: disjoint, the right sizes, every class in train, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osmose.data import DataError
from osmose.data.node import check_split
from osmose.data.splits import per_class, stratified


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.integers(0, 5))
def test_stratified_is_sound_or_says_why(labels, seed):
    y = torch.tensor(labels)
    try:
        splits = stratified(y, splits=2, seed=seed)
    except DataError:
        labelled, classes = int((y >= 0).sum()), len(set(labels) - {-1})
        assert labelled < classes + 2 or labelled < 3
        return
    for split in splits:
        check_split("drawn", split, y, [str(c) for c in range(5)])
        assert (
            torch.cat(list(split.parts().values())).sort().values.tolist()
            == (y >= 0).nonzero().flatten().tolist()
        )


def test_stratified_sizes():
    y = torch.from_numpy(np.repeat([0, 1, 2], [1000, 100, 10]))
    (split,) = stratified(y, splits=1)
    assert [p.numel() for p in split.parts().values()] == [666, 222, 222]
    for part, share in zip(split.parts().values(), (0.6, 0.2, 0.2), strict=True):
        assert np.allclose(y[part].bincount().numpy(), share * np.array([1000, 100, 10]), atol=2)


@pytest.mark.parametrize(
    "draw",
    [
        lambda y, **k: stratified(y, **k),
        lambda y, **k: per_class(y, labels_per_class=3, valid=10, test=20, **k),
    ],
)
def test_split_i_depends_on_seed_and_i_only(draw):
    y = torch.arange(80) % 4
    three, five = draw(y, splits=3, seed=1), draw(y, splits=5, seed=1)
    other = draw(y, splits=3, seed=2)
    for i in range(3):
        assert all(
            torch.equal(a, b)
            for a, b in zip(three[i].parts().values(), five[i].parts().values(), strict=True)
        )
        assert not torch.equal(three[i].train, other[i].train)
    assert len({tuple(s.train.tolist()) for s in five}) == 5


def test_per_class_takes_all_of_a_small_class_and_no_unlabelled():
    y = torch.tensor([0] * 30 + [1] * 2 + [-1] * 8)
    (split,) = per_class(y, labels_per_class=5, valid=None, splits=1)
    assert y[split.train].bincount().tolist() == [5, 2]
    assert (split.valid.numel(), split.test.numel()) == (12, 13)
    assert min(int(y[p].min()) for p in split.parts().values()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels_per_class": 0, "valid": 5}, "labels_per_class is 0; expected at least 1"),
        ({"labels_per_class": 2, "valid": 5, "splits": 0}, "splits is 0"),
        ({"labels_per_class": 2, "valid": 5, "seed": -1}, "seed is -1"),
        ({"labels_per_class": 2, "valid": 17}, "leaves 16 labelled nodes of 20, too few for 17 validation"),
        ({"labels_per_class": 10, "valid": None}, "leaves 0 labelled nodes"),
        ({"labels_per_class": 2, "valid": 6, "test": 11}, "too few for 6 validation and 11 nodes"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(DataError, match=message):
        per_class(torch.arange(20) % 2, **arguments)
