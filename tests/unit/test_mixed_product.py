"""MixedProduct: layers from parts, laws and masses on them, conversion back, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osmose import laws
from osmose.nn.mixed import (
    Attention,
    Average,
    Bases,
    Carried,
    Concatenated,
    Full,
    Joined,
    LowRank,
    MixedProduct,
    Mixtures,
    Own,
    Propagation,
    Rings,
    Shifts,
    Taps,
    Tied,
    Together,
    from_torch,
    layers,
    to_torch,
)
from osmose.operators import Dense, Graph
from osmose.structure.families import Blends, Family, Given, Polynomials, Union, products
from osmose.structure.shifts import Convolution, Kernel
from osmose.tokens import Tokens

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def matrices(k=3, n=5, m=6):
    return [torch.rand(n, m, dtype=F64) for _ in range(k)]


def family_cases():
    a = matrices(3, 5, 5)
    c = torch.randn(2, 3, dtype=F64)
    given = Given([Dense(x) for x in a])
    s = a[0]
    edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
    graph = Graph(edges, torch.rand(6, dtype=F64), 5)
    conv = Convolution(Kernel((3,), padding=((1, 1),)), (5,), F64, torch.device("cpu"))
    return {
        "given": (given, a),
        "union": (Union(given, Given([Dense(s)])), [*a, s]),
        "powers": (Polynomials(Dense(s), 4), [torch.eye(5, dtype=F64), s, s @ s, s @ s @ s]),
        "chebyshev": (Polynomials(Dense(s), 3, "chebyshev"), [torch.eye(5, dtype=F64), s, 2 * s @ s - torch.eye(5, dtype=F64)]),
        "blends": (Blends(given, c), [sum(c[b, k] * a[k] for k in range(3)) for b in range(2)]),
        "matrix products": (products(given, Given([graph])), [x @ graph.to_dense() for x in a]),
        "entrywise products": (products(given, Given([graph]), "entrywise"), [x * graph.to_dense() for x in a]),
        "taps": (conv, [torch.eye(5, dtype=F64).roll(d, 1).triu(min(d, 0) and -1).tril(max(d, 0)) * 1.0 for d in (-1, 0, 1)]),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["given", "union", "powers", "chebyshev", "blends", "matrix products", "entrywise products", "taps"])  # fmt: skip
def test_a_family_multiplies_like_its_matrices(name):
    family, a = family_cases()[name]
    a = torch.stack(a)
    if name == "taps":
        a = torch.stack([torch.diag(torch.ones(5 - abs(d), dtype=F64), d) for d in (-1, 0, 1)])
    assert len(family) == len(a)
    for op, matrix in zip(family, a, strict=True):
        torch.testing.assert_close(op.to_dense(), matrix)
    x, z = torch.randn(2, 5, 4, dtype=F64), torch.randn(2, len(a), 5, 3, dtype=F64)
    torch.testing.assert_close(family.spread(x), torch.einsum("knm,bmc->bknc", a, x))
    torch.testing.assert_close(family.carry(z), torch.einsum("knm,bkmc->bknc", a, z))
    for q in (2, 6):  # the order of the products follows the narrower side
        theta = torch.randn(len(a), 4, q, dtype=F64)
        torch.testing.assert_close(family.mixed(x, theta), torch.einsum("knm,bmp,kpq->bnq", a, x, theta))
        grouped = torch.randn(len(a), 2, q, dtype=F64)
        full = torch.zeros(len(a), 4, q, dtype=F64)
        full[:, :2, : q // 2], full[:, 2:, q // 2 :] = grouped[..., : q // 2], grouped[..., q // 2 :]
        torch.testing.assert_close(
            family.mixed(x, grouped, groups=2), torch.einsum("knm,bmp,kpq->bnq", a, x, full)
        )
    under = family.under(laws.row)
    total = a.sum(-1, keepdim=True)
    torch.testing.assert_close(
        torch.stack([op.to_dense() for op in under]),
        torch.where(total == 0, 0.0, a / torch.where(total == 0, 1.0, total)),
    )


def values_cases():
    return {
        "full": Full(2, 4, 6, dtype=F64),
        "groups": Full(2, 4, 6, 2, dtype=F64),
        "value bias": Full(2, 4, 6, in_bias=True, dtype=F64),
        "bases": Bases(2, 3, 4, 6, dtype=F64),
        "concatenated": Concatenated(2, 4, 6, bias=True, dtype=F64),
        "joined": Joined(Full(1, 4, 6, dtype=F64), LowRank(1, 4, 6, dtype=F64)),
        "low rank": LowRank(2, 4, 6, 3, dtype=F64),
        "shared": LowRank(2, 4, 6, 3, shared=1, dtype=F64),
        "tied": Tied(2, 4, 6, dtype=F64),
        "carried": Carried(2),
    }


@pytest.mark.parametrize("name", list(values_cases()))
def test_values_are_what_their_matrices_say(name):
    values = values_cases()[name]
    with torch.no_grad():
        for parameter in values.parameters():
            parameter.normal_()
    a = torch.stack(matrices(2))
    x = torch.randn(3, 6, 4, dtype=F64)
    got = values(Given([Dense(m) for m in a]), x)
    torch.testing.assert_close(got, torch.einsum("knm,bkmq->bnq", a, values.carried(x)))
    if not any("bias" in key for key, _ in values.named_parameters()) and name != "carried":
        torch.testing.assert_close(got, torch.einsum("knm,bmp,kpq->bnq", a, x, values.dense()))


def test_an_own_layer_from_parts_trains():
    """Attention, a graph and shifts in one layer, with a law: what no named layer is."""
    structure = Together(Attention(4, 2, mixer="flow"), Propagation(), Shifts([-1, 1]))
    layer = MixedProduct(structure, Full(5, 4, 4))
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    x = torch.randn(6, 4)
    y = layer(x, edge_index=edges)
    family = layer.family(x, edge_index=edges)
    parts = torch.stack(
        [op.to_dense() @ x @ theta for op, theta in zip(family, layer.values.weight, strict=True)]
    )
    torch.testing.assert_close(y, parts.sum(0) + layer.bias)
    y.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


def test_learned_mixtures_of_shifts_and_of_rings():
    toeplitz = MixedProduct(Mixtures(Shifts([-2, 0, 1]), 2, dtype=F64), Full(2, 3, 3, dtype=F64), dtype=F64)
    x = torch.randn(2, 6, 3, dtype=F64)
    shifts = torch.stack([torch.diag(torch.ones(6 - abs(d), dtype=F64), d) for d in (-2, 0, 1)])
    mixed = torch.einsum("bk,knm->bnm", toeplitz.structure.coefficients, shifts)
    want = torch.einsum("bnm,lmp,bpq->lnq", mixed, x, toeplitz.values.weight) + toeplitz.bias
    torch.testing.assert_close(toeplitz(x), want)
    mean = MixedProduct(
        Mixtures(Shifts([-1, 0, 1]), 1, convex=True, dtype=F64), Carried(1), bias=False, law="row"
    )
    torch.testing.assert_close(
        mean(torch.ones(5, 2, dtype=F64)), torch.ones(5, 2, dtype=F64)
    )  # at the borders too
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    layer = MixedProduct(Mixtures(Rings(2), 1, convex=True, dtype=F64), Carried(1), bias=False)
    y = torch.randn(5, 3, dtype=F64)
    got = layer(y, edge_index=edges)
    before = torch.cat([torch.zeros(2, 3, dtype=F64), y])
    torch.testing.assert_close(got, (y + before[1:6] + before[:5]) / 3)  # a chain: one node at every distance
    tokens = Tokens.of(5, mass=torch.tensor([1.0, 0, 1, 1, 1], dtype=F64))
    there = layer(y, edge_index=edges, sources=tokens, targets=tokens)
    torch.testing.assert_close(there[3], (y[3] + y[2]) / 3)
    assert not there[1].any()


def test_the_operator_of_a_layer_is_what_it_does():
    x = torch.randn(6, 4, dtype=F64)
    for layer in (
        layers.conv(4, 3, 3, stride=2, padding=1, dtype=F64),
        layers.attention(4, 2, mixer="flow", bias=False, dtype=F64),
        MixedProduct(Shifts([-1, 2]), Carried(2), bias=False),
    ):
        phi = layer.operator(x)
        y = layer(x) - (0 if layer.bias is None else layer.bias)
        torch.testing.assert_close(phi @ x.flatten(), y.flatten())
        assert phi.to_dense().shape == (y.numel(), x.numel())


@pytest.mark.parametrize("law", ["row", "mean", "sym", "flow"])
def test_laws_and_masses_on_given_operators(law):
    structure = Shifts([-1, 0, 2])
    layer = MixedProduct(structure, Full(3, 4, 2, dtype=F64), law=law, dtype=F64)
    x, mass = torch.randn(7, 4, dtype=F64), torch.tensor([1.0, 2, 0, 1, 1, 0.5, 1], dtype=F64)
    tokens = Tokens.of(7, mass=mass)
    got = layer(x, sources=tokens, targets=tokens)
    shifts = [torch.diag(torch.ones(7 - abs(d), dtype=F64), d) for d in (-1, 0, 2)]
    want = sum(
        laws.LAWS[law](Dense(s), sources=tokens, targets=tokens).to_dense() @ x @ theta
        for s, theta in zip(shifts, layer.values.weight, strict=True)
    )
    torch.testing.assert_close(got, want + layer.bias)


def test_shifts_stay_inside_packed_sets_and_masses_weigh():
    layer = MixedProduct(Shifts([-1, 1]), Full(2, 3, 3, dtype=F64), bias=False, dtype=F64)
    x, mass = torch.randn(9, 3, dtype=F64), torch.rand(9, dtype=F64)
    mass[4] = 0
    sizes = [4, 0, 5]
    packed = Tokens.of(9, mass=mass, ptr=torch.tensor([0, 4, 4, 9]))
    got = layer(x, sources=packed, targets=packed)
    alone = [
        layer(xs, sources=Tokens.of(len(xs), mass=ms), targets=Tokens.of(len(xs), mass=ms))
        for xs, ms in zip(x.split(sizes), mass.split(sizes), strict=True)
        if len(xs)
    ]
    torch.testing.assert_close(got, torch.cat(alone))
    padded = F.pad(x[:4], (0, 0, 0, 2), value=9.0)
    tokens = Tokens.of(6, mass=F.pad(mass[:4], (0, 2)))
    torch.testing.assert_close(layer(padded, sources=tokens, targets=tokens)[:4], got[:4])


TORCH = {
    "linear": (lambda: nn.Linear(4, 6), 1),
    "linear, no bias": (lambda: nn.Linear(4, 6, bias=False), 1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, 2, groups=2, padding_mode="circular"), 1),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 0)), 2),
    "conv3d": (lambda: nn.Conv3d(4, 4, 2), 3),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), 2),
    "pool": (lambda: nn.AvgPool2d(2, 1, 1, count_include_pad=False), 2),
    "attention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True), 1),
    "attention, other sizes": (lambda: nn.MultiheadAttention(4, 2, batch_first=True, kdim=3, vdim=5, bias=False), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_there_and_back(name):
    make, _ = TORCH[name]
    module = make().eval()
    back = to_torch(from_torch(module))
    assert type(back) is type(module)
    assert not back.training
    assert list(back.state_dict()) == list(module.state_dict())
    for key, value in module.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], value, rtol=0, atol=0)
    for key in (
        "stride",
        "padding",
        "dilation",
        "groups",
        "output_padding",
        "padding_mode",
        "count_include_pad",
    ):
        if hasattr(module, key):
            both = (getattr(m, key) for m in (module, back))
            one, other = ({v} if isinstance(v, int | str) else set(v) for v in both)
            assert one == other, key


def test_a_layer_keeps_its_graph_and_makes_it_anew_when_it_changes():
    layer = layers.gcn(3, 2)
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    x = torch.randn(4, 3)
    first = layer(x, edge_index=edges)
    kept = layer.family(x, edge_index=edges)[0]
    assert layer.family(x, edge_index=edges)[0] is kept
    assert layer.family(x, edge_index=edges.clone())[0] is not kept
    edges[1, 0] = 3
    changed = layer(x, edge_index=edges)
    assert not torch.equal(first, changed)
    torch.testing.assert_close(changed, copy.deepcopy(layer)(x, edge_index=edges.clone()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixedProduct(Own(), Full(2, 3, 3)), "structure has 1 operators and the values 2 matrices"),
        (lambda: MixedProduct(Own(), Full(1, 3, 3), law="rows"), "law is 'rows'; expected one of none, row"),
        (lambda: MixedProduct(Attention(4, 2), Full(2, 4, 4), law="row"), "have a law already"),
        (lambda: Together(Own(), Taps(Kernel((2, 2)))), "on a line"),
        (lambda: layers.gat(2, 2)(torch.randn(3, 4, 2), edge_index=torch.zeros(2, 1, dtype=torch.int64)), "as PyG does"),
        (lambda: Propagation(degree="in"), "degree is 'in'; expected one of own, received, given"),
        (lambda: Shifts([1, 1]), "each of them once"),
        (lambda: Shifts([]), "at least one"),
        (lambda: Full(1, 4, 6, groups=4), "expected a divisor of both"),
        (lambda: LowRank(3, 4, 4), "3 heads do not divide 4 channels"),
        (lambda: Kernel((3,), border="wrap"), "one of zeros, circular, reflect, replicate"),
        (lambda: layers.conv(2, 2, 3, padding="full"), "padding is 'full'"),
        (lambda: layers.rgcn(2, 2, 3, regrouped=True), "pass bases="),
        (lambda: Attention(4, 2, mixer="flow", bias=True, causal=True, preset="nlp", extra=("zero",)), "no place in it"),
        (lambda: layers.attention(4, 2, add_bias_kv=True, mixer="flow")(torch.randn(3, 4), attn_mask=torch.ones(3, 3, dtype=torch.bool).triu(1)), "no place in it"),
        (lambda: Attention(4, 2, mixer="softmacs"), "Did you mean 'softmax'"),
        (lambda: Given([Dense(torch.rand(2, 3)), Dense(torch.rand(3, 3))]), r"\(2, 3\), \(3, 3\); expected one"),
        (lambda: Union(Given([Dense(torch.rand(2, 3))]), Given([Dense(torch.rand(3, 3))])), "expected the same"),
        (lambda: Blends(Given([Dense(torch.rand(2, 3))]), torch.rand(2, 2)), r"expected \(blends, 1\)"),
        (lambda: from_torch(nn.Conv1d(2, 2, 3))(torch.randn(1, 2, 2)), "shorter than the 3 places"),
        (lambda: from_torch(nn.Conv1d(2, 2, 3))(torch.randn(1, 9, 3)), r"expected \(..., m, 2\)"),
        (lambda: from_torch(nn.AvgPool1d(2, ceil_mode=True)), "ceil_mode=True has no counterpart"),
        (lambda: from_torch(nn.MultiheadAttention(4, 2, dropout=0.1)), "dropout=0.1 has no counterpart"),
        (lambda: to_torch(layers.gcn(2, 2)), "no layer for Propagation with values Full"),
        (lambda: to_torch(MixedProduct(Average(Kernel((3,))), Full(1, 2, 2))), "no layer for Average with values Full"),
        (lambda: to_torch(MixedProduct(Average(Kernel((3,), dilation=(2,))), Carried(1), bias=False)), "pools neighbouring"),
        (lambda: to_torch(layers.attention(6, 3, shared=1)), "no shared keys"),
        (lambda: to_torch(MixedProduct(Own(), Full(1, 2, 2), law="row")), "under law row"),
        (lambda: layers.attention(4, 2, kdim=3)(torch.randn(5, 4)), r"key has shape \(5, 4\); expected \(..., tokens, 3\)"),
        (lambda: Shifts([-9])(torch.randn(5, 2)), "offset inside the length"),
        (lambda: layers.gmm(2, 2, 3, 2)(torch.randn(4, 2), edge_index=torch.zeros(2, 1, dtype=torch.int64), edge_attr=torch.ones(1, 2)), r"expected \(1, 3\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_mistakes():
    with pytest.raises(
        TypeError, match=r"ReLU is not a layer that is known here; expected one of Linear, Conv1d"
    ):
        from_torch(nn.ReLU())
    with pytest.raises(TypeError, match=r"Propagation takes no 'edges'; it takes edge_index, edge_weight"):
        layers.gcn(2, 2)(torch.randn(3, 2), edges=None)
    with pytest.raises(TypeError, match=r"Propagation needs 'edge_index'"):
        layers.gcn(2, 2)(torch.randn(3, 2))
    mask = torch.rand(5, 5)
    with pytest.raises(ValueError, match="not the causal mask"):
        layers.attention(4, 2, mixer="flow")(torch.randn(5, 4), attn_mask=mask)
    with pytest.raises(ValueError, match="pass one"):
        layers.attention(4, 2)(
            torch.randn(5, 4),
            key_padding_mask=torch.zeros(5, dtype=torch.bool),
            sources=Tokens.of(5, mass=torch.ones(5)),
        )


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_that_only_look_like_a_known_one_are_refused():
    import torch_geometric.nn as pyg

    for make, message in (
        (lambda: pyg.GCNConv(3, 2, aggr="max"), "aggr='max' has no counterpart here; expected 'add'"),
        (lambda: pyg.ChebConv(3, 2, 2, aggr="mean"), "aggr='mean'"),
        (lambda: pyg.TAGConv(3, 2, aggr="mean"), "aggr='mean'"),
        (lambda: pyg.GATConv(3, 2, aggr="mean"), "aggr='mean'"),
        (lambda: pyg.TransformerConv(3, 2, aggr="mean"), "aggr='mean'"),
        (lambda: pyg.SAGEConv(3, 2, flow="target_to_source"), "flow='target_to_source'"),
        (lambda: pyg.SAGEConv((3, 5), 2), r"in_channels=\(3, 5\) has two kinds of nodes"),
        (lambda: pyg.GATConv((3, 3), 2), "two kinds of nodes"),
        (lambda: pyg.GCNConv(-1, 2), "call it once, then convert it"),
        (lambda: nn.LazyLinear(2), "call it once, then convert it"),
    ):
        with pytest.raises(ValueError, match=message):
            from_torch(make())
    with pytest.raises(TypeError, match="Doubled is a Linear with a forward of its own"):
        from_torch(Doubled(2, 2))
    x, peer = torch.randn(4, 3), pyg.Linear(3, 2)
    torch.testing.assert_close(from_torch(peer)(x), peer(x))
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    torch.testing.assert_close(from_torch(weighted)(x), weighted(x))


def test_packed_sets_are_kept_apart_or_refused():
    packed = Tokens.of(6, batch=torch.tensor([0, 0, 0, 1, 1, 1]))
    x = torch.randn(6, 4)
    for layer in (
        layers.conv(4, 2, 3, padding=1),
        layers.conv(4, 2, 3, padding=1, bias=False),
        layers.average_pool(3, 1, 1),
    ):
        with pytest.raises(ValueError, match="reads across their sets; pad the batch, or take Shifts"):
            layer(x, sources=packed, targets=packed)
    added = layers.attention(4, 2, add_bias_kv=True)
    with pytest.raises(ValueError, match="every set would need them"):
        added(x, sources=packed)
    own = layers.linear(4, 2)
    torch.testing.assert_close(own(x, sources=packed, targets=packed), own(x))


def test_a_causal_layer_does_not_see_the_future():
    x, later = torch.randn(1, 8, 6), torch.randn(1, 8, 6)
    later[:, :5] = x[:, :5]
    for mixer in ("softmax", "flow", "diffusion", "linear"):
        layer = layers.attention(6, 2, mixer=mixer, causal=True)
        torch.testing.assert_close(layer(x)[:, :5], layer(later)[:, :5])


def test_the_generic_products_equal_the_convolution():
    for kernel in (
        Kernel((3,), stride=(2,), padding=((2, 1),)),
        Kernel((2, 3), dilation=(2, 1), padding=((0, 0), (1, 1)), border="reflect"),
        Kernel((3,), stride=(2,), padding=((1, 1),), transposed=True, output_padding=(1,)),
    ):
        size = (7, 6)[: len(kernel.taps)]
        conv = Convolution(kernel, size, F64, torch.device("cpu"))
        x = torch.randn(2, torch.Size(size).numel(), 4, dtype=F64)
        theta = torch.randn(len(conv), 4, 3, dtype=F64)
        torch.testing.assert_close(conv.mixed(x, theta), Family.mixed(conv, x, theta))
        assert conv.mixed(x[:0], theta).shape == (0, conv.shape[0], 3)


def test_half_precision_and_compile():
    layer = layers.attention(8, 2).to(torch.bfloat16)
    assert layer(torch.randn(2, 5, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    conv = layers.conv(4, 4, 3, padding=1)
    x = torch.randn(2, 9, 4)
    torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="aot_eager")(x), conv(x))
    taps = Taps(Kernel((3,)))
    assert taps.grid((5,)) == (3,)


GRAPH_LAYERS = {
    "gcn": lambda: layers.gcn(3, 2, dtype=F64),
    "cheb": lambda: layers.cheb(3, 2, 3, dtype=F64),
    "tag": lambda: layers.tag(3, 2, dtype=F64),
    "sage": lambda: layers.sage(3, 2, dtype=F64),
    "rgcn": lambda: layers.rgcn(3, 2, 2, dtype=F64),
    "gmm": lambda: layers.gmm(3, 2, 2, 2, dtype=F64),
    "gat": lambda: layers.gat(3, 2, 2, dtype=F64),
    "graph transformer": lambda: layers.graph_transformer(3, 2, 2, dtype=F64),
}


@pytest.mark.parametrize("name", GRAPH_LAYERS)
def test_a_node_of_mass_0_is_absent_from_a_graph_layer(name):
    layer = GRAPH_LAYERS[name]()
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
    given = {"edge_index": edges, "edge_type": edges.sum(0) % 2, "edge_attr": torch.rand(8, 2, dtype=F64)}
    given = {key: value for key, value in given.items() if key in layer.structure.takes()}
    x, mass = torch.randn(6, 3, dtype=F64), torch.tensor([1.0, 1, 0, 2, 1, 0.5], dtype=F64)
    x[2] = 1e3
    tokens = Tokens.of(6, mass=mass)
    got = layer(x, sources=tokens, targets=tokens, **given)
    there, keep = mass > 0, (mass[edges] > 0).all(0)
    new = there.cumsum(0) - 1
    rest = {key: value[..., keep] if key != "edge_attr" else value[keep] for key, value in given.items()}
    rest["edge_index"] = new[rest["edge_index"]]
    few = Tokens.of(5, mass=mass[there])
    want = layer(x[there], sources=few, targets=few, **rest)
    torch.testing.assert_close(got[there], want)


@pytest.mark.parametrize("name", [name for name in GRAPH_LAYERS if name not in ("gat", "graph transformer")])
def test_a_graph_layer_takes_a_mass_for_every_batch_entry(name):
    layer = GRAPH_LAYERS[name]()
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    given = {"edge_index": edges, "edge_type": edges.sum(0) % 2, "edge_attr": torch.rand(4, 2, dtype=F64)}
    given = {key: value for key, value in given.items() if key in layer.structure.takes()}
    x, mass = torch.randn(4, 3, 3, dtype=F64), torch.rand(4, 3, dtype=F64)
    several = [Tokens(3, mass), *(Tokens(3, m) for m in mass)]
    together, *alone = (
        layer(points, sources=tokens, targets=tokens, **given)
        for points, tokens in zip([x, *x], several, strict=True)
    )
    torch.testing.assert_close(together, torch.stack(alone))
