"""Rollouts: the same call gives the same returns, the model sees what it saw in training, and what cannot run says so."""

from __future__ import annotations

import builtins
import warnings
from contextlib import nullcontext

import pytest
import torch

from osmose.data import DataError
from osmose.models import DecisionModel
from osmose.tasks import rollout
from osmose.tasks.rollout import evaluate_policy, make_environment, normalised_score

STATES, ACTIONS = 11, 3


def preprocessing(**changes):
    made = {
        "kind": "control",
        "name": "hopper",
        "env": "Hopper-v4",
        "state_dim": STATES,
        "action_dim": ACTIONS,
        "action_range": [-1.0, 1.0],
        "mean": [0.1] * STATES,
        "std": [2.0] * STATES,
        "return_scale": 1000.0,
        "best_return": 3000.0,
    }
    return made | changes


def model(mixer="flow", **settings):
    torch.manual_seed(0)
    settings = {"hidden": 16, "num_layers": 1, "num_heads": 2, "context": 4} | settings
    made = DecisionModel(STATES, ACTIONS, mixer=mixer, **settings)
    with torch.no_grad():
        made.output.weight.mul_(5)
    return made


@pytest.mark.parametrize("streaming", [False, True])
def test_the_same_call_gives_the_same_returns(streaming):
    m = model(dropout=0.5).train()
    one, same = (evaluate_policy(m, preprocessing(), episodes=3, streaming=streaming) for _ in range(2))
    assert one == same
    assert m.training
    assert len(set(one.returns)) == 3
    assert all(0 < n < 1000 for n in one.lengths)
    assert (one.env, one.target_return) == ("Hopper-v4", 3000.0)
    last = evaluate_policy(m, preprocessing(), episodes=1, seed=2, streaming=streaming)
    assert last.returns == one.returns[2:]


@pytest.mark.parametrize("mixer", ["flow", "linear", "softmax"])
def test_streaming_is_the_window_while_the_episode_fits_into_it(mixer):
    m = model(mixer, context=8).double()
    window, stream = (
        evaluate_policy(m, preprocessing(), episodes=2, max_steps=8, streaming=s) for s in (False, True)
    )
    assert window.lengths == stream.lengths == [8, 8]
    assert window.returns == pytest.approx(stream.returns, abs=1e-6)


class _World:
    """Gives t as every channel of the observation at step t and 10 as reward; ends after five steps."""

    def __init__(self, space):
        self.action_space, self.actions, self.t, self.seeds = space, [], 0, []

    def reset(self, seed):
        self.t, self.seeds = 0, [*self.seeds, seed]
        return torch.zeros(STATES).numpy(), {}

    def step(self, action):
        self.actions.append(action)
        self.t += 1
        return torch.full((STATES,), float(self.t)).numpy(), 10.0, self.t == 5, False, {}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_model_sees_what_it_saw_in_training(monkeypatch, streaming):
    from gymnasium.spaces import Box

    world = _World(Box(-0.01, 0.02, (ACTIONS,)))
    monkeypatch.setattr(rollout, "make_environment", lambda *_: nullcontext(world))
    m = model(context=5).eval()
    got = evaluate_policy(m, preprocessing(), target_return=100, episodes=1, seed=7, streaming=streaming)
    assert (got.returns, got.lengths, world.seeds) == ([50.0], [5], [7])
    returns = torch.tensor([[100.0, 90, 80, 70, 60]]).unsqueeze(-1) / 1000
    states = ((torch.arange(5.0) - 0.1) / 2).view(1, 5, 1).expand(1, 5, STATES)
    actions = torch.zeros(1, 5, ACTIONS)
    for t in range(5):  # the actions so far are the model's own, before the environment's bounds
        with torch.no_grad():
            actions[:, t] = m(returns, states, actions, torch.arange(5)[None])[:, t]
    taken = torch.stack([torch.from_numpy(action) for action in world.actions])
    torch.testing.assert_close(taken, actions[0].clamp(-0.01, 0.02), atol=1e-6, rtol=0)
    assert (taken != actions[0]).any()


def test_a_window_moves_on_with_its_timesteps():
    m = model(context=3)
    seen = []
    m.act = lambda returns, states, actions, timesteps: (
        seen.append((timesteps.tolist()[0], actions[0, :, 0].tolist())),
        torch.full((1, ACTIONS), float(len(seen))),
    )[1]
    actor = rollout._Windowed(m, preprocessing())
    for _ in range(5):
        actor(torch.zeros(STATES).numpy(), 1.0)
    assert [times for times, _ in seen] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert [actions for _, actions in seen][2:] == [[1, 2, 0], [2, 3, 0], [3, 4, 0]]


@pytest.mark.parametrize("name", ["Hopper-v4", "HalfCheetah-v4", "Walker2d-v4", "Ant-v4"])
def test_environments_are_made_without_a_word_and_without_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"Hopper-v4": (11, 3), "HalfCheetah-v4": (17, 6), "Walker2d-v4": (17, 6), "Ant-v4": (27, 8)}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with make_environment(name, preprocessing(state_dim=sizes[0], action_dim=sizes[1])) as world:
            observation, _ = world.reset(seed=0)
    assert observation.shape == (sizes[0],)
    assert list(tmp_path.iterdir()) == []


def test_scores_are_those_of_d4rl():
    assert normalised_score("Hopper-v4", 3234.3) == pytest.approx(100)
    assert normalised_score("HalfCheetah-v2", -280.178953) == pytest.approx(0)
    assert normalised_score("walker2d", (1.629008 + 4592.3) / 2) == pytest.approx(50)
    assert normalised_score("Ant-v5", 3879.7) == pytest.approx(100)
    assert normalised_score("Pendulum-v1", 0.0) is None
    some = rollout.Rollouts("Hopper-v4", 1.0, [0.0, 10.0], [1, 2])
    assert (some.mean, some.std) == (5.0, 5.0)
    assert some.score == normalised_score("Hopper-v4", 5.0)


REFUSED = [
    ({}, {"env": None}, "name no environment"),
    ({"env": "Hoper-v4"}, {}, "environment 'Hoper-v4' cannot be made"),
    ({"env": "Ant-v4"}, {}, r"'Ant-v4' has observations Box\(.*; the data have 11 real channels"),
    ({}, {"action_dim": 2}, r"'Hopper-v4' has actions Box\(.*; the data have 2 real channels"),
    ({"env": "CartPole-v1"}, {"state_dim": 4}, r"has actions Discrete\(2\)"),
    ({"episodes": 0}, {}, "episodes 0"),
    ({"max_steps": 0}, {}, "max_steps 0"),
    ({"seed": -1}, {}, "seed -1"),
]


@pytest.mark.parametrize(("arguments", "changes", "message"), REFUSED)
def test_refused(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_policy(model(), preprocessing(**changes), **({"episodes": 1} | arguments))


def test_streaming_needs_a_mixer_with_a_state():
    with pytest.raises(ValueError, match="has no state"):
        evaluate_policy(model("diffusion"), preprocessing(), episodes=1, streaming=True)


def test_without_gymnasium(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "gymnasium":
            raise ModuleNotFoundError("No module named 'gymnasium'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r"not installed: pip install 'osmose\[control\]'"):
        evaluate_policy(model(), preprocessing(), episodes=1)
