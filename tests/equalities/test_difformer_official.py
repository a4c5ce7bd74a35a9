"""Our DIFFormer against the formulas of the released code, written out here on dense tensors."""

import pytest
import torch
import torch.nn.functional as F

from osmose.models import DIFFormer

N, C, D, OUT = 11, 6, 4, 3


def released_forward(
    state, x, edge_index, edge_weight, *, kernel, heads, alpha, graph_weight, source, norm, residual, relu
):
    """The released model in evaluation, parameter by parameter."""

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(i, h):
        return F.layer_norm(h, h.shape[-1:], state[f"bns.{i}.weight"], state[f"bns.{i}.bias"]) if norm else h

    h = first = F.relu(layer_norm(0, linear("fcs.0", x)))
    layers = sum(name.endswith("Wq.weight") for name in state)
    for i in range(layers):
        q, k = (linear(f"convs.{i}.{w}", h).view(N, heads, D) for w in ("Wq", "Wk"))
        v = linear(f"convs.{i}.Wv", h).view(N, heads, D) if f"convs.{i}.Wv.weight" in state else h[:, None]
        if kernel == "simple":
            scores = 1 + torch.einsum("nhd,lhd->nlh", q / q.norm(), k / k.norm())
        else:
            scores = torch.einsum("nhd,lhd->nlh", q, k).sigmoid()
        attention = scores / scores.sum(1, keepdim=True)
        out = torch.einsum("nlh,lhd->nhd", attention, v.expand(N, heads, D))
        if edge_index is not None:
            row, col = edge_index
            degree = torch.bincount(col, minlength=N).double()
            value = edge_weight * (1 / degree[col]).sqrt() * (1 / degree[row]).sqrt()
            value = value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            graph = torch.zeros(N, N, dtype=torch.float64).index_put((col, row), value, accumulate=True)
            spread = torch.einsum("nl,lhd->nhd", graph, v.expand(N, heads, D))
            out = (1 - graph_weight) * out + graph_weight * spread if graph_weight > 0 else out + spread
        new = out.mean(1)
        new = new + first if source else new
        new = alpha * new + (1 - alpha) * h if residual else new
        new = layer_norm(i + 1, new)
        h = F.relu(new) if relu else new
    return linear("fcs.1", h)


def graph(seed=0):
    g = torch.Generator().manual_seed(seed)
    edges = torch.unique(torch.randint(0, N, (2, 30), generator=g), dim=1)
    edges = edges[:, edges[0] != edges[1]]
    return edges, torch.rand(edges.shape[1], dtype=torch.float64, generator=g) + 0.1


@pytest.mark.parametrize("kernel", ["simple", "sigmoid"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"use_weight": True},
        {"use_weight": False},
        {"graph_weight": 0.7, "use_weight": True, "layer_norm": False, "residual": False},
        {"use_source": True, "alpha": 0.3},
        {"activation": True, "use_weight": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_graph", [True, False])
def test_equals_the_released_formulas_and_loads_their_names(kernel, heads, settings, with_graph, tmp_path):
    torch.manual_seed(0)
    author = DIFFormer(C, D, OUT, num_layers=3, num_heads=heads, kernel=kernel, **settings).double()
    state = {name: torch.randn_like(value) for name, value in author.state_dict().items()}
    path = tmp_path / "model.pt"
    torch.save({f"gnn_node.{name}": value for name, value in state.items()}, path)
    outside = {k: v for k, v in settings.items() if k != "use_weight"}
    model = DIFFormer.from_official(path, prefix="gnn_node.", kernel=kernel, **outside).eval()
    x = torch.randn(N, C, dtype=torch.float64)
    edges, weight = graph() if with_graph else (None, None)
    if with_graph:  # their data script adds the loops
        loops = torch.arange(N).expand(2, -1)
        edges, weight = torch.cat([edges, loops], 1), torch.cat([weight, torch.ones(N, dtype=torch.float64)])
    want = released_forward(
        state, x, edges, weight, kernel=kernel, heads=heads, alpha=settings.get("alpha", 0.5),
        graph_weight=settings.get("graph_weight", 0), source=settings.get("use_source", False),
        norm=settings.get("layer_norm", True), residual=settings.get("residual", True),
        relu=settings.get("activation", False),
    )  # fmt: skip
    torch.testing.assert_close(model(x, edges, weight), want, rtol=1e-9, atol=1e-9)
    prepared = model.prepare_graph(edges, weight, N) if with_graph else None
    torch.testing.assert_close(model(x, prepared), want, rtol=1e-9, atol=1e-9)


def test_parameter_names_are_those_of_the_released_code():
    names = set(DIFFormer(C, D, OUT, num_layers=1, use_weight=True).state_dict())
    parts = {"fcs.0", "fcs.1", "bns.0", "bns.1", "convs.0.Wq", "convs.0.Wk", "convs.0.Wv"}
    assert names == {f"{part}.{p}" for part in parts for p in ("weight", "bias")}
    assert not any("Wv" in name for name in DIFFormer(C, D, OUT).state_dict())


def test_a_checkpoint_of_another_model_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no fcs\.0\.weight.*holds nothing.*prefix is 'gnn_node"):
        DIFFormer.from_official({"conv1.weight": torch.ones(2, 2)}, prefix="gnn_node.")
