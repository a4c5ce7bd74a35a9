"""`osmose identify` and `osmose rank`: expressions that are read and not run, tables, JSON, figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from osmose.cli import main
from osmose.cli.modules import module_of_expression
from osmose.models import DIFFormer, LanguageModel
from osmose.tasks.ranks import model_ranks


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_identify_prints_offsets_and_rank(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "nn.Conv1d(4, 6, 3, padding=1)"
    found = called(capsys, "identify", text, "--length", "16", "--seed", "3")
    torch.manual_seed(3)
    weight = nn.Conv1d(4, 6, 3, padding=1).weight.detach().double()
    assert (found["offsets"], found["rank"], found["shift_invariant"]) == ([-1, 0, 1], 3, True)
    torch.testing.assert_close(torch.tensor(found["theta"], dtype=torch.float64), weight.permute(2, 1, 0))
    assert (here / found["figure"]).read_bytes().startswith(b"\x89PNG")
    assert main(["identify", "nn.Conv2d(2, 3, 3, padding=1)", "--length", "6", "5", "--out", "two.png"]) == 0
    out = capsys.readouterr().out
    assert "(-1, -1)" in out
    assert "mixed-product rank 6 with 9 offsets; 2 channels to 3: full" in out
    assert (here / "two.png").is_file()
    pooled = called(capsys, "identify", "AvgPool1d(2)", "--channels", "3", "--layout", "channels-first")
    assert (pooled["coupling"], pooled["axes"][0]["stride"]) == ("scalar", 2)


def test_a_nested_expression_is_read() -> None:
    module = module_of_expression(
        "torch.nn.Sequential(nn.Conv1d(2, 3, kernel_size=(3,), bias=False), ReLU())"
    )
    assert isinstance(module, nn.Sequential)
    assert module[0].kernel_size == (3,)
    assert module[0].bias is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("open('x')", "open is no module of torch.nn"),
        ("nn.Conv1dd(2, 3, 3)", "did you mean nn.Conv1d?"),
        ("nn.Linear(2, __import__('os').getpid())", "__import__('os').getpid is no module"),
        ("nn.Linear(2, [i for i in (1, 2)])", "is no literal"),
        ("nn.Linear(2, 1 + x)", "is no literal"),
        ("nn.functional.relu(2)", "nn.functional.relu is no module"),
        ("nn.Module.__init__(2)", "is no module of torch.nn"),
        ("(nn.Linear)", "is no call"),
        ("nn.Linear(**{'a': 1})", "** is not read"),
        ("nn.Linear(*[1, 2])", "is no literal"),
        ("nn.Linear(2)", "cannot be made"),
        ("nn.Linear(2, 3", "is no expression"),
        ("nn.Linear(2, 3).eval()", "is no module"),
    ],
)
def test_what_is_no_plain_module_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        module_of_expression(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["identify", "nn.ReLU()", "--channels", "2"], "is not linear"),
        (["identify", "nn.Linear(2, 3)", "--module", "a"], "goes with the folder of a run"),
        (["identify", "nowhere", "--module", "a"], "nowhere is not a run"),
        (["identify", "nowhere"], "which part of the model"),
        (["rank", "nowhere"], "nowhere is not a run"),
        (["rank", "nn.ReLU()"], "holds no attention, convolution or linear layer"),
        (["rank", "nn.Linear(2, 3)", "--tolerance", "2"], "expected a share in [0, 1)"),
    ],
)
def test_mistakes_get_one_line(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(here.iterdir()) == [], "nothing is left behind"


def test_rank_of_an_expression(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = called(capsys, "rank", "nn.MultiheadAttention(16, 4)")
    assert (found["parameters"], found["degrees_of_freedom"]) == (4 * 16**2, 4 * 16**2 - 2 * 16**2 // 4)
    values, scores = found["layers"][0]["families"]
    assert (values["role"], values["ranks"], scores["family_rank"]) == ("values", [4] * 4, 4)
    assert (here / found["figure"]).is_file()
    assert main(["rank", "nn.TransformerEncoderLayer(16, 4, 32)"]) == 0
    out = capsys.readouterr().out
    assert "self_attn" in out
    assert "linear2" in out
    assert "out_proj" not in out, "a projection is not a layer of its own"


def test_a_trained_run_is_taken_apart(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--hidden", "8", "--layers", "1", "--splits", "1", "--epochs", "1"]
    run = called(capsys, "train", "digits", *sizes, "--out", "run")["run"]
    found = called(capsys, "rank", run)
    assert {layer["name"]: layer["families"][0]["role"] for layer in found["layers"]} == {
        "fcs.0": "values",
        "fcs.1": "values",
        "convs.0": "scores",  # its values are the state as it is
    }
    assert (here / "run" / "figures" / "rank.png").is_file()
    one = called(capsys, "identify", run, "--module", "fcs.1", "--length", "3")
    assert (one["offsets"], one["coupling"]) == ([0], "full")
    assert main(["identify", run, "--module", "fcs.7"]) == 2
    assert "did you mean fcs.0, fcs.1" in capsys.readouterr().err.replace("fcs.1, fcs.0", "fcs.0, fcs.1")


def test_ranks_say_what_is_missing() -> None:
    torch.manual_seed(0)
    model = LanguageModel(11, 16, 1, 4, mixer="softmax")
    attention = model.blocks[0].self_attn
    with torch.no_grad():
        attention.out_proj.weight[:, 4:8] = attention.out_proj.weight[:, :4]  # type: ignore[union-attr, index]
        attention.in_proj_weight[36:40] = attention.in_proj_weight[32:36]  # type: ignore[index]  # two heads of equal values
        attention.in_proj_weight[2:4] = 0  # type: ignore[index]  # two queries of the first head
    layers = {layer.name: layer for layer in model_ranks(model)}
    values, scores = layers["blocks.0.self_attn"].families
    assert (values.ranks, values.family_rank) == ([4, 4, 4, 4], 3)
    assert (scores.ranks, scores.family_rank) == ([2, 4, 4, 4], 4)
    assert values.degrees_of_freedom == 4 * 4 * (32 - 4)
    assert layers["blocks.0.linear1"].families[0].ranks == [16]
    strict = model_ranks(model, tolerance=0.9)[-1].families[0]
    assert 1 <= strict.ranks[0] < 16


def test_heads_of_difformer_are_read() -> None:
    torch.manual_seed(0)
    model = DIFFormer(7, 8, 3, num_layers=1, num_heads=2, use_weight=True)
    values, scores = next(layer for layer in model_ranks(model) if "DIFFormer" in layer.kind).families
    assert values.shape == scores.shape == (2, 8, 8)
    assert values.degrees_of_freedom == 2 * 64
    assert scores.degrees_of_freedom == 2 * 128 - 2 * (28 + 2)  # unit rows: rotations and two lengths
