"""Compositions keep cheap forms, memory and costs; laws show faults and check what they are given."""

import threading

import pytest
import torch

from osmose import laws
from osmose.operators import (
    Cost,
    Dense,
    Graph,
    Hadamard,
    Identity,
    LowRank,
    Pairwise,
    Scaled,
    Transposed,
    dense_limit,
    streaming,
)
from osmose.operators.base import refuse_past_limit
from osmose.operators.streaming import row_max
from osmose.tokens import Tokens

F64 = torch.float64
G = torch.Generator().manual_seed(0)
X = torch.rand(5, 2, dtype=F64, generator=G) + 0.1
LOW, EXP = LowRank(X, X), Pairwise(X, X)
GRAPH = Graph(torch.tensor([[0, 1, 1, 3], [1, 0, 2, 4]]), torch.rand(4, dtype=F64, generator=G), 5)
EYE = Identity(5, dtype=F64)
D = torch.rand(5, dtype=F64, generator=G)
DENSE = Dense(torch.rand(5, 5, dtype=F64, generator=G))


def peak(run):
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    return max(event.self_cpu_memory_usage for event in profile.events())


LINEAR = {
    "2 g * lr": lambda: ((2 * GRAPH), LOW),
    "g^T * lr": lambda: (GRAPH.mT, LOW),
    "(g + I) * lr": lambda: (GRAPH + EYE, LOW),
    "(g + I) * exp": lambda: (GRAPH + EYE, EXP),
    "2 lr * lr": lambda: (2 * LOW, LOW),
    "D lr D * lr^T": lambda: (LOW.scale(D, D), LOW.mT),
    "(D lr)^T * lr": lambda: (LOW.scale(D).mT, LOW),
    "row(lr) * row(lr)": lambda: (laws.row(LOW), laws.row(LOW)),
    "(lr + 2 lr) * (lr - g)": lambda: (LOW + 2 * LOW, LOW - GRAPH),
    "I^T * exp": lambda: (EYE.mT, EXP),
    "sym(g) * exp": lambda: (laws.sym(GRAPH), EXP),
}


@pytest.mark.parametrize("name", LINEAR)
def test_entrywise_products_of_compositions_stay_linear(name):
    a, b = LINEAR[name]()
    for one, other in ((a, b), (b, a)):
        product = one * other
        assert product.cost().quadratic == ()
        torch.testing.assert_close(product.to_dense(), one.to_dense() * other.to_dense())
        v = torch.rand(5, 2, dtype=F64)
        torch.testing.assert_close(product @ v, product.to_dense() @ v)


def test_an_entrywise_product_without_structure_stays_one_stream():
    assert isinstance((LOW + EXP) * Pairwise(X, X, "sigmoid"), Hadamard)
    assert isinstance(DENSE * (EXP + LOW), Dense)


def test_kinds_keep_their_kind_when_transposed_or_multiplied():
    for op in (GRAPH, LOW, EXP, EYE):
        assert type(op.mT) is type(op)
    assert isinstance(2 * GRAPH, Graph)
    assert isinstance(laws.row(EXP).mT, Scaled)


def test_a_streamed_product_counts_the_time_of_its_parts():
    x = torch.rand(100, 32)
    low, exp = LowRank(x, x), Pairwise(x, x)
    assert (low * exp).cost().time == 10_000 * 65
    assert (2 * (low + exp) * exp).cost().time >= 10_000 * 96
    assert exp.cost() == Cost(10_000 * 32, 200, ("Pairwise[exp]",))


@pytest.mark.parametrize(
    "wrap",
    [laws.row, lambda op: op + op, Transposed, lambda op: laws.row(op).mT],
    ids=["law", "sum", "mT", "law mT"],
)
def test_rows_of_a_composition_take_no_more_memory_than_the_rows(wrap):
    x = torch.rand(4000, 64)
    op, i = LowRank(x, x), torch.arange(32)
    wrapped = wrap(op)
    torch.testing.assert_close(
        wrapped.rows(i[:3])[:, :5], wrapped.entries(i[:3].repeat_interleave(5), i[:5].repeat(3)).view(3, 5)
    )
    assert peak(lambda: wrapped.rows(i)) < 3 * peak(lambda: op.rows(i))


def test_row_maxima_equal_the_dense_ones_set_by_set(monkeypatch):
    monkeypatch.setattr(streaming, "TILE_ROWS", 4)
    monkeypatch.setattr(streaming, "TILE_COLUMNS", 8)
    sizes = torch.tensor([3, 0, 4, 1, 30, 2]), torch.tensor([2, 5, 0, 1, 25, 3])
    set_q, set_k = (torch.arange(6).repeat_interleave(s) for s in sizes)
    q_ptr, k_ptr = (torch.cat([torch.zeros(1, dtype=torch.int64), s.cumsum(0)]) for s in sizes)
    q, k = torch.randn(2, 40, 3, dtype=F64), torch.randn(2, 36, 3, dtype=F64)
    present = torch.rand(2, 36) > 0.3
    k[~present] = torch.nan
    for bounds, same in (
        ((None, None), torch.ones(40, 36).bool()),
        ((q_ptr, k_ptr), set_q[:, None] == set_k),
    ):
        scores = torch.where(same & present.unsqueeze(-2), q @ k.mT, -torch.inf)
        got = row_max(q, k, q_ptr=bounds[0], k_ptr=bounds[1], present=present)
        assert got.equal(scores.amax(-1)) or torch.testing.assert_close(got, scores.amax(-1)) is None


def test_softmax_of_packed_sets_costs_the_sum_over_sets(monkeypatch):
    """Scores that are computed are counted: no pair of different sets among them beyond padding."""
    n, size = 2000, 20
    scored = []
    tiles = streaming._tiles
    monkeypatch.setattr(
        streaming, "_tiles", lambda q, k: scored.append(len(q) * q.shape[1] * k.shape[1]) or tiles(q, k)
    )
    x, t = torch.randn(n, 4), Tokens.of(n, batch=torch.arange(n) % (n // size))
    op = laws.row(Pairwise(x, x, targets=t, sources=t), sources=t, targets=t)
    assert sum(scored) == 2 * n * size  # once for the maxima, once for the sums
    torch.testing.assert_close(op.row_sum(), torch.ones(n))


def test_softmax_of_many_heads_holds_a_tile_of_scores():
    q = torch.randn(8, 1500, 4)
    assert peak(lambda: laws.row(Pairwise(q, q))) <= 4 * streaming.TILE_ROWS * streaming.TILE_COLUMNS


def test_packed_batches_without_a_set_give_nothing():
    t, x = Tokens.of(0, batch=torch.zeros(0, dtype=torch.long)), torch.rand(2, 0, 3)
    for op in (LowRank(x, x, targets=t, sources=t), Pairwise(x, x, targets=t, sources=t)):
        for law in laws.LAWS.values():
            assert (law(op, sources=t, targets=t) @ torch.rand(0, 4)).shape == (2, 0, 4)


# ---- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("law", ["row", "sym", "sinkhorn"])
def test_a_law_shows_what_is_not_finite(law, bad):
    matrix = torch.rand(3, 3, dtype=F64)
    matrix[1, 1] = bad
    out = laws.LAWS[law](Dense(matrix)) @ torch.ones(3, 1, dtype=F64)
    assert not torch.isfinite(out[1]).any()


def test_the_row_law_divides_by_negative_sums_too():
    matrix = torch.tensor([[1.0, -3.0], [1.0, -1.0]])
    torch.testing.assert_close(laws.row(Dense(matrix)).to_dense(), torch.tensor([[-0.5, 1.5], [0.0, 0.0]]))


@pytest.mark.parametrize("law", list(laws.LAWS))
@pytest.mark.parametrize("kind", ["dense", "low_rank", "graph"])
def test_gradients_do_not_see_what_mass_0_hides(law, kind):
    mass = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0], dtype=F64, requires_grad=True)
    op, t = {"dense": DENSE, "low_rank": LOW, "graph": GRAPH + GRAPH.mT}[kind], Tokens(5, mass)
    grads = []
    for value in (0.0, torch.inf):
        v = torch.rand(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
        v[3] = value
        v.requires_grad_()
        out = laws.LAWS[law](op, sources=t, targets=t) @ v
        grads.append(torch.autograd.grad(out.square().sum(), (mass, v)))
        assert grads[-1][0][3] == 0
        assert (grads[-1][1][3] == 0).all()
    for clean, dirty in zip(*grads, strict=True):
        torch.testing.assert_close(clean, dirty)


@pytest.mark.parametrize("law", list(laws.LAWS))
def test_a_padded_mass_fits_all_heads(law):
    x = torch.rand(3, 3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))  # batch and heads alike
    mass = torch.rand(3, 4, dtype=F64) + 0.1
    t = Tokens(4, mass)
    op = LowRank(x, x)
    got = laws.LAWS[law](op, sources=t, targets=t)
    want = laws.LAWS[law](op, sources=t.heads(), targets=t.heads())
    torch.testing.assert_close(got.to_dense(), want.to_dense())
    one = Tokens(4, mass[1])
    alone = laws.LAWS[law](LowRank(x[1], x[1]), sources=one, targets=one).to_dense()
    torch.testing.assert_close(got.to_dense()[1], alone, rtol=1e-5, atol=1e-5)
    assert laws.LAWS[law].deviation(got, sources=t, targets=t) == laws.LAWS[law].deviation(
        got, sources=t.heads(), targets=t.heads()
    )


def test_a_mass_that_fits_no_leading_dimension_is_an_error():
    for shape, lead in (((2, 4), (3, 5)), ((2, 4), (3,)), ((3, 4), (3, 2, 2)), ((3, 4), (1, 3))):
        op = LowRank(torch.rand(*lead, 4, 2), torch.rand(*lead, 4, 2))
        with pytest.raises(
            ValueError, match=r"law row: sources have masses of shape \(\d, 4\).*leading shape"
        ):
            laws.row(op, sources=Tokens(4, torch.ones(shape)))


def test_a_law_that_uses_no_columns_does_not_see_other_targets():
    """What ``uses_columns`` says is so: row i of the result follows from row i of the kernel, or not."""
    matrix = torch.rand(4, 4, dtype=F64) + 0.1
    changed = matrix.clone()
    changed[2:] *= torch.rand(2, 4, dtype=F64) + 0.5
    for law in laws.LAWS.values():
        same = law(Dense(matrix)).to_dense()[:2].equal(law(Dense(changed)).to_dense()[:2])
        assert same is not law.uses_columns


def test_the_dense_limit_is_one_of_the_thread():
    seen = []
    with dense_limit(1):
        thread = threading.Thread(target=lambda: seen.append(refuse_past_limit(100, "a part", "")))
        thread.start()
        thread.join()
    assert seen == [None]
