"""Observables of particle states: dense formulas, invariances, masses, streaming, large beta."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from osmose.dynamics import observables as obs
from osmose.dynamics.observables import _points

F64 = torch.float64


def sphere(*shape, seed=0):
    x = torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


def pull(x, beta, model="SA", mass=None):
    """The field of SA or USA, dense."""
    m = torch.ones(x.shape[:-1], dtype=x.dtype) if mass is None else mass
    w = torch.exp(beta * x @ x.mT) * m.unsqueeze(-2)
    w = w / (w.sum(-1, keepdim=True) if model == "SA" else m.sum(-1)[..., None, None])
    a = w @ x
    return a - (a * x).sum(-1, keepdim=True) * x


def dense_energy(x, beta, m):
    pairs = torch.exp(beta * x @ x.mT) * m.unsqueeze(-1) * m.unsqueeze(-2)
    return pairs.sum((-1, -2)) / m.sum(-1) ** 2 / (2 * beta)


def renyi_count(x, mass=None, strong=False):
    return obs.renyi_centres(x, 0.7, mass, strong=strong).sum(-1)


# functions of the set of tokens on the sphere: a value for each state
OF_THE_SET = {
    "energy": partial(obs.energy, beta=2.0),
    "energy at 0": partial(obs.energy, beta=0.0),
    "repulsive energy": partial(obs.energy, beta=-2.0),
    "log_interaction": partial(obs.log_interaction, beta=300.0),
    "normalised_energy": partial(obs.normalised_energy, beta=3.0),
    "histogram": lambda x, mass=None: obs.product_histogram(x, 16, mass=mass).share,
    "histogram with diagonal": lambda x, mass=None: (
        obs.product_histogram(x, 16, mass=mass, diagonal=True).share
    ),
    "close_share": partial(obs.close_share, gap=0.1),
    "close_share, exact": partial(obs.close_share, gap=1e-13),
    "mean_product": obs.mean_product,
    "mean_product with diagonal": partial(obs.mean_product, diagonal=True),
    "cluster_count": partial(obs.cluster_count, scale=0.5),
    "cluster masses": lambda x, mass=None: (
        obs.clusters(x, 0.5, mass).masses(mass).sort(-1, descending=True).values
    ),
    "order_parameter": obs.order_parameter,
    "distance_to_dirac": obs.distance_to_dirac,
    "distance in space": partial(obs.distance_to_dirac, on="space"),
    "effective_rank": obs.effective_rank,
    "stable rank": partial(obs.effective_rank, kind="stable"),
    "gram_spectrum": obs.gram_spectrum,
    "diameter": obs.diameter,
    "closest": obs.closest,
    "hull_volume": obs.hull_volume,
    "hemisphere_margin": obs.hemisphere_margin,
    "total entropy": lambda x, mass=None: (
        obs.attention_entropy(obs.attention_operator(x, 2.0, mass), mass)
        * (torch.ones(x.shape[:-1], dtype=F64) if mass is None else mass)
    ).sum(-1),
    "leaders": lambda x, mass=None: obs.leaders(1.5 * x * (1 + x[..., :1] ** 2), mass).any(-1),
}
ORDERED = {"centres": renyi_count, "strong centres": partial(renyi_count, strong=True)}
TURNED = {name: f for name, f in OF_THE_SET.items() if name != "leaders"}


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, check_dtype=False)


@pytest.mark.parametrize("name", OF_THE_SET)
def test_the_order_of_tokens_does_not_matter(name):
    x = sphere(3, 9, 3)
    shuffle = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    same(OF_THE_SET[name](x[:, shuffle]), OF_THE_SET[name](x))


@pytest.mark.parametrize("name", TURNED | ORDERED)
def test_rotations_and_reflections_do_not_matter(name):
    function = (TURNED | ORDERED)[name]
    x = sphere(3, 9, 3)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(2))).Q
    same(function(x @ turn), function(x))


@pytest.mark.parametrize("name", OF_THE_SET | ORDERED)
def test_a_token_of_mass_two_is_two_tokens(name):
    function = (OF_THE_SET | ORDERED)[name]
    x = sphere(2, 7, 3, seed=4)
    mass = torch.ones(2, 7, dtype=F64)
    mass[:, 2], mass[:, 5] = 2, 3
    doubled = torch.cat([x, x[:, 2:3], x[:, 5:6], x[:, 5:6]], -2)
    want, got = function(doubled), function(x, mass=mass)
    if name == "gram_spectrum":
        want = want[..., : got.shape[-1]]
    same(got, want)


@pytest.mark.parametrize("name", OF_THE_SET | ORDERED)
def test_a_token_of_mass_zero_is_absent_whatever_it_holds(name):
    function = (OF_THE_SET | ORDERED)[name]
    x = sphere(2, 7, 3, seed=4)
    padded = torch.cat([x[:, :3], torch.full((2, 1, 3), torch.nan, dtype=F64), x[:, 3:]], -2)
    mass = torch.ones(2, 8, dtype=F64)
    mass[:, 3] = 0
    same(function(padded, mass=mass), function(x))


@pytest.mark.parametrize("name", OF_THE_SET | ORDERED)
def test_a_state_alone_and_in_a_batch(name):
    function = (OF_THE_SET | ORDERED)[name]
    x = sphere(4, 6, 3, seed=5)
    together = function(x.view(2, 2, 6, 3))
    for i in range(4):
        alone = function(x[i])
        same(together[i // 2, i % 2][: len(alone)] if alone.ndim else together[i // 2, i % 2], alone)


@pytest.mark.parametrize("name", OF_THE_SET | ORDERED)
def test_streamed_in_small_tiles_is_the_same(name, monkeypatch):
    function = (OF_THE_SET | ORDERED)[name]
    x = sphere(3, 11, 3, seed=6)
    whole = function(x)
    monkeypatch.setattr(_points, "TILE", 4)
    monkeypatch.setattr(_points, "ENTRIES", 20)
    same(function(x), whole)


@pytest.mark.parametrize("name", OF_THE_SET)
def test_an_empty_state_gives_no_nan(name):
    x = sphere(2, 4, 3)
    value = OF_THE_SET[name](x, mass=torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]], dtype=F64))
    assert not value.isnan().any()


@pytest.mark.parametrize("beta", [-4.0, 0.3, 6.0])
def test_energy_is_its_formula(beta):
    x, m = sphere(2, 8, 3), torch.rand(2, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    want = dense_energy(x, beta, m)
    same(obs.energy(x, beta, m), want)
    same(obs.energy(x, beta, m, log_scale=1.5), want * math.exp(-1.5))
    same(obs.log_interaction(x, beta, m), (2 * beta * want).log())
    same(obs.normalised_energy(x, beta, m), 2 * beta * math.exp(-beta) * want)
    b = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    scores = torch.einsum("bnd,ed,bme->bnm", x, b, x)  # <B x_i, x_j>
    weights = m.unsqueeze(-1) * m.unsqueeze(-2) / m.sum(-1)[:, None, None] ** 2
    same(obs.energy(x, beta, m, bilinear=b), ((beta * scores).exp() * weights).sum((-1, -2)) / (2 * beta))


def test_energy_takes_a_beta_for_each_state_and_has_a_limit_at_zero():
    x = sphere(3, 6, 3)
    together = obs.energy(x, torch.tensor([0.0, 1.0, 4.0], dtype=F64))
    for i, beta in enumerate((0.0, 1.0, 4.0)):
        same(together[i], obs.energy(x[i], beta))
    small = 1e-6
    y = sphere(3, 6, 3, seed=9)
    near = obs.energy(x, small) - obs.energy(y, small)
    torch.testing.assert_close(obs.energy(x, 0.0) - obs.energy(y, 0.0), near, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_large_beta_does_not_overflow(dtype):
    x = sphere(2, 6, 3).to(dtype)
    for beta in (1e3, 1e5):
        assert torch.isfinite(obs.log_interaction(x, beta)).all()
        torch.testing.assert_close(
            obs.normalised_energy(x, beta), torch.full((2,), 1 / 6, dtype=dtype), rtol=0.02, atol=0
        )
        v = 1e-3 * sphere(2, 6, 3, seed=1).to(dtype)
        for function in (obs.energy_rate, obs.dissipation):
            assert torch.isfinite(function(x, v, beta, log_scale=beta)).all()
        assert torch.isfinite(obs.attention_entropy(obs.attention_operator(x, beta, causal=True))).all()


@pytest.mark.parametrize("model", ["SA", "USA"])
@pytest.mark.parametrize("beta", [-2.0, 0.0, 3.0])
def test_dissipation_is_the_derivative_of_the_energy(model, beta):
    x = sphere(2, 7, 3)
    m = torch.rand(2, 7, dtype=F64, generator=torch.Generator().manual_seed(3)) + 0.2
    v = pull(x, beta, model, m)
    step = 1e-5
    ahead, behind = (y / y.norm(dim=-1, keepdim=True) for y in (x + step * v, x - step * v))
    numeric = (obs.energy(ahead, beta, m) - obs.energy(behind, beta, m)) / (2 * step)
    torch.testing.assert_close(obs.energy_rate(x, v, beta, m), numeric, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(obs.dissipation(x, v, beta, m, model=model), numeric, rtol=1e-7, atol=1e-10)
    if model == "USA":  # per unit of e^beta t
        scaled = obs.dissipation(x, v * math.exp(-beta), beta, m, model="USA", scaled=True, log_scale=0.4)
        same(scaled, obs.dissipation(x, v, beta, m, model="USA") * math.exp(-beta - 0.4))


def test_rates_of_a_symmetric_bilinear_form_and_of_any_velocity():
    x, v = sphere(6, 3), sphere(6, 3, seed=1)
    b = torch.diag(torch.tensor([2.0, -1.0, 0.5], dtype=F64))
    step = 1e-6
    numeric = (obs.energy(x + step * v, 1.5, bilinear=b) - obs.energy(x - step * v, 1.5, bilinear=b)) / (
        2 * step
    )
    torch.testing.assert_close(obs.energy_rate(x, v, 1.5, bilinear=b), numeric, rtol=1e-7, atol=1e-10)
    w = torch.exp(1.5 * x @ b @ x.T)
    force = (w / w.sum(-1, keepdim=True)) @ x @ b  # SA with Q^T K = V = B, in the open space
    gain = obs.dissipation(x, force, 1.5, bilinear=b)
    torch.testing.assert_close(gain, obs.energy_rate(x, force, 1.5, bilinear=b))
    with pytest.raises(ValueError, match="not symmetric"):
        obs.energy_rate(x, v, 1.0, bilinear=torch.ones(3, 3, dtype=F64).triu())


@pytest.mark.parametrize("diagonal", [True, False])
def test_histogram_is_numpys(diagonal):
    x = sphere(2, 9, 3)
    found = obs.product_histogram(x, 10, low=-1, high=1, diagonal=diagonal)
    for i in range(2):
        g = (x[i] @ x[i].T).numpy()
        g = g.ravel() if diagonal else g[~np.eye(9, dtype=bool)]
        want, edges = np.histogram(g.clip(-1, 1), 10, (-1, 1))
        assert found.edges.numpy() == pytest.approx(edges)
        same(found.share[i] * found.pairs[i], torch.tensor(want, dtype=F64))
    assert found.density.sum(-1) * 0.2 == pytest.approx([1, 1])
    assert float(found.centres[0]) == pytest.approx(-0.9)
    aligned = obs.product_histogram(torch.ones(4, 1), 4)  # 1 belongs to the last bin
    assert aligned.share.tolist() == [0, 0, 0, 1]


def test_mean_product_is_the_mean_over_pairs():
    x = sphere(4, 9, 3, seed=3)
    g = x @ x.mT
    off = g[:, ~torch.eye(9, dtype=torch.bool)].mean(-1)
    torch.testing.assert_close(obs.mean_product(x), off, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(obs.mean_product(x, diagonal=True), obs.order_parameter(x).square())
    assert obs.mean_product(x[:, :1]).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="diagonal=True"):
        obs.mean_product(x, mass=torch.full((9,), 0.5))


def test_close_share_in_float32_has_no_floor():
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [1.0, 1e-5]])
    assert float(obs.close_share(x, 1e-9)) == pytest.approx(2 / 6)  # 1 - <x, y> is 5e-9, 4.05e-9, 5e-11
    assert float(obs.close_share(x, 4.5e-9)) == pytest.approx(4 / 6)
    tight = x[:2]
    torch.testing.assert_close(obs.gap(tight[0], tight[1]), torch.tensor(5e-9))
    torch.testing.assert_close(obs.gaps(x)[0, 2], torch.tensor(5e-11))
    torch.testing.assert_close(obs.diameter(x), torch.tensor(1e-4))
    torch.testing.assert_close(obs.closest(x), torch.tensor(1e-5))
    assert obs.closest(x[:1]) == math.inf
    y = torch.tensor([[1.0, 1e-5], [1.0, -1e-5]]).double()
    y = (y / y.norm(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(obs.distance_to_dirac(y), torch.tensor(1e-5), rtol=1e-4, atol=0)


def by_scipy(x, scale):
    return fcluster(linkage(x.numpy(), "single"), scale, "distance")


def partition(labels):
    return {tuple(np.flatnonzero(np.asarray(labels) == c).tolist()) for c in set(np.asarray(labels).tolist())}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 120),
    st.integers(1, 4),
    st.floats(-2.5, 0.3),
    st.sampled_from([1, 20, 500]),
)
def test_clusters_are_single_linkage(seed, n, d, log_scale, clump):
    """All three ways, against SciPy's dendrogram cut at the scale."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=F64, generator=g) / clump + torch.randint(-1, 2, (n, d), generator=g)
    scale = 10**log_scale
    want = partition(by_scipy(x, scale))
    small = obs.clusters(x, scale)
    assert partition(small.labels) == want
    assert int(small.count) == len(want)
    from osmose.dynamics.observables import linkage as module

    assert partition(module._grown(x, scale)) == want
    if d <= 3:
        assert partition(module._grid(x.numpy(), scale)) == want


def test_clusters_are_transitive_and_numbered_as_they_come():
    line = torch.tensor([[5.0], [0.0], [1.0], [2.0], [9.0], [5.5]])
    found = obs.clusters(line, 1.0)
    assert found.labels.tolist() == [0, 1, 1, 1, 2, 0]
    assert found.masses().tolist() == [2, 3, 1]
    assert found.means(line).squeeze(-1).tolist() == [5.25, 1.0, 9.0]
    mass = torch.tensor([1.0, 1, 0, 1, 1, 3])  # without the token at 1 the chain breaks
    found = obs.clusters(line, 1.0, mass)
    assert found.labels.tolist() == [0, 1, -1, 2, 3, 0]
    assert found.masses(mass).tolist() == [4, 1, 1, 1]
    assert found.means(line, mass)[0].item() == pytest.approx((5 + 3 * 5.5) / 4)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_clusters_of_many_tokens(d):
    """More than a batch takes at once, with absent tokens, tight and loose."""
    g = torch.Generator().manual_seed(d)
    centres = 3 * torch.randn(40, d, dtype=F64, generator=g)
    x = centres[torch.randint(40, (900,), generator=g)] + 1e-3 * torch.randn(900, d, dtype=F64, generator=g)
    x[100:150] = 3 * torch.randn(50, d, dtype=F64, generator=g)
    mass = (torch.rand(900, generator=g) > 0.1).double()
    found = obs.clusters(x.expand(2, 900, d), 0.3, mass)
    here = mass > 0
    assert (found.labels[:, ~here] == -1).all()
    assert partition(found.labels[1][here]) == partition(by_scipy(x[here], 0.3))
    assert found.count.tolist() == [int(found.labels[0].max()) + 1] * 2


def test_clusters_finer_than_a_grid_can_be():
    x = torch.tensor([[0.0, 0.0], [1e-18, 0.0], [1.0, 1.0]], dtype=F64).repeat(300, 1)
    assert int(obs.cluster_count(x, 1e-17)) == 2
    assert int(obs.cluster_count(x, 1e-19)) == 3


def test_order_parameter_and_the_nearest_dirac():
    x = sphere(5, 9, 3)
    centre = x.mean(-2)
    same(obs.order_parameter(x), centre.norm(dim=-1))
    same(obs.distance_to_dirac(x), (2 * (1 - centre.norm(dim=-1))).sqrt())
    space = (x.square().sum(-1).mean(-1) - centre.square().sum(-1)).sqrt()
    same(obs.distance_to_dirac(x, on="space"), space)
    others = sphere(5, 200, 3, seed=1)  # no other point of the sphere is nearer
    away = (torch.cdist(x, others).square().mean(-2)).sqrt().amin(-1)
    assert (obs.distance_to_dirac(x) <= away + 1e-12).all()
    assert float(obs.distance_to_dirac(torch.tensor([[1.0, 0], [-1, 0]]))) == pytest.approx(2**0.5)


def test_ranks():
    assert float(obs.effective_rank(torch.eye(5))) == pytest.approx(5)
    assert float(obs.effective_rank(torch.ones(4, 3))) == pytest.approx(1)
    assert float(obs.effective_rank(torch.zeros(4, 3))) == 0
    x = sphere(7, 4)
    gram = torch.linalg.eigvalsh(x @ x.T).clamp(min=0).flip(0)[:4]
    same(obs.gram_spectrum(x), gram / gram.sum())
    same(obs.effective_rank(x, kind="stable"), gram.sum() / gram.max())


@pytest.mark.parametrize("causal", [False, True])
def test_entropy_and_boolean_distance_of_rows(causal):
    x = sphere(2, 7, 3)
    query, key = sphere(2, 3, seed=1), sphere(2, 3, seed=2)
    scores = 3 * (x @ query.T) @ (x @ key.T).mT
    if causal:
        scores = scores.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
    p = scores.softmax(-1)
    op = obs.attention_operator(x, 3.0, query=query, key=key, causal=causal)
    same(op.rows(slice(0, 7)), p)
    same(obs.attention_entropy(op), torch.special.entr(p).sum(-1))
    to_each = (p.unsqueeze(-2) - torch.eye(7, dtype=F64)).norm(dim=-1)  # rows against every Boolean row
    same(obs.boolean_distance(op), to_each.amin(-1))
    same(obs.boolean_distance(p), to_each.amin(-1))
    best = torch.nn.functional.one_hot(p.argmax(-1), 7).sum(-2)
    assert obs.listeners(op).equal(best)
    assert float(obs.attention_entropy(torch.full((1, 9), 1 / 9))) == pytest.approx(math.log(9))
    assert float(obs.boolean_distance(torch.eye(3)).max()) == 0


def test_listeners_and_rows_in_blocks():
    x = sphere(700, 3)
    op = obs.attention_operator(x, 4.0)
    p = (4 * x @ x.T).softmax(-1)
    same(obs.attention_entropy(op), torch.special.entr(p).sum(-1))
    assert obs.listeners(op).equal(torch.bincount(p.argmax(-1), minlength=700))


def test_leaders():
    x = torch.tensor([[2.0, 0.0], [0.5, 0.1], [0.0, 1.0], [-1.0, -1.0]], dtype=F64)
    a = torch.tensor([[1.0, 0.2], [0.2, 1.0]], dtype=F64)
    scores = (x @ a.T) @ x.T
    assert obs.leaders(x, matrix=a).tolist() == (scores.diagonal() >= scores.amax(-1)).tolist()
    assert obs.leaders(x).tolist() == [True, False, True, True]
    assert obs.leaders(sphere(9, 3)).all()


def greedy(x, delta):
    centres = []
    for i in range(len(x)):
        if all(math.acos(max(-1, min(1, float(x[i] @ x[j])))) > delta for j in centres):
            centres.append(i)
    return centres


@pytest.mark.parametrize("delta", [0.3, 1.0, math.pi])
def test_renyi_centres_are_a_greedy_packing(delta):
    x = sphere(3, 40, 3)
    found = obs.renyi_centres(x, delta)
    strong = obs.renyi_centres(x, delta, strong=True)
    angle = torch.acos((x @ x.mT).clamp(-1, 1))
    for s in range(3):
        assert found[s].nonzero().squeeze(-1).tolist() == greedy(x[s], delta)
        want = [i for i in range(40) if i == 0 or bool((angle[s, i, :i] > delta).all())]
        assert strong[s].nonzero().squeeze(-1).tolist() == want
    assert (found | ~strong).all()


def test_hull_volumes():
    cube = torch.tensor([[a, b, c] for a in (0.0, 2) for b in (0.0, 3) for c in (0.0, 1)])
    assert float(obs.hull_volume(cube)) == pytest.approx(6)
    assert float(obs.hull_volume(1e-9 * cube.double() + 5)) == pytest.approx(6e-27, rel=1e-4)
    assert float(obs.hull_volume(cube[:, :2])) == pytest.approx(6)
    assert float(obs.hull_volume(cube[:, :1])) == pytest.approx(2)
    flat = torch.cat([cube[:, :2], torch.zeros(8, 1)], -1)
    assert float(obs.hull_volume(flat)) == 0
    assert float(obs.hull_volume(cube[:3])) == 0
    with pytest.raises(ValueError, match="at most 6"):
        obs.hull_volume(torch.zeros(9, 7))


def test_hemisphere_margin_is_the_best_worst_inner_product():
    x = sphere(6, 2, seed=3)
    x[:, 1] = x[:, 1].abs() + 0.2
    x = x / x.norm(dim=-1, keepdim=True)
    angle = torch.linspace(0, math.pi, 20001, dtype=F64)
    best = float((torch.stack([angle.cos(), angle.sin()], -1) @ x.T).amin(-1).max())
    margin = float(obs.hemisphere_margin(x))
    assert best <= margin < best + math.pi / 20000
    assert float((x @ obs.hemisphere_pole(x)).min()) == pytest.approx(margin, rel=1e-12)
    assert float(obs.hemisphere_margin(torch.tensor([[1.0, 0], [-1, 0]]))) == 0
    assert obs.hemisphere_pole(torch.tensor([[1.0, 0], [-1, 0]])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: obs.energy(x[0, 0], 1.0), r"expected floats \(..., n, d\)"),
        (lambda x: obs.energy(x, torch.ones(3)), "beta has shape"),
        (lambda x: obs.energy(x, 1.0, torch.ones(2, 4)), "one value for each of the 5 tokens"),
        (lambda x: obs.energy(x, 1.0, -torch.ones(5)), "negative"),
        (lambda x: obs.dissipation(x, x[:1], 1.0), "velocity has shape"),
        (lambda x: obs.dissipation(x, x, 1.0, model="usa"), "'SA'"),
        (lambda x: obs.product_histogram(x, 0), "bins is 0"),
        (lambda x: obs.close_share(x, mass=torch.full((5,), 0.5)), "diagonal=True"),
        (lambda x: obs.clusters(x, 0.0), "scale is 0"),
        (lambda x: obs.cluster_scale(-1.0), "beta is -1"),
        (lambda x: obs.renyi_centres(x, 4.0), "delta is 4"),
        (lambda x: obs.effective_rank(x, kind="nuclear"), "'stable'"),
        (lambda x: obs.distance_to_dirac(x, on="ball"), "'space'"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(sphere(2, 5, 3))
