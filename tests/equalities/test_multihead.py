"""MultiheadMixer and the blocks with mixer="softmax" against torch's own attention and transformer layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from osmose.nn import CrossBlock, DecoderBlock, EncoderBlock, MultiheadMixer, replace_attention
from osmose.tokens import Tokens

F64 = torch.float64
B, N, M, E, H = 3, 5, 4, 8, 2


def pair_of(**options):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, **options)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5)
    ours = MultiheadMixer(E, H, mixer="softmax", **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def masks_of(draw, lead, n, m, kind):
    """A padding mask and a pair mask of one type; the first key stays for all, so that torch gives numbers."""
    padding = draw(st.sampled_from([None, "ragged"]))
    pairs = draw(st.sampled_from([None, "(n, m)", "(B H, n, m)"]))
    out = []
    for which, shape in (
        (padding, (*lead, m)),
        (pairs, (n, m) if pairs == "(n, m)" else ((*lead, 1)[0] * H, n, m)),
    ):
        hidden = torch.rand(shape) < 0.4
        hidden[..., 0] = False
        additive = torch.randn(shape, dtype=F64).masked_fill(hidden, -torch.inf)
        out.append(None if which is None else hidden if kind == "bool" else additive)
    return out


@st.composite
def calls(draw):
    torch.manual_seed(draw(st.integers(0, 2**16)))
    options = {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    options |= draw(st.sampled_from([{}, {"kdim": 6}, {"kdim": 6, "vdim": 3}, {"vdim": 3}]))
    lead = draw(st.sampled_from([(), (1,), (B,)]))
    own = "kdim" not in options and "vdim" not in options and draw(st.booleans())
    m = N if own else M

    def points(n, c):
        x = torch.randn(*lead, n, c, dtype=F64)
        x = x if options["batch_first"] or not lead else x.transpose(0, 1).contiguous()
        return x.requires_grad_()

    query = points(N, E)
    key = query if own else points(m, options.get("kdim", E))
    value = query if own else points(m, options.get("vdim", E))
    padding, pairs = masks_of(draw, lead, N, m, draw(st.sampled_from(["bool", "float"])))
    given = {"key_padding_mask": padding, "attn_mask": pairs}
    given |= {name: draw(st.booleans()) for name in ("need_weights", "average_attn_weights")}
    return options, (query, key, value), given


@settings(max_examples=120, deadline=None, derandomize=True)
@given(calls())
def test_softmax_is_multihead_attention(call):
    """Outputs, weights and gradients, for every option, mask and layout."""
    options, inputs, given_ = call
    theirs, ours = (module.double() for module in pair_of(**options))
    wanted, got = theirs(*inputs, **given_), ours(*inputs, **given_)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-10, atol=1e-12)
    assert (got[1] is None) == (wanted[1] is None)
    if wanted[1] is not None:
        torch.testing.assert_close(got[1], wanted[1], rtol=1e-10, atol=1e-12)
    g = torch.randn_like(wanted[0])
    leaves = list(dict.fromkeys(inputs))
    for module, out in ((theirs, wanted[0]), (ours, got[0])):
        module.grads = torch.autograd.grad((out * g).sum(), [*leaves, *module.parameters()])
    for mine, other in zip(ours.grads, theirs.grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_float32_to_a_millionth_and_the_same_start():
    for options in ({}, {"batch_first": True, "add_bias_kv": True}, {"kdim": 6, "vdim": 3}):
        torch.manual_seed(3)
        theirs = nn.MultiheadAttention(E, H, **options)
        torch.manual_seed(3)
        ours = MultiheadMixer(E, H, mixer="softmax", **options)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            assert ours.state_dict()[name].equal(value), name
        q = torch.randn(N, B, E)
        k, v = torch.randn(N, B, options.get("kdim", E)), torch.randn(N, B, options.get("vdim", E))
        for mine, other in zip(ours(q, k, v), theirs(q, k, v), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_of_weights_draws_as_torch_does(need_weights):
    theirs, ours = pair_of(dropout=0.4, batch_first=True)
    x = torch.randn(B, N, E)
    out = []
    for module in (theirs, ours):
        torch.manual_seed(5)
        out.append(module(x, x, x, need_weights=need_weights))
    torch.testing.assert_close(out[1][0], out[0][0])
    if need_weights:
        torch.testing.assert_close(out[1][1], out[0][1])


def test_a_target_without_sources_receives_zero_where_torch_gives_nan():
    theirs, ours = pair_of(batch_first=True)
    x = torch.randn(2, N, E)
    padding = torch.tensor([[False] * N, [True] * N])
    wanted, _ = theirs(x, x, x, key_padding_mask=padding)
    assert wanted[1].isnan().all()
    for need_weights in (True, False):
        q = x.clone().requires_grad_()
        got, weights = ours(q, q, q, key_padding_mask=padding, need_weights=need_weights)
        torch.testing.assert_close(got[0], wanted[0])
        assert got[1].equal(ours.out_proj.bias.expand(N, E))
        assert weights is None or (weights[1] == 0).all()
        (dq,) = torch.autograd.grad(got.square().sum(), q)
        assert dq.isfinite().all()


# ---- torch's layers ---------------------------------------------------------------------------------


def spread(module):
    """Parameters of a scale at which every part of a layer counts."""
    torch.manual_seed(1)
    for p in module.parameters():
        nn.init.normal_(p, std=0.4)
    return module


PADDING = torch.arange(N) >= torch.tensor([[N], [3], [1]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(N)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_block_is_the_encoder_layer(norm_first, activation):
    made = {"norm_first": norm_first, "activation": activation, "dropout": 0.0}
    theirs = spread(nn.TransformerEncoderLayer(E, H, 16, batch_first=True, **made))
    x = torch.randn(B, N, E)
    for causal in (False, True):
        ours = EncoderBlock(E, H, 16, mixer="softmax", causal=causal, **made)
        ours.load_state_dict(theirs.state_dict())
        tokens = Tokens.of(x, key_padding_mask=PADDING)
        wanted = theirs(x, CAUSAL if causal else None, PADDING.float().masked_fill(PADDING, -torch.inf))
        torch.testing.assert_close(ours(x, tokens)[~PADDING], wanted[~PADDING], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_block_is_the_decoder_layer(norm_first):
    made = {"norm_first": norm_first, "dropout": 0.0}
    theirs = spread(nn.TransformerDecoderLayer(E, H, 16, batch_first=True, activation="gelu", **made))
    ours = DecoderBlock(E, H, 16, mixer="softmax", **made)
    ours.load_state_dict(theirs.state_dict())
    x, memory = torch.randn(B, N, E), torch.randn(B, M, E)
    padding = torch.arange(M) >= torch.tensor([[M], [2], [3]])
    wanted = theirs(x, memory, CAUSAL, memory_key_padding_mask=padding)
    got = ours(x, memory, memory_tokens=Tokens.of(memory, key_padding_mask=padding))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_cross_block_is_attention_norm_and_feed_forward():
    block = spread(CrossBlock(E, H, 16, memory_dim=6, mixer="softmax", dropout=0.0, norm_first=True))
    x, memory = torch.randn(B, N, E), torch.randn(B, M, 6)
    attention = nn.MultiheadAttention(E, H, kdim=6, vdim=6, batch_first=True)
    attention.load_state_dict(block.multihead_attn.state_dict())
    h = x + attention(block.norm1(x), memory, memory)[0]
    wanted = h + block.linear2(torch.nn.functional.gelu(block.linear1(block.norm2(h))))
    torch.testing.assert_close(block(x, memory), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage.*")  # torch's own conversion
@pytest.mark.filterwarnings("ignore:Support for mismatched.*mask.*is deprecated")
def test_a_replaced_encoder_is_the_encoder(training, mask, padding):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True)
    theirs = spread(nn.TransformerEncoder(layer, 2)).train(training)
    ours = spread(nn.TransformerEncoder(layer, 2)).train(training)
    assert replace_attention(ours, "softmax") == ["layers.0.self_attn", "layers.1.self_attn"]
    x = torch.randn(B, N, E)
    mask = {None: None, "bool": CAUSAL.isneginf(), "float": CAUSAL}[mask]
    additive = torch.zeros(B, N).masked_fill(PADDING, -torch.inf)
    padding = {None: None, "bool": PADDING, "float": additive}[padding]
    with torch.set_grad_enabled(training):
        wanted, got = (m(x, mask, padding) for m in (theirs, ours))
    torch.testing.assert_close(got[~PADDING], wanted[~PADDING], rtol=1e-5, atol=1e-5)
