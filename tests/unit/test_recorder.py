"""Recording along a run: reductions, the energy balance, resuming, and that no state is kept."""

import gc
import math
import weakref
from functools import partial

import pytest
import torch

from osmose.dynamics.observables import (
    EnergyBalance,
    Observable,
    Recorder,
    cumulative_integral,
    dissipation,
    order_parameter,
    standard_observables,
)

F64 = torch.float64


def sphere(*shape, seed=0):
    x = torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


def pull(x, beta, model):
    w = torch.exp(beta * x @ x.mT)
    a = (w / (w.sum(-1, keepdim=True) if model == "SA" else x.shape[-2])) @ x
    return a - (a * x).sum(-1, keepdim=True) * x


def run(recorder, beta, model, h, steps, x, first=0, scaled=False):
    """Fourth-order Runge-Kutta, normalised after every step."""

    def f(y):
        return pull(y, beta, model) * (math.exp(-beta) if scaled else 1.0)

    for k in range(first, first + steps + 1):
        recorder(k * h, x, f(x))
        k1 = f(x)
        k2 = f(x + h / 2 * k1)
        k3 = f(x + h / 2 * k2)
        k4 = f(x + h * k3)
        after = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        last, x = x, after / after.norm(dim=-1, keepdim=True)
    return last


def value(x, mass=None):
    return x[..., 0, 0] if mass is None else mass.sum(-1)


@pytest.mark.parametrize(
    ("reduce", "want"),
    [
        ("series", [1.0, 3.0, 2.0]),
        ("last", 2.0),
        ("max", 3.0),
        ("min", 1.0),
        ("integral", 2.0 + 7.5),
        ("mean", 9.5 / 4),
    ],
)
def test_reductions(reduce, want):
    recorder = Recorder([Observable("value", value, reduce)])
    assert recorder.results()["value"] is None
    for t, v in ((0.0, 1.0), (1.0, 3.0), (4.0, 2.0)):
        recorder(t, torch.full((3, 2), v))
    assert recorder.results()["value"].tolist() == pytest.approx(want)
    assert recorder.results()["time"].tolist() == [0, 1, 4]


def test_the_mean_of_one_time_is_its_value_and_masses_reach_the_function():
    recorder = Recorder([Observable("value", value, "mean"), Observable("whole", value, "integral")])
    recorder(2.0, torch.zeros(3, 2), mass=torch.tensor([1.0, 2, 3]))
    assert float(recorder.results()["value"]) == 6
    assert float(recorder.results()["whole"]) == 0


@pytest.mark.parametrize(
    ("model", "beta", "scaled"),
    [("SA", 3.0, False), ("USA", 1.0, False), ("USA", 8.0, True), ("SA", 0.0, False), ("USA", -1.0, False)],
)
def test_the_energy_balance_measures_the_stepper(model, beta, scaled):
    x = sphere(2, 8, 3)
    errors = []
    for h in (0.1, 0.05):
        recorder = Recorder([EnergyBalance(beta, model, scaled=scaled)])
        run(recorder, beta, model, h, round(1 / h), x, scaled=scaled)
        found = recorder.results()["energy_balance"]
        assert found["residual"].shape == (round(1 / h) + 1, 2)
        errors.append(float(found["residual"].abs().max()))
        gained = found["energy"][-1] - found["energy"][0]
        assert (gained > 0).all()
        assert errors[-1] < 1e-3 * float(gained.max())
    assert errors[1] < errors[0] / 6  # third order or better


def test_a_wrong_clock_or_metric_shows_in_the_balance():
    x = sphere(8, 3)
    recorder = Recorder([EnergyBalance(3.0, "USA")])
    run(recorder, 3.0, "SA", 0.05, 20, x)
    found = recorder.results()["energy_balance"]
    assert float(found["residual"][-1].abs()) > 0.1 * float(found["energy"][-1] - found["energy"][0])


def test_a_resumed_recording_goes_on():
    watched = [
        *standard_observables(2.0, scale=0.3),
        EnergyBalance(2.0),
        Observable("worst", order_parameter, "min"),
        Observable("work", partial(dissipation, beta=2.0), "integral", velocity=True),
    ]
    x = sphere(6, 3)
    whole = Recorder(watched)
    run(whole, 2.0, "SA", 0.1, 9, x)
    first = Recorder(watched)
    middle = run(first, 2.0, "SA", 0.1, 4, x)
    second = Recorder(watched)
    second.load_state_dict(first.state_dict())
    path = Recorder([Observable("x", lambda x, mass=None: x)])
    run(path, 2.0, "SA", 0.1, 9, x)
    assert path.results()["x"][4].equal(middle)
    for k in range(5, 10):
        y = path.results()["x"][k]
        second(k * 0.1, y, pull(y, 2.0, "SA"))
    for name, want in whole.results().items():
        got = second.results()[name]
        pairs = zip(got.values(), want.values(), strict=True) if isinstance(want, dict) else [(got, want)]
        for a, b in pairs:
            torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="energy_balance"):
        Recorder(watched[:2]).load_state_dict(first.state_dict())


def test_no_state_is_kept():
    watched = [*standard_observables(2.0), EnergyBalance(2.0), Observable("best", order_parameter, "max")]
    recorder = Recorder([*watched, Observable("view", value), Observable("last view", value, "last")])
    seen = []
    for k in range(3):
        x = sphere(100, 3, seed=k)
        recorder(float(k), x, x)
        seen.append(weakref.ref(x))
    del x
    gc.collect()
    assert [r() for r in seen] == [None] * 3
    kept = recorder.state_dict()
    for held in (*kept["view"].values(), *kept["last view"].values()):
        if isinstance(held, torch.Tensor):
            assert held.untyped_storage().nbytes() <= 3 * 8


def test_simpson_on_uneven_times_is_exact_for_parabolas():
    t = torch.tensor([0.0, 0.3, 0.4, 1.1, 2.0], dtype=F64)
    values = torch.stack([1 + t, t.square()], -1)
    want = torch.stack([t + t.square() / 2, t**3 / 3], -1)
    torch.testing.assert_close(cumulative_integral(values, t), want)
    assert float(cumulative_integral(values[:2], t[:2])[1, 0]) == pytest.approx(0.3 + 0.045)
    assert cumulative_integral(values[:1], t[:1]).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Observable("a", order_parameter, "median"), "reduce is 'median'"),
        (lambda: Recorder([Observable("a", order_parameter), EnergyBalance(1.0, name="a")]), "taken twice"),
        (lambda: Recorder([Observable("time", order_parameter)]), "kept by the recorder"),
        (lambda: Recorder([EnergyBalance(1.0)])(0.0, sphere(3, 2)), "needs the velocity"),
        (
            lambda: Recorder([Observable("d", dissipation, velocity=True)])(0.0, sphere(3, 2)),
            "needs the velocity",
        ),
        (lambda: [r := Recorder([]), r(1.0, sphere(3, 2)), r(1.0, sphere(3, 2))], "rising times"),
    ],
)
def test_bad_recordings_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_velocity_is_computed_where_it_is_needed(monkeypatch):
    from osmose.dynamics import RK4, Attention, Field, simulate
    from osmose.dynamics.motion import Motion

    calls, rate = [], Motion.rate
    monkeypatch.setattr(Motion, "rate", lambda self, x, s: calls.append(s) or rate(self, x, s))
    still = Observable("order", order_parameter)
    moving = Observable("speed", lambda x, v, mass=None: v.norm(dim=-1).amax(-1), velocity=True)
    times = [0.0, 0.5, 1.0]
    for observables, want in (([still], 1), ([still, moving], 3), ([EnergyBalance(1.0)], 3)):
        calls.clear()
        simulate(Field(Attention(1.0)), sphere(4, 3), times, stepper=RK4(0.5), observe=Recorder(observables))
        assert len(calls) == want  # at the last time always, for what rounding holds still
