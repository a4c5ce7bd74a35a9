"""Settings: plain data that survives TOML, says what is wrong, and needs no torch."""

import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest
import tomli_w

from osmose.models.config import ModelConfig
from osmose.tasks.config import RESUMABLE, DataConfig, RunConfig, TrainConfig
from osmose.tasks.recipes import MODELS, check_name, recipe


def test_settings_survive_toml() -> None:
    config = RunConfig(
        DataConfig("a.csv", label="kind", ignore=("x", "y")),
        ModelConfig("gcn", hidden=7),
        TrainConfig(batch_size=5, trackers=("tensorboard",)),
    )
    text = tomli_w.dumps(config.to_dict())
    assert RunConfig.from_dict(tomllib.loads(text)) == config


def test_unknown_and_missing_settings_are_named() -> None:
    sections = RunConfig(DataConfig("digits")).to_dict()
    sections["train"]["learning"] = 1
    with pytest.raises(ValueError, match=r"unknown TrainConfig settings \['learning'\]"):
        RunConfig.from_dict(sections)
    del sections["train"]
    with pytest.raises(ValueError, match="train"):
        RunConfig.from_dict(sections)
    with pytest.raises(ValueError, match="source"):
        RunConfig.from_dict({"data": {}, "model": {}, "train": {}})


def test_differences_name_the_setting_and_both_values() -> None:
    one = RunConfig(DataConfig("digits"), ModelConfig(hidden=64), TrainConfig(splits=1))
    other = RunConfig(DataConfig("digits"), ModelConfig(hidden=32), TrainConfig(splits=2))
    assert one.differences(other) == ["model.hidden: 64, not 32", "train.splits: 1, not 2"]
    assert one.differences(other, ignore=RESUMABLE) == ["model.hidden: 64, not 32"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("epochs", 0),
        ("eval_every", 0),
        ("splits", 0),
        ("patience", -1),
        ("batch_size", 0),
        ("threads", 0),
        ("checkpoint_seconds", -1.0),
    ],
)
def test_settings_that_cannot_train_are_refused_by_option(name: str, value: float) -> None:
    TrainConfig().validate()
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is .*; expected"):
        replace(TrainConfig(), **{name: value}).validate()  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["cora", "citeseer", "chameleon", "20news", "digits", "my own file"])
@pytest.mark.parametrize("model", MODELS)
def test_every_recipe_is_valid_and_names_its_model(task: str, model: str) -> None:
    settings, train = recipe(task, model)
    assert settings.name == model
    train.validate()


def test_recipes_of_the_paper() -> None:
    model, train = recipe("cora", "difformer-s")
    assert (model.layers, model.hidden, model.dropout, train.lr, train.weight_decay) == (
        8,
        64,
        0.2,
        1e-3,
        0.01,
    )
    model, train = recipe("citeseer", "difformer-a")
    assert (model.layers, model.hidden, train.weight_decay, train.epochs) == (4, 32, 1.0, 500)
    assert recipe("cora", "mean")[1] == recipe("cora", "difformer-s")[1]


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'gcn'"):
        check_name("gnc", MODELS, "model")
    with pytest.raises(ValueError, match="unknown model 'zzzz'; Known: difformer-a"):
        recipe("cora", "zzzz")


def test_settings_need_no_torch() -> None:
    code = (
        "import sys, osmose.tasks.config, osmose.tasks.recipes, osmose.cli; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
