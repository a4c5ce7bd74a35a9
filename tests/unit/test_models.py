"""Models: batches, masks, cross use, the attention operator, the exact mode, settings and errors."""

import pytest
import torch

from osmose.energy import DescentMonitor
from osmose.models import (
    MLP,
    DIFFormer,
    DIFFormerConv,
    ExactDIFFormer,
    ModelConfig,
    Shape,
    build,
    sparse_features,
)
from osmose.models.layers import dropout
from osmose.operators import Graph
from osmose.tokens import Tokens

F64 = torch.float64
NAMES = ["difformer-s", "difformer-a", "difformer-exact", "mean", "gcn", "mlp"]


def model_of(name, **settings):
    torch.manual_seed(0)
    return build(ModelConfig(name=name, hidden=8, layers=3, **settings), Shape("nodes", 5, 4)).double().eval()


def batch_of_graphs(sizes=(4, 1, 6), seed=0):
    g = torch.Generator().manual_seed(seed)
    edges, start = [], 0
    for n in sizes:
        one = torch.randint(0, n, (2, 2 * n), generator=g)
        edges.append(torch.unique(torch.cat([one, one.flip(0)], 1), dim=1) + start)
        start += n
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.randn(start, 5, dtype=F64, generator=g), edges, batch


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings", [{}, {"use_source": True, "graph_weight": 0.5, "heads": 2, "use_weight": True}]
)
def test_a_graph_alone_equals_the_graph_in_a_batch(name, settings):
    x, edges, batch = batch_of_graphs()
    model = model_of(name, **settings)
    together = model(x, torch.cat(edges, 1), batch=batch)
    start = 0
    for s, e in enumerate(edges):
        alone = model(x[batch == s], e - start)
        torch.testing.assert_close(together[batch == s], alone)
        start += int((batch == s).sum())
    shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    back = torch.argsort(shuffle)
    torch.testing.assert_close(
        model(x[shuffle], back[torch.cat(edges, 1)], batch=batch[shuffle]), together[shuffle]
    )


@pytest.mark.parametrize("name", ["difformer-s", "difformer-a", "difformer-exact", "mean", "mlp"])
def test_padded_equals_packed(name):
    x, _, batch = batch_of_graphs()
    tokens = Tokens.of(x, batch=batch)
    padded, t = tokens.pad(x)
    model = model_of(name)
    got = model(padded + 7 * (t.mass == 0).unsqueeze(-1), mask=t.mass > 0)
    torch.testing.assert_close(tokens.unpad(got), model(x, batch=batch))


@pytest.mark.parametrize("kernel", ["simple", "sigmoid", "mean"])
@pytest.mark.parametrize("normalization", ["row", "frobenius", "none"])
@pytest.mark.parametrize("layout", ["one set", "packed", "padded"])
def test_the_attention_operator_is_what_the_layer_applies(kernel, normalization, layout):
    torch.manual_seed(0)
    conv = DIFFormerConv(5, 4, 3, kernel=kernel, normalization=normalization).double()
    x, _, batch = batch_of_graphs()
    tokens = Tokens.of(x, batch=batch)
    t = {"one set": None, "packed": tokens, "padded": tokens.pad(x)[1]}[layout]
    x = tokens.pad(x)[0] if layout == "padded" else x
    attention = conv.attention(x, targets=t)
    v = conv._heads(x, conv.Wv)
    torch.testing.assert_close((attention @ v).mean(-3), conv(x, targets=t))
    rows = attention.row_sum()
    if layout == "padded":
        present = (t.mass > 0).unsqueeze(1).expand_as(rows)
        assert (rows[~present] == 0).all()
        rows = rows[present]
    torch.testing.assert_close(rows, torch.ones_like(rows))
    assert attention.rows(torch.tensor([0])).shape[-2:] == (1, x.shape[-2])


def test_cross_use_takes_from_the_source_only():
    model = model_of("difformer-s")
    x, y = torch.randn(3, 5, dtype=F64), torch.randn(7, 5, dtype=F64)
    out = model.encode(x, source=y)
    assert out.shape == (3, 8)
    torch.testing.assert_close(model.encode(x[:1], source=y), out[:1])  # targets do not see each other
    assert not torch.allclose(model.encode(x, source=y[:5]), out)
    padded = model.encode(
        x.expand(2, 3, 5), source=y.expand(2, 7, 5), source_mask=torch.ones(2, 7, dtype=torch.bool)
    )
    torch.testing.assert_close(padded[1], out)
    with pytest.raises(ValueError, match="no meaning between two sets"):
        model.encode(x, torch.zeros(2, 0, dtype=torch.long), source=y)


@pytest.mark.parametrize("weight", ["simple", "sigmoid", "gaussian"])
@pytest.mark.parametrize("layout", ["one set", "packed", "padded"])
def test_exact_mode_descends_for_any_weights(weight, layout):
    for seed in range(10):
        torch.manual_seed(seed)
        model = (
            ExactDIFFormer(5, 8, 4, num_layers=6, weight=weight, alpha=0.9, strength=10.0 ** (seed % 4 - 2))
            .double()
            .eval()
        )
        x, edges, batch = batch_of_graphs(seed=seed)
        monitor = DescentMonitor()
        tokens = Tokens.of(x, batch=batch)
        if layout == "padded":
            padded, t = tokens.pad(x)
            model(10 * padded, mask=t.mass > 0, monitor=monitor)
        else:
            model(10 * x, torch.cat(edges, 1), batch=batch if layout == "packed" else None, monitor=monitor)
        assert len(monitor.reports) == 6
        for report in monitor.reports:
            assert report.covered, report
            assert report.change <= 1e-12, report
        assert monitor.reports[-1].energy < monitor.reports[0].energy


def test_monitor_on_the_learned_model_promises_nothing():
    model, monitor = model_of("difformer-s"), DescentMonitor()
    x, edges, _ = batch_of_graphs()
    model(x, torch.cat(edges, 1), monitor=monitor)
    assert len(monitor.reports) == 3
    assert not any(report.covered for report in monitor.reports)
    assert not all(report.inside_domain for report in monitor.reports)  # LayerNorm leaves the sphere


@pytest.mark.parametrize("name", NAMES)
def test_models_train_save_and_load(name, tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    config = ModelConfig(name=name, hidden=8, layers=2, dropout=0.0)
    model = build(config, Shape("nodes", 5, 4))
    x, edges, _ = batch_of_graphs()
    x, graph, y = x.float(), model.prepare_graph(torch.cat(edges, 1), None, len(x)), torch.arange(len(x)) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x, graph), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    other = build(config, Shape("nodes", 5, 4))
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert other.eval()(x, graph).equal(model.eval()(x, graph))


@pytest.mark.parametrize("name", NAMES)
def test_isolated_nodes_and_empty_sets_do_not_crash(name):
    model = model_of(name)
    no_edges = torch.zeros(2, 0, dtype=torch.long)
    assert torch.isfinite(model(torch.randn(3, 5, dtype=F64), no_edges)).all()
    assert model(torch.zeros(0, 5, dtype=F64), no_edges).shape == (0, 4)
    out = model(torch.randn(3, 5, dtype=F64), batch=torch.tensor([0, 4, 4]))
    assert torch.isfinite(out).all()


def test_frobenius_attention_is_nearly_uniform_and_row_is_not():
    """Why `mean` is the baseline: total variation from uniform falls like 1/n for the released normalisation."""
    torch.manual_seed(0)
    x = torch.randn(2000, 16, dtype=F64)
    far = {}
    for normalization in ("row", "frobenius"):
        conv = DIFFormerConv(16, 16, kernel="simple", normalization=normalization).double()
        row = conv.attention(x).rows(torch.arange(20))
        far[normalization] = 0.5 * (row - 1 / 2000).abs().sum(-1).mean()
    assert far["frobenius"] < 2e-4
    assert far["row"] > 2e-2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: build(ModelConfig(name="difformer"), Shape("nodes", 5, 4)), "Did you mean 'difformer-s'"),
        (lambda: build(ModelConfig(hidden=0), Shape("nodes", 5, 4)), "hidden is 0"),
        (lambda: DIFFormerConv(5, 4, kernel="softmax"), "simple, sigmoid, mean"),
        (lambda: DIFFormerConv(5, 4, use_weight=False), "must equal"),
        (lambda: DIFFormerConv(5, 5, graph_weight=2.0), "graph_weight is 2.0"),
        (lambda: DIFFormer(5, 4, 3, alpha=2.0), "alpha is 2.0"),
        (lambda: DIFFormer(5, 4, 3, dropout=1.0), "dropout is 1.0"),
        (lambda: ExactDIFFormer(5, 4, 3, alpha=0.0), "alpha is 0.0"),
        (lambda: DIFFormer(5, 4, 3)(torch.zeros(7, 6)), r"expected \(n, 5\)"),
        (lambda: MLP(5, 4, 3)(torch.zeros(7, 6)), r"expected \(n, 5\)"),
        (
            lambda: DIFFormer(5, 4, 3)(torch.zeros(2, 7, 5), batch=torch.zeros(7, dtype=torch.long)),
            "pass mask",
        ),
        (
            lambda: DIFFormer(5, 4, 3)(torch.zeros(2, 7, 5), torch.zeros(2, 0, dtype=torch.long)),
            "pack the batch",
        ),
        (lambda: DIFFormer(5, 4, 3)(torch.zeros(7, 5), torch.tensor([[0], [9]])), "expected 0 to 6"),
        (
            lambda: ExactDIFFormer(5, 4, 3)(torch.zeros(2, 7, 5), torch.zeros(2, 0, dtype=torch.long)),
            "pack the batch",
        ),
        (
            lambda: DIFFormer(5, 4, 3)(
                torch.zeros(2, 5), torch.tensor([[0], [1]]), batch=torch.tensor([0, 1])
            ),
            "different sets of batch",
        ),
        (
            lambda: DIFFormer(5, 4, 3)(torch.zeros(7, 5), torch.tensor([[0], [1]]), torch.ones(2)),
            r"edge_weight has shape \(2,\); expected \(1,\)",
        ),
        (
            lambda: DIFFormer(5, 4, 3)(torch.zeros(7, 5), batch=torch.zeros(6, dtype=torch.long)),
            r"expected \(7,\)",
        ),
    ],
)
def test_bad_input_says_what_to_do(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()


@pytest.mark.parametrize("name", NAMES)
def test_sparse_features_change_nothing_but_the_cost(name):
    x, edges, _ = batch_of_graphs()
    x = x * (x > 1.2)
    model = model_of(name)
    graph, features = model.prepare_graph(torch.cat(edges, 1), None, len(x)), sparse_features(x, below=0.5)
    assert isinstance(features, Graph)
    got, want = model(features, graph), model(x, graph)
    torch.testing.assert_close(got, want)
    grads = [
        torch.autograd.grad(out.sin().sum(), model.parameters(), allow_unused=True) for out in (got, want)
    ]
    for g, w in zip(*grads, strict=True):
        assert (g is None) == (w is None)
        if w is not None:
            torch.testing.assert_close(g, w)
    assert sparse_features(x, below=0.01) is x


def test_dropout_keeps_the_mean_and_the_share():
    torch.manual_seed(0)
    x = torch.ones(400, 500, requires_grad=True)
    out = dropout(x, 0.3, training=True)
    assert abs(float((out == 0).float().mean()) - 0.3) < 0.005
    torch.testing.assert_close(out[out > 0], torch.full_like(out[out > 0], 1 / 0.7))
    assert torch.autograd.grad(out.sum(), x)[0].equal(out.detach())
    assert dropout(x, 0.3, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def test_the_attention_operator_agrees_on_real_masses_half_types_and_signs():
    torch.manual_seed(0)
    mass = torch.tensor([0.1, 5.0, 1.0, 3.0, 0.2, 2.0], dtype=F64)
    x = 5 * torch.randn(6, 5, dtype=F64)
    for kernel in ("simple", "sigmoid"):
        for normalization in ("row", "frobenius", "none"):
            conv = DIFFormerConv(5, 4, 2, kernel=kernel, normalization=normalization).double()
            tokens = Tokens.of(x, mass=mass)
            v = conv._heads(x, conv.Wv)
            got = (conv.attention(x, targets=tokens) @ v).mean(-3)
            torch.testing.assert_close(got, conv(x, targets=tokens), rtol=1e-6, atol=1e-8)
    conv = DIFFormerConv(5, 4, normalization="frobenius").half()
    large = (400 * torch.randn(6, 5)).half()
    want = conv.float().attention(large.float()).to_dense()
    torch.testing.assert_close(conv.half().attention(large).to_dense().float(), want, rtol=2e-2, atol=2e-3)


def test_layers_accept_states_and_projections_of_different_types():
    """Under autocast a LayerNorm may keep float32 while linear layers are narrow, or the other way round."""
    conv = DIFFormerConv(5, 5, use_weight=False)
    with torch.autocast("cpu", torch.bfloat16):
        for kernel in ("simple", "sigmoid", "mean"):
            conv.kernel = kernel
            assert torch.isfinite(conv(torch.randn(4, 5))).all()

    class WideNorm(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.float()).float()

    for kernel in ("simple", "sigmoid", "mean"):
        for use_weight in (True, False):
            model = DIFFormer(5, 8, 4, kernel=kernel, use_weight=use_weight)
            model.bns = torch.nn.ModuleList(WideNorm(8) for _ in model.bns)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.isfinite(model(torch.randn(6, 5), torch.tensor([[0, 1], [1, 0]]))).all()


def test_padding_may_hold_anything():
    x, _, batch = batch_of_graphs()
    padded, t = Tokens.of(x, batch=batch).pad(x)
    mask = t.mass > 0
    for name in ("difformer-s", "difformer-a", "mean", "mlp", "difformer-exact"):
        grads = []
        for fill in (0.0, torch.nan):
            model = model_of(name)
            model(padded.masked_fill(~mask.unsqueeze(-1), fill), mask=mask)[mask].sum().backward()
            grads.append([p.grad for p in model.parameters() if p.grad is not None])
        for clean, dirty in zip(*grads, strict=True):
            torch.testing.assert_close(clean, dirty)


def test_exact_mode_is_covered_in_float32_at_the_bound():
    torch.manual_seed(0)
    model = ExactDIFFormer(16, 64, 7, num_layers=6, strength=0.05, alpha=0.9, source_strength=0.0).eval()
    monitor = DescentMonitor()
    model(torch.randn(50, 16), monitor=monitor)
    assert all(report.covered for report in monitor.reports)


def test_cross_use_of_packed_batches_with_empty_sets():
    model = model_of("difformer-s")
    x, y = torch.randn(5, 5, dtype=F64), torch.randn(4, 5, dtype=F64)
    out = model.encode(
        x, source=y, batch=torch.tensor([0, 1, 1, 2, 2]), source_batch=torch.tensor([0, 0, 1, 1])
    )
    torch.testing.assert_close(out[:1], model.encode(x[:1], source=y[:2]))
    torch.testing.assert_close(out[1:3], model.encode(x[1:3], source=y[2:]))
    assert torch.isfinite(out).all()
