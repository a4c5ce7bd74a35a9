"""Mixers as operators: law, kernel and masses give the matrix that the mixer multiplies by."""

import pytest
import torch

from osmose.mixers import MIXERS, mixer_operator
from osmose.ops.flow import PRESETS
from osmose.tokens import Tokens

F64 = torch.float64
N = 7


def points(*lead, seed, c):
    return torch.randn(*lead, c, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "softmax"])
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_mixers_as_operators_are_the_mixers(mixer, kind):
    """Every preset and normalisation, masses that are no ones, causal order: products, matrices."""
    options = {
        "flow": [{"preset": name} for name in PRESETS],
        "diffusion": [{"normalization": name} for name in ("row", "frobenius", "none")],
    }.get(mixer, [{}])
    lead = (3,) if kind == "padded" else ()
    q, k, v = (points(*lead, 2, N, seed=i, c=4) for i in range(3))
    mass = torch.tensor([[1.0, 1, 0.5, 2, 1, 1, 1], [1, 3, 1, 1, 0, 0, 0], [0] * 7], dtype=F64)
    tokens = (
        Tokens(N, mass).heads()
        if kind == "padded"
        else Tokens.of(N, batch=torch.tensor([0, 1, 0, 2, 1, 0, 1]))
    )
    for one in options:
        both_ways = mixer == "diffusion-sigmoid" or one in ({"preset": "lra"}, {"normalization": "frobenius"})
        for causal in (False,) if both_ways else (False, True):
            call = {"targets": tokens, "sources": tokens, "causal": causal} | one
            op, wanted = mixer_operator(mixer, q, k, **call), MIXERS[mixer].function(q, k, v, **call)
            torch.testing.assert_close(op @ v, wanted)
            torch.testing.assert_close(op.to_dense() @ v, wanted)
