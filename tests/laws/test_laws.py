"""The laws of tokens with mass, for every law on every kernel."""

import pytest
import torch

from osmose.laws import LAWS, Sinkhorn
from osmose.operators import Dense, Graph, Identity, LowRank, Pairwise
from osmose.tokens import Tokens

from .kernels import ALL, BATCHED, PLACED, UNPLACED, operator, weights

F64 = torch.float64
SHARP = {**LAWS, "sinkhorn": Sinkhorn(iterations=3000, tolerance=1e-13)}
TIGHT = {"rtol": 1e-8, "atol": 1e-9}


def points(n=6, d=3, seed=0, lead=()):
    return torch.randn(*lead, n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def masses(n=6, seed=1, lead=()):
    return torch.rand(*lead, n, dtype=F64, generator=torch.Generator().manual_seed(seed)) + 0.2


def reference(law: str, c: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Each law from its formula on one dense kernel."""
    if law == "none":
        return c * s
    if law == "row":
        return c * s / (c @ s)[:, None]
    if law == "mean":
        return c * s / s.sum()
    if law == "sym":
        return c * s / ((c @ s).sqrt()[:, None] * (c.T @ t).sqrt())
    if law == "flow":
        taken, given, ratio = c @ s, c.T @ t, t.sum() / s.sum()
        opened = torch.sigmoid(ratio * (c @ (s / given)))
        strength = torch.exp(c.T @ (t / taken) / ratio)
        return (opened / taken)[:, None] * c * strength * s * s.sum() / (strength @ s)
    a, b = torch.ones_like(t), torch.ones_like(s)
    for _ in range(20_000):
        b = t.sum() / s.sum() / (c.T @ (a * t))
        a = 1 / (c @ (b * s))
    return a[:, None] * c * b * s


@pytest.fixture(params=list(LAWS))
def law(request):
    return request.param


@pytest.mark.parametrize("name", ALL)
def test_equals_the_formula(law, name):
    x, s, t = points(), masses(), masses(seed=2)
    # Sinkhorn needs equal masses in each of two blocks, and in a band
    t = s if name in ("graph", "low_rank_on_graph", *PLACED) else t
    op = SHARP[law](operator(name, x, x), sources=Tokens.of(x, mass=s), targets=Tokens.of(x, mass=t))
    torch.testing.assert_close(op.to_dense(), reference(law, weights(name, x, x), s, t), **TIGHT)


@pytest.mark.parametrize("name", ["low_rank", "exp"])
def test_targets_and_sources_of_different_number(law, name):
    x, y, s, t = points(6), points(9, seed=3), masses(9), masses(6)
    op = SHARP[law](operator(name, x, y), sources=Tokens.of(y, mass=s), targets=Tokens.of(x, mass=t))
    torch.testing.assert_close(op.to_dense(), reference(law, weights(name, x, y), s, t), **TIGHT)


@pytest.mark.parametrize("name", UNPLACED)
def test_a_token_of_mass_0_is_absent(law, name):
    x, m = points(8), masses(8)
    m[[2, 5]] = 0
    keep = m > 0
    t = Tokens.of(x, mass=m)
    whole = SHARP[law](operator(name, x, x), sources=t, targets=t).to_dense()
    alone = Tokens.of(x[keep], mass=m[keep])
    rest = SHARP[law](operator(name, x[keep], x[keep]), sources=alone, targets=alone).to_dense()
    torch.testing.assert_close(whole[keep][:, keep], rest, **TIGHT)
    assert (whole[~keep] == 0).all()
    assert (whole[:, ~keep] == 0).all()


@pytest.mark.parametrize("name", UNPLACED)
def test_a_token_equals_two_of_half_its_mass(law, name):
    x, m, v = points(), masses(), points(6, 2, seed=5)
    twice = torch.tensor([0, 1, 1, 2, 3, 4, 5])
    m2 = m[twice].clone()
    m2[1:3] /= 2
    out = []
    for index, mass in ((torch.arange(6), m), (twice, m2)):
        t = Tokens.of(len(index), mass=mass)
        out.append(SHARP[law](operator(name, x[index], x[index]), sources=t, targets=t) @ v[index])
    torch.testing.assert_close(out[0][twice], out[1], **TIGHT)


@pytest.mark.parametrize("name", UNPLACED)
def test_permuted_tokens_give_permuted_results(law, name):
    x, m, v = points(), masses(), points(6, 2, seed=5)
    p = torch.tensor([3, 1, 5, 0, 4, 2])
    t, tp = Tokens.of(x, mass=m), Tokens.of(x, mass=m[p])
    straight = SHARP[law](operator(name, x, x), sources=t, targets=t) @ v
    permuted = SHARP[law](operator(name, x[p], x[p]), sources=tp, targets=tp) @ v[p]
    torch.testing.assert_close(straight[p], permuted, **TIGHT)


@pytest.mark.parametrize("name", ALL)
def test_a_set_alone_equals_the_set_in_a_packed_batch(law, name):
    sizes, x, m, v = (4, 0, 5, 1), points(10), masses(10), points(10, 2, seed=5)
    batch = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    shuffle = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    if name in PLACED:  # the sets among each other, each in its order
        shuffle = torch.tensor([4, 0, 1, 5, 9, 6, 2, 7, 3, 8])
    t = Tokens.of(10, mass=m[shuffle], batch=batch[shuffle], num_sets=4)
    op = SHARP[law](operator(name, x[shuffle], x[shuffle], t, t), sources=t, targets=t)
    got = torch.empty_like(v).index_copy(0, shuffle, op @ v[shuffle])
    for xs, ms, vs, out in zip(*(z.split(sizes) for z in (x, m, v, got)), strict=True):
        one = Tokens.of(xs, mass=ms)
        torch.testing.assert_close(
            SHARP[law](operator(name, xs, xs), sources=one, targets=one) @ vs, out, **TIGHT
        )


@pytest.mark.parametrize("name", BATCHED)
def test_a_set_alone_equals_the_set_in_a_padded_batch(law, name):
    x, v = points(7, lead=(3,)), points(7, 2, seed=5, lead=(3,))
    lengths = torch.tensor([7, 3, 0])
    t = Tokens.of(x, lengths=lengths)
    got = SHARP[law](operator(name, x, x), sources=t, targets=t) @ v
    for b, n in enumerate(lengths):
        alone = SHARP[law](operator(name, x[b, :n], x[b, :n])) @ v[b, :n]
        torch.testing.assert_close(got[b, :n], alone, **TIGHT)
        assert (got[b, n:] == 0).all()


def test_a_set_with_no_mass_gives_zero_with_zero_gradient(law):
    for name in ("dense", "low_rank", "exp", "sigmoid"):
        x = points().requires_grad_()
        t = Tokens.of(6, mass=torch.zeros(6, dtype=F64))
        out = LAWS[law](operator(name, x, x), sources=t, targets=t) @ x
        out.sum().backward()
        assert (out == 0).all()
        assert (x.grad == 0).all()


def test_an_isolated_node_receives_zero(law):
    graph = Graph(torch.tensor([[0, 1], [1, 0]]), None, 3)
    out = LAWS[law](graph) @ torch.ones(3, 1)
    assert out[2] == 0
    assert torch.isfinite(out).all()


def test_what_mass_0_hides_may_hold_anything(law):
    x = points()
    hidden = x.clone()
    hidden[4:] = 1e30
    t = Tokens.of(6, mask=torch.arange(6) < 4)
    for name in ("exp", "sigmoid"):
        clean, dirty = (
            LAWS[law](operator(name, z, z), sources=t, targets=t)
            @ torch.where(t.mass[:, None] > 0, z, torch.inf)
            for z in (x, hidden)
        )
        if name == "exp" and law in ("none", "mean", "sym"):
            continue  # the raw exponential overflows: these laws cannot shift it away
        torch.testing.assert_close(clean, dirty, **TIGHT)


@pytest.mark.parametrize("name", ["low_rank", "exp", "graph", "sum"])
def test_gradients_equal_those_of_the_formula(law, name):
    x, m = points().requires_grad_(), masses().requires_grad_()
    v = points(6, 2, seed=5).requires_grad_()
    t = Tokens.of(x, mass=m)
    inputs = (x, m, v) if law != "sinkhorn" else (x, v)
    # Sinkhorn: the reference runs to convergence, so differentiate few, equal iterations on both sides
    lawful = Sinkhorn(5, 0.0) if law == "sinkhorn" else LAWS[law]
    got = torch.autograd.grad((lawful(operator(name, x, x), sources=t, targets=t) @ v).sin().sum(), inputs)
    dense = lawful(Dense(weights(name, x, x)), sources=t, targets=t).to_dense() if law == "sinkhorn" else None
    dense = reference(law, weights(name, x, x), m, m) if dense is None else dense
    want = torch.autograd.grad((dense @ v).sin().sum(), inputs)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_what_a_law_declares_is_conserved(law, name):
    if law == "sym" and name in PLACED:
        return  # it keeps a symmetric kernel symmetric; these are not
    x, m = points(), masses()
    t = Tokens.of(x, mass=m)
    op = SHARP[law](operator(name, x, x), sources=t, targets=t)
    deviation = SHARP[law].deviation(op, sources=t, targets=t)
    assert set(deviation) == set(LAWS[law].conserves)
    assert all(value < 1e-9 for value in deviation.values())


def test_deviation_sees_a_broken_promise():
    broken = Dense(torch.tensor([[0.5, 0.6], [0.5, 0.5]], dtype=F64))
    assert LAWS["row"].deviation(broken)["row_sum"] == pytest.approx(0.1)
    assert LAWS["sinkhorn"].deviation(broken)["col_sum"] == pytest.approx(0.1)
    assert LAWS["sym"].deviation(broken)["symmetric"] > 1e-3


def test_laws_keep_the_order_of_cost(law):
    n = 2000
    op = LAWS[law](LowRank(torch.rand(n, 4), torch.rand(n, 4)))
    assert op.cost().quadratic == ()
    assert op.cost().time < 20 * n


def test_row_law_on_large_scores_is_softmax():
    x = 30 * points()
    got = LAWS["row"](Pairwise(x, x, "exp")).to_dense()
    torch.testing.assert_close(got, (x @ x.T).softmax(-1))


def test_gcn_is_sym_of_the_graph_with_loops():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    a = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]])
    d = a.sum(1).rsqrt()
    got = LAWS["sym"](Graph(edge_index, None, 3) + Identity(3))
    torch.testing.assert_close(got.to_dense(), d[:, None] * a * d)


def test_sinkhorn_stops_when_the_columns_fit():
    x = points(30)
    op = Sinkhorn(iterations=1000, tolerance=1e-4)(operator("exp", x, x))
    columns = op.col_sum()
    torch.testing.assert_close(op.row_sum(), torch.ones(30, dtype=F64))
    assert 1e-12 < (columns - 1).abs().max() < 1e-4


def test_laws_check_the_tokens():
    op = Dense(torch.ones(3, 3))
    with pytest.raises(ValueError, match="sources describe 4 tokens"):
        LAWS["row"](op, sources=Tokens.of(4))
    with pytest.raises(ValueError, match="iterations=0"):
        Sinkhorn(0)
