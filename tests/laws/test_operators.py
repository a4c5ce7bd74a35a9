"""Every kind of operator equals its dense matrix: products, sums, blocks, algebra, gradients, types."""

import pytest
import torch

from osmose.operators import Cost, Dense, DenseLimitError, Graph, Identity, LowRank, Pairwise, dense_limit
from osmose.tokens import Tokens

from .kernels import ALL, BATCHED, operator, weights

F64 = torch.float64


def points(n=7, m=5, d=3, lead=(), seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*lead, s, d, dtype=F64, generator=g) for s in (n, m))


def packed(n=7, m=5):
    """Three sets on both sides, out of order, the last one empty of sources."""
    targets = Tokens.of(n, batch=torch.tensor([1, 0, 2, 0, 1, 1, 0])[:n], num_sets=3)
    sources = Tokens.of(m, batch=torch.tensor([0, 1, 0, 1, 1])[:m], num_sets=3)
    return targets, sources


@pytest.fixture(params=ALL)
def name(request):
    return request.param


@pytest.fixture(params=["one set", "packed"])
def sets(request):
    return packed() if request.param == "packed" else (None, None)


def test_products_sums_and_blocks_equal_the_dense_matrix(name, sets):
    x, y = points()
    op, a = operator(name, x, y, *sets), weights(name, x, y, *sets)
    v, u = torch.randn(5, 2, dtype=F64), torch.randn(7, 2, dtype=F64)
    assert op.shape == a.shape
    torch.testing.assert_close(op @ v, a @ v)
    torch.testing.assert_close(op.mT @ u, a.mT @ u)
    torch.testing.assert_close(op.mT.mT @ v, a @ v)
    torch.testing.assert_close(op @ v[:, 0], a @ v[:, 0])
    torch.testing.assert_close(op.row_sum(), a.sum(-1))
    torch.testing.assert_close(op.col_sum(), a.sum(-2))
    torch.testing.assert_close(op.to_dense(), a)
    torch.testing.assert_close(op.mT.to_dense(), a.mT)
    i, j = torch.tensor([3, 0, -1]), torch.tensor([4, 1])
    torch.testing.assert_close(op.rows(i), a[i])
    torch.testing.assert_close(op.rows(2), a[2:3])
    torch.testing.assert_close(op.block(i, j), a[i][:, j])
    torch.testing.assert_close(op.block(slice(1, 4), torch.arange(5) > 2), a[1:4, 3:])
    torch.testing.assert_close(op.entries(i[:2], j), a[i[:2], j])


def test_gradients_equal_those_of_the_dense_matrix(name, sets):
    x, y = (p.requires_grad_() for p in points())
    v = torch.randn(5, 2, dtype=F64, requires_grad=True)
    u = torch.randn(7, 2, dtype=F64, requires_grad=True)
    op, a = operator(name, x, y, *sets), weights(name, x, y, *sets)
    for got, want in ((op @ v, a @ v), (op.mT @ u, a.mT @ u)):
        probe = torch.randn_like(got)
        inputs = [x, y] + ([v] if got.shape[0] == 7 else [u])
        grads = [torch.autograd.grad(out, inputs, probe, retain_graph=True) for out in (got, want)]
        for g, w in zip(*grads, strict=True):
            torch.testing.assert_close(g, w)


@pytest.mark.parametrize("name", BATCHED)
def test_leading_dimensions_broadcast(name):
    x, y = points(lead=(2, 3))
    y = y[:, :1]
    v = torch.randn(2, 3, 5, 2, dtype=F64)
    op, a = operator(name, x, y), weights(name, x, y)
    torch.testing.assert_close(op @ v, a @ v)
    torch.testing.assert_close(op @ v[0, 0], a @ v[0, 0])
    torch.testing.assert_close(op.rows(torch.tensor([2, 4])), a[..., [2, 4], :])


def test_graph_with_a_weight_for_each_head():
    g = torch.Generator().manual_seed(1)
    edge_index = torch.randint(0, 4, (2, 9), generator=g)
    weight = torch.rand(2, 9, dtype=F64, generator=g, requires_grad=True)
    op = Graph(edge_index, weight, 4)
    a = torch.zeros(2, 4, 4, dtype=F64).index_put(
        (torch.arange(2)[:, None], edge_index[1], edge_index[0]), weight, accumulate=True
    )
    v = torch.randn(2, 4, 3, dtype=F64, generator=g)
    torch.testing.assert_close(op @ v, a @ v)
    torch.testing.assert_close(op.mT @ v, a.mT @ v)
    torch.testing.assert_close(op.to_dense(), a)
    got, want = (torch.autograd.grad((m @ v).sin().sum(), weight)[0] for m in (op, a))
    torch.testing.assert_close(got, want)


def test_repeated_edges_add_up_and_direction_is_pygs():
    op = Graph(torch.tensor([[0, 0, 2], [1, 1, 0]]), torch.tensor([1.0, 2.0, 5.0]), 3)
    want = torch.tensor([[0.0, 0, 5], [3, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(op.to_dense(), want)
    torch.testing.assert_close(op @ torch.eye(3), want)
    torch.testing.assert_close((op + Identity(3)).to_dense(), want + torch.eye(3))


def test_algebra_on_every_kind(name, sets):
    x, y = points()
    op, a = operator(name, x, y, *sets), weights(name, x, y, *sets)
    v = torch.randn(5, 2, dtype=F64)
    left, right = torch.randn(7, dtype=F64), torch.randn(5, dtype=F64)
    torch.testing.assert_close((op + op) @ v, 2 * a @ v)
    torch.testing.assert_close((3.0 * op - op) @ v, 2 * a @ v)
    torch.testing.assert_close(op.scale(left, right) @ v, left[:, None] * a * right @ v)
    torch.testing.assert_close(op.scale(left, right).mT.to_dense(), (left[:, None] * a * right).mT)
    edge_index = torch.tensor([[0, 4, 2], [6, 1, 1]])
    support = Graph(edge_index, torch.tensor([1.0, 2.0, 3.0], dtype=F64), 7, 5)
    torch.testing.assert_close((op * support).to_dense(), a * support.to_dense())
    torch.testing.assert_close((Dense(a) * op).to_dense(), a * a)


def test_identity_and_its_products():
    x, _ = points(5, 5)
    op, a = operator("exp", x, x), weights("exp", x, x)
    v = torch.randn(5, 2, dtype=F64)
    eye = Identity(5, dtype=F64)
    assert (eye @ v) is v
    torch.testing.assert_close((op + eye) @ v, a @ v + v)
    torch.testing.assert_close((op * eye).to_dense(), a * torch.eye(5, dtype=F64))


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
@pytest.mark.parametrize("name", ["low_rank", "exp", "sigmoid"])
def test_narrow_types_keep_wide_sums(name, dtype, bound):
    x, y = (0.5 * p for p in points(40, 3000))
    op, a = (
        operator(name, x.to(dtype), y.to(dtype)),
        weights(name, x.to(dtype).double(), y.to(dtype).double()),
    )
    v = torch.rand(3000, 2).to(dtype)
    want = a @ v.double() / 3000
    got = (op.scale(right=torch.full((3000,), 1 / 3000)) @ v).double()
    assert ((got - want).abs() / want.abs().clamp(min=1e-2)).max() < bound


def test_cost_tells_linear_from_quadratic():
    x, y = points(1000, 800)
    linear, streamed = operator("low_rank", x, y), operator("exp", x, y)
    assert linear.cost() == Cost(time=1800 * 3, memory=3)
    assert streamed.cost().time >= 800_000
    assert streamed.cost().memory < 10_000
    assert streamed.cost().quadratic == ("Pairwise[exp]",)
    assert (linear + streamed).cost().quadratic == ("Pairwise[exp]",)
    assert "through Pairwise[exp]" in (linear * streamed).cost().quadratic[0]
    on_graph = linear * Graph(torch.tensor([[0, 1], [2, 3]]), torch.ones(2, dtype=F64), 1000, 800)
    assert on_graph.cost() == Cost(time=2, memory=0)


def test_quadratic_compositions_are_refused_past_the_limit():
    x, y = points(100, 80)
    composed = operator("low_rank", x, y) * operator("exp", x, y)
    v = torch.randn(80, 1, dtype=F64)
    with dense_limit(7_999):
        with pytest.raises(DenseLimitError, match=r"LowRank\[3\] \* Pairwise\[exp\].*8,000.*7,999"):
            composed @ v
        with pytest.raises(DenseLimitError, match="fewer rows"):
            operator("exp", x, y).to_dense()
        assert operator("exp", x, y).rows(slice(0, 10)).shape == (10, 80)
        operator("exp", x, y) @ v  # streaming was asked for
    assert (composed @ v).shape == (100, 1)


def test_empty_sides():
    for n, m in ((0, 3), (3, 0), (0, 0)):
        x, y = torch.randn(n, 2), torch.randn(m, 2)
        for op in (LowRank(x, y), Pairwise(x, y), Graph(torch.zeros(2, 0, dtype=torch.long), None, n, m)):
            assert (op @ torch.randn(m, 4)).equal(torch.zeros(n, 4))
            assert op.row_sum().equal(torch.zeros(n))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LowRank(torch.ones(3, 2), torch.ones(3, 4)), ValueError, "same last dimension"),
        (lambda: Pairwise(torch.ones(3, 2), torch.ones(3, 4)), ValueError, "same last dimension"),
        (lambda: Pairwise(torch.ones(3, 2), torch.ones(3, 2), "tanh"), ValueError, "exp, sigmoid"),
        (lambda: Graph(torch.ones(2, 3)), TypeError, "int64"),
        (lambda: Graph(torch.tensor([[0], [5]]), None, 3), ValueError, "expected 0 to 2"),
        (lambda: Graph(torch.tensor([[0], [1]]), torch.ones(2)), ValueError, "one for each edge"),
        (lambda: Dense(torch.ones(3)), ValueError, r"\(\.\.\., n, m\)"),
        (lambda: Dense(torch.ones(3, 3)) @ torch.ones(4, 1), ValueError, "one row for each source"),
        (lambda: Dense(torch.ones(3, 3)) + Dense(torch.ones(2, 3)), ValueError, "differ"),
        (lambda: Dense(torch.ones(3, 3)) * torch.ones(3), TypeError, "ambiguous"),
        (lambda: Dense(torch.ones(3, 3)).rows(torch.tensor([3])), IndexError, "from -3 to 2"),
        (lambda: Dense(torch.ones(3, 3)).scale(left=torch.ones(2)), ValueError, "left"),
    ],
)
def test_bad_input_says_what_to_do(make, error, says):
    with pytest.raises(error, match=says):
        make()
