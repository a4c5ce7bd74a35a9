"""Graph operators: changed weights, absent tokens, repeated edges, transposes, attention masked by a graph."""

import pytest
import torch

from osmose.laws import LAWS
from osmose.operators import Graph, Identity, Pairwise
from osmose.operators import graph as graph_module
from osmose.tokens import Tokens

F64 = torch.float64
EDGES = torch.tensor([[0, 1, 2, 3, 1, 0], [1, 0, 1, 2, 3, 2]])


def points(n=4, d=3, seed=0):
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_products_follow_a_weight_that_an_optimizer_changes():
    weight = torch.nn.Parameter(torch.rand(6, dtype=F64))
    op, v = Graph(EDGES, weight, 4), points()
    optimizer = torch.optim.SGD([weight], lr=0.5)
    for _ in range(3):
        torch.testing.assert_close(op @ v, op.to_dense() @ v)
        torch.testing.assert_close(op.mT @ v, op.to_dense().mT @ v)
        optimizer.zero_grad()
        (op @ v).square().sum().backward()
        optimizer.step()


def test_a_weight_changed_between_forward_and_backward_is_an_error():
    weight = torch.rand(6, dtype=F64)
    v = points().requires_grad_()
    out = Graph(EDGES, weight, 4) @ v
    weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_edges_are_sorted_once_for_all_weights_and_for_the_transpose(monkeypatch):
    sorts = []
    unique = torch.unique
    monkeypatch.setattr(torch, "unique", lambda *a, **k: sorts.append(1) or unique(*a, **k))
    op, v = Graph(EDGES, torch.rand(6, dtype=F64), 4), points()
    for other in (op, 2.0 * op, op.scale(torch.rand(4) + 1), op.mT, op.mT.mT):
        torch.testing.assert_close(other @ v, other.to_dense() @ v)
        torch.testing.assert_close(other.mT @ v, other.to_dense().mT @ v)
    assert len(sorts) == 2


@pytest.mark.parametrize("law", list(LAWS))
def test_mass_0_hides_even_infinite_values(law):
    op, v = Graph(EDGES, torch.rand(6, dtype=F64) + 0.1, 4), points()
    t = Tokens.of(4, mask=torch.tensor([True, True, False, True]))
    hidden = torch.where(t.mass[:, None] > 0, v, torch.inf)
    lawful = LAWS[law](op, sources=t, targets=t)
    torch.testing.assert_close(lawful @ hidden, lawful @ torch.where(t.mass[:, None] > 0, v, 0.0))
    assert ((lawful @ hidden)[2] == 0).all()


def test_diagonals_of_a_graph_have_the_gradients_of_the_dense_form():
    left, right = (torch.rand(4, dtype=F64, requires_grad=True) for _ in range(2))
    op, v = Graph(EDGES, torch.rand(6, dtype=F64), 4), points()
    got = torch.autograd.grad((op.scale(left, right) @ v).sin().sum(), (left, right))
    dense = left[:, None] * op.to_dense() * right
    want = torch.autograd.grad((dense @ v).sin().sum(), (left, right))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_repeated_edges_are_summed_one_by_one():
    g = torch.Generator().manual_seed(0)
    edges, weight = torch.randint(0, 30, (2, 200_000), generator=g), torch.rand(200_000, generator=g)
    narrow, exact = Graph(edges, weight, 30).to_dense(), Graph(edges, weight.double(), 30).to_dense()
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-5, atol=0)
    mixed = Graph(torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([1e20, 1.0, 1.0, 1.0]), 2)
    assert mixed.entries(torch.tensor([1, 0]), torch.tensor([1, 1])).tolist() == [2, 0]


def test_a_weight_for_each_head_forms_no_message_of_every_edge():
    n, e, heads, c = 50, 3000, 3, 16
    g = torch.Generator().manual_seed(0)
    weight = torch.rand(heads, e, generator=g, requires_grad=True)
    op = Graph(torch.randint(0, n, (2, e), generator=g), weight, n)
    v = torch.rand(n, c, generator=g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_module, "EDGES", 100)
        with torch.profiler.profile(profile_memory=True) as profile:
            (op @ v).sum().backward()
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 4 * e * c


def test_softmax_over_the_edges_takes_scores_of_any_size():
    q, k, weight = 40 * points(), 40 * points(seed=1), torch.rand(6, dtype=F64) + 0.5
    inputs = [x.requires_grad_() for x in (q, k, weight)]
    support = Graph(EDGES, weight, 4)
    v = points(seed=2)
    scores = torch.where(support.to_dense() > 0, q @ k.mT + support.to_dense().log(), -torch.inf)
    want = scores.softmax(-1) @ v
    for op in (Pairwise(q, k) * support, support * Pairwise(q, k), (2 * Pairwise(q, k)) * (3 * support)):
        got = LAWS["row"](op) @ v
        torch.testing.assert_close(got, want)
        assert op.cost().quadratic == ()
        grads = [torch.autograd.grad(out.sin().sum(), inputs, retain_graph=True) for out in (got, want)]
        for g, w in zip(*grads, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-8)


def test_softmax_over_the_edges_leaves_absent_sources_and_edges_out():
    q, k = 40 * points().abs(), 40 * points(seed=1).abs()
    k[1] *= 100
    t = Tokens.of(4, mask=torch.arange(4) != 1)
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1], dtype=F64)
    op = LAWS["row"](Pairwise(q, k) * Graph(EDGES, weight, 4), sources=t, targets=t)
    keep = (weight > 0) & (EDGES != 1).all(0)
    want = LAWS["row"](Pairwise(q, k) * Graph(EDGES[:, keep], None, 4, dtype=F64))
    torch.testing.assert_close(op.to_dense(), want.to_dense())


def test_unlawful_edge_attention_equals_its_formula():
    q, k = points(), points(seed=1)
    op = Pairwise(q, k) * Graph(EDGES, torch.rand(6, dtype=F64), 4)
    torch.testing.assert_close(op.to_dense(), (q @ k.mT).exp() * op.graph.to_dense())
    torch.testing.assert_close(op.mT.to_dense(), op.to_dense().mT)
    left = torch.rand(4, dtype=F64)
    torch.testing.assert_close(op.scale(left).to_dense(), left[:, None] * op.to_dense())


def test_row_law_of_sums_and_transposes_of_large_scores():
    x, v = 30 * points(), points(seed=1)
    scores = x @ x.mT
    loop = torch.eye(4, dtype=F64)
    row = LAWS["row"]
    exact = (scores - scores.amax(-1, keepdim=True).clamp(min=0)).exp()
    one = loop * (-scores.amax(-1).clamp(min=0)).exp()[:, None]
    want = (exact + one) / (exact + one).sum(-1, keepdim=True)
    torch.testing.assert_close(row(Pairwise(x, x) + Identity(4, dtype=F64)) @ v, want @ v)
    y = 30 * points(seed=3)
    torch.testing.assert_close(row(Pairwise(x, y).mT) @ v, (y @ x.mT).softmax(-1) @ v)
    torch.testing.assert_close(row(row(Pairwise(x, y))).to_dense(), (x @ y.mT).softmax(-1))
    twice = Pairwise(x, x) + 3 * Pairwise(x, y)
    both = torch.cat([scores, x @ y.mT + torch.tensor(3.0).log()], -1).softmax(-1)
    torch.testing.assert_close(row(twice) @ v, both @ torch.cat([v, v]))


def test_every_head_masks_its_attention_by_the_graph():
    q, k, v = (
        torch.randn(2, 3, 4, 5, dtype=F64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    inputs = [x.requires_grad_() for x in (20 * q, 20 * k, v)]
    q, k, v = inputs
    support = Graph(EDGES, torch.rand(3, 6, dtype=F64) + 0.5, 4)
    got = LAWS["row"](Pairwise(q, k) * support) @ v
    want = (
        torch.where(support.to_dense() > 0, q @ k.mT + support.to_dense().log(), -torch.inf).softmax(-1) @ v
    )
    torch.testing.assert_close(got, want)
    for g, w in zip(*(torch.autograd.grad(x.sin().sum(), inputs) for x in (got, want)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-8)


def test_packed_sets_mask_edges_between_sets():
    x, t = points(), Tokens.of(4, batch=torch.tensor([0, 0, 1, 1]))
    op = LAWS["row"](
        Pairwise(x, x, targets=t, sources=t) * Graph(EDGES, None, 4, dtype=F64), targets=t, sources=t
    )
    allowed = Graph(EDGES, None, 4, dtype=F64).to_dense().bool() & t.same_set(t)
    want = torch.where(allowed, (x @ x.mT).exp(), 0.0)
    torch.testing.assert_close(op.to_dense(), want / want.sum(-1, keepdim=True).clamp(min=1e-30))
