"""Steppers: their orders, that resumed runs are the same runs, batches of different systems, and what is refused."""

import math

import pytest
import torch

from osmose.dynamics import (
    RK4,
    Adaptive,
    Attention,
    Circle,
    ClustersLeft,
    Euclidean,
    Euler,
    EulerMaruyama,
    Field,
    GradientBelow,
    Layer,
    PairMerged,
    Rescaled,
    Schedule,
    Sphere,
    Status,
    Stiff,
    simulate,
)
from osmose.dynamics.observables import Observable, Recorder, order_parameter
from osmose.tokens import Tokens

from .test_dynamics_fields import F64, draw, sphere

FIELD = Field(Attention(1.5), drift=lambda x, t: x.roll(1, -1) * t)


@pytest.mark.parametrize(
    ("stepper", "order", "hs"),
    [(Layer, 1, (0.05, 0.025)), (Euler, 1, (0.05, 0.025)), (RK4, 4, (0.1, 0.05))],
)
@pytest.mark.parametrize("space", [Sphere(), Euclidean()])
def test_orders(stepper, order, hs, space):
    x = sphere(6, 3)
    exact = simulate(FIELD, x, [0, 1], space=space, stepper=Adaptive(1e-13)).final
    errors = [
        float((simulate(FIELD, x, [0, 1], space=space, stepper=stepper(h)).final - exact).norm()) for h in hs
    ]
    assert -0.3 < math.log2(errors[0] / errors[1]) - order < 0.3


def test_order_of_the_embedded_pair():
    x = sphere(6, 3)
    exact = simulate(FIELD, x, [0, 2], stepper=Adaptive(1e-13))
    runs = [simulate(FIELD, x, [0, 2], stepper=Adaptive(rtol)) for rtol in (1e-5, 1e-9)]
    errors = [float((r.final - exact.final).norm()) for r in runs]
    order = math.log(errors[0] / errors[1]) / math.log(int(runs[1].steps) / int(runs[0].steps))
    assert 4.2 < order < 6.3
    assert errors[1] < 1e-8


def test_noise_has_the_right_spread():
    x = torch.zeros(4000, 1, 1, dtype=F64)
    still = Field(Attention(0.0, value=0.0))
    seeded = torch.Generator().manual_seed(0)
    out = simulate(
        still, x, [0, 0.3], space=Circle(), stepper=EulerMaruyama(0.1, 2.0), generator=seeded
    ).final
    assert abs(float(out.var()) - 2 * 0.3 / 2.0) < 0.03
    on_sphere = torch.tensor([0.0, 0, 1], dtype=F64).expand(20000, 1, 3)
    out = simulate(still, on_sphere, [0, 0.4], stepper=EulerMaruyama(0.02, 4.0), generator=seeded).final
    # the mean of the first harmonic decays at its eigenvalue: d - 1 = 2, over kappa
    assert abs(float(out[..., 2].mean()) - math.exp(-2 * 0.4 / 4.0)) < 0.01


@pytest.mark.parametrize(
    "stepper", [Layer(0.5), RK4(0.1), Adaptive(1e-7), EulerMaruyama(0.1, 10.0), Stiff(rtol=1e-6)]
)
def test_resumed_is_uninterrupted(stepper):
    x = sphere(2, 5, 3)
    field = Field(Attention(torch.tensor([1.0, 6.0], dtype=F64)))

    def run(times):
        recorder = Recorder([Observable("order", order_parameter)])
        return simulate(
            field, x, times, stepper=stepper, observe=recorder, generator=torch.Generator().manual_seed(3)
        )

    whole, first = run([0, 1, 1.5, 3]), run([0, 1])
    resumed = first.resume([1.5, 3])
    assert torch.equal(whole.states, resumed.states)
    assert torch.equal(whole.steps, resumed.steps)
    assert torch.equal(whole.results["order"], resumed.results["order"])
    if not stepper.random:
        return
    assert not torch.equal(run([0, 1]).resume([1.5]).final, whole.states[1])
    with pytest.raises(ValueError, match="generator"):
        simulate(field, x, [0, 1], stepper=stepper)


def test_systems_of_a_batch_step_alone():
    x = sphere(5, 3)
    beta = torch.tensor([0.0, 1.0, 30.0], dtype=F64)
    together = simulate(Field(Attention(beta, law="mean", scaled=True)), x.expand(3, 5, 3), [0, 3, 6])
    assert len(set(together.steps.tolist())) == 3
    for k, b in enumerate(beta.tolist()):
        alone = simulate(Field(Attention(b, law="mean", scaled=True)), x, [0, 3, 6])
        assert int(alone.steps) == int(together.steps[k])
        torch.testing.assert_close(together.states[:, k], alone.states, rtol=1e-9, atol=1e-12)


def test_leading_dimensions_and_beta_of_one():
    x = sphere(2, 3, 5, 3)
    beta = torch.tensor([0.0, 1.0, 4.0], dtype=F64)
    got = simulate(Field(Attention(beta)), x, [0, 1], stepper=RK4(0.1))
    assert got.states.shape == (2, 2, 3, 5, 3)
    assert got.status.shape == (2, 3)
    alone = simulate(Field(Attention(4.0)), x[1, 2], [0, 1], stepper=RK4(0.1))
    torch.testing.assert_close(got.final[1, 2], alone.final)


def test_stiff_and_explicit_agree_on_circle_and_sphere():
    angles = draw(5, 1)
    field = Field(Attention(4.0))
    on_circle = simulate(field, angles, [0, 2], space=Circle(), stepper=Stiff(rtol=1e-9, atol=1e-11)).final
    for stepper in (Stiff("BDF", rtol=1e-8, atol=1e-10), Adaptive(1e-11)):
        on_sphere = simulate(field, Circle().points(angles), [0, 2], stepper=stepper).final
        torch.testing.assert_close(Circle().points(on_circle), on_sphere, rtol=0, atol=1e-6)
        assert float((on_sphere.norm(dim=-1) - 1).abs().max()) < 1e-14


def test_logarithmic_time():
    x = sphere(5, 3)
    field = Field(Attention(1.0), drift=lambda x, t: 0.1 * x.roll(1, -1) * t)
    plain = simulate(field, x, [0.5, 4], stepper=Adaptive(1e-11))
    for stepper in (Adaptive(1e-11), RK4(0.02)):
        logarithmic = simulate(field, x, [0.5, 4], stepper=stepper, log_time=True)
        torch.testing.assert_close(logarithmic.final, plain.final, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="above 0"):
        simulate(field, x, [0, 1], log_time=True)


@pytest.mark.parametrize("log_time", [False, True])
def test_switched_fields_are_run_one_after_the_other(log_time):
    x = sphere(5, 3)
    one, two = Field(Attention(1.0)), Field(Attention(1.0, value=-1.0))
    both = Schedule([(0.0, one), (0.7, two)])
    first = simulate(one, x, [0.2, 0.7], stepper=RK4(0.1), log_time=log_time).final
    second = simulate(two, first, [0.7, 1.5], stepper=RK4(0.1), log_time=log_time).final
    got = simulate(both, x, [0.2, 1.5], stepper=RK4(0.1), log_time=log_time).final
    torch.testing.assert_close(got, second, rtol=1e-12, atol=1e-14)


def test_rescaled_tokens_are_the_free_ones():
    x = draw(6, 2)
    v = draw(2, 2, seed=3)
    field = Field(Attention(1.0, value=v))
    free = simulate(field, x, [0, 1.2], space=Euclidean(), stepper=Adaptive(1e-11)).final
    z = simulate(field, x, [0, 1.2], space=Rescaled(v), stepper=Adaptive(1e-11)).final
    torch.testing.assert_close(Rescaled(v).unscale(z, 1.2), free, rtol=1e-7, atol=1e-7)


def test_float32_pinning_and_long_steps_are_told():
    x = sphere(4, 3)
    field = Field(Attention(1.0))
    with pytest.warns(UserWarning, match="float32"):
        simulate(field, x.float(), [0, 0.1])
    with pytest.raises(ValueError, match="halves"):
        simulate(field, x.half(), [0, 0.1])
    with pytest.warns(UserWarning, match="stability bound of Euler"):
        simulate(Field(Attention(1.0, law="mean")), x, [0, 5], stepper=Euler(1.0))
    simulate(Field(Attention(1.0, law="mean", scaled=True)), x, [0, 5], stepper=Euler(1.0))
    far = torch.tensor([[0.0], [2.0]], dtype=F64)
    with pytest.warns(RuntimeWarning, match="pinned"):
        stuck = simulate(Field(Attention(80.0)), far, [0, 1], space=Circle(), stepper=Euler(0.1))
    assert stuck.status == Status.PINNED
    assert simulate(field, x, [0, 60]).status == Status.DONE  # rest at consensus is the truth


def test_no_stability_bound_is_known_for_a_matrix_v():
    v = torch.diag(torch.tensor([1.0, 0.5, -1.0], dtype=F64))
    run = simulate(Field(Attention(1.0, value=v)), sphere(4, 3), [0, 1], stepper=Euler(0.1))
    assert run.notes == ()


def test_failures_have_a_status():
    x = draw(4, 2)
    blowing = Field(Attention(0.0), drift=lambda x, t: x**2 * 10 + 10)
    with pytest.warns(RuntimeWarning, match="stiff"):
        solution = simulate(blowing, x, [0, 5], space=Euclidean(), stepper=Adaptive(1e-4))
    assert solution.status == Status.STEP_TOO_SMALL
    assert torch.isfinite(solution.final).all()
    with pytest.warns(RuntimeWarning, match="overflowed"):
        assert simulate(blowing, x, [0, 5], space=Euclidean(), stepper=Euler(0.1)).status == Status.NOT_FINITE
    with pytest.warns(RuntimeWarning, match="as many steps"):
        few = simulate(Field(Attention(1.0)), x, [0, 5], space=Euclidean(), stepper=Adaptive(max_steps=3))
    assert few.status == Status.MAX_STEPS


def test_refusals():
    x, field = sphere(4, 3), Field(Attention(1.0))
    with pytest.raises(ValueError, match="rise"):
        simulate(field, x, [0, 1, 1])
    with pytest.raises(ValueError, match="whole number of layers"):
        simulate(field, x, [0, 1.25], stepper=Layer(0.5))
    with pytest.raises(ValueError, match="after 1"):
        simulate(field, x, [0, 1]).resume([0.5])
    with pytest.raises(ValueError, match="describe 3 tokens"):
        simulate(field, x, [0, 1], tokens=Tokens(3))
    with pytest.raises(ValueError, match="positive step"):
        RK4(0.0)
    with pytest.raises(ValueError, match="kappa"):
        EulerMaruyama(0.1, 0.0)
    with pytest.raises(ValueError, match="method"):
        Stiff("Adams")
    with pytest.raises(ValueError, match="rtol"):
        Adaptive(0.0)
    with pytest.raises(ValueError, match="no terms"):
        Field()


def test_events_of_many_systems_and_in_float32():
    """Located together, each as it would be alone; a state keeps its type."""
    x, near = sphere(6, 4, 3), [PairMerged(distance=0.3)]
    for stepper in (Adaptive(1e-9), Euler(0.05)):
        run = simulate(FIELD, x, [0, 20], stepper=stepper, events=near)
        for i in range(6):
            alone = simulate(FIELD, x[i], [0, 20], stepper=stepper, events=near)
            torch.testing.assert_close(
                run.events["pair_merged"][i], alone.events["pair_merged"], rtol=1e-9, atol=1e-12
            )
    with pytest.warns(UserWarning, match="float32"):
        single = simulate(FIELD, x.float(), [0, 20], stepper=Euler(0.05), events=near)
    assert single.final.dtype == torch.float32
    torch.testing.assert_close(single.events["pair_merged"], run.events["pair_merged"], rtol=1e-3, atol=1e-3)


def test_states_that_no_memory_holds_are_refused():
    with pytest.raises(ValueError, match="save=False"):
        simulate(FIELD, torch.ones(1, 1, dtype=F64).expand(10**7, 10**6), [0.0, 1.0])


@pytest.mark.parametrize("turned", [False, True])
def test_of_the_events_of_a_step_the_first_terminal_one_counts(turned):
    """Whatever the order in which they are listed."""
    x = torch.tensor([[[-1.0], [1.0]]], dtype=F64)
    shrinking = Field(Attention(0.0, value=0.0), drift=lambda x, t: -x)
    early, late = PairMerged(distance=1.0), ClustersLeft(count=1, scale=0.9)
    never = GradientBelow(tolerance=0.4, terminal=False)
    events = [never, late, early] if turned else [early, late, never]
    run = simulate(shrinking, x, [0.0, 0.9], space=Euclidean(), stepper=Euler(0.9), events=events)
    assert float(run.events["pair_merged"][0]) == pytest.approx(0.5)
    assert math.isnan(float(run.events["clusters_left"][0]))
    assert math.isnan(float(run.events["gradient_below"][0]))
    torch.testing.assert_close(run.final, x / 2)
