"""Normalisation schemes and arc length as spaces: against theory, against the formula, and against runs in time."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from osmose.dynamics import (
    RK4,
    Adaptive,
    ArcLength,
    Attention,
    Circle,
    Euler,
    Field,
    GradientBelow,
    Gram,
    Layer,
    Normalised,
    Rescaled,
    Schedule,
    Sphere,
    Status,
    Stiff,
    simulate,
    theory,
)
from osmose.tokens import Tokens

from .particles import F64, sphere

SCHEMES = ["post-ln", "pre-ln", "mix-ln", "peri-ln", "ngpt", "sqrt-ln"]


def space(scheme):
    return Normalised(
        scheme, alpha=1.5 if scheme == "ngpt" else 1.0, switch=1.0 if scheme == "mix-ln" else None
    )


def residual(n, d, seed=0):
    """Tokens of lengths from 0.5 to 2."""
    lengths = torch.linspace(0.5, 2, n, dtype=F64)[:, None]
    return lengths * sphere(n, d, seed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equiangular_tokens_follow_the_theory(scheme):
    n, t = 6, [0.0, 0.5, 2.0, 8.0]
    run = simulate(
        Field(Attention(1.0)), 2 * torch.eye(n, dtype=F64), t, space=space(scheme), stepper=Adaptive(1e-11)
    )
    gap, radius = theory.normalised_equiangular(t, scheme, 1.0, n, radius=2.0, alpha=1.5 if scheme == "ngpt" else 1.0, switch=1.0)  # fmt: skip
    theta = space(scheme).points(run.states)
    got = (theta[:, 0] - theta[:, 1]).square().sum(-1) / 2
    assert got.numpy() == pytest.approx(gap, rel=1e-7)
    assert space(scheme).radius(run.states)[:, 3, 0].numpy() == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("stepper", [Stiff(rtol=1e-10, atol=1e-12), RK4(0.02)])
def test_tokens_of_any_length_follow_the_formula(scheme, stepper):
    """theta' = proj A / s and r' of every token, from the formula, by SciPy, in direction and length apart."""
    n, d, beta = 5, 3, 2.0
    x = residual(n, d)

    def velocity(t, y):
        theta, r = y[:-n].reshape(n, d), y[-n:]
        w = np.exp(beta * theta @ theta.T)
        a = (w / w.sum(-1, keepdims=True)) @ theta
        along, size = (a * theta).sum(-1), np.linalg.norm(a, axis=-1)
        late = scheme == "mix-ln" and t >= 1.0
        s, grow = {
            "pre-ln": (r, along), "peri-ln": (r * size, along / size), "ngpt": (size / 1.5, 0 * r),
            "sqrt-ln": (math.sqrt(t + 1) + 0 * r, 0 * r),
        }.get("pre-ln" if late else scheme, (1 + 0 * r, 0 * r))  # fmt: skip
        return np.concatenate([((a - along[:, None] * theta) / s[:, None]).ravel(), grow])

    y = np.concatenate([(x / x.norm(dim=-1, keepdim=True)).ravel().numpy(), x.norm(dim=-1).numpy()])
    for a, b in ((0.0, 1.0), (1.0, 3.0)):
        y = solve_ivp(velocity, (a, b), y, rtol=1e-11, atol=1e-13).y[:, -1]
    got = simulate(Field(Attention(beta)), x, [0.0, 3.0], space=space(scheme), stepper=stepper).final
    theta = y[:-n].reshape(n, d)
    want = y[-n:, None] * theta / np.linalg.norm(theta, axis=-1, keepdims=True)
    assert got.numpy() == pytest.approx(want, abs=2e-7)


@pytest.mark.parametrize("scheme", ["post-ln", "pre-ln", "peri-ln", "ngpt", "sqrt-ln"])
def test_layers_are_those_of_the_models(scheme):
    x, field, h, t = residual(7, 4), Field(Attention(2.0)), 0.3, 1.2
    theta = x / x.norm(dim=-1, keepdim=True)
    a = field(theta)
    unit = torch.nn.functional.normalize
    want = {
        "post-ln": x.norm(dim=-1, keepdim=True) * unit(theta + h * a, dim=-1),
        "pre-ln": x + h * a,
        "peri-ln": x + h * unit(a, dim=-1),
        "ngpt": x.norm(dim=-1, keepdim=True) * unit(theta + h * 1.5 * unit(a, dim=-1), dim=-1),
        "sqrt-ln": x.norm(dim=-1, keepdim=True) * unit(theta + h * a / math.sqrt(t + 1), dim=-1),
    }[scheme]
    torch.testing.assert_close(space(scheme).layer(field, x, None, t, h), want)


@pytest.mark.parametrize("scheme", ["pre-ln", "ngpt"])
def test_orders_in_direction_and_length(scheme):
    x, field = residual(5, 3), Field(Attention(1.5), drift=lambda x, t: x.roll(1, -1) * t)
    exact = simulate(field, x, [0, 1], space=space(scheme), stepper=Adaptive(1e-13)).final
    for stepper, order, hs in ((Layer, 1, (0.05, 0.025)), (Euler, 1, (0.05, 0.025)), (RK4, 4, (0.1, 0.05))):
        errors = [
            float((simulate(field, x, [0, 1], space=space(scheme), stepper=stepper(h)).final - exact).norm())
            for h in hs
        ]
        assert -0.3 < math.log2(errors[0] / errors[1]) - order < 0.3


@pytest.mark.parametrize("scheme", ["pre-ln", "post-ln"])
def test_pull_inverts_the_differential_of_exp(scheme):
    there, x, g = space(scheme), residual(5, 4), torch.Generator().manual_seed(1)
    u, w = (torch.randn(5, 4, dtype=F64, generator=g) * x.norm(dim=-1, keepdim=True) * 0.6 for _ in range(2))
    if there.keeps_radius:
        u, w = there.tangent(x, u), there.tangent(x, w)
    _, v = torch.func.jvp(lambda u: there.exp(x, u), (u,), (w,))
    torch.testing.assert_close(there.pull(x, u, v), w, rtol=1e-9, atol=1e-11)
    assert there.pull(x, there.tangent(x, u) * 50, v).isnan().any()


def test_kept_lengths_are_kept_and_post_ln_on_the_sphere_is_the_sphere():
    x = residual(6, 3)
    run = simulate(Field(Attention(3.0)), x, [0.0, 5.0], space=Normalised("post-ln"))
    torch.testing.assert_close(run.final.norm(dim=-1), x.norm(dim=-1), rtol=1e-13, atol=0)
    on = simulate(Field(Attention(3.0)), sphere(6, 3), [0.0, 5.0])
    torch.testing.assert_close(
        run.final / run.final.norm(dim=-1, keepdim=True), on.final, rtol=1e-7, atol=1e-9
    )


def test_absent_tokens_and_schemes_refused():
    x = residual(4, 3)
    x[3] = 0
    tokens = Tokens.of(x, mass=torch.tensor([1.0, 1, 1, 0], dtype=F64))
    for scheme in ("pre-ln", "peri-ln", "ngpt"):
        run = simulate(Field(Attention(1.0)), x, [0.0, 2.0], space=space(scheme), tokens=tokens)
        alone = simulate(Field(Attention(1.0)), x[:3], [0.0, 2.0], space=space(scheme))
        torch.testing.assert_close(run.final[:3], alone.final, rtol=1e-9, atol=1e-12)
    for make, reason in (
        (lambda: Normalised("layernorm"), "post-ln, pre-ln"),
        (lambda: Normalised("mix-ln"), "a time for mix-ln"),
        (lambda: Normalised("pre-ln", switch=1.0), "none for others"),
        (lambda: Normalised("pre-ln", alpha=2.0), "other than ngpt"),
        (lambda: simulate(Field(Attention(1.0)), x, [0.0], space=Normalised("pre-ln")), "zero vector"),
    ):
        with pytest.raises(ValueError, match=reason):
            make()


# ---- arc length -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [Sphere(), Circle(), Rescaled(1.0), Normalised("pre-ln")])
def test_arc_length_is_another_clock_of_the_same_curve(base):
    x = (
        sphere(5, 1) * torch.linspace(0.1, 2, 5, dtype=F64)[:, None]
        if isinstance(base, Circle)
        else sphere(5, 3)
    )
    field, lifted = Field(Attention(2.0)), ArcLength(base)
    mass = torch.tensor([1.0, 2, 1, 0.5, 1], dtype=F64)
    tokens = Tokens.of(x, mass=mass)
    lengths = [0.0, 0.1, 0.25]
    run = simulate(field, lifted.lift(x), lengths, space=lifted, tokens=tokens, stepper=Adaptive(1e-11))
    times = lifted.times(run.states)
    assert times[0] == 0
    assert bool((times.diff() > 0).all())
    plain = simulate(field, x, times, space=base, tokens=tokens, stepper=Adaptive(1e-11))
    torch.testing.assert_close(lifted.states(run.states), plain.states, rtol=1e-8, atol=1e-9)
    # the length is that of the curve: chords of a fine grid in time
    fine = torch.linspace(0, float(times[-1]), 101, dtype=F64)
    p = base.points(simulate(field, x, fine, space=base, tokens=tokens, stepper=RK4(1.0)).states)
    chords = ((p.diff(dim=0).square().sum(-1) * mass).sum(-1) / mass.sum()).sqrt().sum()
    assert float(chords) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(("stepper", "order"), [(Layer, 1), (Euler, 1), (RK4, 4)])
def test_orders_by_arc_length(stepper, order):
    there, field = ArcLength(Sphere()), Field(Attention(1.5))
    x = there.lift(sphere(6, 3))
    exact = simulate(field, x, [0, 0.4], space=there, stepper=Adaptive(1e-13)).final
    errors = [
        float((simulate(field, x, [0, 0.4], space=there, stepper=stepper(h)).final - exact).norm())
        for h in (0.05, 0.025)
    ]
    assert -0.35 < math.log2(errors[0] / errors[1]) - order < 0.35


def test_a_plateau_is_passed_in_few_steps():
    """Two clusters at 90 degrees, beta = 30: no clock of equal steps in t gets there, arc length does."""
    beta, theta = 30.0, torch.tensor([[0.0], [math.pi / 2]], dtype=F64)
    there = ArcLength(Circle())
    run = simulate(
        Field(Attention(beta)),
        there.lift(theta),
        [0.0, (math.pi / 2 - 0.01) / 2],
        space=there,
        stepper=Adaptive(1e-7),
    )
    want = theory.two_cluster_time(0.01, beta, 1, 1, start=math.pi / 2)
    assert float(there.times(run.final)) == pytest.approx(want, rel=1e-4)
    assert want > 1e10
    assert int(run.steps) < 500


def test_velocities_are_those_in_time_and_events_stop_a_curve():
    there, field, x = ArcLength(Sphere()), Field(Attention(2.0)), sphere(5, 3)
    rest = [GradientBelow(tolerance=0.05)]
    run = simulate(field, there.lift(x), [0.0, 0.1, 4.0], space=there, stepper=Adaptive(1e-9), events=rest)
    plain = simulate(field, x, [0.0, 100.0], events=rest, stepper=Adaptive(1e-9))
    assert int(run.status) == int(plain.status) == Status.EVENT
    assert float(there.times(run.final)) == pytest.approx(float(plain.events["gradient_below"]), rel=1e-6)
    y = run.states[1]
    v = there.vectors(y, there.velocity(field, y, None, 0.0))
    torch.testing.assert_close(v, Sphere().velocity(field, there.states(y), None, 0.0))


def test_what_arc_length_refuses():
    field, x = Field(Attention(1.0)), sphere(4, 3)
    there = ArcLength(Sphere())
    for make, reason in (
        (lambda: ArcLength(Gram()), "tokens in a space"),
        (lambda: ArcLength(Normalised("mix-ln", switch=1.0)), "without switches"),
        (lambda: simulate(field, x, [0.0], space=there), "space.lift"),
        (lambda: there.lift(x, -1.0), "from 0"),
        (
            lambda: simulate(Schedule([(0.0, field), (1.0, field)]), there.lift(x), [0.0], space=there),
            "switched",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            make()


def test_a_curve_ends_at_rest():
    there = ArcLength(Sphere())
    with pytest.warns(RuntimeWarning, match="stiff or not smooth|overflow"):
        run = simulate(
            Field(Attention(1.0)), there.lift(sphere(4, 8)), [0.0, 50.0], space=there, stepper=Adaptive(1e-6)
        )
    assert int(run.status) in (Status.STEP_TOO_SMALL, Status.NOT_FINITE)
    assert bool(run.final.isfinite().all())
    assert float((there.states(run.final) - there.states(run.final)[:1]).norm()) < 1e-3
