"""Operators that know the order of tokens: shifts, the causal order, and products and polynomials of operators."""

import pytest
import torch

from osmose import laws
from osmose.operators import (
    Causal,
    Dense,
    Graph,
    Identity,
    LowRank,
    Pairwise,
    Shift,
    Toeplitz,
    matrix_product,
    polynomial,
)
from osmose.operators.causal import CausalLowRank
from osmose.structure.graphs import rings
from osmose.tokens import Tokens

F64 = torch.float64
N = 9
SETS = Tokens.of(N, batch=torch.tensor([1, 0, 2, 0, 1, 1, 0, 2, 1]), num_sets=4)


def points(n=N, d=3, seed=0):
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def shift_matrix(d, n=N, sets=None):
    """S[i, j] = 1 where j is d places after i, among the tokens of its set."""
    out = torch.zeros(n, n, dtype=F64)
    for s in range(4 if sets else 1):
        place = torch.arange(n) if sets is None else (sets.batch == s).nonzero()[:, 0]
        for a in range(len(place)):
            if 0 <= a + d < len(place):
                out[place[a], place[a + d]] = 1
    return out


def order_matrix(sets=None):
    same = torch.ones(N, N, dtype=torch.bool) if sets is None else sets.batch[:, None] == sets.batch
    return (same & torch.ones(N, N, dtype=torch.bool).tril()).to(F64)


X = points(d=2).abs() + 0.1
GRAPH = Graph(torch.tensor([[0, 1, 1, 3, 8], [1, 0, 2, 4, 8]]), torch.rand(5, dtype=F64), N)
SQUARE = points(N, N, seed=4) / 3

CASES = {
    "shift": lambda: (Shift(N, -2, dtype=F64), shift_matrix(-2)),
    "shift in sets": lambda: (Shift(N, 1, tokens=SETS, dtype=F64), shift_matrix(1, sets=SETS)),
    "circular": lambda: (Shift(N, 4, border="circular", dtype=F64), torch.eye(N, dtype=F64).roll(4, 1)),
    "grid": lambda: (
        Shift((3, 3), (-1, 1), dtype=F64),
        torch.kron(shift_matrix(-1, 3), shift_matrix(1, 3)),
    ),
    "shift of a kernel": lambda: (
        Shift(N, -1, dtype=F64) * Pairwise(X, X),
        shift_matrix(-1) * (X @ X.mT).exp(),
    ),
    "causal": lambda: (Causal(N, dtype=F64), order_matrix()),
    "causal in sets": lambda: (Causal(N, tokens=SETS, dtype=F64), order_matrix(SETS)),
    "causal low rank": lambda: (LowRank(X, X + 1) * Causal(N), order_matrix() * (X @ (X + 1).mT)),
    "causal low rank in sets": lambda: (
        Causal(N, tokens=SETS) * LowRank(X, X, targets=SETS, sources=SETS),
        order_matrix(SETS) * (X @ X.mT),
    ),
    "causal product": lambda: (
        (LowRank(X, X) * Causal(N)) * LowRank(X, X + 1),
        order_matrix() * (X @ X.mT) * (X @ (X + 1).mT),
    ),
    "causal band": lambda: (
        Causal(N) * Toeplitz(torch.tensor([2.0, 3.0, 5.0], dtype=F64), [-2, 0, 1], N),
        2 * shift_matrix(-2) + 3 * torch.eye(N, dtype=F64),
    ),
    "causal softmax kernel": lambda: (Pairwise(X, X) * Causal(N), order_matrix() * (X @ X.mT).exp()),
    "product": lambda: (
        matrix_product(GRAPH, Dense(SQUARE)),
        GRAPH.to_dense() @ SQUARE,
    ),
    "power": lambda: (polynomial(Dense(SQUARE), 3), SQUARE @ SQUARE @ SQUARE),
    "chebyshev": lambda: (
        polynomial(Dense(SQUARE), 3, "chebyshev"),
        4 * SQUARE @ SQUARE @ SQUARE - 3 * SQUARE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_products_and_entries_equal_the_matrix(name):
    op, a = CASES[name]()
    v = points(op.shape[-1], 2, seed=7)
    torch.testing.assert_close(op @ v, a @ v)
    torch.testing.assert_close(op.mT @ v, a.mT @ v)
    torch.testing.assert_close(op.to_dense(), a)
    torch.testing.assert_close(op.mT.to_dense(), a.mT)
    torch.testing.assert_close(op.rows(torch.tensor([2, 0])), a[[2, 0]])
    i, j = torch.tensor([0, 3, 8, 5]), torch.tensor([1, 2, 8, 5])
    torch.testing.assert_close(op.entries(i, j), a[i, j])
    total = a.sum(-1, keepdim=True)
    torch.testing.assert_close(
        laws.row(op).to_dense(), torch.where(total == 0, 0.0, a / torch.where(total == 0, 1.0, total))
    )


def test_values_may_have_leading_dimensions():
    v = torch.randn(2, 3, N, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    for name in ("shift", "causal", "causal low rank", "power"):
        op, a = CASES[name]()
        torch.testing.assert_close(op @ v, a @ v)
        torch.testing.assert_close(op.mT @ v, a.mT @ v)


def test_gradients_reach_what_operators_are_made_of():
    x, y = points(d=2).requires_grad_(), points(d=2, seed=3).requires_grad_()
    v = points(seed=5).requires_grad_()

    def run(x, y, v):
        causal = LowRank(x, y) * Causal(N)
        return causal @ v, causal.mT @ v, Shift(N, 2, dtype=F64) @ v, polynomial(LowRank(x, y), 2) @ v

    assert torch.autograd.gradcheck(run, (x, y, v))


def test_products_of_different_sets_are_those_of_the_matrices():
    """Tokens meet where both sides let them."""
    pairs = Tokens.of(N, batch=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3]))
    kernel = LowRank(X, X + 1, targets=SETS, sources=SETS)
    across = LowRank(X, X + 1, targets=SETS, sources=pairs)
    band = {"targets": pairs, "sources": pairs}
    for a, b in (
        (kernel, Toeplitz(torch.rand(3, dtype=F64), range(-1, 2), N, **band)),
        (kernel, LowRank(X, X, **band)),
        (kernel, Causal(N, tokens=pairs)),
        (across, Causal(N)),
        (kernel * Causal(N), LowRank(X, X, **band)),
        (Causal(N, tokens=SETS, dtype=F64), Causal(N, tokens=pairs, dtype=F64)),
    ):
        product, wanted = a * b, a.to_dense() * b.to_dense()
        torch.testing.assert_close(product.to_dense(), wanted)
        torch.testing.assert_close(product @ torch.eye(N, dtype=F64), wanted)
    empty = Tokens.of(0, batch=torch.zeros(0, dtype=torch.int64), num_sets=0)
    assert (Causal(0, tokens=empty) @ torch.zeros(0, 2)).shape == (0, 2)


def test_costs_are_linear():
    for name in ("shift", "shift of a kernel", "causal", "causal band", "causal low rank", "causal product"):
        assert not CASES[name]()[0].cost().quadratic, name
    assert isinstance(LowRank(X, X) * (2 * Causal(N)), type(2 * Causal(N)))
    assert isinstance(LowRank(X, X) * Causal(N), CausalLowRank)


@pytest.mark.parametrize("law", ["sym", "flow", "sinkhorn"])
def test_a_law_over_columns_refuses_a_causal_operator(law):
    causal = LowRank(X, X) * Causal(N)
    masked = (Pairwise(X, X) * Causal(N), Dense(X @ X.mT) * Causal(N), GRAPH * Causal(N))
    beside = (causal + Identity(N), causal + Shift(N, -1), 0.5 * Identity(N) + masked[1])
    for op in (causal, 2 * causal, causal + causal, *masked, *beside):
        with pytest.raises(ValueError, match=r"future leaks.*Take row, mean or none"):
            laws.LAWS[law](op)
    for name in ("none", "row", "mean"):
        laws.LAWS[name](causal)
    for op in (Identity(N), causal + Shift(N, 1), causal + GRAPH, (Dense(X @ X.mT) * Causal(N)).mT):
        assert not op.is_causal


def test_a_causal_row_law_does_not_see_the_future():
    x, later = points(d=2).abs(), points(d=2).abs()
    later[6:] += 1
    v = points(seed=5)
    out = [laws.row(LowRank(p, p) * Causal(N)) @ v for p in (x, later)]
    torch.testing.assert_close(out[0][:6], out[1][:6], rtol=0, atol=0)


def test_a_product_of_two_keeps_its_precision_between_them():
    edges = torch.stack([torch.arange(N).repeat(N), torch.arange(N).repeat_interleave(N)])
    graph = Graph(edges, torch.rand(N * N, dtype=torch.bfloat16), N)
    for op in (matrix_product(graph, graph), polynomial(graph, 2)):
        assert (op @ torch.ones(N, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    wide = graph.to_dense().float()
    torch.testing.assert_close(matrix_product(graph, graph).row_sum(), (wide @ wide).sum(-1))


def test_offsets_outside_the_length_are_refused():
    with pytest.raises(ValueError, match=r"offset 9 no target reads any of the 9 sources.*-8 to 8"):
        Shift(N, 9)
    with pytest.raises(ValueError, match="numbers of axes"):
        Shift((3, 3), 1)
    with pytest.raises(ValueError, match=r"stride is \(0,\); expected 1 or more"):
        Shift(N, 1, stride=0)
    with pytest.raises(ValueError, match="border is 'wrap'"):
        Shift(N, 1, border="wrap")
    with pytest.raises(ValueError, match="packed tokens go with a line"):
        Shift(N, 1, border="circular", tokens=SETS)


def test_rings_partition_the_pairs_by_distance():
    edges = torch.tensor([[0, 1, 2, 3, 0, 5], [1, 2, 3, 4, 2, 6]])
    edges = torch.cat([edges, edges.flip(0)], 1)
    distance = torch.full((8, 8), 99)
    distance.fill_diagonal_(0)
    step = torch.zeros(8, 8, dtype=F64)
    step[edges[1], edges[0]] = 1
    reached, power = torch.eye(8, dtype=torch.bool), torch.eye(8, dtype=F64)
    for k in range(1, 8):
        power = step @ power
        new = (power > 0) & ~reached
        distance[new] = k
        reached |= new
    found = rings(edges, 8, 3, dtype=F64)
    for k, ring in enumerate(found):
        torch.testing.assert_close(ring.to_dense(), (distance == k).to(F64))
