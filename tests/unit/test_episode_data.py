"""Recorded episodes: windows and returns against sums by hand, statistics of the training part, files, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from osmose.data import (
    CONTROL_PROTOCOLS,
    DataError,
    DataNotFoundError,
    EpisodeData,
    Spans,
    kind,
    load,
    load_episodes,
)

LENGTHS = [7, 1, 12, 5]
EXPERT = {"hopper": (11, 3), "half-cheetah": (17, 6), "walker2d": (17, 6), "ant": (27, 8)}


def spans(*rows):
    return torch.tensor(rows, dtype=torch.int64)


def make(**changes) -> EpisodeData:
    g = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    parts = {
        "name": "set",
        "protocol": "given",
        "states": torch.randn(total, 3, generator=g) * 4 + 2,
        "actions": torch.rand(total, 2, generator=g) * 2 - 1,
        "rewards": torch.randn(total, generator=g),
        "terminals": torch.zeros(total, dtype=torch.bool),
        "ptr": torch.tensor([0, 7, 8, 20, 25]),
        "splits": [Spans(spans([0, 5], [7, 8], [8, 17], [20, 25]), spans([5, 7], [17, 20]))],
    }
    return EpisodeData(**(parts | changes))


def numbered(path, lengths=(30, 20), *, drop=(), **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for i, n in enumerate(lengths):
        arrays[f"observation_{i}"] = rng.normal(size=(n, 3))
        arrays[f"action_{i}"] = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        arrays[f"reward_{i}"] = rng.normal(size=n)
        arrays[f"terminal_{i}"] = np.arange(n) == n - 1
    arrays = {key: value for key, value in (arrays | changes).items() if key not in drop}
    np.savez(path, **arrays)
    return path


def flat(path, ends=(9, 24), total=30, *, drop=(), **changes):
    rng = np.random.default_rng(1)
    arrays = {
        "observations": rng.normal(size=(total, 4)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (total, 2)),
        "rewards": rng.normal(size=total),
        "terminals": np.isin(np.arange(total), ends),
    }
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if key not in drop})
    return path


# ---- windows --------------------------------------------------------------------------------------


def test_returns_to_go_are_sums_to_the_end_of_the_episode():
    data = make()
    for i in range(data.num_episodes):
        start, stop = data.ptr[i : i + 2].tolist()
        rewards = data.rewards[start:stop].tolist()
        wanted = [sum(rewards[t:]) for t in range(len(rewards))]
        assert data.returns_to_go[start:stop].tolist() == pytest.approx(wanted, abs=1e-5)
        assert data.timesteps[start:stop].tolist() == list(range(stop - start))
        assert float(data.episode_returns[i]) == pytest.approx(sum(rewards), abs=1e-5)


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.parametrize("context", [1, 4, 30])
def test_a_window_is_a_run_of_steps_of_one_span(part, context):
    data = make()
    mean, std = data.mean_and_std
    of_part = data.splits[0].of(part)
    owner = {t: (a, b) for a, b in of_part.tolist() for t in range(a, b)}
    windows = data.sample(200, context, generator=torch.Generator().manual_seed(3), part=part)
    assert {tuple(x.shape[:2]) for x in windows} == {(200, context)}
    for returns, states, actions, timesteps, mask in zip(*windows, strict=True):
        n = int(mask.sum())
        assert mask.tolist() == [False] * (context - n) + [True] * n
        assert not any(x[~mask].any() for x in (returns, states, actions, timesteps))
        raw = states[mask] * std + mean
        first = int((data.states - raw[0]).abs().sum(-1).argmin())
        start, stop = first, min(first + context, owner[first][1])
        assert n == stop - start
        torch.testing.assert_close(raw, data.states[start:stop])
        assert torch.equal(actions[mask], data.actions[start:stop])
        assert torch.equal(timesteps[mask], data.timesteps[start:stop])
        torch.testing.assert_close(returns[mask, 0] * data.return_scale, data.returns_to_go[start:stop])


def test_starts_are_uniform_over_the_steps_of_the_part():
    data = make()
    drawn = data.sample(20_000, 1, generator=torch.Generator().manual_seed(0))
    count = torch.zeros(25)
    key = {tuple(a): t for t, a in enumerate(data.actions.tolist())}
    for a in drawn.actions[:, 0].tolist():
        count[key[tuple(a)]] += 1
    train = [t for a, b in data.splits[0].train.tolist() for t in range(a, b)]
    assert count.sum() == count[train].sum()
    torch.testing.assert_close(count[train] / 20_000, torch.full((20,), 0.05), atol=0.006, rtol=0)


def test_a_draw_depends_on_its_generator_alone():
    data = make()
    one, same, other = (data.sample(8, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.states, other.states)


@pytest.mark.parametrize("context", [1, 3, 50])
def test_tiles_hold_every_step_of_a_part_once(context):
    data = make()
    for part in ("train", "valid"):
        windows = data.windows(data.tiles(context, part=part), context, part=part)
        steps = [t for a, b in data.splits[0].of(part).tolist() for t in range(a, b)]
        assert torch.equal(windows.actions[windows.mask], data.actions[steps])
    assert windows.to("cpu").mask.equal(windows.mask)


def test_statistics_are_those_of_the_training_part():
    data = make()
    train = torch.cat([data.states[a:b] for a, b in data.splits[0].train.tolist()])
    mean, std = data.mean_and_std
    torch.testing.assert_close(mean, train.mean(0))
    torch.testing.assert_close(std, train.std(0, correction=0))
    states = data.states.clone()
    states[5:7] += 1000
    assert torch.equal(replace(data, states=states).mean_and_std[0], mean)
    states[:, 1] = 3.0
    assert replace(data, states=states).mean_and_std[1][1] == 1
    assert data.return_scale == pytest.approx(
        max(abs(float(data.returns_to_go[t])) for a, b in data.splits[0].train.tolist() for t in range(a, b))
    )
    assert replace(data, scale=1000.0).return_scale == 1000
    assert replace(data, rewards=torch.zeros(25)).return_scale == 1


def test_for_split_changes_the_part_and_its_statistics():
    two = [*make().splits, Spans(spans([8, 20]), spans([0, 7]))]
    data = make(splits=two)
    other = data.for_split(1)
    assert other.split == 1
    torch.testing.assert_close(other.mean_and_std[0], data.states[8:20].mean(0))
    assert not torch.equal(other.mean_and_std[0], data.mean_and_std[0])
    assert other.for_split(0).mean_and_std[0].equal(data.mean_and_std[0])
    assert data.for_split(0) is data
    with pytest.raises(DataError, match="split 2 of 2; expected 0 to 1"):
        data.for_split(2)


def test_preprocessing_goes_through_json():
    data = make(env="Hopper-v4", action_range=(-1.0, 1.0))
    kept = data.preprocessing
    assert json.loads(json.dumps(kept)) == kept
    assert kept["kind"] == "control"
    assert (kept["env"], kept["state_dim"], kept["action_dim"]) == ("Hopper-v4", 3, 2)
    assert kept["best_return"] == float(data.episode_returns.max())
    assert kept["mean"] == data.mean_and_std[0].tolist()


def test_text_is_short():
    assert repr(make()).startswith(
        "EpisodeData('set', protocol 'given': 4 episodes of 1 to 12 steps with returns "
    )
    assert repr(make().splits[0]) == "Spans(train=20 steps, valid=5 steps)"


# ---- files ----------------------------------------------------------------------------------------


def test_kind_is_told_without_reading(tmp_path):
    numbered(tmp_path / "a.npz")
    flat(tmp_path / "b.npz")
    assert [kind(tmp_path / name) for name in ("a.npz", "b.npz")] == ["control"] * 2
    assert {kind(name) for name in (*EXPERT, "Hopper")} == {"control"}


@pytest.mark.parametrize("name", EXPERT)
def test_the_named_sets(benchmark_data, name):
    data = load_episodes(name, root=benchmark_data)
    assert (data.state_dim, data.action_dim) == EXPERT[name]
    assert data.lengths.tolist() == [1000, 1000]
    assert data.protocol == "blocks"
    assert data.splits[0].train.tolist() == [[0, 900], [1000, 1800], [1900, 2000]]
    assert data.splits[0].valid.tolist() == [[900, 1000], [1800, 1900]]
    assert data.action_range == (-1.0, 1.0)
    assert data.env is not None
    file = benchmark_data / "rl_expert" / f"expert_data_{data.env}.npz"
    with np.load(file) as raw:
        assert data.episode_returns.tolist() == pytest.approx([raw[f"reward_{i}"].sum() for i in (0, 1)])
        assert np.array_equal(data.states[:1000].numpy(), raw["observation_0"].astype(np.float32))
        assert np.array_equal(data.actions[1000:].numpy(), raw["action_1"].clip(-1, 1))
    assert "lay beyond -1 to 1" in data.notes[0]


def test_numbered_episodes(tmp_path):
    data = load_episodes(numbered(tmp_path / "mine.npz", drop=("terminal_1",)), env="Some-v0")
    assert (data.name, data.env, data.protocol) == ("mine", "Some-v0", "blocks")
    assert data.ptr.tolist() == [0, 30, 50]
    assert data.terminals.nonzero().flatten().tolist() == [29]
    assert data.splits[0].train.tolist() == [[0, 27], [30, 46], [48, 50]]
    assert data.action_range == (-1.0, 1.0)
    assert "taken for their range" in data.notes[0]


def test_flat_arrays_are_divided_where_an_episode_ends(tmp_path):
    data = load_episodes(flat(tmp_path / "d.npz", timeouts=np.arange(30) == 17, other=np.ones(3)))
    assert data.ptr.tolist() == [0, 10, 18, 25, 30]
    assert data.terminals.nonzero().flatten().tolist() == [9, 24]
    assert any("cut off after 5 steps" in note for note in data.notes)
    assert data.env is None
    whole = load_episodes(flat(tmp_path / "e.npz", ends=()))
    assert whole.ptr.tolist() == [0, 30]
    assert any("count as one episode" in note for note in whole.notes)


def test_what_the_file_says_of_its_environment(tmp_path):
    path = flat(tmp_path / "d.npz", env=np.array("Hopper-v4"), action_range=np.array([-2, 3]))
    assert load_episodes(path).env == "Hopper-v4"
    assert load_episodes(path).action_range == (-2.0, 3.0)
    other = load_episodes(path, env="Other-v1", action_range=(-1.5, 1.5))
    assert (other.env, other.action_range) == ("Other-v1", (-1.5, 1.5))
    wide = flat(tmp_path / "w.npz", actions=np.full((30, 2), 4.0))
    assert load_episodes(wide).action_range is None


def test_blocks_are_a_tenth_of_every_episode_and_never_its_start(tmp_path):
    lengths = [50, 1, 2, 3, 14, 10, 20, 100, 30, 10, 10, 10]
    data = load_episodes(numbered(tmp_path / "a.npz", lengths), protocol="blocks")
    held = torch.zeros(sum(lengths), dtype=torch.int64)
    for a, b in data.splits[0].valid.tolist():
        held[a:b] += 1
    assert held.max() == 1
    assert [int(part.sum()) for part in held.split(lengths)] == [5, 0, 1, 1, 1, 1, 2, 10, 3, 1, 1, 1]
    assert all(part[0] == 0 for part in held.split(lengths))
    assert [int(part.argmax()) for part in held.split(lengths)][-3:] == [9, 8, 7]


def test_many_episodes_are_held_out_whole(tmp_path):
    path = numbered(tmp_path / "many.npz", lengths=range(3, 23))
    data = load_episodes(path, splits=3)
    assert data.protocol == "episodes"
    whole = {tuple(row) for row in torch.stack([data.ptr[:-1], data.ptr[1:]], -1).tolist()}
    for split in data.splits:
        parts = [{tuple(row) for row in split.of(part).tolist()} for part in ("train", "valid")]
        assert parts[0] | parts[1] == whole
        assert [len(part) for part in parts] == [18, 2]
    assert len({str(split.valid.tolist()) for split in data.splits}) > 1
    more = load_episodes(path)
    assert len(more.splits) == 5
    assert all(torch.equal(a.valid, b.valid) for a, b in zip(data.splits, more.splits, strict=False))
    assert load_episodes(path, protocol="blocks", splits=2).notes[-1].endswith("'blocks' has 1")
    assert list(CONTROL_PROTOCOLS) == ["episodes", "blocks"]


# ---- what is refused ------------------------------------------------------------------------------

BAD = [
    ({"states": torch.ones(25)}, r"states are \(25,\) torch.float32; expected \(total, channels\)"),
    ({"actions": torch.ones(25, 2, dtype=torch.float64)}, r"actions are \(25, 2\) torch.float64"),
    ({"actions": torch.ones(24, 2)}, "24 actions for 25 states"),
    ({"rewards": torch.ones(24)}, r"rewards are \(24,\)"),
    ({"terminals": torch.ones(25)}, r"terminals are \(25,\) torch.float32; expected \(25,\) torch.bool"),
    ({"terminals": torch.arange(25) == 3}, "terminals are set at episode 0, step 3, before the end"),
    ({"ptr": torch.tensor([0, 7, 7, 20, 25])}, "episode 1 runs from 7 to 7 and is empty"),
    ({"ptr": torch.tensor([0, 7, 26])}, "ptr goes from 0 to 26; expected 0 to 25"),
    ({"rewards": torch.tensor([0.0] * 10 + [float("nan")] * 15)}, "15 NaN .* first at episode 2, step 2"),
    ({"action_range": (-0.1, 0.1)}, "actions go from .* expected -0.1 to 0.1"),
    ({"action_range": (1.0, 0.0)}, "expected low < high"),
    ({"scale": 0.0}, "scale is 0.0; expected a positive number"),
    ({"splits": []}, "expected at least one split"),
    ({"splits": [Spans(spans([0, 9]), spans([9, 12]))]}, "a span of train goes across two episodes"),
    ({"splits": [Spans(spans([0, 5]), spans([4, 7]))]}, "1 steps are in train and in valid"),
    ({"splits": [Spans(spans([0, 5]), spans([24, 26]))]}, "valid goes from 24 to 26"),
    ({"splits": [Spans(spans([3, 3]), spans([4, 7]))]}, "spans of train are empty"),
    ({"splits": [Spans(spans([0, 5]), torch.zeros(0, 2, dtype=torch.int64))]}, r"valid is \(0, 2\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_windows_refused():
    with pytest.raises(DataError, match="step 5 is not in the train part"):
        make().windows(torch.tensor([0, 5]), 3)
    for call in (make().tiles, lambda k: make().sample(2, k)):
        with pytest.raises(DataError, match="context is 0"):
            call(0)


FILES = [
    (lambda p: numbered(p, drop=("reward_1",)), r"lacks reward_1; expected observation_0"),
    (lambda p: numbered(p, drop=("observation_0",)), r"holds the episodes \[1\]; expected numbers from 0"),
    (
        lambda p: numbered(p, action_1=np.ones((19, 2))),
        r"action_1 has shape \(19, 2\); expected \(20, channels\)",
    ),
    (lambda p: numbered(p, action_1=np.ones((20, 3))), r"action_0 to action_1 have \[2, 3\] channels"),
    (lambda p: numbered(p, reward_0=np.ones((30, 2))), r"reward_0 has shape \(30, 2\); expected \(30,\)"),
    (lambda p: numbered(p, lengths=(5, 0)), r"observation_1 has no steps"),
    (lambda p: numbered(p, lengths=(1, 1)), r"all episodes have one step"),
    (lambda p: numbered(p, terminal_0=np.arange(30)), r"terminal_0 holds other values than 0 and 1"),
    (lambda p: numbered(p, observation_0=np.full((30, 3), "a")), r"observation_0 is of type <U1"),
    (lambda p: flat(p, drop=("terminals",)), r"lacks terminals"),
    (lambda p: flat(p, observations=np.ones(30)), r"observations has shape \(30,\)"),
    (lambda p: flat(p, observations=np.ones((0, 3))), r"observations have no steps"),
    (lambda p: flat(p, actions=np.full((30, 2), np.nan)), r"actions hold 60 NaN .* episode 0, step 0"),
    (lambda p: flat(p, action_range=np.ones(3)), r"action_range is \(3,\) float64; expected two numbers"),
]


@pytest.mark.parametrize(("write", "message"), FILES)
def test_files_refused(tmp_path, write, message):
    with pytest.raises(DataError, match=message):
        load_episodes(write(tmp_path / "a.npz"))


def test_arguments_refused(tmp_path):
    path = numbered(tmp_path / "a.npz")
    for arguments, message in [
        ({"protocol": "block"}, "did you mean 'blocks'"),
        ({"splits": 0}, "splits is 0"),
        ({"root": tmp_path}, "root is for public data sets"),
        ({"protocol": "episodes", "seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(DataError, match=message):
            load_episodes(path, **arguments)
    one = numbered(tmp_path / "one.npz", lengths=(9,))
    with pytest.raises(DataError, match="'episodes' with 1 episode; take 'blocks'"):
        load_episodes(one, protocol="episodes")
    with pytest.raises(DataError, match="env is for the user's own data"):
        load_episodes("hopper", env="Hopper-v5")
    with pytest.raises(DataError, match="'cora' holds no episodes; expected one of hopper"):
        load_episodes("cora")
    with pytest.raises(DataNotFoundError, match="neither a known data set nor a path; did you mean 'hopper'"):
        load_episodes("hoper")
    with pytest.raises(DataNotFoundError, match=r"expert_data_Hopper-v4.npz is in no raw folder"):
        load_episodes("hopper", root=tmp_path)
    with pytest.raises(DataError, match=r"expected an \.npz with"):
        load_episodes(tmp_path)
    assert load(path, protocol="blocks").kind == "control"
    with pytest.raises(DataError, match="knn is for tables and graphs, not for control"):
        load(path, knn=3)
