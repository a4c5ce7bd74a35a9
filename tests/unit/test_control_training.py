"""Control and images in the engine: they learn, resume bit for bit, and are measured as their pages say."""

import json

import numpy as np
import pytest
import torch

from osmose.data import load
from osmose.models import DecisionModel
from osmose.models.config import SEQUENCE_MODELS, ModelConfig
from osmose.tasks import trainers
from osmose.tasks.config import DataConfig, RunConfig, TrainConfig
from osmose.tasks.loop import check_trainable
from osmose.tasks.run import run
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import evaluate_saved, open_model, predict
from osmose.tasks.signals import Interrupted, StopRequest


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Twelve episodes in which the right action is a function of the state."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("control") / "mine.npz"
    found = {}
    for i in range(12):
        state = rng.normal(size=(30, 3)).astype(np.float32)
        found |= {
            f"observation_{i}": state,
            f"action_{i}": np.tanh(state[:, :2]),
            f"reward_{i}": np.ones(30),
        }
    np.savez(path, **found)
    return path


def settings(source, model="flowformer", task=None, **train):
    how = {"optimizer": "adamw", "lr": 3e-3, "epochs": 4, "batch_size": 8, "patience": 0, "threads": 1}
    return RunConfig(
        DataConfig(str(source), task=task),
        ModelConfig(name=model, hidden=16, layers=1, heads=2, dropout=0.1, context=5, stages=1),
        TrainConfig(**how | train),
    )


@pytest.mark.parametrize("model", SEQUENCE_MODELS)
def test_actions_are_learned_and_without_an_environment_there_is_no_test(episodes, tmp_path, model):
    folder = RunFolder(tmp_path / "run")
    result = run(settings(episodes, model, epochs=12), folder)
    data = load(episodes, splits=1)
    spread = float(data.actions.var(0).mean())
    assert result["valid_loss"]["mean"] < 0.3 * spread
    assert result["kind"] == "actions"
    assert not any(name.startswith("test") for name in result)
    saved = open_model(folder)
    data = data.for_split(0)
    whole = data.windows(data.tiles(5), 5, part="valid")
    with torch.no_grad():
        error = (saved.model(*whole) - whole.actions)[whole.mask].square().mean().item()
    assert result["valid_loss"]["mean"] == pytest.approx(error, rel=1e-5)
    assert evaluate_saved(folder)["valid_loss"] == pytest.approx(error, rel=1e-5)
    with pytest.raises(ValueError, match=r"predicts no classes.*osmose eval"):
        predict(folder, None)


class Stopper:
    """A reporter that asks for a stop after the second epoch."""

    def __init__(self, stop):
        self.stop = stop

    def epoch(self, record):
        self.stop.asked = record["epoch"] == 2

    def __getattr__(self, name):
        return lambda *_: None


@pytest.mark.parametrize("kind", ["control", "images"])
def test_resume_is_bit_for_bit(kind, episodes, tmp_path):
    source, task = episodes, None
    if kind == "images":
        draw = np.random.default_rng(0)
        np.savez(tmp_path / "x.npz", x=draw.integers(0, 256, (40, 3, 6, 6)), y=np.arange(40) % 2)
        source = tmp_path / "x.npz"
    config = settings(source, task=task, schedule="cosine", warmup=0.25)
    whole, parts, stop = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts"), StopRequest()
    run(config, whole)
    with pytest.raises(Interrupted):
        run(config, parts, reporter=Stopper(stop), stop=stop)
    run(config, parts, resume=True)
    assert whole.metrics() == parts.metrics()
    ours, theirs = (open_model(folder).model.state_dict() for folder in (whole, parts))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_return_is_that_of_played_episodes(benchmark_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OSMOSE_DATA", str(benchmark_data))
    monkeypatch.setattr(trainers, "PLAYED", {"valid": (1, 99), "test": (2, 0)})
    folder = RunFolder(tmp_path / "run")
    result = run(settings("hopper", epochs=1, batch_size=64), folder)
    found = evaluate_saved(folder)
    assert found["test_return"] == pytest.approx(result["test_return"]["mean"])
    assert found["recorded"]["test_return"] == found["test_return"]
    assert result["test_score"]["mean"] == pytest.approx((found["test_return"] + 20.272305) / 3254.572305)


def test_an_environment_without_a_score_and_with_returns_below_0(tmp_path, monkeypatch, capsys):
    """Pendulum: D4RL lists no score for it, and every reward is negative."""
    from osmose.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "PLAYED", {"valid": (1, 99), "test": (1, 0)})
    draw, found = np.random.default_rng(0), {"env": np.array(["Pendulum-v1"])}
    for i in range(3):
        found |= {f"observation_{i}": draw.normal(size=(30, 3)), f"reward_{i}": -draw.uniform(0, 5, 30)}
        found |= {f"action_{i}": draw.uniform(-1, 1, (30, 1))}
    np.savez("pendulum.npz", **found)
    words = [
        "compare",
        "control",
        "--data",
        "pendulum.npz",
        "--models",
        "flowformer",
        "--splits",
        "2",
        "--epochs",
        "1",
    ]
    assert main([*words, "--threads", "1"]) == 0
    result = json.loads((tmp_path / "runs/compare-pendulum/result.json").read_text())
    assert result["models"][0]["test_return"]["mean"] < 0
    assert "test_score" not in result["models"][0]
    assert main(["eval", "runs/compare-pendulum/flowformer"]) == 0
    out = capsys.readouterr().out
    assert "test   return -" in out
    assert "valid  return -" in out


def test_an_episode_longer_than_the_learned_timesteps_is_cut(benchmark_data, monkeypatch):
    monkeypatch.setenv("OSMOSE_DATA", str(benchmark_data))
    data = load("hopper")
    model = DecisionModel(data.state_dim, data.action_dim, hidden=8, num_layers=1, num_heads=1, max_episode=3)
    monkeypatch.setattr(trainers, "valid_error", lambda *_: 0.0)  # its episodes are longer too
    found = trainers.control_metrics(model, data, {"test": (1, 0)})
    assert 0 < found["test_return"] < 10


def test_an_environment_that_cannot_be_made_is_told_before_training(episodes, tmp_path, monkeypatch):
    for env, says in (
        ("Hopper-v4", "has observations Box.*the data have 3 real channels"),
        ("Nowhere-v0", "cannot be made"),
    ):
        data = load(episodes, env=env)
        with pytest.raises(ValueError, match=says):
            check_trainable(data, settings(episodes), 1)


def test_images_learn_and_new_ones_are_predicted(tmp_path):
    """Bright above or below."""
    draw, y = np.random.default_rng(0), np.arange(200) % 2
    x = draw.integers(0, 120, (200, 1, 9, 7))
    x[y == 0, :, :4] += 100
    x[y == 1, :, 5:] += 100
    np.savez(tmp_path / "x.npz", x=x, y=y)
    folder = RunFolder(tmp_path / "run")
    result = run(settings(tmp_path / "x.npz", epochs=15), folder)
    assert result["test_accuracy"]["mean"] > 0.9
    found = predict(folder, tmp_path / "x.npz")
    assert found.accuracy > 0.9
    assert found.probabilities.shape == (200, 2)


def test_the_verbs(episodes, tmp_path, monkeypatch, capsys):
    from osmose.cli import main

    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "1", "--hidden", "16", "--layers", "1", "--context", "4", "--threads", "1"]
    assert main(["train", "control", "--data", str(episodes), *small]) == 0
    assert "validation action error" in capsys.readouterr().out
    assert main(["eval", "runs/mine-flowformer"]) == 0
    assert "valid" in capsys.readouterr().out
    assert (
        main(["compare", "control", "--data", str(episodes), "--splits", "2", "--epochs", "1", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert len(told["models"][0]["values"]) == 2
    assert "| model | valid, mean square | settings" in (tmp_path / "runs/compare-mine/table.md").read_text()
