"""Clusters, pairing, codes, random points and schemes against integration, minimisation and drawing."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.optimize import minimize
from scipy.special import eval_gegenbauer

from osmose.dynamics import theory
from osmose.dynamics.observables import hemisphere_margin, renyi_centres
from osmose.dynamics.theory import CODES

from .particles import F64, MODELS, circle, field, flow, sphere


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("m1", "m2"), [(1.0, 1.0), (3.0, 0.5)])
def test_two_clusters_follow_their_equation(m1, m2, model):
    beta, t = 2.0, np.array([0.2, 0.7, 1.5])
    path = flow(circle([0.0, 1.4]), beta, t, model, np.array([m1, m2]))
    angle = [math.atan2(np.linalg.det(x), x[0] @ x[1]) for x in path]
    want = theory.two_cluster_angle(t, beta, m1, m2, start=1.4, model=model)
    assert want == pytest.approx(angle, rel=1e-6)
    back = theory.two_cluster_time(want, beta, m1, m2, start=1.4, model=model)
    assert back == pytest.approx(t, rel=1e-10)
    numeric = (theory.two_cluster_angle(0.2 + 1e-5, beta, m1, m2, start=1.4, model=model) -
               theory.two_cluster_angle(0.2 - 1e-5, beta, m1, m2, start=1.4, model=model)) / 2e-5  # fmt: skip
    assert theory.two_cluster_velocity(want[0], beta, m1, m2, model=model) == pytest.approx(numeric, rel=1e-7)


def test_two_cluster_times_scale_and_tend_to_the_asymptotic_form():
    natural = theory.two_cluster_time(0.1, 3.0, model="USA")
    assert theory.two_cluster_time(0.1, 3.0, model="USA", scaled=True) == pytest.approx(natural * math.exp(3))
    assert theory.two_cluster_time(0.0, 3.0) == math.inf
    for cosine, m2 in ((0.0, 1.0), (0.5, 4.0), (-0.6, 1.0)):
        exact = theory.two_cluster_time(1e-2, 500.0, 1.0, m2, start=math.acos(cosine), log=True)
        leading = theory.two_cluster_time_asymptotic(cosine, 500.0, 1.0, m2, log=True)
        assert exact == pytest.approx(leading, abs=0.01)


@pytest.mark.parametrize(("beta", "want"), [(4, 11.9762), (9, 467.833)])
def test_four_tokens_merge_nearly_when_two_clusters_do(beta, want):
    """Two pairs .05 wide, 90 degrees apart, until every inner product is over 1 - 1e-4: just before two clusters."""
    angles = np.array([0.0, 0.05, math.pi / 2, math.pi / 2 + 0.05])

    def velocity(_, a):
        away = a[:, None] - a[None]
        w = np.exp(beta * (np.cos(away) - 1))
        return -(w / w.sum(-1, keepdims=True) * np.sin(away)).sum(-1)

    def met(_, a):
        return 1e-4 - 2 * np.sin((a[3] - a[0]) / 2) ** 2

    met.terminal = True
    solved = solve_ivp(velocity, (0, 600), angles, method="LSODA", rtol=1e-11, atol=1e-13, events=met)
    took = solved.t_events[0][0]
    assert took == pytest.approx(want, rel=1e-6, abs=5e-5)
    exact = theory.two_cluster_time(math.acos(1 - 1e-4), beta)
    assert exact * 0.998 < took < exact


@pytest.mark.parametrize(("u0", "beta", "c"), [(0.3, 2.0, 1.0), (0.5, 8.0, 0.5), (0.05, 5.0, 2.0)])
def test_collapse_lemma(u0, beta, c):
    """The time by quadrature equals that of the equation, and is below the bound."""
    took = theory.collapse_time(u0, beta, c)

    def hit(_, s):
        return s[0] - c * beta

    hit.terminal = True
    # in s = -log(1 - u): s' = u e^{beta (u - 1)}
    solved = solve_ivp(
        lambda _, s: -np.expm1(-s) * np.exp(-beta * np.exp(-s)), (0, 1e7), [-math.log1p(-u0)],
        rtol=1e-10, atol=1e-12, events=hit, method="LSODA",
    )  # fmt: skip
    assert took == pytest.approx(solved.t_events[0][0], rel=1e-6)
    assert took < theory.collapse_time_bound(u0, beta, c)
    slope = theory.collapse_velocity(u0, beta)
    assert slope == pytest.approx(u0 * (1 - u0) * math.exp(beta * (u0 - 1)))


def test_the_cap_bound_holds_for_sa():
    beta, n = 12.0, 6
    x = circle([0.0, 0.1, 0.25, 2.5, 2.6, 2.8])
    v = field(x, beta)
    gram, rate = x @ x.T, v @ x.T + x @ v.T
    for cap in (slice(0, 3), slice(3, 6)):
        g, r = gram[cap, cap], rate[cap, cap]
        i = np.unravel_index(g.argmin(), g.shape)
        alpha = gram[:3, 3:].max()
        assert r[i] >= theory.cap_velocity_bound(g[i], beta, n, alpha)


def test_pairing_times_are_those_of_the_full_system():
    """On the clock e^beta t at large beta; the closest pair first, then the next."""
    beta, angles = 60.0, [0.0, 0.45, 1.5]
    merges = theory.pairing_sequence(circle(angles), beta, contact=0.02)
    assert [m.pair for m in merges] == [(0, 1), (0, 2)]
    assert merges[-1].masses == (3.0,)

    def velocity(_, a):
        away = a[:, None] - a[None]
        return -(np.exp(beta * (np.cos(away) - 1)) * np.sin(away)).mean(-1)

    def met(_, a):
        return a[1] - a[0] - 0.02

    met.terminal = True
    solved = solve_ivp(velocity, (0, 1e6), angles, method="LSODA", rtol=1e-9, atol=1e-12, events=met)
    assert math.log(solved.t_events[0][0]) == pytest.approx(merges[0].log_time, abs=1e-3)


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_pairing_on_the_current_clock_and_not_on_the_initial_one(beta):
    start = 1.2
    natural = np.array([0.1, 0.5]) * math.exp(-beta * math.cos(start))

    def pace(s):
        return math.exp(beta * math.cos(theory.two_cluster_angle(s, beta, start=start, model="USA")))

    tau = np.array([quad(pace, 0, t, limit=200)[0] for t in natural])
    want = theory.two_cluster_angle(natural, beta, start=start, model="USA")
    assert theory.paired_angle(tau, start) == pytest.approx(want, rel=1e-6)


def test_on_the_initial_clock_the_merge_time_goes_to_zero():
    start = 1.2
    for beta in (200.0, 400.0):
        whole = math.exp(beta * math.cos(start)) * theory.two_cluster_time(
            1e-3, beta, start=start, model="USA"
        )
        assert whole * beta * math.sin(start) ** 2 == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", list(CODES))
def test_codes_are_what_they_say(name):
    code = CODES[name]
    x = code.points()
    assert x.shape == (code.n, code.d)
    assert float((x.norm(dim=-1) - 1).abs().max()) < 1e-12
    gram = (x @ x.T).numpy()
    products, counts = np.unique(np.round(gram[0][1:], 9), return_counts=True)
    assert products == pytest.approx(code.products, abs=1e-8)
    assert counts.tolist() == list(code.multiplicity)
    for beta in (0.5, 8.0):
        assert code.energy(beta) == pytest.approx(theory.code_energy(x, beta), rel=1e-12)
    if code.d > 2:  # a spherical design: Gegenbauer sums vanish up to the strength, and not beyond
        sums = [
            eval_gegenbauer(k, code.d / 2 - 1, np.clip(gram, -1, 1)).mean()
            for k in range(1, code.strength + 2)
        ]
        assert max(abs(s) for s in sums[:-1]) < 1e-9
        assert sums[-1] > 1e-6
    sharp = code.strength >= 2 * len(code.products) - 1
    assert sharp == (name != "600-cell")


def test_families_of_codes():
    for beta in (1.0, 5.0):
        assert theory.simplex_energy(beta, 5) == pytest.approx(theory.code_energy(theory.simplex(4), beta))
        assert theory.polygon_energy(beta, 7) == pytest.approx(theory.code_energy(theory.polygon(7), beta))
        assert theory.cross_polytope_energy(beta, 4) == pytest.approx(
            theory.code_energy(theory.cross_polytope(4), beta)
        )
    gram = theory.simplex(6) @ theory.simplex(6).T
    torch.testing.assert_close(gram, (1 + 1 / 6) * torch.eye(7, dtype=F64) - 1 / 6)


@pytest.mark.parametrize("name", ["tetrahedron", "octahedron", "icosahedron"])
@pytest.mark.parametrize("beta", [1.0, 8.0])
def test_minimisation_finds_the_code_and_nothing_better(name, beta):
    code = CODES[name]

    def loss(flat):
        y = torch.tensor(flat.reshape(code.n, code.d), requires_grad=True)
        x = y / y.norm(dim=-1, keepdim=True)
        value = torch.exp(beta * (x @ x.T - 1)).mean()
        value.backward()
        return value.item(), y.grad.numpy().ravel()

    best = min(
        minimize(loss, sphere(code.n, code.d, s).numpy().ravel(), jac=True, method="L-BFGS-B",
                 options={"maxiter": 400, "ftol": 1e-15, "gtol": 1e-9}).fun
        for s in range(4)
    )  # fmt: skip
    assert code.energy(beta) - 1e-12 < best < code.energy(beta) + 1e-7


def test_wendel_by_drawing():
    """3,000 draws, a bound of five standard deviations (a false alarm in 1.7 million)."""
    draws, n, d = 3000, 8, 3
    x = torch.randn(draws, n, d, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = x / x.norm(dim=-1, keepdim=True)
    p = theory.hemisphere_probability(n, d)
    share = float((hemisphere_margin(x) > 0).double().mean())
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / draws)
    assert theory.hemisphere_probability(3, 5) == 1
    assert theory.hemisphere_probability(900, 4, log=True) == pytest.approx(
        math.log(sum(math.comb(899, k) for k in range(4))) - 899 * math.log(2), rel=1e-12
    )
    assert theory.hemisphere_probability(600, 300) == pytest.approx(0.5, abs=1e-10)  # by symmetry n = 2 d


def test_strong_centres_by_drawing():
    draws, n, delta = 400, 60, 0.3
    for d in (2, 3):
        x = torch.randn(draws, n, d, dtype=F64, generator=torch.Generator().manual_seed(d))
        count = renyi_centres(x / x.norm(dim=-1, keepdim=True), delta, strong=True).double().sum(-1)
        error = float(count.std()) / math.sqrt(draws)
        assert abs(float(count.mean()) - theory.expected_strong_centres(n, delta, d)) < 5 * error
    assert theory.cap_measure([0.4, 2.0], 2) == pytest.approx([0.4 / math.pi, 2 / math.pi])
    assert theory.cap_measure([0.4, 2.0], 3) == pytest.approx([(1 - math.cos(a)) / 2 for a in (0.4, 2.0)])


def test_causal_linearisation_is_the_jacobian_at_consensus():
    n, beta = 5, 1.7

    def velocity(a):
        away = a[:, None] - a[None]
        w = (torch.exp(beta * away.cos())).tril()
        return -(w / w.sum(-1, keepdim=True) * away.sin()).sum(-1)

    jacobian = torch.autograd.functional.jacobian(velocity, torch.zeros(n, dtype=F64))
    assert theory.causal_linearisation(n) == pytest.approx(jacobian.numpy(), abs=1e-14)


@pytest.mark.parametrize("scheme", ["pre-ln", "peri-ln", "ngpt", "sqrt-ln", "mix-ln"])
def test_schemes_follow_particles(scheme):
    """theta_i' = proj A_i / s and r' of every token, integrated in the open."""
    n, beta, t = 4, 1.0, np.array([0.5, 2.0, 4.0])

    def velocity(s, y):
        x, r = y[:-n].reshape(n, n), y[-n:]
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        w = np.exp(beta * x @ x.T)
        a = (w / w.sum(-1, keepdims=True)) @ x
        along, size = (a * x).sum(-1), np.linalg.norm(a, axis=-1)
        mixed = scheme == "pre-ln" or (scheme == "mix-ln" and s >= 1.0)
        slow, grow = {
            "peri-ln": (r * size, along / size), "ngpt": (size / 1.5, 0 * r), "sqrt-ln": (np.sqrt(s + 1) + 0 * r, 0 * r),
        }.get(scheme, (r, along) if mixed else (1 + 0 * r, 0 * r))  # fmt: skip
        return np.concatenate([((a - along[:, None] * x) / slow[:, None]).ravel(), grow])

    start = np.concatenate([np.eye(n).ravel(), 2.0 * np.ones(n)])
    solved = solve_ivp(velocity, (0, 4), start, t_eval=t, rtol=1e-9, atol=1e-11, max_step=0.05)
    gap, radius = theory.normalised_equiangular(t, scheme, beta, n, radius=2.0, alpha=1.5, switch=1.0)
    for y, g, r in zip(solved.y.T, gap, radius, strict=True):
        x = y[:-n].reshape(n, n)
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        assert np.square(x[0] - x[1]).sum() / 2 == pytest.approx(g, rel=2e-5)
        assert y[-1] == pytest.approx(r, rel=1e-6)


def rescaled(z, v, t_end):
    """The rescaled unprojected flow, z' = sum_j P_ij(e^{tV} z) V (z_j - z_i), at the end time."""
    from scipy.linalg import expm

    def velocity(t, y):
        p = y.reshape(z.shape)
        x = p @ expm(t * v).T
        s = x @ x.T
        w = np.exp(s - s.max(-1, keepdims=True))
        w = w / w.sum(-1, keepdims=True)
        return ((w @ p - p) @ v.T).ravel()

    solved = solve_ivp(velocity, (0, t_end), z.ravel(), method="LSODA", rtol=1e-8, atol=1e-10)
    return solved.y[:, -1].reshape(z.shape)


def test_tokens_go_to_parallel_hyperplanes():
    v = np.array([[0.64709742, 0.81911926], [0.61210449, 0.63263484]])
    value, phi = theory.leading_functional(v)
    assert phi @ v == pytest.approx(value * phi, abs=1e-12)
    z = np.random.default_rng(0).uniform(-5, 5, (16, 2))
    levels = np.sort(rescaled(z, v, 8.0) @ phi)
    assert (np.diff(levels) > 0.1).sum() + 1 <= 3
    assert (np.diff(np.sort(z @ phi)) > 0.1).sum() + 1 > 6


def test_tokens_go_to_the_limit_set_of_the_polytope():
    from scipy.spatial import ConvexHull

    z = rescaled(np.random.default_rng(1).uniform(-5, 5, (16, 2)), np.eye(2), 8.0)
    vertices = torch.tensor(z[ConvexHull(z).vertices])
    gaps = theory.polytope_gap(torch.tensor(z), vertices)
    assert float(gaps.min()) > -1e-9
    assert float(gaps.max()) < 1e-2
    inside = vertices.mean(0) + 0.3 * (vertices[0] - vertices.mean(0))
    assert float(theory.polytope_gap(inside, vertices)) > 0.1
    turn = torch.linalg.qr(sphere(2, 2)).Q
    torch.testing.assert_close(
        theory.polytope_gap(inside, vertices, turn), theory.polytope_gap(inside, vertices)
    )
