"""Fields against their formulas: every kernel, law, mask and mass, and which of them are gradient flows."""

import pytest
import torch

from osmose.dynamics import terms
from osmose.dynamics.fields import Field, Schedule, perceptron
from osmose.dynamics.observables import energy_rate
from osmose.dynamics.terms import Attention, Mixed
from osmose.tokens import Tokens

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sphere(*shape, seed=0):
    x = draw(*shape, seed=seed)
    return x / x.norm(dim=-1, keepdim=True)


def tangent(x, a):
    return a - (a * x).sum(-1, keepdim=True) * x


def reference(x, beta, law, f=torch.exp, q=None, k=None, v=None, mass=None, causal=False):
    """The formula with full matrices, token by token."""
    n, d = x.shape
    eye = torch.eye(d, dtype=F64)
    q, k, v = (eye if w is None else w for w in (q, k, v))
    m = torch.ones(n, dtype=F64) if mass is None else mass
    out = torch.zeros_like(x)
    for i in range(n):
        w = torch.stack([f(beta * (q @ x[i]) @ (k @ x[j])) * m[j] for j in range(n)])
        if causal:
            w[i + 1 :] = 0
        total = w.sum() if law == "row" else m.sum()
        out[i] = sum(w[j] * (v @ x[j]) for j in range(n)) / total
    return out


KERNELS = {"exp": torch.exp, "sigmoid": torch.sigmoid, "linear": lambda s: 1 + s}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("law", ["row", "mean"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("beta", [1.7, -0.8])
def test_terms_are_their_formulas(kernel, law, causal, beta):
    x, q, k, v = sphere(7, 3), draw(2, 3, seed=1), draw(2, 3, seed=2), draw(3, 3, seed=3)
    mass = torch.rand(7, dtype=F64, generator=torch.Generator().manual_seed(4)) + 0.1
    for m in (None, mass):
        term = Attention(beta, law=law, query=q, key=k, value=v, kernel=kernel, causal=causal)
        got = term(x, None if m is None else Tokens.of(x, mass=m))
        want = reference(x, beta, law, KERNELS[kernel], q, k, v, m, causal)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_streamed_and_formed_are_one(monkeypatch):
    x, q, v = sphere(2, 3, 7, 3), draw(2, 3, seed=1), draw(3, 3, seed=3)
    beta = torch.tensor([0.5, -2.0, 30.0], dtype=F64)
    fields = [
        Attention(beta, law=law, scaled=scaled, query=a, key=a, value=b)
        for law, scaled in (("row", False), ("mean", False), ("mean", True))
        for a, b in ((None, None), (q, v))
    ]
    x.requires_grad_()
    formed = [(f(x).detach(), torch.autograd.grad(f(x).square().sum(), x)[0]) for f in fields]
    monkeypatch.setattr(terms, "SMALL_MEAN", 0)
    monkeypatch.setattr(terms, "FEW", 0)
    for f, (value, gradient) in zip(fields, formed, strict=True):
        scale = float(value.detach().abs().max())
        torch.testing.assert_close(f(x).detach(), value, rtol=1e-10, atol=1e-13 * scale)
        again = torch.autograd.grad(f(x).square().sum(), x)[0]
        torch.testing.assert_close(again, gradient, rtol=1e-9, atol=1e-12 * float(gradient.abs().max()))


@pytest.mark.parametrize("small", [0, 1024])
def test_scaled_usa_at_any_beta(monkeypatch, small):
    monkeypatch.setattr(terms, "SMALL_MEAN", small)
    x = sphere(2, 6, 3)
    beta = torch.tensor([2.0, 3000.0], dtype=F64)
    got = Attention(beta, law="mean", scaled=True)(x)
    kernel = torch.exp(beta[:, None, None] * (x @ x.mT - 1))
    torch.testing.assert_close(got, kernel @ x / 6, rtol=1e-11, atol=1e-14)
    dense = Attention(beta, law="mean", scaled=True).operator(x).to_dense()
    torch.testing.assert_close(dense, kernel / 6, rtol=1e-9, atol=1e-14)
    with pytest.raises(ValueError, match="scaled=True"):
        Attention(3000.0, law="mean")(x)
    assert torch.isfinite(Attention(3000.0)(x)).all()


def test_padding_gives_and_takes_nothing():
    x = sphere(2, 5, 3)
    mass = torch.tensor([[1.0, 1, 1, 1, 1], [1, 2, 1, 0, 0]], dtype=F64)
    for law in ("row", "mean"):
        padded = Attention(2.0, law=law)(x, Tokens.of(x, mass=mass))
        alone = Attention(2.0, law=law)(x[1, :3], Tokens.of(x[1, :3], mass=mass[1, :3]))
        torch.testing.assert_close(padded[1, :3], alone, rtol=1e-12, atol=1e-13)
        assert (padded[1, 3:] == 0).all()


def test_hard_maximum_is_the_limit():
    x = sphere(9, 3)
    a = draw(3, 3, seed=5)
    hard = Attention(1.0, query=a, kernel="hardmax")(x)
    torch.testing.assert_close(hard, Attention(1e5, query=a)(x), rtol=1e-9, atol=1e-9)
    s = (x @ x.mT).fill_diagonal_(-2)
    torch.testing.assert_close(Attention(kernel="hardmax", itself=False)(x), x[s.argmax(-1)])
    torch.testing.assert_close(Attention(-1.0, kernel="hardmax")(x), x[(x @ x.mT).argmin(-1)])
    twice = torch.cat([x[:1], x[:1], -x[:1]])
    torch.testing.assert_close(Attention(kernel="hardmax", itself=False)(twice)[2], x[0])
    causal = Attention(kernel="hardmax", causal=True, itself=False)(x)
    assert (causal[0] == 0).all()
    torch.testing.assert_close(causal[1], x[0])


def test_heads_drift_and_schedule():
    x = sphere(6, 3)
    w, u, a = draw(3, 5, seed=1), draw(5, 3, seed=2), draw(5, seed=3)
    one, two = Attention(1.0), Attention(-2.0, value=-1.0)
    field = Field(one, two, drift=perceptron(w, u, a, torch.tanh))
    token_by_token = torch.stack([w @ torch.tanh(u @ p + a) for p in x])
    torch.testing.assert_close(field(x), one(x) + two(x) + token_by_token)
    schedule = Schedule([(0.0, Field(one)), (1.5, Field(two))])
    torch.testing.assert_close(schedule(x, t=1.4), one(x))
    torch.testing.assert_close(schedule(x, t=1.5), two(x))
    with pytest.raises(ValueError, match="depend on time"):
        _ = schedule.energy
    assert schedule.at(2.0).is_gradient


def test_other_mixers_are_terms():
    x = draw(2, 6, 4)
    for name in ("flow", "diffusion", "diffusion-sigmoid", "linear", "mean"):
        term = Mixed(name, value=2.0)
        torch.testing.assert_close(term(x), 2 * (term.operator(x).to_dense()[..., 0, :, :] @ x))
    torch.testing.assert_close(Mixed("mean")(x), x.mean(-2, keepdim=True).expand_as(x))


def test_a_batch_of_betas_is_taken_apart():
    x = sphere(2, 3, 5, 4)
    beta = torch.rand(3, dtype=F64) * 4
    field = Field(Attention(beta, law="mean"))
    whole = field(x).reshape(6, 5, 4)
    index = torch.tensor([4, 1])
    torch.testing.assert_close(field.take(index, x.shape[:-2])(x.reshape(6, 5, 4)[index]), whole[index])


@pytest.mark.parametrize("law", ["row", "mean"])
@pytest.mark.parametrize("value", [None, -1.0, 2.5])
def test_energy_gains_what_is_dissipated(law, value):
    x = sphere(3, 8, 4)
    mass = torch.rand(3, 8, dtype=F64, generator=torch.Generator().manual_seed(1)) + 0.1
    b = draw(4, 4, seed=2)
    b = b + b.mT
    for options in ({"value": value}, {"key": b, "value": b * (value or 1.0)}):
        field = Field(Attention(1.3, law=law, **options))
        v = tangent(x, field(x, Tokens.of(x, mass=mass)))
        h = 1e-6
        ahead, behind = (
            field.energy((x + s * v) / (x + s * v).norm(dim=-1, keepdim=True), mass) for s in (h, -h)
        )
        torch.testing.assert_close(
            (ahead - behind) / (2 * h), field.energy.rate(x, v, mass), rtol=1e-6, atol=1e-9
        )
        part = field.energy.parts[0]
        gained = part.coefficient * energy_rate(x, v, 1.3, mass, bilinear=part.bilinear)
        torch.testing.assert_close(gained, field.energy.rate(x, v, mass), rtol=1e-9, atol=1e-12)


def test_heads_of_usa_have_a_common_energy():
    x = sphere(8, 4)
    field = Field(Attention(1.3, law="mean"), Attention(0.4, law="mean", value=-0.5))
    v = tangent(x, field(x))
    h = 1e-6
    ahead, behind = (field.energy((x + s * v) / (x + s * v).norm(dim=-1, keepdim=True)) for s in (h, -h))
    torch.testing.assert_close((ahead - behind) / (2 * h), v.square().sum(-1).mean(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (Field(Attention(causal=True)), "causal"),
        (Field(Attention(query=draw(3, 3), value=1.0)), "not symmetric"),
        (Field(Attention(value=draw(3, 3))), "multiple"),
        (Field(Attention(), drift=lambda x, t: x), "drift"),
        (Field(Attention(), Attention()), "several heads"),
        (Field(Attention(kernel="sigmoid")), "kernel"),
        (Field(Attention(law="sym")), "law sym"),
    ],
)
def test_what_is_no_gradient_flow_says_why(field, reason):
    assert not field.is_gradient
    with pytest.raises(ValueError, match=reason):
        _ = field.energy


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kernel": "cosine"}, "kernel is 'cosine'"),
        ({"law": "columns"}, "law is 'columns'"),
        ({"scaled": True}, "scaled=True"),
        ({"kernel": "hardmax", "law": "mean"}, "hardmax"),
        ({"itself": False}, "itself=False"),
        ({"law": "sym", "causal": True}, "column sums"),
        ({"value": draw(3, 2)}, "value has shape"),
        ({"beta": float("inf")}, "beta is inf"),
    ],
)
def test_terms_refuse(options, reason):
    with pytest.raises(ValueError, match=reason):
        Attention(**options)


@pytest.mark.parametrize("small", [0, 1024])
@pytest.mark.parametrize(
    ("beta", "size", "dtype", "within"),
    [
        (-60.0, 1.0, torch.float32, 1e-5),
        (20.0, 3.0, F64, 1e-12),
        (-400.0, 1.0, F64, 1e-11),
        (1.0, 2.0, torch.float32, 1e-4),
    ],
)
def test_usa_with_scores_far_from_beta(monkeypatch, small, beta, size, dtype, within):
    """Scores above beta, from Q and K or a negative beta, where the weight e^beta is lost beside theirs."""
    monkeypatch.setattr(terms, "SMALL_MEAN", small)
    x, q, k = sphere(20, 3), size * draw(3, 3, seed=1), size * draw(3, 3, seed=2)
    x, mass = x.to(dtype), torch.linspace(0.0, 2.0, 20, dtype=F64)
    weights = {} if size == 1 else {"query": q, "key": k}
    scores = beta * (
        x.double() @ x.double().mT if size == 1 else (x.double() @ q.mT) @ (x.double() @ k.mT).mT
    )
    top = scores.amax(-1, keepdim=True)
    for tokens, m in ((None, torch.ones(20, dtype=F64)), (Tokens.of(20, mass=mass), mass)):
        got = Attention(beta, law="mean", **weights)(x, tokens)
        want = ((scores - top).exp() * m) @ x.double() / m.sum() * (m > 0)[:, None]
        assert bool(got.isfinite().all())
        torch.testing.assert_close(
            got.double() * (-top).exp(), want, rtol=within, atol=within * float(want.abs().max())
        )
