"""`osmose particles` on small trained runs: nodes, text, sequences of different lengths, images; and its mistakes."""

import json

import pytest
import torch

from osmose.cli import main
from osmose.dynamics.hidden import STATISTICS
from osmose.dynamics.theory import layer_gap
from osmose.inspection import hidden_states
from osmose.models.config import ModelConfig
from osmose.tasks import sources
from osmose.tasks.config import DataConfig, RunConfig, TrainConfig
from osmose.tasks.run import run
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import open_model

from .engine_helpers import blobs
from .engine_helpers import settings as node_settings
from .test_sequence_training import settings as wave_settings
from .test_sequence_training import waves

VERSE = "abcd efgh abcd ijkl. "


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    (path / "verse.txt").write_text(VERSE * 60, encoding="utf-8")
    model = ModelConfig(name="transformer", hidden=16, layers=2, heads=2, dropout=0.0)
    train = TrainConfig(lr=0.01, optimizer="adamw", epochs=2, batch_size=8, patience=0, threads=1, splits=1)
    folder = RunFolder(path / "run")
    run(RunConfig(DataConfig(str(path / "verse.txt"), task="text", length=24), model, train), folder)
    return folder


@pytest.fixture
def node_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "load", lambda config, splits: blobs())

    def make(model="difformer-s"):
        folder = RunFolder(tmp_path / model)
        run(node_settings(model, epochs=2, splits=1), folder)
        return folder

    return make


def told(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model", ["difformer-s", "difformer-exact"])
def test_nodes(node_run, capsys, model):
    folder = node_run(model)
    result = told(capsys, "particles", folder.path)
    assert (folder.path / "figures/particles.png").stat().st_size > 20_000
    assert result["nodes"] == 60
    assert len(result["states"]) == 3
    for row in result["states"]:
        assert set(STATISTICS) < set(row)
        assert row["mean_product"]["sd"] is None
    data, saved = blobs(), open_model(folder)
    graph = saved.model.prepare_graph(data.edge_index, data.edge_weight, 60)
    states = hidden_states(saved.model, data.x, graph).stacked()
    u = torch.nn.functional.normalize(states.double(), dim=-1)
    want = ((u @ u.mT).sum((-1, -2)) - u.square().sum((-1, -2))) / (60 * 59)
    got = [row["mean_product"]["mean"] for row in result["states"]]
    assert got == pytest.approx(want.tolist(), abs=1e-5)
    if model == "difformer-exact":
        assert result["attentions"] == []
        assert "No attention found" in result["no_attention"]
        assert result["particle_model"] is None
        return
    assert [row["heads"] for row in result["states"]] == [0, 1, 1]
    first = float(layer_gap(1 - got[0], result["states"][1]["matched"], 60, 1.0))
    assert result["particle_model"][:2] == pytest.approx([got[0], 1 - first])


def test_text_and_its_table(text_run, capsys):
    result = told(capsys, "particles", text_run.path, "--sequences", "5")
    assert (text_run.path / "figures/particles.png").stat().st_size > 20_000
    assert result["length"] == 24
    assert [row["state"] for row in result["states"]] == ["input", "blocks.0", "blocks.1"]
    assert result["states"][0]["mean_product"]["sd"] > 0
    assert all(one["causal"] for one in result["attentions"])
    assert result["particle_model"] is None, "its values are not its states"
    assert main(["particles", str(text_run.path), "--sequences", "2", "--beta", "4", "--centre"]) == 0
    out = capsys.readouterr().out
    for words in (
        "2 inputs of 24, mean over tokens taken off",
        "at distance 0.5 (1 / sqrt(beta))",
        "beta = 4 (given)",
    ):
        assert words in " ".join(out.split())


def test_sequences_and_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "load", lambda config, splits: waves())
    folder = RunFolder(tmp_path / "waves")
    run(wave_settings("transformer", epochs=1), folder)
    result = told(capsys, "particles", folder.path, "--sequences", "6", "--scale", "0.4")
    assert result["sequences"] == 6
    assert "length" not in result
    assert result["states"][0]["tokens"]["sd"] > 0
    assert (result["scale"], result["scale_from"]) == (0.4, "given")
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "images")
    model = ModelConfig(name="flowformer", hidden=8, layers=1, heads=2, stages=2, patch=2)
    train = TrainConfig(lr=0.01, epochs=1, batch_size=64, patience=0, threads=1, splits=1)
    run(RunConfig(DataConfig("digits-images"), model, train), folder)
    result = told(capsys, "particles", folder.path, "--sequences", "3")
    assert [row["tokens"]["mean"] for row in result["states"]] == [16, 16, 4, 4]
    assert [row["heads"] for row in result["states"]] == [0, 2, 0, 2]


@pytest.fixture
def line(capsys):
    def of(*words):
        assert main(["particles", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    return of


def test_mistakes_with_text_get_one_line(text_run, line):
    assert "--text is for Hugging Face models" in line(text_run.path, "--text", "a.txt")
    assert "--sequences is 0; expected 1 or more" in line(text_run.path, "--sequences", "0")
    assert "--length is 99; expected 2 or more" in line(text_run.path, "--length", "99")


def test_mistakes_with_nodes_get_one_line(node_run, line, capsys):
    nodes = node_run()
    assert "all nodes are read at once" in line(nodes.path, "--length", "4")
    assert "a run of gcn, whose tokens do not attend to each other" in line(node_run("gcn").path)
    assert main(["heads", str(nodes.path)]) == 2
    assert "is a run on nodes; expected one on text, sequences or images" in capsys.readouterr().err
