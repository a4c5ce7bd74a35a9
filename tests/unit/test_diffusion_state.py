"""Statistics add up: any split of the sources gives the one-shot result, and causal attention is their prefix."""

import pytest
import torch

from osmose.operators import causal as causal_module
from osmose.ops.diffusion import DiffusionState, diffusion_attention, diffusion_attention_reference
from osmose.tokens import Tokens

DTYPE = torch.float64


def points(n, m, lead=(2, 3), d=4, c=5, scale=0.5):
    g = torch.Generator().manual_seed(0)
    shapes = ((*lead, n, d), (*lead, m, d), (*lead, m, c))
    return [(torch.randn(*s, generator=g, dtype=DTYPE) * scale).requires_grad_() for s in shapes]


@pytest.mark.parametrize("normalization", ["row", "frobenius", "none"])
def test_chunks_and_sums_equal_one_call(normalization):
    q, k, v = points(7, 30)
    mass = torch.rand(30, dtype=DTYPE) * (torch.rand(30) > 0.3)
    expected = diffusion_attention(
        q, k, v, normalization=normalization, joint_heads=False, sources=Tokens(30, mass), targets=Tokens(7)
    )
    shards = [
        DiffusionState.of(k[..., a:b, :], v[..., a:b, :], mass[a:b], normalization=normalization)
        for a, b in ((0, 4), (4, 4), (4, 21))
    ]
    state = shards[2] + (shards[0] + shards[1])
    state = state.accumulate(k[..., 21:, :], v[..., 21:, :], mass[21:])
    squares = q.square().sum((-2, -1))
    parts = [
        state.apply(x, query_squares=squares if normalization == "frobenius" else None)
        for x in q.split(3, -2)
    ]
    out = torch.cat(parts, -2)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    g = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, (q, k, v), g), torch.autograd.grad(expected, (q, k, v), g), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(state.total, mass.sum().expand(2, 3))


def test_joint_heads_by_the_norms_of_all_heads():
    q, k, v = points(7, 9, (3,))
    state = DiffusionState.of(k, v, normalization="frobenius")
    out = state.apply(
        q, query_squares=q.square().sum().expand(3), key_squares=state.key_squares.sum().expand(3)
    )
    torch.testing.assert_close(
        out, diffusion_attention(q, k, v, normalization="frobenius"), atol=1e-12, rtol=0
    )


def test_an_empty_state_gives_zero():
    q, k, v = points(4, 6)
    empty = DiffusionState.empty(2, 3, 4, 5, dtype=DTYPE)
    assert (empty.apply(q) == 0).all()
    full = DiffusionState.of(k, v)
    torch.testing.assert_close((empty + full).apply(q), full.apply(q), atol=0, rtol=0)


def test_half_precision_is_summed_in_float32():
    _, k, v = points(1, 4000, (1,))
    state = DiffusionState.of(k.detach().bfloat16(), v.detach().bfloat16())
    assert state.moments.dtype == torch.float32
    assert float(state.total) == 4000


def test_states_say_what_does_not_fit():
    q, k, v = points(3, 4, ())
    with pytest.raises(ValueError, match="needs query_squares"):
        DiffusionState.of(k, v, normalization="frobenius").apply(q)
    with pytest.raises(ValueError, match="only states of one normalization"):
        DiffusionState.of(k, v) + DiffusionState.of(k, v, normalization="none")
    with pytest.raises(ValueError, match="expected row, frobenius or none"):
        DiffusionState.of(k, v, normalization="unit")
    with pytest.raises(ValueError, match="as many keys as values"):
        DiffusionState.of(k[:2], v)


@pytest.mark.parametrize("normalization", ["row", "none"])
@pytest.mark.parametrize("n", [1, 5, 21])
def test_causal_equals_the_masked_reference(n, normalization, monkeypatch):
    monkeypatch.setattr(causal_module, "CHUNK", 4)
    q, k, v = points(n, n, scale=0.3)
    mass = (torch.rand(2, 1, n, dtype=DTYPE) * (torch.rand(2, 1, n) > 0.3)).requires_grad_()
    arguments = {"normalization": normalization, "sources": Tokens(n, mass), "causal": True}
    out = diffusion_attention(q, k, v, **arguments)
    expected = diffusion_attention_reference(q, k, v, **arguments)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    g = torch.randn_like(out)
    grads = (torch.autograd.grad(x, (q, k, v, mass), g) for x in (out, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_causal_packed_sets_do_not_see_each_other():
    q, k, v = points(12, 12, (2,))
    batch = torch.tensor([0, 1, 0, 2, 1, 1, 0, 2, 0, 0, 1, 2])
    out = diffusion_attention(
        q, k, v, sources=Tokens.of(12, batch=batch), targets=Tokens.of(12, batch=batch), causal=True
    )
    for s in range(3):
        own = batch == s
        alone = diffusion_attention(q[:, own], k[:, own], v[:, own], causal=True)
        torch.testing.assert_close(out[:, own], alone, atol=1e-13, rtol=1e-12)


def test_decoding_token_by_token_equals_causal_attention():
    q, k, v = points(80, 80)
    whole = diffusion_attention(q, k, v, causal=True)
    state = DiffusionState.empty(2, 3, 4, 5, dtype=DTYPE)
    for t in range(80):
        now = slice(t, t + 1)
        state = state.accumulate(k[..., now, :], v[..., now, :])
        torch.testing.assert_close(state.apply(q[..., now, :]), whole[..., now, :], atol=1e-12, rtol=1e-12)
