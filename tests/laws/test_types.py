"""Types: half precision, autocast and mixed inputs change rounding, never what an operator is."""

import pytest
import torch

from osmose import laws
from osmose.operators import Dense, Graph, Identity, LowRank, Pairwise

F64 = torch.float64
HALF = [torch.bfloat16, torch.float16]


def points(n=50, d=8, size=3.0, seed=0):
    return size * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def every_kind(dtype=torch.float32):
    x = torch.rand(4, 3, dtype=dtype)
    graph = Graph(torch.tensor([[0, 1], [1, 0]]), None, 4, dtype=dtype)
    plain = [
        Dense(torch.rand(4, 4, dtype=dtype)),
        LowRank(x, x),
        Pairwise(x, x),
        graph,
        Identity(4, dtype=dtype),
    ]
    return [*plain, plain[1] + plain[2], Pairwise(x, x) * graph, Pairwise(x, x) * LowRank(x, x), 2 * plain[0]]


@pytest.mark.parametrize("op", every_kind(), ids=repr)
def test_a_product_has_the_common_type_of_operator_and_values(op):
    for dtype in (torch.float32, F64, torch.bfloat16):
        want = torch.promote_types(torch.float32, dtype)
        assert (op @ torch.rand(4, 2, dtype=dtype)).dtype == want
        assert (op.mT @ torch.rand(4, 2, dtype=dtype)).dtype == want
        assert (laws.row(op) @ torch.rand(4, dtype=dtype)).dtype == want


@pytest.mark.parametrize("op", every_kind(torch.bfloat16), ids=repr)
def test_sums_are_wide_and_blocks_have_the_type_of_the_operator(op):
    assert op.row_sum().dtype == op.col_sum().dtype == torch.float32
    assert op.to_dense().dtype == op.rows(0).dtype == op.dtype == torch.bfloat16
    assert (op @ torch.rand(4, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert laws.row(op).mT.dtype == torch.bfloat16


@pytest.mark.parametrize("op", every_kind(), ids=repr)
def test_values_that_are_not_floating_are_an_error(op):
    with pytest.raises(TypeError, match=r"dtype torch.int64; expected a float type"):
        op @ torch.ones(4, 1, dtype=torch.int64)


@pytest.mark.parametrize("dtype", HALF)
def test_softmax_of_half_inputs_is_that_of_their_exact_scores(dtype):
    x, y = points().to(dtype), points(seed=1).to(dtype)
    u = torch.rand(50, 2)
    want = (x.double() @ y.double().mT).softmax(-1)
    op = laws.row(Pairwise(x, y))
    torch.testing.assert_close((op @ u).double(), want @ u.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((op.mT @ u).double(), want.mT @ u.double(), rtol=1e-3, atol=1e-4)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(op.to_dense().double(), want, rtol=eps, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_sinkhorn_of_half_inputs_conserves_both_sides(dtype):
    op = laws.sinkhorn(Pairwise(points(size=1).to(dtype), points(size=1, seed=1).to(dtype)))
    assert (op.row_sum() - 1).abs().max() < 1e-4
    assert (op.col_sum() - 1).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["exp", "low_rank", "dense"])
def test_autocast_changes_nothing(kind):
    x, y, v = points(64, 16), points(128, 16, seed=1), torch.randn(128, 2)

    def run():
        kernel = {
            "exp": lambda: Pairwise(x, y),
            "low_rank": lambda: LowRank(x.abs(), y.abs()),
            "dense": lambda: Dense((x @ y.mT).abs()),
        }[kind]()
        op = laws.row(kernel)
        return op @ v, op.mT @ v[:64], op.rows(slice(0, 3)), op.row_sum()

    want = run()
    y_dense = x @ y.mT
    with torch.autocast("cpu", torch.bfloat16):
        got = run() if kind != "dense" else None
        if kind == "dense":
            op = laws.row(Dense(y_dense.abs()))
            got = op @ v, op.mT @ v[:64], op.rows(slice(0, 3)), op.row_sum()
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize(
    "op",
    [
        LowRank(torch.ones(70_000, 1).half(), torch.ones(70_000, 1).half()),
        Pairwise(torch.zeros(5, 1).half(), torch.zeros(70_000, 1).half()),
        Dense(torch.ones(2, 70_000).half()),
    ],
    ids=repr,
)
def test_means_of_many_half_values_do_not_overflow(op):
    out = laws.row(op) @ torch.ones(70_000, 1).half()
    torch.testing.assert_close(out, torch.ones_like(out))
    assert op.row_sum()[0] == 70_000


def test_gaussian_keeps_its_digits_away_from_the_origin():
    x = torch.randn(60, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    far = (x + 1000).float()
    want = (-torch.cdist(far.double(), far.double()).square() / 2).exp()
    torch.testing.assert_close(Pairwise.gaussian(far, far).to_dense().double(), want, rtol=1e-4, atol=1e-5)
    hidden = torch.cat([far, torch.full((5, 3), torch.inf), torch.full((5, 3), torch.nan)])
    torch.testing.assert_close(
        Pairwise.gaussian(far, hidden).rows(slice(None))[:, :60].double(), want, rtol=1e-4, atol=1e-5
    )
