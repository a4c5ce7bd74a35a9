"""Toeplitz operators, windows and causal kernels: what the suite of all kernels does not ask."""

import pytest
import torch

from osmose import laws
from osmose.operators import (
    CausalLowRank,
    DenseLimitError,
    Graph,
    Hadamard,
    Local,
    LowRank,
    Toeplitz,
    dense_limit,
)
from osmose.operators.band import band_product, channel_band_product
from osmose.tokens import Tokens

F64 = torch.float64
METHODS = ["auto", "band", "slices", "dense", "fft"]


def rand(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def matrix(coefficients, offsets, n, m):
    """Entry by entry."""
    out = torch.zeros(*coefficients.shape[:-1], n, m, dtype=coefficients.dtype) + 0 * coefficients.sum()
    for k, d in enumerate(offsets):
        i = [i for i in range(n) if 0 <= i + d < m]
        out[..., i, [i + d for i in i]] = coefficients[..., k, None]
    return out


def test_an_offset_is_source_less_target():
    """(S_d x)_i = x_{i + d}: -1 reads the previous token."""
    x = torch.arange(4.0)
    assert (Toeplitz(torch.ones(1), [-1], 4) @ x).tolist() == [0, 0, 1, 2]
    assert (Toeplitz(torch.ones(1), [2], 4) @ x).tolist() == [2, 3, 0, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(
    ("offsets", "n", "m"),
    [
        (range(-3, 4), 70, 70), (range(-9, 1), 70, 66), (range(2, 5), 5, 9), ((4, -60, 1), 70, 70), (range(-8, 9), 3, 3),
        (range(-40, -20), 70, 10), (range(20, 30), 5, 6), (range(1), 1, 1), (range(-69, 70), 70, 70),
    ],
)  # fmt: skip
def test_every_way_to_multiply_gives_the_same_values_and_gradients(method, dtype, offsets, n, m):
    """Coefficients one for all, for each head, and for each head and channel; in float32 the convolution."""
    for lead in ((), (2,), (3, 1), (3, 2)):
        c = rand(*lead, len(offsets), dtype=dtype).requires_grad_()
        v = rand(3, 2, m, 4, seed=1, dtype=dtype).requires_grad_()
        op = Toeplitz(c, offsets, n, m, method=method)
        wanted = matrix(c.double(), offsets, n, m)
        close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
        for got, want in (
            (op @ v, wanted @ v.double()),
            (op.mT @ (op @ v), wanted.mT @ (wanted @ v.double())),
        ):
            torch.testing.assert_close(got.double(), want, **close)
            probe = rand(*want.shape, seed=2)
            grads = [
                torch.autograd.grad(y, (c, v), probe.to(y.dtype), retain_graph=True) for y in (got, want)
            ]
            for g, w in zip(*grads, strict=True):
                torch.testing.assert_close(g, w, rtol=close["rtol"], atol=20 * close["atol"])


def test_a_weight_for_each_channel():
    for dtype in (torch.float32, F64):
        x, w = rand(2, 9, 3, dtype=dtype).requires_grad_(), rand(3, 4, seed=1, dtype=dtype).requires_grad_()
        got = channel_band_product(x, w, -2, 7)
        want = torch.stack(
            [(matrix(w[c], range(-2, 2), 7, 9) @ x[..., c : c + 1]).squeeze(-1) for c in range(3)], -1
        )
        torch.testing.assert_close(got, want)
        for g, h in zip(*(torch.autograd.grad(y.sin().sum(), (x, w)) for y in (got, want)), strict=True):
            torch.testing.assert_close(g, h)


def test_memory_order_of_the_values_changes_nothing():
    w, x = (
        rand(4, 5, dtype=torch.float32),
        rand(2, 30, 4, 3, dtype=torch.float32).transpose(1, 2),
    )  # token-major
    torch.testing.assert_close(band_product(x, w, -2, 30), band_product(x.contiguous(), w, -2, 30))


def test_fft_keeps_the_digits_of_small_rows_beside_a_huge_offset():
    """In float32 a transform would lose every row that the far offset does not reach."""
    n = 600
    c = torch.ones(2 * n - 1)
    c[-1] = torch.tensor(18.0).exp()  # one pair alone
    v = rand(n, 1, dtype=torch.float32)
    got = Toeplitz(c, range(1 - n, n), n, method="fft") @ v
    want = matrix(c.double(), range(1 - n, n), n, n) @ v.double()
    torch.testing.assert_close(got[1:].double(), want[1:], rtol=1e-4, atol=1e-4)


def test_auto_never_forms_many_entries():
    n = 3000
    wide = Toeplitz(torch.rand(2 * n - 1), range(1 - n, n), n)
    few = Toeplitz(torch.rand(3), [-2000, 0, 2500], n)
    assert (wide.method, few.method, Toeplitz(torch.rand(17), range(-8, 9), n).method) == (
        "fft",
        "slices",
        "band",
    )
    with dense_limit(1000):
        wide @ torch.rand(n, 1)
        with pytest.raises(DenseLimitError, match="method='fft'"):
            Toeplitz(torch.rand(2 * n - 1), range(1 - n, n), n, method="dense") @ torch.rand(n, 1)
    for op in (wide, few):
        assert op.cost().quadratic == ()
    assert Toeplitz(torch.rand(17), range(-8, 9), n).cost().time == 2 * n * 17


def test_laws_on_shifts_stay_linear():
    n, x = 20_000, torch.rand(20_000, 1)
    op = laws.flow(Toeplitz(torch.rand(17), range(-8, 9), n))
    with dense_limit(1000):
        assert (op @ x).shape == (n, 1)
    assert op.cost().quadratic == ()


@pytest.mark.parametrize(("low", "high"), [(-3, 3), (-70, 5), (-8, 0), (2, 90), (-150, -130)])
@pytest.mark.parametrize(("n", "m"), [(200, 200), (130, 201), (201, 64), (3, 200)])
def test_windows_of_a_low_rank_kernel(low, high, n, m):
    left, right = rand(2, n, 3).requires_grad_(), rand(2, m, 3, seed=1).requires_grad_()
    c = rand(2, high - low + 1, seed=2).requires_grad_()
    band = Toeplitz(c, range(low, high + 1), n, m)
    op = LowRank(left, right) * band
    assert isinstance(op, Local)
    wanted = (left @ right.mT) * matrix(c, range(low, high + 1), n, m)
    torch.testing.assert_close(op.to_dense(), wanted)
    v, u = rand(2, m, 2, seed=3).requires_grad_(), rand(2, n, 2, seed=4)
    for got, want in ((op @ v, wanted @ v), (op.mT @ u, wanted.mT @ u)):
        torch.testing.assert_close(got, want)
        inputs = (left, right, c, v)
        grads = [
            torch.autograd.grad(y.sin().sum(), inputs, retain_graph=True, allow_unused=True)
            for y in (got, want)
        ]
        for g, w in zip(*grads, strict=True):
            if g is not None or w is not None:
                torch.testing.assert_close(
                    torch.zeros_like(w) if g is None else g, torch.zeros_like(g) if w is None else w
                )


def test_windows_are_kept_for_gradients_and_without():
    left, c = rand(70, 2).requires_grad_(), rand(3, seed=1)
    op = LowRank(left, left) * Toeplitz(c, range(-1, 2), 70)
    with torch.no_grad():
        op @ rand(70, 1)
    (op @ rand(70, 1)).sum().backward()
    assert left.grad.abs().max() > 0


def test_windows_cost_what_they_are_long_and_a_wide_product_says_that_it_is_quadratic():
    n, x = 5000, torch.rand(5000, 4)
    op = LowRank(x, x) * Toeplitz(torch.rand(17), range(-8, 9), n)
    assert op.cost().quadratic == ()
    assert op.cost().time == n * 80 * 5
    with dense_limit(1000):
        op @ x
    wide = LowRank(x, x) * Toeplitz(torch.rand(2 * n - 1), range(1 - n, n), n)
    assert isinstance(wide, Hadamard)
    assert "LowRank" in wide.cost().quadratic[0]
    with dense_limit(1000), pytest.raises(DenseLimitError):
        wide @ x
    both = (LowRank(x, x) + LowRank(x, x)) * Toeplitz(torch.rand(17), range(-8, 9), n)
    assert both.cost().quadratic == ()


@pytest.mark.parametrize("packed", [False, True])
def test_causal_kernels(packed):
    n = 150
    tokens = Tokens.of(n, batch=torch.arange(n) * 7 % 3, num_sets=4) if packed else None
    left, right = rand(2, n, 3).requires_grad_(), rand(2, n, 3, seed=1).requires_grad_()
    op = CausalLowRank(left, right, tokens=tokens)
    wanted = (left @ right.mT).tril()
    if packed:
        wanted = wanted * (
            tokens.batch[:, None] == tokens.batch
        )  # the order inside a set is that of the tokens
    v = rand(2, n, 2, seed=3).requires_grad_()
    torch.testing.assert_close(op.to_dense(), wanted)
    torch.testing.assert_close(op.rows(torch.tensor([70, 3])), wanted[:, [70, 3]])
    torch.testing.assert_close(
        op.entries(torch.tensor([70, 3]), torch.tensor([10, 9])), wanted[:, [70, 3], [10, 9]]
    )
    torch.testing.assert_close(laws.row(op).row_sum(), torch.ones(2, n, dtype=F64))
    for got, want in ((op @ v, wanted @ v), (op.mT @ v, wanted.mT @ v)):
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(y.sin().sum(), (left, right, v), retain_graph=True) for y in (got, want)]
        for g, w in zip(*grads, strict=True):
            torch.testing.assert_close(g, w)


@pytest.mark.parametrize("law", [law for law in laws.LAWS.values() if law.uses_columns])
def test_a_law_that_uses_columns_refuses_a_causal_operator(law):
    x = torch.rand(6, 2)
    past = Toeplitz(torch.rand(3), range(-2, 1), 6)
    for op in (CausalLowRank(x, x), past, LowRank(x, x) * past, 2 * CausalLowRank(x, x) + past):
        with pytest.raises(ValueError, match=r"future leaks.*Take row, mean or none"):
            law(op)
        laws.row(op)
    law(LowRank(x, x) + LowRank(x, x) * past)  # sees both ways
    law(CausalLowRank(x, x) + CausalLowRank(x, x).mT)


def test_products_with_other_kinds():
    n = 6
    band = Toeplitz(rand(3), range(-1, 2), n)
    edges = torch.tensor([[0, 1, 5], [1, 1, 0]])
    graph = Graph(edges, None, n, dtype=F64)
    torch.testing.assert_close((band * graph).to_dense(), band.to_dense() * graph.to_dense())
    torch.testing.assert_close((band * band).to_dense(), band.to_dense().square())
    assert band.mT.mT.offsets == band.offsets
    torch.testing.assert_close((band * band) @ rand(n, 2), band.to_dense().square() @ rand(n, 2))


def test_empty_sides():
    for n, m in ((0, 3), (3, 0), (0, 0)):
        for method in METHODS:
            c = torch.rand(3, requires_grad=True)
            op = Toeplitz(c, range(-1, 2), n, m, method=method)
            assert (op @ torch.rand(m, 4)).equal(torch.zeros(n, 4))
            assert op.to_dense().shape == (n, m)
        left, right = torch.rand(n, 2), torch.rand(m, 2)
        assert (
            (LowRank(left, right) * Toeplitz(torch.rand(3), range(-1, 2), n, m)) @ torch.rand(m, 4)
        ).shape == (n, 4)
    none = Tokens.of(0, batch=torch.zeros(0, dtype=torch.long))
    assert (
        Toeplitz(torch.rand(3), range(-1, 2), 0, targets=none, sources=none) @ torch.rand(0, 2)
    ).shape == (0, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Toeplitz(torch.ones(2), [0, 0], 3), "distinct integers"),
        (lambda: Toeplitz(torch.ones(2), [0, 1.5], 3), r"\(0, 1.5\); expected distinct integers"),
        (lambda: Toeplitz(torch.ones(2), [0], 3), "a coefficient for each"),
        (lambda: Toeplitz(torch.ones(1), [0], 3, method="conv"), "expected one of auto, band"),
        (lambda: Toeplitz(torch.ones(1), [0], 3, sources=Tokens.of(4)), "describe 4 tokens"),
        (lambda: CausalLowRank(torch.ones(3, 2), torch.ones(4, 2)), "within one sequence"),
    ],
)
def test_bad_input_says_what_to_do(make, says):
    with pytest.raises(ValueError, match=says):
        make()
