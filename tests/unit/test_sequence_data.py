"""SequenceData: batches are what was stored, and what cannot be trained on is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from osmose.data import DataError, Split
from osmose.data.sequence import SequenceData


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def split(train=(0, 1), valid=(2,), test=(3,)) -> dict:
    return {"splits": [Split(index(*train), index(*valid), index(*test))]}


def make(**changes) -> SequenceData:
    """Five series of lengths 3, 1, 2, 1, 2 with two channels; the last one is unlabelled."""
    parts = {
        "name": "set",
        "protocol": "given",
        "values": torch.arange(1.0, 19.0).view(9, 2),
        "ptr": index(0, 3, 4, 6, 7, 9),
        "y": index(0, 1, 0, 1, -1),
        "vocab": None,
        "classes": ["a", "b"],
        "preprocessing": {},
    }
    return SequenceData(**(split() | parts | changes))


def symbols(**changes) -> SequenceData:
    return make(**({"values": index(0, 1, 2, 0, 1, 1, 2, 2, 0), "vocab": 3} | changes))


@pytest.mark.parametrize("data", [make(), symbols(), symbols(values=symbols().values.to(torch.uint8))])
def test_a_batch_holds_its_sequences_and_zeros(data):
    order = index(3, 0, 2)
    x, lengths = data.batch(order)
    assert lengths.tolist() == [1, 3, 2]
    assert x.shape[:2] == (3, 3)
    assert x.dtype == (torch.float32 if data.vocab is None else torch.int64)
    for row, i, length in zip(x, order.tolist(), lengths.tolist(), strict=True):
        stored = data.values[data.ptr[i] : data.ptr[i + 1]]
        assert row[:length].tolist() == stored.tolist()
        assert not row[length:].any()


def test_an_empty_batch():
    x, lengths = make().batch(index())
    assert x.shape == (0, 0, 2)
    assert lengths.shape == (0,)


BAD = [
    ({"values": torch.ones(9)}, r"values are \(9,\) torch.float32; expected \(total, c\)"),
    ({"values": torch.ones(9, 2, dtype=torch.float64)}, r"torch.float64; expected"),
    ({"values": torch.ones(9, 0)}, r"c >= 1"),
    ({"ptr": index(0, 3, 4, 6, 7, 8)}, r"ptr goes from 0 to 8; expected 0 to 9"),
    ({"ptr": index(1, 3, 4, 6, 7, 9)}, r"ptr goes from 1 to 9"),
    ({"ptr": index(0, 3, 3, 6, 7, 9)}, r"sequence 1 runs from 3 to 3 and is empty"),
    ({"ptr": index(0, 3, 2, 6, 7, 9)}, r"sequence 1 runs from 3 to 2 and is empty"),
    ({"ptr": torch.tensor([0.0, 9.0])}, r"ptr is \(2,\) torch.float32"),
    ({"ptr": index(0)}, r"at least one sequence"),
    ({"y": index(0, 1)}, r"labels have shape \(2,\) torch.int64; expected \(5,\)"),
    ({"y": index(0, 1, 0, 2, 0)}, r"labels run from 0 to 2"),
    ({"ids": ["a"]}, r"1 ids for 5 sequences"),
    (split(valid=()), r"valid is empty; expected at least one labelled sequence"),
    (split(test=(9,)), r"test holds sequence 9; expected 0 to 4"),
    (split(test=(1, 3)), r"1 sequences stand in test and train"),
    (split(train=(0, 1, 4)), r"train holds 1 unlabelled sequences \(4\)"),
    (split(train=(0, 2), valid=(1,)), r"valid has classes that train lacks: 'b'.*Add such sequences"),
    (split(valid=(3,)), r"1 sequences stand in test and valid"),
    (split() | {"protocol": "best-on-test"}, r"valid and test differ; expected the same sequences"),
    (split(valid=(1,), test=(1,)) | {"protocol": "best-on-test"}, r"1 sequences stand in valid and train"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_numbers_that_are_none_are_refused_with_their_place():
    values = make().values.clone()
    values[5, 1] = float("nan")
    values[8, 0] = float("inf")
    with pytest.raises(
        DataError, match=r"2 NaN or infinite numbers, the first at sequence 2, step 1, channel 1"
    ):
        make(values=values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": 2}, r"sequence 0, step 2 is symbol 2; expected 0 to 1 \(2 symbols\)"),
        ({"values": index(0, 1, 2, 0, 1, -1, 2, 2, 0)}, r"sequence 2, step 1 is symbol -1"),
        ({"vocab": 0}, r"vocab is 0"),
        ({"values": torch.ones(9)}, r"symbols are \(9,\) torch.float32; expected \(total,\) integers"),
    ],
)
def test_symbols_refused(changes, message):
    with pytest.raises(DataError, match=message):
        symbols(**changes)


def test_only_best_on_test_may_choose_by_the_test_part():
    same = split(valid=(2, 3), test=(2, 3))
    assert make(protocol="best-on-test", **same).num_sequences == 5
    with pytest.raises(DataError, match="stand in test and valid"):
        make(protocol="holdout", **same)


def test_for_split_refits_on_the_training_part_of_the_split():
    two = split()["splits"] + split(train=(2, 3), valid=(0,), test=(1,))["splits"]

    def refit(part):
        return torch.full((9, 2), float(part.train.sum())), {"train": part.train.tolist()}

    data = make(splits=two, refit=refit)
    again = data.for_split(1)
    assert (again.values == 5).all()
    assert again.preprocessing == {"train": [2, 3]}
    assert data.for_split(0) is data
    assert make(splits=two).for_split(1).values.equal(data.values)
    with pytest.raises(DataError, match="split 2 of 2; expected 0 to 1"):
        data.for_split(2)


def test_text_is_short():
    assert repr(make()) == (
        "SequenceData('set', protocol 'given': 5 sequences of length 1 to 3, 2 channels, 2 classes, 1 splits)"
    )
    assert "3 symbols" in repr(replace(symbols(), splits=[]))
