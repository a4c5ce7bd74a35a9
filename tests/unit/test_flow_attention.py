"""Flow-Attention equals its dense reference and the published forms, and obeys the laws of tokens with mass."""

import dataclasses

import pytest
import torch

from osmose import laws
from osmose.equalities.published import published_causal_flow, published_flow
from osmose.operators import Graph, LowRank
from osmose.ops.flow import PRESETS, attention_flows, flow_attention, flow_attention_reference
from osmose.ops.flow import causal as causal_module
from osmose.ops.flow import scan as scan_module
from osmose.tokens import Tokens

DTYPE = torch.float64
NORMAL = [{"preset": name} for name in PRESETS]
NORMAL += [{"feature": name} for name in ("relu", "elu", "softplus", "exp", torch.square)]
CAUSAL = [{"preset": name, "causal": True} for name in PRESETS if name != "lra"]
CAUSAL += [{"feature": name, "causal": True} for name in ("elu", "softplus", torch.square)]


def name(options):
    return "-".join(getattr(x, "__name__", str(x)) for x in options.values())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks, chunks and stretches of a few tokens, so that sequences span several of each."""
    monkeypatch.setattr("osmose.ops.flow.linear.block_rows", lambda *_: 8)
    monkeypatch.setattr(scan_module, "CHUNK", 4)
    monkeypatch.setattr(causal_module, "STRETCH", 12)


def points(n, m, lead=(2, 3), d=4, c=5, seed=0, dtype=DTYPE):
    g = torch.Generator().manual_seed(seed)
    shapes = ((*lead, n, d), (*lead, m, d), (*lead, m, c))
    return [torch.randn(*s, generator=g, dtype=DTYPE).to(dtype).requires_grad_() for s in shapes]


def masses(*shape, seed=0, learned=False):
    g = torch.Generator().manual_seed(seed)
    mass = torch.rand(*shape, generator=g, dtype=DTYPE) * (torch.rand(*shape, generator=g) > 0.3)
    return mass.requires_grad_(learned)


def assert_same(actual, expected, inputs, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    g = torch.randn(actual.shape, generator=torch.Generator().manual_seed(9), dtype=actual.dtype)
    grads = (torch.autograd.grad(x, inputs, g) for x in (actual, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("options", NORMAL, ids=name)
class TestAgainstTheReference:
    def check(self, q, k, v, options, sources=None, targets=None):
        learned = [
            t.mass
            for t in (sources, targets)
            if t is not None and t.mass is not None and t.mass.requires_grad
        ]
        arguments = {"sources": sources, "targets": targets, **options}
        if options.get("feature") == "exp":  # the reference takes exp as it is: a common factor cancels
            arguments["feature"] = "exp"
        out = flow_attention(q, k, v, **arguments)
        assert_same(out, flow_attention_reference(q, k, v, **arguments), [q, k, v, *learned])
        return out

    def test_sets_of_different_sizes(self, options):
        self.check(*points(7, 19), options)

    @pytest.mark.parametrize("learned", [False, True])
    def test_masses_on_both_sides(self, options, learned):
        sources = Tokens(19, masses(2, 1, 19, learned=learned))
        targets = Tokens(21, masses(2, 1, 21, seed=1, learned=learned))
        out = self.check(*points(21, 19), options, sources, targets)
        assert (out.where(targets.mass.unsqueeze(-1) == 0, 0.0) == 0).all()

    @pytest.mark.parametrize("lead", [(1,), (2, 3)])
    def test_packed_sets_in_any_order(self, options, lead):
        q_set = torch.tensor([3, 0, 0, 1, 3, 3, 1, 4] + [5] * 20)
        k_set = torch.tensor([0, 0, 1, 3, 2, 1, 3, 3, 0] + [5] * 17 + [6])
        sources = Tokens(len(k_set), masses(len(k_set)), k_set, 7)
        targets = Tokens(len(q_set), masses(len(q_set), seed=1), q_set, 7)
        out = self.check(*points(len(q_set), len(k_set), lead), options, sources, targets)
        assert (out[..., q_set == 4, :] == 0).all()

    def test_token_major_points(self, options):
        q, k, v = (
            x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in points(21, 19)
        )
        out = self.check(q, k, v, options)
        if options.get("preset") != "lra":
            assert out.stride() == torch.empty(2, 21, 3, 5).transpose(1, 2).stride()


@pytest.mark.parametrize("options", CAUSAL, ids=name)
class TestCausal:
    def check(self, n, options, mass=None, batch=None, lead=(2, 3)):
        q, k, v = points(n, n, lead)
        tokens = Tokens(n, mass, batch, 1 if batch is None else 7)
        arguments = {"sources": tokens, "targets": tokens, **options}
        inputs = [q, k, v] if mass is None else [q, k, v, mass]
        out = flow_attention(q, k, v, **arguments)
        assert_same(out, flow_attention_reference(q, k, v, **arguments), inputs)
        return out

    @pytest.mark.parametrize("n", [2, 12, 37])
    def test_one_sequence(self, options, n):
        self.check(n, options)

    def test_masses_with_holes_and_left_padding(self, options):
        mass = masses(2, 1, 37).detach()
        mass[0, :, :6], mass[1, :, -3:] = 0, 0
        self.check(37, options, mass.requires_grad_())

    def test_packed_sequences_in_any_order(self, options):
        batch = torch.randint(0, 6, (50,), generator=torch.Generator().manual_seed(0))
        self.check(50, options, masses(50, learned=True), batch, lead=(3,))

    def test_the_future_does_not_leak(self, options):
        q, k, v = points(30, 30)
        changed = [torch.cat([x[..., :17, :], torch.randn_like(x[..., 17:, :])], -2) for x in (q, k, v)]
        ours, theirs = (flow_attention(*x, **options) for x in ((q, k, v), changed))
        assert torch.equal(ours[..., :17, :], theirs[..., :17, :])


@pytest.mark.parametrize(("preset", "clamp"), [("core", 1.0), ("nlp", 5.0), ("rl", 10.0), ("series", None)])
def test_presets_are_the_published_forms(preset, clamp):
    q, k, v = points(33, 33)
    expected = published_flow(q, k, v, clamp)
    assert_same(flow_attention(q, k, v, preset=preset), expected, [q, k, v], 1e-12)
    q, k, v = points(9, 33)
    assert_same(flow_attention(q, k, v, preset=preset), published_flow(q, k, v, clamp), [q, k, v], 1e-12)
    q, k, v = points(33, 33)
    causal = flow_attention(q, k, v, preset=preset, causal=True)
    assert_same(causal, published_causal_flow(q, k, v, clamp), [q, k, v], 1e-12)


def test_paper_and_lra_by_their_own_formulas():
    q, k, v = (x.detach() for x in points(9, 14))
    c = torch.sigmoid(q) @ torch.sigmoid(k).mT
    taken, given = c.sum(-1, keepdim=True), c.sum(-2, keepdim=True)
    weight = torch.softmax((c / taken).sum(-2), -1)
    alpha = torch.sigmoid((c / given).sum(-1))
    paper = alpha.unsqueeze(-1) * (c / taken) @ (weight.unsqueeze(-1) * v)
    torch.testing.assert_close(flow_attention(q, k, v, preset="paper"), paper)
    q, k = torch.relu(q) + 1e-6, torch.relu(k) + 1e-6
    c = (q + 1e-6) @ k.mT
    taken = c.sum(-1, keepdim=True) + 1e-6 * (q + 1e-6).sum(-1, keepdim=True)
    d = q @ (k + 1e-6).mT
    given = d.sum(-2, keepdim=True) + 1e-6 * (k + 1e-6).sum(-1).unsqueeze(-2)
    sinks = (c / given).sum(-1) + 1e-6 * (q + 1e-6).sum(-1)
    logits = (d / taken).sum(-2) + 1e-6 * (k + 1e-6).sum(-1)
    weight = torch.softmax(logits, 1) * 14  # over the heads
    out = torch.sigmoid(sinks * 9 / 14).unsqueeze(-1) * ((q @ k.mT) / taken) @ (weight.unsqueeze(-1) * v)
    q, k, v = (x.detach() for x in points(9, 14))
    torch.testing.assert_close(flow_attention(q, k, v, preset="lra"), out)


class TestTheory:
    def test_logits_have_mean_one_whatever_the_lengths(self):
        q, k, _ = points(40, 10)
        flows = attention_flows(q, k)
        for x in (flows.sink_flow, flows.source_flow, flows.competition):
            torch.testing.assert_close(x.mean(-1), torch.ones(2, 3, dtype=DTYPE))
        assert flows.source_flow.detach().std() > 0.01

    def test_the_code_without_the_source_correction_switches_competition_off(self):
        """At four targets a source every logit is beyond the clamp, and all weights are equal."""
        q, k, _ = points(40, 10)
        flows = attention_flows(q, k, preset="core")
        assert (flows.saturated == 1).all()
        torch.testing.assert_close(flows.competition, torch.ones_like(flows.competition))
        assert attention_flows(q, k).competition.detach().std() > 0.01

    def test_half_of_the_sources_are_beyond_a_clamp_of_one(self):
        q, k, _ = points(500, 500, lead=(4,), d=16)
        share = attention_flows(q, k, preset="core").saturated
        assert ((share > 0.4) & (share < 0.6)).all()

    def test_one_source_gives_its_value_times_the_allocation(self):
        q, k, v = points(6, 1)
        torch.testing.assert_close(
            flow_attention(q, k, v), attention_flows(q, k).allocation.unsqueeze(-1) * v
        )

    def test_scales_of_masses_and_features_cancel(self):
        q, k, v = points(9, 14)
        t, s = masses(9), masses(14)
        ours = flow_attention(q, k, v, targets=Tokens(9, t), sources=Tokens(14, s))
        scaled = flow_attention(
            q,
            k,
            v,
            targets=Tokens(9, 7 * t),
            sources=Tokens(14, 0.1 * s),
            feature=lambda x: 3 * torch.sigmoid(x),
        )
        torch.testing.assert_close(ours, scaled)

    def test_a_token_equals_two_of_half_its_mass(self):
        q, k, v = (x.detach() for x in points(9, 14))
        twice = torch.tensor([0, 0, *range(1, 14)])
        half = torch.ones(15, dtype=DTYPE)
        half[:2] = 0.5
        split = flow_attention(
            q, k[..., twice, :], v[..., twice, :], sources=Tokens(15, half), targets=Tokens(9)
        )
        torch.testing.assert_close(flow_attention(q, k, v), split)

    def test_it_is_the_law_on_a_low_rank_operator(self):
        q, k, v = points(9, 14)
        op = LowRank(torch.sigmoid(q), torch.sigmoid(k))
        torch.testing.assert_close(laws.flow(op) @ v, flow_attention(q, k, v))
        seen, known = laws.flow.flows(op), attention_flows(q, k)
        for field in dataclasses.fields(seen):
            torch.testing.assert_close(getattr(seen, field.name), getattr(known, field.name))

    def test_a_graph_carries_the_law(self):
        edges = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 0, 0, 1]])
        out = laws.flow(Graph(edges, torch.ones(5, dtype=DTYPE), 4)).to_dense()
        assert (out.count_nonzero(-1) == torch.tensor([2, 2, 1, 0])).all()
        assert (out.sum(-1)[:3] > 0.5).all()


def test_poisoned_padding_changes_nothing():
    for options in ({}, {"causal": True}, {"preset": "lra"}, {"feature": "exp"}):
        q, k, v = points(20, 20)
        mass = torch.ones(2, 1, 20, dtype=DTYPE)
        mass[0, :, 13:], mass[1, :, :4] = 0, 0
        tokens = Tokens(20, mass)
        bad = [x.detach().masked_fill(mass.unsqueeze(-1) == 0, torch.nan).requires_grad_() for x in (q, k, v)]
        out = flow_attention(*bad, sources=tokens, targets=tokens, **options)
        alone = flow_attention(*(x[:1, :, :13] for x in (q, k, v)), **options)
        torch.testing.assert_close(out[:1, :, :13], alone)
        assert (out[0, :, 13:] == 0).all()
        for g in torch.autograd.grad(out.square().sum(), bad):
            assert g.isfinite().all()
            assert (g[0, :, 13:] == 0).all()


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"preset": "lra"}], ids=str)
def test_nothing_there_gives_nothing(options):
    for lead, n, m in (((2, 3), 4, 0), ((2, 3), 0, 4), ((0, 3), 4, 4), ((2, 3), 0, 0)):
        if options.get("causal"):
            m = n
        q, k, v = points(n, m, lead)
        out = flow_attention(q, k, v, **options)
        assert out.shape == (*lead, n, 5)
        assert (out == 0).all() or n == m == 4
        if out.requires_grad and n != m:
            assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), [q, k, v]))
    q, k, v = points(5, 5)
    tokens = Tokens(5, torch.zeros(5, dtype=DTYPE))
    assert (flow_attention(q, k, v, sources=tokens, targets=tokens, **options) == 0).all()


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("causal", [False, True])
    def test_half_precision_at_a_length_where_sums_overflow(self, dtype, causal, monkeypatch):
        monkeypatch.undo()
        q, k, v = (x.detach().to(dtype) for x in points(9_000, 9_000, (1,), d=64, c=8))
        out = flow_attention(q, k, v, causal=causal)
        assert out.dtype == dtype
        exact = flow_attention(q.double(), k.double(), v.double(), causal=causal)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), exact, atol=tolerance, rtol=tolerance)

    @pytest.mark.parametrize("options", [{}, {"causal": True}, {"preset": "lra"}], ids=str)
    def test_autocast_changes_nothing_inside(self, options):
        q, k, v = points(20, 20, dtype=torch.float32)
        plain = flow_attention(q, k, v, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(flow_attention(q, k, v, **options), plain)

    def test_large_exponents_do_not_overflow(self):
        q, k, v = (x.detach().float() * 300 for x in points(20, 20))
        assert flow_attention(q, k, v, feature="exp").isfinite().all()
        assert flow_attention(q, k, v, feature="relu").isfinite().all()
        assert flow_attention(q, k, v, feature="relu", causal=True).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"preset": "lra"}], ids=str)
def test_compiles_as_one_graph(options, monkeypatch):
    monkeypatch.undo()
    q, k, v = points(70, 70, dtype=torch.float32)
    tokens = Tokens(70, masses(2, 1, 70).float())

    def attend(q, k, v):
        return flow_attention(q, k, v, sources=tokens, targets=tokens, **options)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert_same(compiled(q, k, v), attend(q, k, v), (q, k, v), 1e-5)


def test_exports():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return flow_attention(q, k, v), flow_attention(q, k, v, causal=True)

    inputs = tuple(x.detach() for x in points(20, 20))
    program = torch.export.export(Attend(), inputs)
    for ours, theirs in zip(program.module()(*inputs), Attend()(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "ocre"}, "Did you mean 'core'"),
        ({"feature": "sigmod"}, "Did you mean 'sigmoid'"),
        ({"feature": torch.neg}, "negative values"),
        ({"causal": True}, "use FlowState"),
        ({"causal": True, "preset": "lra"}, "no causal form"),
        ({"sources": Tokens(3)}, "sources describe 3 tokens"),
        ({"sources": Tokens(9, torch.ones(5, 9))}, "expected"),
    ],
)
def test_bad_input(change, message):
    q, k, v = (x.detach().abs() for x in points(7, 9))
    with pytest.raises(ValueError, match=message):
        flow_attention(q, k, v, **change)


def test_causal_refuses_two_kinds_of_tokens():
    q, k, v = points(7, 7)
    with pytest.raises(ValueError, match="different masses"):
        flow_attention(q, k, v, causal=True, sources=Tokens(7, torch.ones(7)), targets=Tokens(7))
    with pytest.raises(ValueError, match="largest entry"):
        flow_attention(q, k, v, causal=True, feature="exp")


def test_second_derivative_raises():
    for options in ({}, {"causal": True}):
        q, k, v = points(5, 5)
        (dq,) = torch.autograd.grad(flow_attention(q, k, v, **options).square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            dq.sum().backward()
