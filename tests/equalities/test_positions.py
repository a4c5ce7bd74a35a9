"""Positions against code and theorems of others: T5's buckets, ALiBi's slopes, Llama's rotation, convolution as attention."""

import pytest
import torch
import torch.nn.functional as F

from osmose import laws
from osmose.nn import MultiheadMixer
from osmose.nn.position import Shift, ShortConv
from osmose.nn.position.bias import t5_bucket
from osmose.nn.position.score import slopes
from osmose.operators import Pairwise

F64 = torch.float64


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (64, 1000)])
@pytest.mark.parametrize("causal", [False, True])
def test_buckets_are_those_of_t5(buckets, longest, causal):
    from transformers.models.t5 import modeling_t5 as t5

    offsets = torch.arange(-2 * longest, 2 * longest + 1)
    wanted = t5.T5Attention._relative_position_bucket(offsets, not causal, buckets, longest)
    assert t5_bucket(offsets, buckets, longest, causal=causal).equal(wanted)


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 16])
def test_slopes_are_those_of_alibi(heads):
    from transformers.models.bloom import modeling_bloom as bloom

    bias = bloom.build_alibi_tensor(
        torch.ones(1, 2), heads, torch.float32
    )  # slope times the place of the source
    torch.testing.assert_close(slopes(heads), bias[:, 0, 1])


def test_the_rotation_is_that_of_llama():
    from transformers.models.llama import modeling_llama as llama

    d, n = 8, 11
    q, k = (torch.randn(2, 3, n, d, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    config = llama.LlamaConfig(
        hidden_size=3 * d, num_attention_heads=3, head_dim=d, max_position_embeddings=64
    )
    place = torch.arange(n).expand(2, n)
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, place)
    wanted = llama.apply_rotary_pos_emb(q, k, cos, sin)
    position = MultiheadMixer(3 * d, 3, mixer="softmax", position="rope").position
    for x, want in zip((q, k), wanted, strict=True):
        torch.testing.assert_close(position.turn(x, torch.arange(n)), want)


@pytest.mark.parametrize("position", [Shift(3), ShortConv(3)])
@pytest.mark.parametrize("causal", [False, True])
def test_channelwise_shifts_are_depthwise_convolutions(position, causal):
    """``nn.Conv1d`` is a cross-correlation: tap i reads the offset i - padding."""
    module = MultiheadMixer(8, 2, mixer="mean", position=position, dtype=F64)
    weight = module.position.weight if isinstance(position, Shift) else module.position.value_weight
    torch.nn.init.normal_(weight)
    v = torch.randn(5, 2, 10, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    got = (
        module.position.beside(torch.zeros_like(v), v, None, None, causal)
        if isinstance(position, Shift)
        else module.position.values(v, None, causal)
    )
    taps = weight[:, :4] if causal else weight
    x = F.pad(v.transpose(1, 2).flatten(2).mT, (3, 0 if causal else 3))
    wanted = F.conv1d(x, taps.unsqueeze(1), groups=8).mT.unflatten(-1, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(got, wanted)


def test_nine_heads_with_quadratic_scores_tend_to_a_convolution():
    """Cordonnier et al. (1911.03584): heads softmax(-alpha |p_j - p_i - D_h|^2) are the taps of a 3 x 3 convolution."""
    size, c = 7, 2
    g = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(1, c, size, size, dtype=F64, generator=g),
        torch.randn(3, c, 3, 3, dtype=F64, generator=g),
    )
    wanted = F.conv2d(x, weight).flatten(2).mT[0]  # the interior
    place = torch.cartesian_prod(torch.arange(size), torch.arange(size)).to(F64)
    inner = ((place > 0) & (place < size - 1)).all(-1)
    tokens = x.flatten(2).mT[0]
    errors = []
    for alpha in (1.0, 8.0, 16.0, 32.0):
        out = torch.zeros(size * size, 3, dtype=F64)
        for a in range(3):
            for b in range(3):
                shift = torch.tensor([a - 1.0, b - 1.0], dtype=F64)
                head = laws.row(Pairwise.gaussian(place + shift, place, 2 * alpha))
                out = out + head @ (tokens @ weight[:, :, a, b].T)
        errors.append(float((out[inner] - wanted).abs().max()))
    assert errors[0] > 0.1
    assert errors[1] < 2e-2
    assert errors[2] < 1e-5
    assert errors[3] < 1e-11
