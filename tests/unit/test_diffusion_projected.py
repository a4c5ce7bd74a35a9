"""DIFFormer-s under the Frobenius norm from the state alone equals queries, keys and the dense formula."""

import pytest
import torch
from torch import nn

from osmose.models import DIFFormerConv
from osmose.ops.diffusion import diffusion_attention_reference, projected
from osmose.tokens import Tokens

C, D = 5, 7


def setting(heads, lead=(), n=20, m=None, dtype=torch.float64, seed=0):
    """Projections that matter: entries of size 1 and biases, on states away from mean 0."""
    torch.manual_seed(seed)
    x = (torch.randn(*lead, n, C, dtype=dtype) + 0.5).requires_grad_()
    y = None if m is None else torch.randn(*lead, m, C, dtype=dtype, requires_grad=True)
    query, key = (nn.Linear(C, heads * D, dtype=dtype) for _ in range(2))
    for layer in (query, key):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return x, y, query, key


def dense(x, y, query, key, heads):
    y = x if y is None else y
    q, k = (f(z).unflatten(-1, (heads, D)).transpose(-3, -2) for f, z in ((query, x), (key, y)))
    return diffusion_attention_reference(
        q, k, y.unsqueeze(-3).expand(*k.shape[:-1], C), normalization="frobenius"
    )


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("lead", [(), (2,), (2, 1)])
@pytest.mark.parametrize("sources", [None, 14, 1], ids="sources-{}".format)
def test_it_is_the_formula_and_its_gradient(heads, lead, sources):
    x, y, query, key = setting(heads, lead, m=sources)
    actual = projected.projected_simple_attention(x, y, query, key, heads)
    expected = dense(x, y, query, key, heads)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    from_mean = (expected - (x if y is None else y).mean(-2)[..., None, None, :]).abs().max()
    assert sources == 1 or from_mean > 1e-4
    inputs = [x, *query.parameters(), *key.parameters(), *([] if y is None else [y])]
    g = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(out, inputs, g) for out in (actual, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("n", "m"), [(0, None), (0, 3), (4, 0)])
def test_empty_sets(n, m):
    x, y, query, key = setting(2, n=n, m=m)
    out = projected.projected_simple_attention(x, y, query, key, 2)
    assert out.shape == (2, n, C)
    assert (out == 0).all()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in query.parameters())


def test_half_precision_sums_in_float32():
    x, _, query, key = setting(1, n=3000, dtype=torch.float32)
    expected = projected.projected_simple_attention(x, None, query, key, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(projected.projected_simple_attention(x, None, query, key, 1), expected)
    half = projected.projected_simple_attention(x.bfloat16(), None, query, key, 1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.02, rtol=0.02)


def test_the_layer_takes_it_where_it_holds_and_gives_the_same_elsewhere(monkeypatch):
    """Masses of 1, written out, take the general path; both paths of one layer agree."""
    torch.manual_seed(0)
    layer = DIFFormerConv(C, C, num_heads=2, use_weight=False, normalization="frobenius").double()
    x = torch.randn(9, C, dtype=torch.float64)
    calls = []
    monkeypatch.setattr(
        "osmose.models.difformer.projected_simple_attention",
        lambda *a: calls.append(a) or projected.projected_simple_attention(*a),
    )
    plain = layer(x)
    assert len(calls) == 1
    for tokens in (Tokens(9, torch.ones(9, dtype=torch.float64)), Tokens.of(9, ptr=torch.tensor([0, 9]))):
        torch.testing.assert_close(layer(x, targets=tokens), plain, atol=1e-12, rtol=0)
    with_values = DIFFormerConv(C, C, num_heads=2, normalization="frobenius").double()
    rows = DIFFormerConv(C, C, num_heads=2, use_weight=False).double()
    with_values(x), rows(x)
    assert len(calls) == 1
