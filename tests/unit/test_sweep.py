"""Sweeps: chunks, restarts, damaged files, settings, intervals, failures. Every start is seeded."""

import json
import math
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from osmose.dynamics import (
    RK4,
    Adaptive,
    Attention,
    Euler,
    EulerMaruyama,
    Field,
    Layer,
    Status,
    SweepResult,
    perceptron,
    simulate,
    sweep,
)
from osmose.dynamics.observables import (
    EnergyBalance,
    Observable,
    cluster_count,
    energy,
    gram_spectrum,
    mean_product,
    order_parameter,
    product_histogram,
)
from osmose.dynamics.sweep.settings import described, differences

F64 = torch.float64
TIMES = [0.0, 0.5, 1.0]


def attention(beta):
    return Field(Attention(beta))


def usual(beta):
    return [
        Observable("mean_product", mean_product),
        Observable("energy", partial(energy, beta=beta)),
        Observable("order", order_parameter, "last"),
        Observable("histogram", lambda x, mass=None: product_histogram(x, 8, mass=mass).share, "mean"),
        Observable("clusters", partial(cluster_count, scale=0.5), "max"),
    ]


def small(field=attention, **other):
    asked = {"beta": [0.5, 2.0, 6.0], "n": [4, 7], "d": [3, 9], "seeds": 4, "times": TIMES, "observe": usual}
    return sweep(field, **asked | other)


def same(a, b):
    assert a.axes == b.axes
    assert torch.equal(a.status, b.status)
    for name, value in a.values.items():
        assert torch.equal(value, b.values[name]), name


@pytest.fixture(scope="module")
def whole():
    return small()


def test_values_are_those_of_single_runs(whole):
    assert whole.settings["spaces"] == ["sphere", "gram", "sphere", "gram"]  # (4, 3), (4, 9), (7, 3), (7, 9)
    assert whole.values["mean_product"].shape == (2, 2, 3, 4, 3)
    assert whole.values["histogram"].shape == (2, 2, 3, 4, 8)
    starts = {}

    def kept(n, d, *, generator):
        x = torch.randn(n, d, dtype=F64, generator=generator)
        return starts.setdefault(n, []).append(x / x.norm(dim=-1, keepdim=True)) or starts[n][-1]

    again = small(start=kept, n=7, d=9, seeds=[2], chunk=3)
    assert torch.equal(again.values["order"][0, 0, :, 0], whole.values["order"][1, 1, :, 2])
    for i, beta in enumerate(again.axes["beta"]):
        final = simulate(Field(Attention(beta)), starts[7][0], TIMES).states
        close = {"rtol": 1e-6, "atol": 1e-7}
        torch.testing.assert_close(again.values["energy"][0, 0, i, 0], energy(final, beta), **close)
        torch.testing.assert_close(again.values["order"][0, 0, i, 0], order_parameter(final[-1]), **close)


def test_the_same_seed_has_the_same_start_at_every_beta(whole):
    first = whole.values["mean_product"][..., 0]
    assert bool((first == first[:, :, :1]).all())
    assert len(first[:, :, 0].unique()) == first[:, :, 0].numel()  # and its own at every (n, d, seed)


@pytest.mark.parametrize("stepper", [None, RK4(0.125), Layer(0.25)])
@pytest.mark.parametrize("space", ["gram", "sphere"])
@pytest.mark.parametrize("law", ["row", "mean"])
def test_chunks_do_not_matter(stepper, space, law):
    ask = partial(small, lambda b: Field(Attention(b, law=law)), n=5, beta=[0.2, 0.5, 1.0, 1.5], seeds=10)
    reference = ask(stepper=stepper, space=space)
    for chunk in (3, 17):
        same(ask(stepper=stepper, space=space, chunk=chunk), reference)


def test_spaces_agree():
    a, b = small(space="gram"), small(space="sphere")
    for name in ("mean_product", "energy", "order"):
        torch.testing.assert_close(a.values[name], b.values[name], rtol=1e-5, atol=1e-6)


def test_what_gram_cannot_run_goes_to_the_sphere():
    drift = perceptron(torch.eye(9, dtype=F64), torch.eye(9, dtype=F64))
    turn = torch.linalg.qr(torch.randn(9, 9, dtype=F64, generator=torch.Generator().manual_seed(0))).Q
    for field in (
        lambda beta: Field(Attention(beta, query=turn)),
        lambda beta: Field(Attention(beta), drift=drift),
    ):
        assert small(field=field, n=4, d=9, times=[0.0]).settings["spaces"] == ["sphere"]
        with pytest.raises(ValueError, match="Gram"):
            small(field=field, n=4, d=9, space="gram")
    assert small(n=4, d=3, times=[0.0], space="gram").settings["spaces"] == ["gram"]


# ---- restarts -----------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def test_an_interrupted_sweep_goes_on_with_the_same_bits(whole, tmp_path):
    def stop(done, of):
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        small(folder=tmp_path, chunk=5, told=stop)
    there = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("chunk-*")}
    assert len(there) == 5
    told = []
    same(small(folder=tmp_path, told=lambda *a: told.append(a)), whole)  # the chunk is the folder's
    assert told[-1] == (12, 12)
    assert there.items() <= {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("chunk-*")}.items()
    assert not list(tmp_path.glob(".*"))


def damage(data, how):
    if how == "cut":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("how", ["cut", "empty", "flipped"])
def test_a_damaged_chunk_is_computed_again(whole, tmp_path, how):
    small(folder=tmp_path, chunk=6)
    file = tmp_path / "chunk-00003.safetensors"
    good = file.read_bytes()
    file.write_bytes(damage(good, how))
    with pytest.warns(UserWarning, match=r"chunk-00003.*damaged"):
        again = small(folder=tmp_path)
    same(again, whole)
    assert file.read_bytes() == good


OTHER = {
    "beta": {"beta": [0.5, 2.0, 7.0]},
    "n": {"n": [4, 8]},
    "seeds": {"seeds": [0, 1, 2, 4]},
    "times": {"times": [0.0, 0.5, 1.5]},
    "stepper": {"stepper": Adaptive(1e-7)},
    "dtype": {"dtype": torch.float32},
    "spaces": {"space": "sphere"},
    "start": {"start": lambda n, d, generator: torch.eye(9, dtype=F64)[:n, :d] + 1},
    "field": {"field": lambda beta: Field(Attention(beta, law="mean"))},
    "observe": {"observe": lambda beta: [*usual(beta)[:-1], Observable("clusters", partial(cluster_count, scale=0.4), "max")]},
    "chunk": {"chunk": 7},
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER)
def test_another_setting_in_the_folder_is_refused_by_name(tmp_path_factory, what):
    folder = tmp_path_factory.getbasetemp() / "refused"
    if not folder.exists():
        small(folder=folder, chunk=6)
    with pytest.raises(ValueError, match=rf"other settings: {what}\b"):
        small(folder=folder, **OTHER[what])


def test_what_makes_no_other_sweep(tmp_path):
    small(folder=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = small(folder=tmp_path, level=0.5, device="cpu", field=lambda beta: Field(Attention(beta)))
    assert other.level == 0.5
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match="no manifest"):
        small(folder=tmp_path)


def test_settings_tell_functions_apart():
    w = torch.eye(3)

    def drift(scale):
        return lambda x, t: scale * x

    assert described(Field(drift=drift(2.0))) == described(Field(drift=drift(2.0)))
    assert described(Field(drift=drift(2.0))) != described(Field(drift=drift(3.0)))
    assert described(perceptron(w, w)) != described(perceptron(2 * w, w))
    assert described(Attention(1.0, law="row")) != described(Attention(1.0, law="mean"))
    a, b = (json.loads(json.dumps(described(Field(Attention(1.0, value=v))))) for v in (1.0, -1.0))
    assert differences(a, b) == ["terms[0].value was 1.0, now -1.0"]


# ---- statistics ---------------------------------------------------------------------------------------


def test_statistics_are_those_of_scipy(whole):
    from scipy import stats

    s, x = whole["mean_product"], whole.values["mean_product"].numpy()
    low, high = stats.t.interval(0.95, 3, loc=x.mean(3), scale=stats.sem(x, axis=3))
    for found, want in ((s.mean, x.mean(3)), (s.deviation, x.std(3, ddof=1)), (s.low, low), (s.high, high)):
        np.testing.assert_allclose(found.numpy(), want, rtol=1e-12, atol=1e-15)
    assert bool((s.count == 4).all())
    alone = small(seeds=1)["order"]
    assert bool(torch.isfinite(alone.mean).all())
    assert bool(torch.isnan(alone.low).all())


def test_intervals_cover_the_mean_as_often_as_they_say():
    # the mean product of independent uniform tokens is 0; 300 sweeps of 6 seeds each, one by its d
    seen = small(
        beta=0.0, n=2, d=3, seeds=1800, times=[0.0], observe=[Observable("mean_product", mean_product)]
    )
    x = seen.values["mean_product"].view(300, 6)
    held = SweepResult(
        {"n": tuple(range(300))}, tuple(range(6)), seen.times, {"p": x}, frozenset(), torch.zeros(300, 6, dtype=torch.int64), 0.8
    )["p"]  # fmt: skip
    covered = float(((held.low < 0) & (held.high > 0)).double().mean())
    assert abs(covered - 0.8) < 3 * math.sqrt(0.8 * 0.2 / 300)


def test_failures_are_counted_and_in_no_mean():
    def field(beta):
        return Field(Attention(beta, law="mean"))

    ask = partial(sweep, field, beta=[0.0, 200.0], n=3, d=8, seeds=5, times=[0.0, 0.2])
    stepper = Adaptive(1e-8, max_steps=40)
    with pytest.warns(RuntimeWarning, match="5 of 10 runs: took as many steps"):
        out = ask(observe=[Observable("order", order_parameter)], stepper=stepper)
    assert out.failures == {"MAX_STEPS": 5}
    assert out["order"].count.flatten().tolist() == [5, 0]
    assert torch.isfinite(out["order"].mean[0, 0, 0]).all()
    assert torch.isnan(out["order"].mean[0, 0, 1]).all()
    assert "5 runs: took as many steps" in out.table()
    some = out.status.clone()
    some[0, 0, 1, :3] = int(Status.DONE)
    part = SweepResult(out.axes, out.seeds, out.times, out.values, out.series, some)["order"]
    assert part.count[0, 0, 1] == 3
    torch.testing.assert_close(part.mean[0, 0, 1], out.values["order"][0, 0, 1, :3].mean(0))
    torch.testing.assert_close(part.deviation[0, 0, 1], out.values["order"][0, 0, 1, :3].std(0))


def test_warnings_come_once():
    with pytest.warns(UserWarning, match="sweep: ") as given:
        small(
            stepper=Euler(0.5), field=lambda b: Field(Attention(b, law="mean")), chunk=2, dtype=torch.float32
        )
    kinds = [str(w.message)[:30] for w in given if not issubclass(w.category, RuntimeWarning)]
    assert sorted(k.split(":")[1].split()[1] for k in kinds) == ["state", "step"]


# ---- the result ---------------------------------------------------------------------------------------


def test_select_and_table(whole):
    part = whole.select(n=7, beta=[6.0, 0.5])
    assert list(part.axes) == ["d", "beta"]
    assert part.axes["beta"] == (6.0, 0.5)
    assert part.fixed == {"n": 7}
    assert torch.equal(part.values["order"], whole.values["order"][1][:, [2, 0]])
    for name in whole.values:
        a, b = part[name].high, whole[name].high[1][:, [2, 0]]
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    one = whole.select(n=4, d=9, beta=2.0)
    assert one["mean_product"].mean.shape == (3,)
    lines = part.table(0.6).splitlines()
    assert lines[0] == "n = 7, t = 0.5"
    assert len(lines) == 2 + 4
    assert f"{float(part['mean_product'].mean[0, 0, 1]):.4g}" in lines[2]
    assert "histogram" not in lines[1]
    assert len(one.table().splitlines()) == 3
    with pytest.raises(ValueError, match="no axis 'n'"):
        part.select(n=7)
    with pytest.raises(ValueError, match=r"beta = 3 is not of the sweep; there are 0\.5, 2, 6"):
        whole.select(beta=3.0)
    with pytest.raises(KeyError, match="there are mean_product"):
        whole["speed"]


def test_save_and_load(whole, tmp_path):
    whole.select(d=9).save(tmp_path / "a.safetensors")
    back = SweepResult.load(tmp_path / "a.safetensors")
    same(back, whole.select(d=9))
    for name in ("seeds", "series", "level", "settings", "notes", "fixed"):
        assert getattr(back, name) == getattr(whole.select(d=9), name), name
    assert torch.equal(back.times, whole.times)
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(damage(data, "flipped"))
    with pytest.raises(ValueError, match="damaged"):
        SweepResult.load(tmp_path / "a.safetensors")


# ---- refusals -----------------------------------------------------------------------------------------


REFUSED = {
    "beta is": {"beta": [1.0, math.nan]},
    "beta is .*each once": {"beta": [1.0, 1.0]},
    "seeds is": {"seeds": 0},
    "n is": {"n": [4, 2.5]},
    "times are": {"times": [0.0, 1.0, 0.5]},
    "dtype is": {"dtype": torch.bfloat16},
    "space is": {"space": "circle"},
    "level is": {"level": 95},
    "chunk is": {"chunk": 0},
    "without noise": {"stepper": EulerMaruyama(0.1, 3.0)},
    "EnergyBalance": {"observe": [EnergyBalance(1.0)]},
    "is empty": {"observe": []},
    "expected one shape": {"observe": [Observable("spectrum", gram_spectrum)]},
    r"expected \(systems": {"observe": [Observable("all", lambda x, mass=None: x.sum())]},
    "expected a Field": {"field": lambda beta: Attention(beta)},
    "start": {"start": lambda n, d, generator: torch.ones(2, n, d)},
    "GiB in a step": {"n": 300_000, "d": 300_001},
    "to put together": {"times": list(range(2000))},
    "e.beta overflows": {"beta": [1.0, 800.0], "field": lambda beta: Field(Attention(beta, law="mean"))},
    "no GPU": {"device": "cuda"},
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_anything_runs(what, monkeypatch):
    if what == "no GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if what == "to put together":
        monkeypatch.setattr(sys.modules["osmose.dynamics.sweep.plan"], "held_by", lambda device: 2.0**20)
    told = []
    with pytest.raises(ValueError, match=what):
        small(told=lambda *a: told.append(a), **REFUSED[what])
    assert not told


def test_starts_of_ones_own_are_brought_to_the_sphere():
    with pytest.warns(UserWarning, match="off the sphere"):
        out = small(start=lambda n, d, generator: 2 * torch.eye(n, d, dtype=F64), n=4, d=9)
    assert float(out.values["mean_product"][..., 0].abs().max()) == 0
    assert any("equiangular" in note for note in out.notes)


def gain_a(x, mass=None):
    return 2.0 * mean_product(x, mass)


def gain_b(x, mass=None):
    return 3.0 * mean_product(x, mass)


GAINS = [1.0]
HELPER = gain_a


def by_helper(x, mass=None):
    return HELPER(x, mass)


def by_list(x, mass=None):
    return sum(g * mean_product(x, mass) for g in GAINS)


@pytest.mark.parametrize(
    ("function", "name", "other"), [(by_helper, "HELPER", gain_b), (by_list, "GAINS", [5.0])]
)
def test_a_folder_knows_the_code_behind_an_observable(tmp_path, monkeypatch, function, name, other):
    def run():
        return small(folder=tmp_path, observe=[Observable("p", function)])

    run()
    monkeypatch.setitem(globals(), name, other)
    with pytest.raises(ValueError, match="observe"):
        run()


@pytest.mark.filterwarnings("ignore:sweep. .* is of another sweep:UserWarning")
def test_chunks_of_another_size_without_their_manifest_are_computed_again(tmp_path):
    first = small(folder=tmp_path, chunk=5)
    (tmp_path / "sweep.json").unlink()
    again = small(folder=tmp_path, chunk=4)
    for name, values in first.values.items():
        assert torch.equal(again.values[name], values)
    with pytest.raises(ValueError, match=r"chunk is 2\.5; expected whole numbers from 1 on"):
        small(chunk=2.5)
