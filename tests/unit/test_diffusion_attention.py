"""Diffusion attention equals its dense reference and obeys the laws of tokens with mass."""

import itertools

import pytest
import torch

from osmose.ops.diffusion import diffusion_attention, diffusion_attention_reference
from osmose.tokens import Tokens

DTYPE = torch.float64
OPTIONS = [
    {"kernel": kernel, "normalization": normalization, "scope": scope, "joint_heads": joint}
    for kernel, normalization, scope, joint in itertools.product(
        ("simple", "sigmoid"), ("row", "frobenius", "none"), ("set", "batch"), (True, False)
    )
    if normalization == "frobenius" or (scope == "set" and joint)
]
LAWFUL = [o for o in OPTIONS if o["scope"] == "set"]


def name(options):
    return "-".join(str(x) for x in options.values())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 rows, so that sets span several of them and several sets share one."""
    monkeypatch.setattr("osmose.ops.diffusion.call.block_rows", lambda *_: 8)


def points(n, m, lead=(2, 3), d=4, c=5, seed=0, dtype=DTYPE, scale=0.5):
    g = torch.Generator().manual_seed(seed)
    shapes = ((*lead, n, d), (*lead, m, d), (*lead, m, c))
    return [(torch.randn(*s, generator=g, dtype=DTYPE) * scale).to(dtype).requires_grad_() for s in shapes]


def masses(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    mass = torch.rand(*shape, generator=g, dtype=DTYPE) * (torch.rand(*shape, generator=g) > 0.3)
    return mass.requires_grad_()


def assert_same(actual, expected, inputs, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    g = torch.randn(actual.shape, generator=torch.Generator().manual_seed(9), dtype=actual.dtype)
    grads = (
        torch.autograd.grad(x, inputs, g, allow_unused=True, materialize_grads=True)
        for x in (actual, expected)
    )
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=name)
class TestAgainstTheReference:
    def check(self, q, k, v, options, sources=None, targets=None):
        inputs = [q, k, v, *(t.mass for t in (sources, targets) if t is not None and t.mass is not None)]
        arguments = {"sources": sources, "targets": targets, **options}
        actual = diffusion_attention(q, k, v, **arguments)
        assert_same(actual, diffusion_attention_reference(q, k, v, **arguments), inputs)
        return actual

    @pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 1)])
    def test_plain(self, options, lead):
        self.check(*points(7, 19, lead), options)

    def test_masses_in_both_memory_orders(self, options):
        q, k, v = points(7, 19)
        sources, targets = Tokens(19, masses(2, 1, 19)), Tokens(7, masses(2, 1, 7, seed=1))
        self.check(q, k, v, options, sources, targets)
        token_major = [
            x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)
        ]
        out = self.check(*token_major, options, sources, targets)
        assert out.transpose(1, 2).is_contiguous() or options["kernel"] == "sigmoid"
        assert (out.transpose(1, 2)[(targets.mass[:, 0] == 0)] == 0).all()

    def test_masses_that_differ_between_heads(self, options):
        self.check(*points(7, 19), options, Tokens(19, masses(2, 3, 19)), Tokens(7, masses(2, 3, 7, seed=1)))

    @pytest.mark.parametrize("lead", [(1,), (3,), (2, 3)])
    def test_packed_sets_in_any_order(self, options, lead):
        q_set = torch.tensor([3, 0, 0, 1, 3, 3, 1, 4] + [5] * 20)
        k_set = torch.tensor([0, 0, 1, 3, 2, 1, 3, 3, 0] + [5] * 17 + [6])
        sources = Tokens(len(k_set), masses(len(k_set)), k_set, 7)
        targets = Tokens(len(q_set), masses(len(q_set), seed=1), q_set, 7)
        out = self.check(*points(len(q_set), len(k_set), lead), options, sources, targets)
        assert (out[..., q_set == 4, :] == 0).all()

    def test_rows_of_zero_have_no_direction(self, options):
        q, k, v = points(6, 9, (2,))
        with torch.no_grad():
            q[:, 2], k[:, 4], k[1] = 0, 0, 0
        self.check(q, k, v, options)


@pytest.mark.parametrize("kernel", ["simple", "sigmoid"])
@pytest.mark.parametrize("normalization", ["row", "frobenius"])
@pytest.mark.parametrize("size", [1e-6, 1e-14, 1e-18])
def test_small_queries_and_keys_keep_their_gradients(kernel, normalization, size):
    """Weight decay shrinks what a norm makes scale-free; in float32 its gradient, 1 / size, must stay finite."""

    def gradients(dtype):
        q, k, v = (x.detach().to(dtype) for x in points(7, 7))
        q, k = ((x * size).requires_grad_() for x in (q, k))
        diffusion_attention(q, k, v, kernel=kernel, normalization=normalization).square().sum().backward()
        return [x.grad.double() * size for x in (q, k)]

    for single, double in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", LAWFUL, ids=name)
class TestLaws:
    def test_a_token_of_mass_zero_is_absent(self, options):
        q, k, v = points(9, 9)
        mass = torch.ones(9, dtype=DTYPE)
        mass[[2, 5]] = 0
        alone = [x[..., mass > 0, :] for x in (q, k, v)]
        poisoned = [x.detach().clone() for x in (q, k, v)]
        for x in poisoned:
            x[..., mass == 0, :] = torch.nan
            x.requires_grad_()
        out = diffusion_attention(*poisoned, sources=Tokens(9, mass), targets=Tokens(9, mass), **options)
        torch.testing.assert_close(
            out[..., mass > 0, :], diffusion_attention(*alone, **options), atol=1e-13, rtol=0
        )
        assert (out[..., mass == 0, :] == 0).all()
        for dx in torch.autograd.grad(out.sum(), poisoned):
            assert (dx[..., mass == 0, :] == 0).all()
            assert torch.isfinite(dx).all()

    def test_a_token_equals_its_two_halves(self, options):
        q, k, v = points(9, 9)
        whole = diffusion_attention(q, k, v, **options)
        twice = [torch.cat([x, x[..., :4, :]], -2) for x in (q, k, v)]
        mass = torch.tensor([0.5] * 4 + [1.0] * 5 + [0.5] * 4, dtype=DTYPE)
        out = diffusion_attention(*twice, sources=Tokens(13, mass), targets=Tokens(13, mass), **options)
        torch.testing.assert_close(out[..., :9, :], whole, atol=1e-13, rtol=1e-12)

    def test_alone_padded_and_packed_are_the_same(self, options):
        sizes = (3, 11, 0, 6)
        sets = [points(n, n, (2,), seed=n) for n in sizes]
        alone = [diffusion_attention(*x, **options) for x in sets]
        packed = [torch.cat(x, -2) for x in zip(*sets, strict=True)]
        ptr = torch.tensor([0, 3, 14, 14, 20])
        out = diffusion_attention(
            *packed, sources=Tokens.of(20, ptr=ptr), targets=Tokens.of(20, ptr=ptr), **options
        )
        torch.testing.assert_close(out, torch.cat(alone, -2), atol=1e-13, rtol=1e-12)
        padded = [
            torch.stack([torch.nn.functional.pad(x, (0, 0, 0, 11 - x.shape[-2]), value=7.0) for x in xs])
            for xs in zip(*sets, strict=True)
        ]
        tokens = Tokens.of(padded[0], mask=(torch.arange(11) < torch.tensor(sizes)[:, None])[:, None])
        out = diffusion_attention(*padded, sources=tokens, targets=tokens, **options)
        for i, expected in enumerate(alone):
            torch.testing.assert_close(out[i, :, : sizes[i]], expected, atol=1e-13, rtol=1e-12)
            assert (out[i, :, sizes[i] :] == 0).all()

    def test_permutation(self, options):
        q, k, v = points(9, 17)
        i, j = torch.randperm(9), torch.randperm(17)
        out = diffusion_attention(q[..., i, :], k[..., j, :], v[..., j, :], **options)
        torch.testing.assert_close(
            out, diffusion_attention(q, k, v, **options)[..., i, :], atol=1e-13, rtol=1e-12
        )

    def test_no_mass_at_all_gives_zero_and_no_nan(self, options):
        q, k, v = points(5, 8)
        mass = torch.zeros(8, dtype=DTYPE, requires_grad=True)
        out = diffusion_attention(q, k, v, sources=Tokens(8, mass), **options)
        assert (out == 0).all()
        for dx in torch.autograd.grad(out.sum(), (q, k, v, mass)):
            assert (dx == 0).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, options, dtype):
        """One rounding of inputs and output: 4 eps of the largest value."""
        q, k, v = points(300, 300, (2,), d=8, dtype=dtype)
        if options["normalization"] == "none":
            q, k = q.detach() / 4, k.detach() / 4
        out = diffusion_attention(q, k, v + 1, **options)
        exact = diffusion_attention_reference(q.double(), k.double(), (v + 1).double(), **options)
        assert out.dtype == dtype
        assert (out - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("normalization", ["row", "frobenius", "none"])
@pytest.mark.parametrize("kernel", ["simple", "sigmoid"])
def test_gradcheck(kernel, normalization):
    q, k, v = points(4, 5, (2,), d=3, c=2)
    mass = (0.5 + torch.rand(5, dtype=DTYPE)).requires_grad_()

    def attend(q, k, v, mass):
        return diffusion_attention(
            q, k, v, kernel=kernel, normalization=normalization, sources=Tokens(5, mass)
        )

    assert torch.autograd.gradcheck(attend, (q, k, v, mass))


def published(q, k, v):
    """The formula of the released code on ``(n, H, d)``."""
    n = q.shape[0]
    q, k = q / q.norm(), k / k.norm()
    products, sums = torch.einsum("lhm,lhd->hmd", k, v), torch.einsum("lhm->hm", k)
    numerator = torch.einsum("nhm,hmd->nhd", q, products) + v.sum(0)
    return numerator / (torch.einsum("nhm,hm->nh", q, sums) + n).unsqueeze(-1)


def test_parity_with_the_released_forms():
    q, k, v = points(300, 300, (2,), d=16, c=16, dtype=torch.float32)
    rows = [x.transpose(0, 1) for x in (q, k, v)]
    ours = diffusion_attention(q, k, v, normalization="frobenius", scope="batch").transpose(0, 1)
    torch.testing.assert_close(ours, published(*rows), atol=1e-6, rtol=0)
    weights = torch.sigmoid(torch.einsum("nhm,lhm->nlh", *rows[:2]))
    expected = torch.einsum("nlh,lhd->nhd", weights / weights.sum(1, keepdim=True), rows[2])
    ours = diffusion_attention(q, k, v, kernel="sigmoid", normalization="none").transpose(0, 1)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_float32_stays_close_over_many_tokens(monkeypatch):
    monkeypatch.undo()  # blocks of the real size
    q, k, v = points(20_000, 20_000, (1,), d=16, c=16, dtype=torch.float32)
    out = diffusion_attention(q, k, v + 3)
    exact = diffusion_attention(q.double(), k.double(), (v + 3).double())
    assert (out - exact).abs().max() <= 2e-6 * exact.abs().max()


def test_autocast_keeps_float32_sums(monkeypatch):
    monkeypatch.undo()
    q, k, v = points(500, 500, (1,), dtype=torch.float32)
    for kernel in ("simple", "sigmoid"):
        plain = diffusion_attention(q, k, v, kernel=kernel)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = diffusion_attention(q, k, v, kernel=kernel)
        torch.testing.assert_close(out, plain, atol=1e-6, rtol=1e-5)


def test_values_shared_by_heads():
    """The released model without value weights: one head of values for all heads."""
    q, k, v = points(6, 9, (3,))
    shared = v[:1]
    out = diffusion_attention(q, k, shared)
    assert_same(out, diffusion_attention_reference(q, k, shared.expand(3, -1, -1)), (q, k, v))


def test_second_derivative_raises():
    q, k, v = points(3, 4, (1,))
    (dq,) = torch.autograd.grad(diffusion_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dq.sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing
@pytest.mark.parametrize(
    "options", [{}, {"normalization": "frobenius"}, {"kernel": "sigmoid"}, {"causal": True}], ids=str
)
def test_compiles_as_one_graph(options):
    q, k, v = points(12, 12, dtype=torch.float32)
    tokens = Tokens(12, masses(2, 1, 12).detach().float())

    def attend(q, k, v):
        return diffusion_attention(q, k, v, sources=tokens, targets=tokens, **options)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert_same(compiled(q, k, v), attend(q, k, v), (q, k, v), 1e-6)


def test_exports():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return diffusion_attention(q, k, v)

    q, k, v = (x.detach() for x in points(12, 12, dtype=torch.float32))
    program = torch.export.export(Attend(), (q, k, v))
    torch.testing.assert_close(program.module()(q, k, v), diffusion_attention(q, k, v), atol=0, rtol=0)


def test_memory_is_linear(monkeypatch):
    """No tensor larger than an input is made, forward or backward, by either kernel."""
    monkeypatch.undo()
    n, d = 2000, 4
    for kernel in ("simple", "sigmoid"):
        q, k, v = points(n, n, (1,), d=d, c=d, dtype=torch.float32)
        with torch.profiler.profile(profile_memory=True) as profile:
            diffusion_attention(q, k, v, kernel=kernel).sum().backward()
        largest = max(e.self_cpu_memory_usage for e in profile.events())
        assert largest <= max(4 * 512 * 512, 4 * n * (d + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "softmax"}, "kernel is 'softmax'; expected one of simple, sigmoid"),
        ({"normalization": "rows"}, "expected one of row, frobenius, none"),
        ({"scope": "graph"}, "expected one of set, batch"),
        ({"k": torch.zeros(2, 5, 7)}, "expected \\(..., H, n, d\\)"),
        ({"k": torch.zeros(3, 5, 4)}, "leading dimensions that are equal or 1"),
        ({"v": torch.zeros(2, 5, 4, dtype=DTYPE)}, "expected one float type"),
        ({"sources": Tokens(4)}, "sources describe 4 tokens"),
        ({"sources": Tokens(5, torch.ones(3, 5))}, "sources have a mass of shape \\(3, 5\\)"),
        ({"causal": True}, "as many sources as targets"),
        ({"causal": True, "normalization": "frobenius"}, "normalization row or none"),
    ],
)
def test_bad_input_is_named(arguments, message):
    given = {"q": torch.zeros(2, 3, 4), "k": torch.zeros(2, 5, 4), "v": torch.zeros(2, 5, 4)} | arguments
    with pytest.raises(ValueError, match=message):
        diffusion_attention(**given)


def test_masses_belong_to_the_side_that_is_named():
    """Cross attention must not change its meaning where both sides happen to have as many tokens."""
    q, k, v = (torch.randn(1, n, 3, dtype=torch.float64) for n in (5, 5, 5))
    sources = Tokens.of(5, mask=torch.tensor([True, True, True, False, False]))
    out = diffusion_attention(q, k, v, sources=sources)
    torch.testing.assert_close(out, diffusion_attention(q, k[:, :3], v[:, :3]))


def test_causal_refuses_targets_and_sources_of_different_sets():
    q = torch.randn(1, 3, 2)
    a, b = (Tokens.of(3, batch=torch.tensor(batch)) for batch in ([0, 0, 1], [0, 1, 1]))
    with pytest.raises(ValueError, match="pass the same Tokens as targets and sources"):
        diffusion_attention(q, q, q, targets=a, sources=b, causal=True)


def test_no_heads_and_no_sets():
    empty = torch.zeros(0, 5, 3)
    assert diffusion_attention(empty, empty, empty).shape == (0, 5, 3)
    none = torch.zeros(2, 0, 3)
    tokens = Tokens.of(0, batch=torch.zeros(0, dtype=torch.long))
    for kernel in ("simple", "sigmoid"):
        assert diffusion_attention(none, none, none, kernel=kernel, sources=tokens, targets=tokens).shape == (
            2,
            0,
            3,
        )
    assert diffusion_attention(none, none, none, causal=True, sources=tokens, targets=tokens).shape == (
        2,
        0,
        3,
    )
