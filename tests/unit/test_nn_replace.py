"""replace_attention: parameters and names stay, and torch's fused paths do not go around the mixer."""

import copy

import pytest
import torch
from torch import nn

from osmose.mixers import MIXERS
from osmose.nn import MultiheadMixer, replace_attention

B, N, M, E, H = 3, 5, 4, 8, 2
ALL = list(MIXERS)
PADDING = torch.arange(N) >= torch.tensor([[N], [3], [1]])
ADDITIVE = torch.zeros(B, N).masked_fill(PADDING, -torch.inf)
CAUSAL = nn.Transformer.generate_square_subsequent_mask(N)


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True, **options)
    model = nn.TransformerEncoder(layer, 2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model


def by_hand(model, mixer):
    """Every layer's attention replaced without ``replace_attention``, so that nothing else is prepared."""
    for layer in model.layers:
        new = MultiheadMixer(E, H, batch_first=True, mixer=mixer)
        new.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = new
    return model


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("made", ["replaced", "by hand"])
@pytest.mark.parametrize("padding", [None, PADDING, ADDITIVE], ids=["no padding", "bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage.*")
@pytest.mark.filterwarnings("ignore:Support for mismatched.*mask.*is deprecated")
def test_evaluation_mixes_as_training_does(mixer, made, padding, causal):
    """In evaluation without gradients torch would take the weights and do softmax attention itself."""
    if causal and mixer == "diffusion-sigmoid":
        return
    softmax, model = encoder(), encoder()
    if made == "replaced":
        replace_attention(model, mixer)
    else:
        by_hand(model, mixer)
    x, mask = torch.randn(B, N, E), CAUSAL if causal else None
    want = model.train()(x, mask, padding)
    with torch.no_grad():
        got = model.eval()(x, mask, padding)
        one = model.layers[0](x, mask, padding, is_causal=causal)
        other = softmax.eval()(x, mask, padding)
    real = ~PADDING if padding is not None else torch.ones(B, N, dtype=torch.bool)
    torch.testing.assert_close(got[real], want[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one, model.layers[0].train()(x, mask, padding), rtol=1e-5, atol=1e-5)
    if mixer != "softmax":
        assert (got - other)[real].abs().max() > 1e-2


def test_nested_tensors_reach_a_mixer_that_was_put_in_by_hand():
    """The conversion that the test above must go through; should torch drop it, nothing is left to handle."""
    model = by_hand(encoder(), "linear").eval()
    assert model.use_nested_tensor
    seen = []
    model.layers[0].self_attn.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_nested))
    with torch.no_grad():
        model(torch.randn(B, N, E), src_key_padding_mask=PADDING)
    assert seen == [True]
    replaced = encoder()
    replace_attention(replaced, "linear")
    assert not replaced.use_nested_tensor


@pytest.mark.parametrize("mixer", ALL)
def test_decoder_layers_take_masks_and_memory(mixer):
    if mixer == "diffusion-sigmoid":
        return
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(E, H, 16, dropout=0.0)
    assert replace_attention(layer, mixer) == ["self_attn", "multihead_attn"]
    x, memory, padding = (
        torch.randn(N, B, E),
        torch.randn(M, B, E),
        torch.arange(M) >= torch.tensor([[M], [2], [3]]),
    )
    want = layer(x, memory, CAUSAL, memory_key_padding_mask=padding)
    with torch.no_grad():
        got = layer.eval()(x, memory, CAUSAL, memory_key_padding_mask=padding, tgt_is_causal=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    alone = layer(x[:, 1:2], memory[:2, 1:2], CAUSAL)
    torch.testing.assert_close(got[:, 1:2], alone, rtol=1e-5, atol=1e-5)
    whole = nn.Transformer(E, H, 1, 1, 16, batch_first=True)
    assert len(replace_attention(whole, mixer)) == 3
    assert whole(memory.transpose(0, 1), x.transpose(0, 1), tgt_mask=CAUSAL).shape == (B, N, E)


def test_parameters_names_and_optimizers_stay():
    model = encoder()
    state = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert replace_attention(model, "linear") == ["layers.0.self_attn", "layers.1.self_attn"]
    assert list(model.state_dict()) == list(state)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    model(torch.randn(B, N, E)).square().mean().backward()
    optimizer.step()
    assert all(not value.equal(state[name]) for name, value in model.state_dict().items() if "weight" in name)
    encoder().load_state_dict(model.state_dict())


def test_every_setting_of_an_attention_moves_along():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.MultiheadAttention(E, H, 0.3, bias=False, add_bias_kv=True, kdim=3, vdim=5)
            self.second = nn.MultiheadAttention(
                E, H, add_zero_attn=True, batch_first=True, dtype=torch.float64
            )
            self.again = self.second

    model = Two().eval()
    q, k, v = torch.randn(N, B, E), torch.randn(M, B, 3), torch.randn(M, B, 5)
    x = torch.randn(B, N, E, dtype=torch.float64)
    want = model.first(q, k, v)[0], model.second(x, x, x)[0]
    assert replace_attention(model, "softmax") == ["first", "second", "again"]
    assert (model.first.dropout, model.first.training) == (0.3, False)
    torch.testing.assert_close(model.first(q, k, v)[0], want[0])
    torch.testing.assert_close(model.second(x, x, x)[0], want[1])
    assert model.again is model.second
    assert replace_attention(model, "diffusion", where=lambda name, _: name != "first", normalization="none")
    assert (model.first.mixer, model.second.mixer, model.again.mixer) == ("softmax", "diffusion", "diffusion")
    assert model.second.options == {"normalization": "none"}


def test_a_model_without_attention_is_an_error():
    with pytest.raises(ValueError, match=r"no nn\.MultiheadAttention to replace in Linear"):
        replace_attention(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"where\(\) chose none"):
        replace_attention(encoder(), "mean", where=lambda name, module: "decoder" in name)
    with pytest.raises(ValueError, match="the model is itself the attention"):
        replace_attention(nn.MultiheadAttention(E, H), "mean")
    model = encoder()
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        replace_attention(model, "liner")
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)
