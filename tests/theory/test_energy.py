"""The energy, its closed forms, and the theorem: within the bound no step raises it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osmose.energy import Custom, DescentMonitor, Energy, Gaussian, Sigmoid, Simple
from osmose.operators import Graph, Pairwise
from osmose.tokens import Tokens

F64 = torch.float64
WEIGHTS = [Simple(), Sigmoid(), Gaussian(0.7), Custom(lambda u: torch.log1p(u), name="log")]


def sphere(n, d=3, seed=0):
    x = torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


def dense_potential(weight, z, m, lam, a=None, lam_g=0.0, x=None, mu=0.0):
    """V straight from its definition."""
    u = (z[:, None] - z[None]).square().sum(-1)
    pair = m[:, None] * m[None]
    value = lam * (pair * weight.delta(u)).sum()
    if a is not None:
        value = value + lam_g * (pair * a * u).sum()
    if x is not None:
        value = value + mu * (m * (z - x).square().sum(-1)).sum()
    return value


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_f_is_the_derivative_of_delta_and_delta_starts_at_zero(weight):
    u = torch.linspace(0, 4, 50, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(weight.delta(u).sum(), u)
    torch.testing.assert_close(weight.f(u), slope)
    assert abs(float(weight.delta(torch.zeros(1, dtype=F64)))) < 1e-15
    assert (weight.f(u).diff() <= 1e-12).all()
    assert (weight.f(u) >= -1e-12).all()


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_the_operator_is_f_of_the_squared_distances(weight):
    z = sphere(6)
    want = weight.f((z[:, None] - z[None]).square().sum(-1))
    torch.testing.assert_close(weight.operator(z).to_dense(), want)


def test_kernels_on_the_sphere_are_those_of_the_paper():
    z = sphere(6)
    c = z @ z.T
    torch.testing.assert_close(Simple().operator(z).to_dense(), 1 + c)
    torch.testing.assert_close(Sigmoid().operator(z).to_dense(), c.sigmoid())
    gaussian = Gaussian(2.0).operator(z).to_dense()
    torch.testing.assert_close(gaussian / gaussian.sum(-1, keepdim=True), (2 * c).softmax(-1))


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
@pytest.mark.parametrize("layout", ["one set", "packed", "padded"])
def test_potential_equals_its_definition(weight, layout):
    z, x, m = sphere(9), sphere(9, seed=1), torch.rand(9, dtype=F64) + 0.1
    sizes = {"one set": [9], "packed": [4, 0, 5], "padded": [4, 5]}[layout]
    a = torch.rand(9, 9, dtype=F64)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    a = torch.where(batch[:, None] == batch[None], a + a.T, 0.0)
    want = [
        dense_potential(weight, *(t.split(sizes)[i] for t in (z, m)), 0.3, a[batch == i][:, batch == i], 0.2,
                        x.split(sizes)[i], 0.5) for i in range(len(sizes))
    ]  # fmt: skip
    if layout == "padded":
        tokens = Tokens.of(9, batch=batch)
        (z, t), (x, _), (m, _) = tokens.pad(z), tokens.pad(x), tokens.pad(m[:, None])
        energy = Energy(weight, strength=0.3, source=x, source_strength=0.5, tokens=t.with_mass(m[..., 0]))
        want = [w - 0.2 * dense_potential(weight, s, k, 0.0, b, 1.0) for w, s, k, b in zip(
            want, [z[0, :4], z[1]], [m[0, :4, 0], m[1, :, 0]], [a[:4, :4], a[4:, 4:]], strict=True)]  # fmt: skip
    else:
        target, source = a.nonzero(as_tuple=True)
        graph = Graph(torch.stack([source, target]), a[target, source], 9)
        tokens = Tokens.of(9, mass=m, **({} if layout == "one set" else {"batch": batch}))
        energy = Energy(
            weight,
            strength=0.3,
            graph=graph,
            graph_strength=0.2,
            source=x,
            source_strength=0.5,
            tokens=tokens,
        )
    got = energy.potential(z)
    torch.testing.assert_close(got.reshape(-1), torch.stack(want))
    moved = z + 0.1
    proximal = energy(moved, z) - energy.potential(moved)
    total = (
        tokens.with_mass(m if layout != "padded" else m[..., 0]).total()
        if layout != "padded"
        else m[..., 0].sum(-1)
    )
    torch.testing.assert_close(proximal, 3 * 0.01 * total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_the_step_is_preconditioned_gradient_descent(weight):
    """At the current state the majorant touches V, so the move is -tau grad V / (4 m c)."""
    z, x, m = sphere(7).requires_grad_(), sphere(7, seed=1), torch.rand(7, dtype=F64) + 0.1
    graph = Graph(torch.tensor([[0, 1, 2, 6], [1, 0, 5, 3]]), torch.rand(4, dtype=F64), 7)
    energy = Energy(
        weight, strength=0.4, graph=graph, source=x, source_strength=0.8, tokens=Tokens.of(7, mass=m)
    )
    (slope,) = torch.autograd.grad(energy.potential(z), z)
    c = (energy.kernel(z) @ m[:, None]) + 0.4
    torch.testing.assert_close(energy.step(z, 0.3), z - 0.3 * slope / (4 * m[:, None] * c))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(WEIGHTS), st.floats(-4, 1), st.booleans(), st.booleans(), st.integers(2, 12),
    st.floats(0.05, 1.0),
)  # fmt: skip
def test_energy_never_rises_within_the_bound(seed, weight, log_strength, with_graph, with_source, n, share):
    g = torch.Generator().manual_seed(seed)
    z, x = sphere(n, 4, seed), sphere(n, 4, seed + 1)
    mass = torch.rand(n, dtype=F64, generator=g) + 1e-2
    graph = None
    if with_graph:
        graph = Graph(
            torch.randint(0, n, (2, 2 * n), generator=g), torch.rand(2 * n, dtype=F64, generator=g), n
        )
    energy = Energy(
        weight,
        strength=10**log_strength,
        graph=graph,
        source=x if with_source else None,
        tokens=Tokens.of(n, mass=mass),
    )
    before = energy.potential(z)
    for _ in range(5):
        bound = energy.max_step(z)
        assert 0 < bound <= 1
        after = energy.step(z, share * bound)
        assert energy.inside_domain(after)
        slack = 1e-12 * (1 + float(before.abs()))
        assert energy(after, z) <= before + slack
        z, before = after, energy.potential(after)


def test_beyond_the_bound_the_energy_can_rise():
    """The bound is not vacuous: weak attraction and a step of 0.9 raise the energy (sigmoid, lambda = 0.01)."""
    energy = Energy("sigmoid", strength=0.01)
    z = 3 * sphere(6)
    assert energy.max_step(z) < 0.9
    assert energy(energy.step(z, 0.9), z) > energy.potential(z)


def test_the_bound_is_four_lambda_d_over_four_lambda_d_plus_one():
    z = sphere(5)
    d = (1 + z @ z.T).sum(-1).min()
    torch.testing.assert_close(Energy(strength=0.3).max_step(z), 1.2 * d / (1.2 * d + 1))


def test_sets_of_a_batch_have_their_own_bounds_steps_and_strengths():
    z = sphere(7)
    tokens = Tokens.of(7, batch=torch.tensor([1, 0, 1, 0, 0, 1, 1]))
    strength = torch.tensor([0.2, 0.01], dtype=F64)
    energy = Energy(strength=strength, tokens=tokens)
    out, bounds, values = energy.step(z), energy.max_step(z), energy.potential(z)
    for s in range(2):
        inside = tokens.batch == s
        alone = Energy(strength=float(strength[s]))
        torch.testing.assert_close(out[inside], alone.step(z[inside]))
        torch.testing.assert_close(bounds[s], alone.max_step(z[inside]))
        torch.testing.assert_close(values[s], alone.potential(z[inside]))


def test_mass_zero_and_empty_sets_are_still():
    z = sphere(4)
    energy = Energy(
        tokens=Tokens.of(4, mass=torch.tensor([1.0, 1, 0, 0]), batch=torch.tensor([0, 0, 0, 1]), num_sets=3)
    )
    assert energy.potential(z).shape == (3,)
    assert energy.max_step(z)[1:].eq(1).all()
    assert torch.isfinite(energy.step(z)).all()
    lonely = Energy(strength=0.0, graph=Graph(torch.tensor([[0], [1]]), torch.ones(1, dtype=F64), 4))
    assert lonely.step(z, 0.5)[2:].equal(z[2:])


def test_domain_is_exact_where_the_cheap_test_is_not_enough():
    line = torch.tensor([[0.0], [0.1], [1.9]], dtype=F64)  # diameter 1.9 < 2, yet 4 r^2 > 4 about the mean
    assert 4 * (line - line.mean()).square().max() > 4
    assert Energy().inside_domain(line)
    assert not Energy().inside_domain(2 * line)
    assert Energy("sigmoid").inside_domain(100 * line)
    assert Energy(tokens=Tokens.of(3, batch=torch.tensor([0, 0, 1]))).inside_domain(2 * line)
    assert Energy(tokens=Tokens.of(3, mask=torch.tensor([True, True, False]))).inside_domain(2 * line)


@pytest.mark.parametrize(
    ("delta", "says"),
    [
        (lambda u: u.square(), "rises"),
        (lambda u: -u, "decreases"),
        (lambda u: torch.sqrt(u), "not finite"),
    ],
)
def test_a_users_delta_is_checked(delta, says):
    with pytest.raises(ValueError, match=says):
        Custom(delta)


def test_a_users_f_is_checked():
    with pytest.raises(ValueError, match="not the derivative"):
        Custom(lambda u: u, lambda u: torch.full_like(u, 2.0))
    Custom(lambda u: 2 * u - u.square() / 4, lambda u: 2 - u / 2)


def test_energy_checks_its_arguments():
    with pytest.raises(ValueError, match="strength is -1"):
        Energy(strength=-1)
    with pytest.raises(ValueError, match="negative weights"):
        Energy(graph=Graph(torch.tensor([[0], [1]]), torch.tensor([-1.0]), 2))
    with pytest.raises(ValueError, match="simple, sigmoid, gaussian"):
        Energy("cosine")
    with pytest.raises(ValueError, match="beta"):
        Gaussian(0)


def test_monitor_reports_what_happened():
    z = sphere(6)
    energy = Energy("sigmoid", strength=0.01)
    monitor = DescentMonitor()
    tau = energy.max_step(z)
    monitor(z, energy.step(z, tau), tau, energy)
    wide = 3 * z
    monitor(wide, energy.step(wide, 0.9), 0.9, energy)
    monitor(z, z.flip(0), 0.5)
    inside, outside, foreign = monitor.reports
    assert inside.covered
    assert inside.descended
    assert not outside.covered
    assert not outside.descended
    assert not foreign.covered
    assert math.isclose(inside.step, inside.max_step)
    assert [row["layer"] for row in monitor.table()] == [0, 1, 2]


def test_simple_is_the_taylor_expansion_of_the_gaussian():
    z = sphere(5)
    first = Pairwise.gaussian(z, z, 1e-3).to_dense()
    c = z @ z.T
    torch.testing.assert_close((first * math.exp(1e-3) - 1) / 1e-3, c, rtol=2e-3, atol=1e-3)
