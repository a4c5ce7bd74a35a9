"""Streamed pairwise products equal the dense ones: values, gradients, packed sets, types, memory."""

import pytest
import torch

from osmose.operators import streaming
from osmose.operators.streaming import EXP, SIGMOID, ScoreKernel, pairwise_product

CUSTOM = ScoreKernel.from_function(lambda s: 2 + torch.cos(s), "cosine")
DTYPE = torch.float64


def make(*shapes, seed=0, dtype=DTYPE):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def dense(q, k, v, kernel, same=None):
    weights = kernel.f(q @ k.mT)
    return (weights if same is None else torch.where(same, weights, 0.0)) @ v


def assert_same(a, b, inputs, tolerance=1e-10, seed=1):
    g = torch.randn(b.shape, generator=torch.Generator().manual_seed(seed), dtype=b.dtype)
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    for x, y in zip(torch.autograd.grad(a, inputs, g), torch.autograd.grad(b, inputs, g), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles smaller than the inputs, with remainders."""
    monkeypatch.setattr(streaming, "TILE_ROWS", 4)
    monkeypatch.setattr(streaming, "TILE_COLUMNS", 8)


@pytest.mark.parametrize("kernel", [EXP, SIGMOID, CUSTOM], ids=lambda k: k.name)
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_equals_dense(kernel, lead, small_tiles):
    q, k, v = make((*lead, 13, 5), (*lead, 21, 5), (*lead, 21, 3))
    assert_same(pairwise_product(q, k, v, kernel), dense(q, k, v, kernel), (q, k, v))


def test_leading_dimensions_broadcast_and_strides_do_not_matter(small_tiles):
    q, k, v = make((3, 11, 2, 4), (6, 1, 10), (10, 5))
    args = q.transpose(1, 2), k.mT.reshape(10, 1, 6)[:, :, :4].transpose(0, 1), v
    assert_same(pairwise_product(*args, SIGMOID), dense(*args, SIGMOID), (q, k, v))


@pytest.mark.parametrize("kernel", [EXP, SIGMOID, CUSTOM], ids=lambda k: k.name)
def test_gradcheck(kernel):
    q, k, v, u = make((4, 3), (5, 3), (5, 2), (5,))
    assert torch.autograd.gradcheck(lambda *x: pairwise_product(*x[:3], kernel, column=x[3]), (q, k, v, u))


def sets_of(sizes):
    ptr = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    return ptr, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.mark.parametrize("kernel", [EXP, SIGMOID, CUSTOM], ids=lambda k: k.name)
def test_packed_sets_see_only_themselves(kernel, small_tiles):
    q_ptr, q_set = sets_of([3, 0, 4, 1, 1, 30, 2, 3])
    k_ptr, k_set = sets_of([2, 5, 0, 1, 2, 25, 2, 2])
    q, k, v, u = make((2, len(q_set), 4), (2, len(k_set), 4), (2, len(k_set), 3), (len(k_set),))
    out, sums = pairwise_product(q, k, v, kernel, q_ptr=q_ptr, k_ptr=k_ptr, column=u)
    same = q_set[:, None] == k_set
    assert_same(out, dense(q, k, v, kernel, same), (q, k, v))
    column = u.expand(2, -1).unsqueeze(-1)
    out, sums = pairwise_product(q, k, v, kernel, q_ptr=q_ptr, k_ptr=k_ptr, column=u)
    assert_same(sums, dense(q, k, column, kernel, same).squeeze(-1), (q, k, u))
    assert (out[:, q_set == 2] == 0).all()


def test_padding_of_grouped_sets_never_meets_the_kernel():
    """A kernel that is infinite at 0, where zero padding would score, stays finite."""
    inverse = ScoreKernel.from_function(lambda s: 1 / s, "inverse")
    ptr, owner = sets_of([17, 18, 17, 18])
    q, k, v = make((70, 3), (70, 3), (70, 2))
    q, k = q.detach().abs().requires_grad_(), k.detach().abs().requires_grad_()
    out = pairwise_product(q, k, v, inverse, q_ptr=ptr, k_ptr=ptr)
    assert_same(out, dense(q, k, v, inverse, owner[:, None] == owner), (q, k, v), 1e-8)


def test_shift_bounds_scores_and_is_a_constant(small_tiles):
    q, k, v = make((9, 3), (20, 3), (20, 2))
    shift = (q @ k.mT).amax(-1).detach()
    expected = torch.softmax(q @ k.mT, -1)
    out, sums = pairwise_product(q, k, v, EXP, shift=shift, column=torch.ones(20, dtype=DTYPE))
    assert_same(out / sums.unsqueeze(-1), expected @ v, (q, k, v))
    hidden = pairwise_product(1e3 * q, 1e3 * k, v, EXP, shift=torch.zeros(9, dtype=DTYPE))
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0), (0, 0)])
def test_no_targets_or_no_sources(n, m):
    q, k, v = make((n, 3), (m, 3), (m, 2))
    out = pairwise_product(q, k, v, EXP)
    assert out.shape == (n, 2)
    assert (out == 0).all()
    out.sum().backward()
    assert (q.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype):
    q, k, v = make((40, 8), (3000, 8), (3000, 4), dtype=dtype)
    out = pairwise_product(q, k, v, SIGMOID)
    exact = dense(*(x.detach().double() for x in (q, k, v)), SIGMOID)
    assert out.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (out.double() - exact).abs().max() <= eps * exact.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pairwise_product(q.float(), k.float(), v.float(), SIGMOID)
    torch.testing.assert_close(inside, dense(q.float(), k.float(), v.float(), SIGMOID), atol=1e-3, rtol=1e-4)


def test_second_derivative_raises():
    q, k, v = make((3, 2), (4, 2), (4, 2))
    (dq,) = torch.autograd.grad(pairwise_product(q, k, v, EXP).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_memory_is_linear_in_tokens():
    """No tensor of n x m numbers is made, forward or backward."""
    n = 1500
    q, k, v = make((n, 4), (n, 4), (n, 4), dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        pairwise_product(q, k, v, SIGMOID).sum().backward()
    largest = max(e.self_cpu_memory_usage for e in profile.events())
    assert largest <= 4 * streaming.TILE_ROWS * streaming.TILE_COLUMNS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(5, 9)}, "expected \\(..., n, r\\)"),
        ({"v": torch.zeros(4, 2)}, "expected \\(..., n, r\\)"),
        ({"q": torch.zeros(4, 3, dtype=torch.int64)}, "expected float types"),
        ({"shift": torch.zeros(3)}, "shift has shape"),
        ({"column": torch.zeros(3)}, "column has shape"),
        ({"q_ptr": torch.tensor([0, 4])}, "pass both or neither"),
        ({"q_ptr": torch.tensor([0, 4]), "k_ptr": torch.tensor([0, 2, 5])}, "expected the same"),
        ({"q_ptr": torch.tensor([0, 3]), "k_ptr": torch.tensor([0, 5])}, "rise from 0 to 4"),
        ({"q_ptr": torch.tensor([0.0, 4.0]), "k_ptr": torch.tensor([0, 5])}, "expected int64 bounds"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"q": torch.zeros(4, 3), "k": torch.zeros(5, 3), "v": torch.zeros(5, 2)} | change
    with pytest.raises(ValueError, match=message):
        pairwise_product(kernel=EXP, **arguments)
