"""What is known of tokens as particles, against runs of the fields that models are made of."""

import math

import numpy as np
import pytest
import torch

from osmose.dynamics import (
    RK4,
    Adaptive,
    Attention,
    Circle,
    ClustersLeft,
    Euler,
    Field,
    GradientBelow,
    HemisphereEntered,
    Layer,
    Normalised,
    PairMerged,
    Plateau,
    Rescaled,
    Sphere,
    Status,
    simulate,
    theory,
)
from osmose.dynamics.observables import EnergyBalance, Recorder, energy, normalised_energy
from osmose.tokens import Tokens

from .particles import F64, flow, sphere

FINE = Adaptive(1e-11)


def usa(beta, **options):
    return Field(Attention(beta, law="mean", **options))


@pytest.mark.parametrize("model", ["SA", "USA"])
@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_equiangular_starts_follow_the_closed_form(model, beta):
    times = [0.0, 0.5, 1.0]
    field = Field(Attention(beta)) if model == "SA" else usa(beta)
    out = simulate(field, torch.eye(8, dtype=F64), times, stepper=FINE)
    assert "equiangular" in out.notes[0]
    for t, x in zip(times, out.states, strict=True):
        off = (x @ x.mT)[~torch.eye(8, dtype=torch.bool)]
        want = theory.equiangular_cosine(t, beta, 8, model=model)
        torch.testing.assert_close(off, torch.full_like(off, want), rtol=0, atol=1e-9)


@pytest.mark.parametrize("model", ["SA", "USA"])
def test_runs_agree_with_the_formula_and_another_integrator(model):
    x = sphere(6, 3)
    mass = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    field = Field(Attention(2.0)) if model == "SA" else usa(2.0)
    tokens = Tokens.of(x, mass=torch.tensor(mass))
    got = simulate(field, x, [0, 0.5, 1.0], stepper=FINE, tokens=tokens).states
    want = flow(x.numpy(), 2.0, [0.5, 1.0], model, mass)
    np.testing.assert_allclose(got[1:].numpy(), want, rtol=0, atol=1e-8)


def test_one_layer_steps_follow_the_layer_map():
    rho, x = 0.0, torch.eye(8, dtype=F64)
    out = simulate(Field(Attention(1.0)), x, [0.0, 0.5, 1.0, 1.5], stepper=Layer(0.5))
    for k in range(1, 4):
        e, s = math.exp(1.0), 7 * math.exp(rho)
        p, q = e / (e + s), math.exp(rho) / (e + s)
        g = np.full((8, 8), rho) + (1 - rho) * np.eye(8)
        w = (1 + 0.5 * (p - q)) * np.eye(8) + 0.5 * q * np.ones((8, 8))
        big = w @ g @ w.T
        rho = big[0, 1] / big[0, 0]
        assert abs(float((out.states[k] @ out.states[k].mT)[0, 1]) - rho) < 1e-13


@pytest.mark.parametrize(
    ("field", "model", "scaled"),
    [(Field(Attention(2.0)), "SA", False), (usa(2.0), "USA", False), (usa(2.0, scaled=True), "USA", True)],
)
def test_energy_gained_is_energy_dissipated(field, model, scaled):
    x = sphere(8, 3)
    mass = torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(1)) + 0.2
    meter = Recorder([EnergyBalance(2.0, model, scaled)])
    times = torch.linspace(0, 1, 161)
    simulate(field, x, times, stepper=RK4(0.01), tokens=Tokens.of(x, mass=mass), observe=meter, save=False)
    balance = meter.results()["energy_balance"]
    assert float(balance["residual"].abs().max()) < 1e-8
    assert float(balance["energy"][-1] - balance["energy"][0]) > 1e-3  # there was something to gain
    v = Sphere().velocity(field, x, Tokens.of(x, mass=mass), 0.0)
    h = 1e-4  # a five-point difference of the energy along the flow
    e = [field.energy(Sphere().exp(x, k * h * v), mass) for k in (-2, -1, 1, 2)]
    slope = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * h)
    torch.testing.assert_close(slope, field.energy.rate(x, v, mass), rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:simulate. .*pinned")  # a large beta and a small h move nothing
def test_no_layer_lowers_the_energy_however_long():
    g = torch.Generator().manual_seed(0)
    rose = 0
    for _ in range(300):
        n, d = (int(torch.randint(2, 12, (), generator=g)) for _ in range(2))
        beta, h = (
            float(10 ** (4 * torch.rand((), generator=g) - 2)),
            float(10 ** (9 * torch.rand((), generator=g) - 3)),
        )
        x = torch.randn(n, d, dtype=F64, generator=g)
        x = x / x.norm(dim=-1, keepdim=True)
        before = normalised_energy(x, beta)
        law = "row" if torch.rand((), generator=g) < 0.5 else "mean"
        field = Field(Attention(beta, law=law, scaled=law == "mean"))
        layer = simulate(field, x, [0.0, h], stepper=Layer(h)).final
        euler = simulate(field, x, [0.0, 2.0], stepper=Euler(2.0)).final
        for after in (normalised_energy(layer, beta), normalised_energy(euler, beta)):
            assert after >= before * (1 - 1e-13)
            rose += int(after > before * (1 + 1e-9))
    assert rose > 250


@pytest.mark.parametrize("stepper", [Layer(0.5), RK4(0.1), Adaptive(1e-9)])
def test_permutations_and_rotations_commute_with_the_run(stepper):
    x = sphere(7, 4)
    g = torch.Generator().manual_seed(3)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=F64, generator=g))
    order = torch.randperm(7, generator=g)
    field = Field(Attention(3.0), Attention(1.0, law="mean", value=-0.5))
    out = simulate(field, x, [0, 1.5], stepper=stepper).final
    moved = simulate(field, x[order] @ turn, [0, 1.5], stepper=stepper).final
    torch.testing.assert_close(moved, out[order] @ turn, rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", [Field(Attention(3.0)), usa(3.0), Field(Attention(3.0, kernel="sigmoid"))])
def test_a_split_token_moves_as_one_of_mass_two(field):
    x = sphere(5, 3)
    mass = torch.tensor([2.0, 1, 1, 1, 0], dtype=F64)
    split = torch.cat([x[:1], x[:4]])
    one = simulate(field, x, [0, 1.0], stepper=RK4(0.1), tokens=Tokens.of(x, mass=mass)).final
    two = simulate(field, split, [0, 1.0], stepper=RK4(0.1)).final
    torch.testing.assert_close(one[:4], two[1:], rtol=0, atol=1e-13)
    torch.testing.assert_close(two[0], two[1])
    assert torch.equal(one[4], x[4])  # an absent token stays


def test_cross_ratios_are_kept_at_beta_zero_only():
    x = sphere(6, 4)
    start = theory.cross_ratios(x)
    kept, moved = (
        theory.cross_ratios(simulate(Field(Attention(b)), x, [0, 1.0], stepper=FINE).final)
        for b in (0.0, 1.0)
    )
    np.testing.assert_allclose(kept, start, rtol=1e-9)
    assert float((moved / start - 1).abs().max()) > 0.02


def test_repulsion_finds_the_optimal_code():
    out = simulate(usa(1.0, value=-1.0), sphere(4, 3), [0, 60.0], stepper=Adaptive(1e-6)).final
    assert abs(float(normalised_energy(out, 1.0)) - 0.44769785) < 1e-8


def test_causal_tokens_go_to_the_first():
    x = sphere(4, 3)
    out = simulate(Field(Attention(1.0, causal=True)), x, [0, 60.0], stepper=Adaptive(1e-7)).final
    torch.testing.assert_close(out, x[:1].expand(4, 3), rtol=0, atol=1e-6)
    assert torch.equal(out[0], x[0])


def test_good_triple_has_at_most_three_leading_values():
    v = torch.tensor([[0.64709742, 0.81911926], [0.61210449, 0.63263484]], dtype=F64)
    z = torch.rand(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) * 10 - 5
    out = simulate(Field(Attention(1.0, value=v)), z, [0, 10.0], space=Rescaled(v)).final
    values, left = torch.linalg.eig(v.mT)
    lead = out @ left[:, values.real.argmax()].real
    assert len(set(np.round(lead.numpy(), 3) + 0.0)) <= 3


def test_events_are_found_inside_steps():
    x, beta = torch.eye(8, dtype=F64), 1.0
    field = Field(Attention(beta))
    gap = 1e-3  # chords of length c: cosine 1 - c^2/2
    events = [PairMerged(distance=gap**0.5, terminal=False), ClustersLeft(count=1, scale=gap)]
    out = simulate(field, x, [0, 20.0], stepper=Adaptive(1e-11), events=events)
    for name, chord in (("pair_merged", gap**0.5), ("clusters_left", gap)):
        want = theory.equiangular_time(1 - chord**2 / 2, beta, 8)
        assert abs(float(out.events[name]) - want) < 1e-5 * want
    assert out.status == Status.EVENT
    torch.testing.assert_close(
        (out.final[0] - out.final[1]).norm(), torch.tensor(gap, dtype=F64), rtol=1e-4, atol=0
    )


def test_events_stop_systems_one_by_one():
    angles = torch.tensor([[0.0, 2.6, 3.5], [0.0, 0.5, 1.0]], dtype=F64).unsqueeze(-1)
    events = [HemisphereEntered(margin=1e-3), GradientBelow(tolerance=1e-6, terminal=False)]
    out = simulate(Field(Attention(1.0)), angles, [0, 10.0, 20.0], space=Circle(), events=events)
    entered = out.events["hemisphere_entered"]
    assert entered[1] == 0 < entered[0] < 10
    assert torch.equal(out.final[1], angles[1])
    assert torch.isnan(out.events["gradient_below"]).all()
    on = simulate(Field(Attention(1.0)), angles, [0, 40.0], space=Circle(), events=events[1:])
    assert (on.events["gradient_below"] > 5).all()
    assert (on.status == Status.DONE).all()
    resumed = simulate(Field(Attention(1.0)), angles, [0, 10.0], space=Circle(), events=events).resume([20.0])
    assert torch.equal(resumed.events["hemisphere_entered"], entered)


def test_two_clusters_make_a_plateau():
    angles = torch.tensor([0.0, 0.4, math.pi / 2, math.pi / 2 + 0.4], dtype=F64).unsqueeze(-1)
    field = Field(Attention(9.0))
    out = simulate(
        field, angles, [0, 40.0], space=Circle(), events=[Plateau(field=field, tolerance=0.02, after=1.0)]
    )
    assert 2 < float(out.events["plateau"]) < 40
    height = float(normalised_energy(Circle().points(out.final), 9.0))
    assert abs(height - theory.plateau_energy([2, 2])) < 2e-3
    assert float(energy(Circle().points(out.final), 9.0)) > float(energy(Circle().points(angles), 9.0))


@pytest.mark.parametrize("scheme", ["post-ln", "pre-ln", "peri-ln", "ngpt", "sqrt-ln"])
def test_normalisation_schemes_follow_their_equations(scheme):
    x = 1.5 * torch.eye(5, dtype=F64)
    out = simulate(Field(Attention(1.0)), x, [0, 1.0, 3.0], space=Normalised(scheme), stepper=Adaptive(1e-9))
    theta = out.states / out.states.norm(dim=-1, keepdim=True)
    gap = 1 - (theta[:, 0] * theta[:, 1]).sum(-1)
    want, radius = theory.normalised_equiangular([0, 1.0, 3.0], scheme, 1.0, 5, radius=1.5)
    np.testing.assert_allclose(gap.numpy(), want, rtol=1e-6)
    np.testing.assert_allclose(out.states[:, 0].norm(dim=-1).numpy(), radius, rtol=1e-6)
