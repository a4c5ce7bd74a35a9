"""Every instance of the mixed product equals the layer it stands for: outputs, gradients, and formed from its parts."""

import warnings

import pytest
import torch

from osmose.equalities import AGAINST, equalities

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ALL = list(equalities())


@pytest.mark.parametrize("equality", ALL, ids=lambda e: f"{e.against}: {e.name}")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_ours_equals_theirs(equality):
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = equality.measure(dtype)
        assert max(found[key] for key in ("error", "gradient_error", "parts_error")) <= bound, found


def test_the_suite_sees_a_difference():
    """An error in one parameter shows in all three figures."""
    plain = next(e for e in ALL if e.name == "MultiheadAttention")

    def make(dtype):
        trial = plain.make(dtype)
        with torch.no_grad():
            trial.layer.values.in_weight[0, 0] += 1e-6
        return trial

    found = type(plain)(plain.name, plain.against, plain.structure, make).measure()
    assert all(1e-9 < found[key] < 1e-4 for key in ("error", "gradient_error", "parts_error")), found


def test_names_are_unique_and_others_can_be_chosen():
    assert len({(e.against, e.name) for e in ALL}) == len(ALL)
    assert {e.against for e in ALL} == set(AGAINST)
    assert {e.against for e in equalities(("published",))} == {"published"}
    with pytest.raises(ValueError, match="against is 'jax'; expected one of torch, pyg, published"):
        list(equalities(("jax",)))
