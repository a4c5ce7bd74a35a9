"""One canonical form for every dialect of masks, lengths and batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osmose.tokens import Tokens, check_pair

KEEP = torch.tensor([[True, True, False], [True, False, False]])


def test_every_dialect_gives_the_same_mass():
    x = torch.zeros(2, 3, 4)
    additive = torch.zeros(2, 3).masked_fill(~KEEP, -torch.inf)
    dialects = [
        {"mask": KEEP},
        {"key_padding_mask": ~KEEP},
        {"key_padding_mask": additive},
        {"lengths": torch.tensor([2, 1])},
        {"mass": KEEP.float()},
    ]
    for dialect in dialects:
        assert Tokens.of(x, **dialect).mass.equal(KEEP.float()), dialect
    assert Tokens.of(x).mass is None
    assert not Tokens.of(x).packed


def test_an_additive_mask_is_the_log_of_the_mass():
    t = Tokens.of(3, key_padding_mask=torch.tensor([0.0, -1.0, -torch.inf]))
    torch.testing.assert_close(t.mass, torch.tensor([1.0, 0.367879, 0.0]))


def test_ptr_and_batch_say_the_same():
    a = Tokens.of(5, ptr=torch.tensor([0, 2, 2, 5]))
    b = Tokens.of(5, batch=torch.tensor([0, 0, 2, 2, 2]))
    assert a.batch.equal(b.batch)
    assert a.num_sets == b.num_sets == 3
    assert a.sizes.tolist() == [2, 0, 3]
    assert a.ptr.tolist() == [0, 2, 2, 5]
    assert a.order is None


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 2**31))
def test_layouts_agree_on_sums_and_means(batch, seed):
    g = torch.Generator().manual_seed(seed)
    n = len(batch)
    x, mass = (
        torch.randn(n, 2, generator=g, dtype=torch.float64),
        torch.rand(n, generator=g, dtype=torch.float64),
    )
    packed = Tokens.of(x, batch=torch.tensor(batch, dtype=torch.long), mass=mass, num_sets=5)
    padded_x, padded = packed.pad(x)
    torch.testing.assert_close(packed.sum(x), padded.sum(padded_x))
    torch.testing.assert_close(packed.mean(x), padded.mean(padded_x))
    torch.testing.assert_close(packed.total(), padded.total())
    assert packed.unpad(padded_x).equal(x)
    assert packed.unsort(packed.sort(x)).equal(x)
    for s in range(5):
        inside = torch.tensor([b == s for b in batch], dtype=torch.bool)
        one = Tokens.of(x[inside], mass=mass[inside])
        torch.testing.assert_close(packed.mean(x)[s], one.mean(x[inside]))
        torch.testing.assert_close(
            packed.spread(packed.mean(x))[inside],
            one.spread(one.mean(x[inside])).expand(int(inside.sum()), 2),
        )


def test_heads_add_a_dimension_to_a_padded_mass_only():
    assert Tokens.of(torch.zeros(2, 3, 4), mask=KEEP).heads().mass.shape == (2, 1, 3)
    assert Tokens.of(3, mask=KEEP[0]).heads().mass.shape == (3,)
    x = torch.randn(2, 5, 3, 4)
    t = Tokens.of(torch.zeros(2, 3, 4), mask=KEEP).heads()
    torch.testing.assert_close(t.sum(x)[0], x[0, :, :2].sum(-2))


def test_sums_of_half_tensors_are_wide_and_absent_values_may_be_anything():
    x = torch.full((5000, 1), 1.0, dtype=torch.float16)
    assert Tokens.of(x).sum(x).item() == 5000.0
    y = torch.tensor([[1.0], [torch.nan]])
    assert Tokens.of(y, mask=torch.tensor([True, False])).sum(y).item() == 1.0


def test_no_mass_has_mean_zero():
    x = torch.randn(3, 2)
    assert Tokens.of(x, mass=torch.zeros(3)).mean(x).equal(torch.zeros(2))
    assert Tokens.of(torch.zeros(0, 2)).mean(torch.zeros(0, 2)).equal(torch.zeros(2))


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"mask": torch.ones(2, 3)}, TypeError, "expected bool, True = keep"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"shape \(2, 4\).*\(\.\.\., 3\)"),
        ({"mask": torch.ones(5, 3, dtype=torch.bool)}, ValueError, r"leading shape \(2,\)"),
        ({"key_padding_mask": torch.ones(2, 3, dtype=torch.long)}, TypeError, "say which is meant"),
        ({"key_padding_mask": torch.full((2, 3), torch.nan)}, ValueError, "logs of masses"),
        ({"lengths": torch.tensor([2.0, 1.0])}, TypeError, "expected integers"),
        ({"lengths": torch.tensor([2, 4])}, ValueError, "expected 0 to 3"),
        ({"lengths": torch.tensor([2, 1, 1])}, ValueError, r"leading shape \(2,\)"),
        ({"mass": torch.tensor([1.0, -1.0, 0.0])}, ValueError, "negative"),
        ({"mass": torch.tensor([1.0, torch.inf, 0.0])}, ValueError, "infinite"),
        ({"mass": KEEP}, TypeError, "mask="),
        ({"mask": KEEP, "lengths": torch.tensor([1, 1])}, ValueError, "mask and lengths"),
        ({"batch": torch.zeros(3)}, TypeError, "int64"),
        ({"batch": torch.zeros(4, dtype=torch.long)}, ValueError, r"expected \(3,\)"),
        ({"batch": torch.tensor([0, 1, 5]), "num_sets": 3}, ValueError, "below num_sets=3"),
        ({"batch": torch.tensor([0, -1, 2])}, ValueError, "from -1 to 2"),
        ({"ptr": torch.tensor([0, 2, 4])}, ValueError, "rise from 0 to 3"),
        ({"ptr": torch.tensor([0.0, 3.0])}, TypeError, "int64"),
        ({"ptr": torch.tensor([0, 3]), "batch": torch.zeros(3, dtype=torch.long)}, ValueError, "at most one"),
        ({"num_sets": 3}, ValueError, "goes with batch"),
    ],
)
def test_bad_input_says_what_came_and_what_was_expected(kwargs, error, says):
    with pytest.raises(error, match=says):
        Tokens.of(torch.zeros(2, 3, 4), **kwargs)


def test_pairs_of_tokens_must_fit():
    packed = Tokens.of(3, batch=torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="targets describe 3 tokens, but there are 4"):
        check_pair("op", packed, packed, 4, 3)
    with pytest.raises(ValueError, match="one of targets and sources is packed"):
        check_pair("op", packed, None, 3, 3)
    with pytest.raises(ValueError, match="2 sets and sources 4"):
        check_pair("op", packed, Tokens.of(3, batch=torch.tensor([0, 1, 1]), num_sets=4), 3, 3)
    with pytest.raises(ValueError, match="not packed"):
        Tokens.of(3).pad(torch.zeros(3, 1))


def test_places_count_inside_the_set_in_the_order_of_appearance():
    assert Tokens.of(3).positions.tolist() == [0, 1, 2]
    assert Tokens.of(3, mass=torch.tensor([1.0, 0.0, 1.0])).positions.tolist() == [0, 1, 2], (
        "absent tokens keep their place"
    )
    packed = Tokens.of(6, batch=torch.tensor([2, 0, 2, 2, 0, 3]), num_sets=5)
    assert packed.positions.tolist() == [0, 0, 1, 2, 1, 0]
    assert Tokens.of(0, batch=torch.zeros(0, dtype=torch.int64)).positions.tolist() == []
