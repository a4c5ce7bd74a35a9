"""Language models in the engine: they learn, resume bit for bit, are measured as their formula says, and generate."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from osmose.data import load
from osmose.data.text import decode, encode
from osmose.models.config import ModelConfig, Shape
from osmose.tasks.config import DataConfig, RunConfig, TrainConfig
from osmose.tasks.generate import generate
from osmose.tasks.run import run
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import evaluate_saved, open_model, predict
from osmose.tasks.signals import Interrupted, StopRequest
from osmose.tasks.trainers import text_metrics

VERSE = "abcd efgh abcd ijkl. "


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "verse.txt"
    path.write_text(VERSE * 60, encoding="utf-8")
    return path


def settings(source, model="flowformer", **train):
    how = {
        "optimizer": "adamw",
        "lr": 0.01,
        "epochs": 5,
        "batch_size": 8,
        "patience": 0,
        "schedule": "cosine",
    }
    return RunConfig(
        DataConfig(str(source), task="text", length=24),
        ModelConfig(name=model, hidden=16, layers=1, heads=2, dropout=0.1),
        TrainConfig(**{**how, "warmup": 0.1, "threads": 1, **train}),
    )


@pytest.mark.parametrize("model", ["flowformer", "transformer", "linear-transformer"])
def test_it_learns_and_its_figures_are_those_of_the_formula(source, tmp_path, model):
    folder = RunFolder(tmp_path / "run")
    result = run(settings(source, model, epochs=12), folder)
    uniform = math.log(len(set(VERSE)))
    assert result["test_loss"]["mean"] < 0.5 * uniform
    saved = open_model(folder)
    data = load(source, task="text", length=24)
    part = data.splits[0].test
    ids, target = data.batch(data.windows(part), part)
    with torch.no_grad():
        logits = torch.stack([saved.model(row[None])[0] for row in ids])
    known = target >= 0
    assert result["test_loss"]["mean"] == pytest.approx(
        F.cross_entropy(logits[known], target[known]).item(), abs=1e-5
    )
    right = (logits.argmax(-1) == target)[known].double().mean().item()
    assert result["test_accuracy"]["mean"] == pytest.approx(right)
    found = evaluate_saved(folder)
    assert found["test_loss"] == pytest.approx(result["test_loss"]["mean"], abs=1e-6)
    assert "train_loss" not in found
    lowest = min(folder.metrics(), key=lambda record: record["valid_loss"])
    assert result["splits"][0]["best_epoch"] == lowest["epoch"], "the lowest loss chooses, not the accuracy"


def test_resume_is_bit_for_bit(source, tmp_path):
    whole = RunFolder(tmp_path / "whole")
    run(settings(source), whole)
    parts = RunFolder(tmp_path / "parts")
    stop = StopRequest()

    class Stopper:
        def epoch(self, record):
            stop.asked = record["epoch"] == 2

        def __getattr__(self, name):
            return lambda *_: None

    with pytest.raises(Interrupted):
        run(settings(source), parts, reporter=Stopper(), stop=stop)
    run(settings(source), parts, resume=True)
    assert whole.metrics() == parts.metrics()
    for name, value in open_model(whole).model.state_dict().items():
        assert torch.equal(value, open_model(parts).model.state_dict()[name]), name


def test_the_rate_rises_then_falls_to_nothing(source, tmp_path, monkeypatch):
    from osmose.tasks.trainers import TextTrainer

    rates = []
    step = TextTrainer._step
    monkeypatch.setattr(
        TextTrainer,
        "_step",
        lambda self, loss: rates.append(self.optimizer.param_groups[0]["lr"]) or step(self, loss),
    )
    run(settings(source, warmup=0.2), RunFolder(tmp_path / "run"))
    per_epoch = len(rates) // 5
    assert rates[:per_epoch] == sorted(rates[:per_epoch])
    assert rates[per_epoch:] == sorted(rates[per_epoch:], reverse=True)
    assert rates[0] < 0.2 * 0.01
    assert rates[-1] < 0.01 * 0.01


def test_windows_beyond_their_part_count_nowhere(source):
    """The measure does not depend on how windows are batched, nor on what follows the part."""
    data = load(source, task="text", length=24)
    config = settings(source).model
    from osmose.models import build

    torch.manual_seed(0)
    model = build(config, Shape("text", data.num_features, data.num_features))
    part = {"valid": data.splits[0].valid}
    first = text_metrics(model, data, part, torch.device("cpu"), batch_size=1)
    assert first == pytest.approx(
        text_metrics(model, data, part, torch.device("cpu"), batch_size=64), abs=1e-6
    )
    data.values[part["valid"].stop :] = 0
    assert first == pytest.approx(text_metrics(model, data, part, torch.device("cpu")), abs=1e-6)


def test_generation_is_that_of_the_model_and_repeats(source, tmp_path):
    folder = RunFolder(tmp_path / "run")
    run(settings(source), folder)
    saved = open_model(folder)
    text = "abcd e"
    for _ in range(20):  # by the whole text anew, without a state
        with torch.no_grad():
            logits = saved.model(encode(text, saved.preprocessing)[None])
        text += decode(logits[0, -1:].argmax(-1), saved.preprocessing)
    assert "".join(generate(folder, "abcd e", 20, temperature=0)[1]) == text[6:]
    draw = [
        "".join(generate(folder, "ab", 30, temperature=1.5, top_k=5, top_p=0.95, seed=s)[1])
        for s in (0, 0, 1)
    ]
    assert draw[0] == draw[1] != draw[2]
    assert generate(folder, None, 3)[0] == " ", "a text without line breaks"
    for arguments, says in (
        (("", 3), "the prompt is empty"),
        (("Z", 3), "has not seen: 'Z'"),
        (("a", -1), "length -1"),
    ):
        with pytest.raises(ValueError, match=says):
            generate(folder, *arguments)
    with pytest.raises(ValueError, match="osmose generate"):
        predict(folder, None)


def test_the_verbs(source, tmp_path, monkeypatch, capsys):
    from osmose.cli import main

    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "2", "--hidden", "16", "--layers", "1", "--length", "24", "--threads", "1"]
    assert main(["train", "text", "--data", str(source), *small]) == 0
    assert "test cross-entropy" in capsys.readouterr().out
    assert main(["generate", "runs/verse-flowformer", "--prompt", "ab", "--length", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] == "ab"
    assert len(told["text"]) == 5
    assert main(["eval", "runs/verse-flowformer"]) == 0
    assert "the run recorded" in capsys.readouterr().out
    small = ["--splits", "1", "--epochs", "1", "--threads", "1", "--json"]
    assert main(["compare", "text", "--data", str(source), *small]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in told["models"]] == ["flowformer", "transformer", "linear-transformer"]
    table = (tmp_path / "runs/compare-verse/table.md").read_text()
    assert "| model | test, nats | valid, nats |" in table
    with pytest.raises(SystemExit):
        main(["train", "text", "--help"])
    assert "(default: adamw)" in capsys.readouterr().out
    for words, says in (
        (["train", str(source)], "If it is a text and no table: osmose train text --data verse.txt"),
        (
            ["compare", "text", "--data", str(source), "--models", "flowformer", "gcn"],
            "gcn is a model of nodes",
        ),
        (["train", "text"], "text needs a file: text --data FILE"),
        (["train", "cora", "--data", "x"], "TASK is 'cora'; expected what it holds"),
        (["train", "text", "--data", "nowhere.txt"], "does not exist"),
        (["train", "text", "--data", str(source), "--model", "gcn"], "gcn is a model of nodes or rows"),
        (["generate", "nowhere"], "is not a run"),
    ):
        assert main(words) == 2, words
        assert says in capsys.readouterr().err, words
