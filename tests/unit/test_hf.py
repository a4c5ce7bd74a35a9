"""Models of transformers, tiny and random: weights as they report them, no traces, replacement, fewer heads of keys."""

import subprocess
import sys

import pytest
import torch
import transformers

from osmose.adapters import hf
from osmose.inspection import capture as capture_ours

SMALL = {"vocab_size": 23, "attn_implementation": "sdpa"}


def gpt2():
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SMALL)
    return transformers.GPT2LMHeadModel(config), True


def bert():
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **SMALL
    )
    return transformers.BertModel(config), False


def llama():
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        **SMALL,
    )
    return transformers.LlamaForCausalLM(config), True


MODELS = {"gpt2": gpt2, "bert": bert, "llama": llama}


@pytest.fixture(params=MODELS)
def made(request):
    torch.manual_seed(0)
    model, causal = MODELS[request.param]()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval(), causal


def ids(rows=2, n=7):
    return torch.randint(23, (rows, n), generator=torch.Generator().manual_seed(1))


def result(model, **inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def test_captured_weights_are_those_that_transformers_reports(made):
    model, causal = made
    batch = {"input_ids": ids(), "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
    want = result(model, **batch)
    with torch.no_grad(), hf.capture(model) as seen:
        got = model(**batch)[0]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"
    assert "osmose" not in transformers.AttentionInterface()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        reported = model(**batch, output_attentions=True).attentions
    assert len(seen) == len(reported) == 2
    for structures, layer in zip(seen.values(), reported, strict=True):
        for b, (matrix, order) in enumerate(structures):
            size = int(real[b].sum())
            assert matrix.shape[-2:] == (size, size)
            torch.testing.assert_close(matrix, layer[b, :, :size, :size])
            assert order == causal


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_order_and_matrices_as_they_are(made, side):
    """Rows of padding on the left see no source, and are then uniform over all, later ones too."""
    model, causal = made
    inputs = ids(2, 7)
    mask = torch.ones_like(inputs)
    here = slice(2, None) if side == "left" else slice(None, -2)
    mask[0] = 0
    mask[0, here] = 1
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    with hf.capture(model) as seen:
        result(model, input_ids=inputs, attention_mask=mask, position_ids=place)
    with hf.capture(model) as alone:
        result(model, input_ids=inputs[:1, here])
    for name, found in seen.items():
        assert [one.causal for one in found] == [causal, causal]
        torch.testing.assert_close(found[0].matrix, alone[name][0].matrix, rtol=1e-4, atol=1e-5)


def test_in_training_the_structure_is_without_dropout():
    torch.manual_seed(0)
    model = gpt2()[0].train()
    with torch.no_grad(), hf.capture(model) as seen:
        model(input_ids=ids())
    first = next(iter(seen.values()))[0].matrix
    torch.testing.assert_close(first.sum(-1), torch.ones(first.shape[:-1]))


def test_study_and_replacement(made):
    model, causal = made
    batches = [{"input_ids": ids(3)}, {"input_ids": ids(3).flip(0)}]
    found = hf.study(model, batches)
    name, anova = next(iter(found.items()))
    assert anova.samples == 6
    torch.testing.assert_close(anova.shares().shares.sum(-1), torch.ones(len(anova.shares().shares)).double())
    if causal:
        assert max(anova.heads().offsets) == 0
    want = result(model, input_ids=ids(1))
    with hf.capture(model) as seen:
        result(model, input_ids=ids(1))
    own = {layer: dict(enumerate(s[0].matrix)) for layer, s in seen.items()}
    with hf.replacing(model, own):
        torch.testing.assert_close(result(model, input_ids=ids(1)), want, rtol=1e-3, atol=1e-4)
    with hf.replacing(model, {name: {1: torch.zeros(7, 7)}}):
        assert (result(model, input_ids=ids(1)) - want).abs().max() > 1e-3

    def score(m):
        return float(result(m, **batches[0]).square().mean())

    whole, results = hf.replacement_test(model, found, score, kinds=["shift"])
    assert len(results) == 2 * len(anova.shares().shares)
    assert score(model) == pytest.approx(whole)
    assert any(abs(r.change) > 1e-4 for r in results)


def test_an_error_leaves_no_trace(made):
    model, _ = made
    with pytest.raises(RuntimeError, match="on purpose"), hf.capture(model):
        raise RuntimeError("on purpose")
    assert model.config._attn_implementation == "sdpa"
    assert "osmose" not in transformers.AttentionInterface()


def test_mistakes_name_the_other_place(made):
    model, _ = made
    with (
        pytest.raises(ValueError, match=r"expected a transformers\.PreTrainedModel"),
        hf.capture(torch.nn.Linear(2, 2)),
    ):
        pass
    with pytest.raises(ValueError, match=r"take osmose\.adapters\.hf"), capture_ours(model):
        pass


def test_without_transformers_the_extra_is_named():
    code = "import sys; sys.modules['transformers'] = None\nimport osmose.adapters.hf"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "osmose.adapters.hf needs transformers: pip install 'osmose[hf]'" in done.stderr
