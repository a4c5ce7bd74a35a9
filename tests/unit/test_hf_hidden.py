"""Hidden states of transformers' models, tiny and random: as they report them, padded as alone; a folder and its text."""

import json

import pytest
import tokenizers
import torch
import transformers

from osmose.adapters import hf
from osmose.adapters.hf_folder import open_folder, text_batches
from osmose.cli import main
from osmose.dynamics import effective_beta
from osmose.inspection import hidden_states as hidden_states_ours

from .test_hf import MODELS, ids

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog"]


def albert():
    config = transformers.AlbertConfig(
        vocab_size=23,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return transformers.AlbertModel(config), False


def bloom():  # its kinds of blocks are told nowhere, and its attention is written out
    return transformers.BloomModel(
        transformers.BloomConfig(vocab_size=23, hidden_size=16, n_layer=2, n_head=2)
    ), True


ALL = MODELS | {"albert": albert, "bloom": bloom}
FINAL = {"gpt2": "transformer.ln_f", "llama": "model.norm", "bloom": "ln_f"}


@pytest.fixture(params=ALL)
def made(request):
    torch.manual_seed(0)
    model, causal = ALL[request.param]()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval(), causal, request.param


def test_states_are_those_that_transformers_reports(made):
    model, _, name = made
    batch = {"input_ids": ids(), "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
    found = hf.hidden_states(model, **batch)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        want = model(**batch, output_hidden_states=True).hidden_states
        last = found.states[-1]
        if name in FINAL:  # reported after the final norm
            last = model.get_submodule(FINAL[name])(last)
    assert len(found) == len(want)
    assert all(torch.equal(a, b) for a, b in zip(found.states[:-1], want[:-1], strict=True))
    torch.testing.assert_close(last, want[-1])
    assert all(torch.equal(m > 0, batch["attention_mask"] > 0) for m in found.masses)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_is_alone(made, side):
    model, _, name = made
    if name == "bloom":  # it places tokens by the mask alone
        model.config.alibi = True
    inputs = ids(2, 7)
    mask = torch.ones_like(inputs)
    here = slice(2, None) if side == "left" else slice(None, -2)
    mask[0] = 0
    mask[0, here] = 1
    batch = {"input_ids": inputs, "attention_mask": mask}
    if name != "bloom":
        batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    alone = {"input_ids": inputs[:1, here], "attention_mask": mask[:1, here]}
    found, one = hf.hidden_states(model, **batch), hf.hidden_states(model, **alone)
    for x, m, y in zip(found.states, found.masses, one.states, strict=True):
        torch.testing.assert_close(x[0][m[0] > 0], y[0], rtol=1e-4, atol=1e-4)
    padded = hf.particle_study(model, [{k: v[:1] for k, v in batch.items()}], beta=2.0)
    plain = hf.particle_study(model, [alone], beta=2.0)
    for a, b in zip(padded.layers, plain.layers, strict=True):
        assert a["mean_product"].mean == pytest.approx(b["mean_product"].mean, abs=1e-4)
        assert a.tokens.mean == 5
    for a, b in zip(padded.attentions, plain.attentions, strict=True):
        assert [h.matched for h in a.heads] == pytest.approx([h.matched for h in b.heads], rel=1e-2, abs=1e-2)


def test_study_fits_reported_weights_on_the_states_before(made):
    model, causal, name = made
    found = hf.particle_study(model, [{"input_ids": ids(1)}])
    if name == "bloom":
        assert found.attentions == []
        assert "cannot be seen from outside" in found.unseen
        return
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=ids(1), output_attentions=True, output_hidden_states=True)
    assert [one.layer for one in found.attentions] == list(range(1, len(out.attentions) + 1))
    for one, weights, x in zip(found.attentions, out.attentions, out.hidden_states, strict=False):
        want = effective_beta(weights[0], x[0].double(), causal=causal)
        assert one.causal == causal
        for got, head in zip(one.heads, want, strict=True):
            assert got.slope == pytest.approx(head.slope, rel=1e-2, abs=1e-3)
            assert got.r2 == pytest.approx(head.r2, abs=1e-3)
            assert got.matched == pytest.approx(head.matched, rel=1e-2)


def test_two_streams_and_other_models_are_refused():
    config = transformers.T5Config(vocab_size=23, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    model = transformers.T5Model(config).eval()
    with pytest.raises(ValueError, match="an encoder and a decoder, two streams"):
        hf.hidden_states(model, input_ids=ids())
    assert len(hf.hidden_states(model.get_encoder(), input_ids=ids())) == 3
    with pytest.raises(ValueError, match=r"expected a transformers\.PreTrainedModel"):
        hf.hidden_states(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"take osmose\.adapters\.hf"):
        hidden_states_ours(MODELS["bert"]()[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    transformers.BertForMaskedLM(config).save_pretrained(path)
    draw = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(WORDS), (600,), generator=draw).tolist()
    (path / "text.txt").write_text(" ".join(WORDS[i] for i in chosen), encoding="utf-8")
    return path


def told(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_particles_of_a_folder(folder, capsys, tmp_path):
    text = folder / "text.txt"
    figure = tmp_path / "deep" / "particles.png"
    words = ["particles", folder, "--text", text, "--sequences", "3", "--length", "20", "--out", figure]
    result = told(capsys, *words)
    assert figure.stat().st_size > 20_000
    assert (result["model"], result["sequences"], result["length"]) == ("BertModel", 3, 20)
    assert [row["state"] for row in result["states"]] == ["input", "encoder.layer.0", "encoder.layer.1"]
    assert [row["heads"] for row in result["states"]] == [0, 2, 2]
    assert all(row["tokens"] == {"mean": 20, "sd": 0} for row in result["states"])
    assert result["particle_model"] is None
    model, tokenizer = open_folder(folder)
    batches = text_batches(text.read_text(), model, tokenizer, number=3, length=20, seed=0)
    study = hf.particle_study(model, batches)
    assert result["states"][2]["mean_product"]["mean"] == pytest.approx(study.layers[2]["mean_product"].mean)
    assert main([str(w) for w in words]) == 0
    assert "BertModel on text.txt as particles: 3 inputs of 20" in capsys.readouterr().out


def test_windows_of_a_text(folder):
    model, tokenizer = open_folder(folder)
    assert not model.training
    assert model.dtype == torch.float32
    text = (folder / "text.txt").read_text()
    every = text_batches(text, model, tokenizer, number=5, length=None, seed=1)
    assert {tuple(batch["input_ids"].shape) for batch in every} == {(1, 40)}, "as many as the model takes"
    again = text_batches(text, model, tokenizer, number=5, length=None, seed=1)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(every, again, strict=True))
    short = text_batches("the cat sat", model, tokenizer, number=5, length=None, seed=1)
    assert [batch["input_ids"].tolist() for batch in short] == [[[2, 3, 4]]], "once"


def test_mistakes_get_one_line(folder, tmp_path, capsys):
    def line(*words):
        assert main(["particles", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "is a Hugging Face model; name a text to read it on: --text FILE" in line(folder)
    assert "No such file" in line(folder, "--text", tmp_path / "none.txt")
    assert "at most the 40 that the model takes" in line(
        folder, "--text", folder / "text.txt", "--length", 41
    )
    (tmp_path / "empty.txt").write_text(" ")
    assert "--text holds no text" in line(folder, "--text", tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    assert "is no text in UTF-8" in line(folder, "--text", tmp_path / "bytes.txt")
    (tmp_path / "config.json").write_text("{}")
    assert "its model cannot be read" in line(tmp_path, "--text", folder / "text.txt")
