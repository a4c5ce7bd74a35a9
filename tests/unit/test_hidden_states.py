"""The residual stream: as by running block by block, padded as alone, no traces; and the study of it as particles."""

import math

import pytest
import torch
from torch import nn

from osmose.dynamics import effective_beta, particle_report
from osmose.dynamics.hidden import directions
from osmose.inspection import capture, hidden_states, particle_study
from osmose.models import (
    MLP,
    DecisionModel,
    DIFFormer,
    ExactDIFFormer,
    LanguageModel,
    SequenceClassifier,
    VisionClassifier,
)
from osmose.nn import EncoderBlock

MIXERS = ["flow", "softmax", "linear"]


def spread_out(model, std=0.3):
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model


def ids(rows=2, n=7):
    return torch.randint(11, (rows, n), generator=torch.Generator().manual_seed(1))


def numbers(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def traces(model):
    return [vars(m).keys() & {"forward", "carry", "encode", "_input", "initial"} for m in model.modules()], [
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
    ]


@pytest.mark.parametrize("mixer", MIXERS)
def test_language_model_block_by_block(mixer):
    model = spread_out(LanguageModel(11, 8, num_layers=3, num_heads=2, mixer=mixer))
    found = hidden_states(model, ids())
    assert model.training, "as it was"
    model.eval()
    with torch.no_grad():
        x = model._embed(ids(), torch.arange(7))
        want = [x]
        for block in model.blocks:
            x = block(x)
            want.append(x)
        torch.testing.assert_close(model._logits(x), model(ids()))
    assert torch.equal(found.stacked(), torch.stack(want))
    assert found.names == ("input", "blocks.0", "blocks.1", "blocks.2")
    assert found.masses == (None,) * 4
    assert traces(model) == traces(LanguageModel(11, 8, num_layers=3, num_heads=2, mixer=mixer))


@pytest.mark.parametrize("mixer", MIXERS)
def test_padded_sequences_are_those_alone(mixer):
    model = spread_out(SequenceClassifier(3, 8, 4, num_layers=2, num_heads=2, mixer=mixer)).eval()
    values, lengths = numbers(2, 9, 3), torch.tensor([9, 5])
    found = hidden_states(model, values, lengths)
    alone = hidden_states(model, values[1:, :5])
    assert found.masses[1].tolist() == [[1] * 9, [1] * 5 + [0] * 4]
    for x, one in zip(found.states, alone.states, strict=True):
        torch.testing.assert_close(x[1:, :5], one)
    with torch.no_grad():
        pooled = found.states[-1][0].unsqueeze(0)
        torch.testing.assert_close(model.output(model.norm(pooled).mean(1)), model(values, lengths)[:1])


@pytest.mark.parametrize("graph", [False, True])
def test_difformer_step_by_step(graph):
    model = spread_out(DIFFormer(5, 8, 3, num_layers=3, num_heads=2, alpha=0.3)).eval()
    x = numbers(10, 5)
    edges = torch.randint(10, (2, 20), generator=torch.Generator().manual_seed(0)) if graph else None
    found = hidden_states(model, x, edges)
    with torch.no_grad():
        h = torch.relu(model.bns[0](model.fcs[0](x)))
        want, spread = [h], None if edges is None else model.prepare_graph(edges, None, 10)
        for conv, norm in zip(model.convs, model.bns[1:], strict=True):
            h = norm(0.3 * conv(h, None, spread) + 0.7 * h)
            want.append(h)
        torch.testing.assert_close(model.fcs[1](h), model(x, edges))
    torch.testing.assert_close(found.stacked(), torch.stack(want))
    assert found.names == ("input", "convs.0", "convs.1", "convs.2")
    assert not any(vars(model).keys() & {"encode", "_input"})


def test_difformer_sets_packed_and_padded_are_those_alone():
    model = spread_out(DIFFormer(5, 8, 3, num_layers=2)).eval()
    x, batch = numbers(10, 5), torch.tensor([0, 1, 0, 0, 1, 1, 1, 0, 1, 1])
    packed = hidden_states(model, x, batch=batch)
    padded = hidden_states(
        model, torch.stack([x[:6], x[4:]]), mask=torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    )
    for s in range(2):
        alone = hidden_states(model, x[batch == s])
        for both, one, mass in zip(packed.states, alone.states, packed.masses, strict=True):
            torch.testing.assert_close(both[s][mass[s] > 0], one)
    torch.testing.assert_close(padded.stacked()[:, 0, :4], hidden_states(model, x[:4]).stacked())
    assert padded.masses[0].sum(-1).tolist() == [4, 6]


def test_the_monitor_of_the_caller_still_hears():
    heard = []
    for model in (DIFFormer(5, 8, 3, num_layers=2), ExactDIFFormer(5, 8, 3, num_layers=2)):
        spread_out(model)
        found = hidden_states(
            model, numbers(6, 5), monitor=lambda before, after, *rest: heard.append((before, after))
        )
        assert [
            torch.equal(a, b) for a, b in zip(found.states[1:], [after for _, after in heard], strict=True)
        ]
        assert torch.equal(found.states[0], heard[0][0])
        assert torch.equal(found.states[-1], heard[1][1])
        heard.clear()


def test_stages_of_images_have_states_of_their_own():
    model = spread_out(VisionClassifier(1, 3, hidden=(8, 16), depths=(2, 1), num_heads=2, patch=2)).eval()
    found = hidden_states(model, numbers(2, 1, 8, 8), torch.tensor([[8, 8], [4, 8]]))
    assert found.names == (
        "input",
        "stages.0.blocks.0",
        "stages.0.blocks.1",
        "into stages.1.blocks.0",
        "stages.1.blocks.0",
    )
    assert [tuple(x.shape) for x in found.states] == [(2, 16, 8)] * 3 + [(2, 4, 16)] * 2
    assert [m.sum(-1).tolist() for m in found.masses] == [[16, 8]] * 3 + [[4, 2]] * 2
    with pytest.raises(ValueError, match="layers have the shapes"):
        found.stacked()


def test_decision_model_has_three_tokens_a_step_and_missing_steps_are_absent():
    model = spread_out(DecisionModel(4, 2, hidden=8, num_layers=2, num_heads=2, context=5))
    mask = torch.tensor([[False, False, True, True, True]])
    given = numbers(1, 5, 1), numbers(1, 5, 4), numbers(1, 5, 2).tanh(), torch.arange(5)[None]
    found = hidden_states(model, *given, mask)
    assert found.stacked().shape == (3, 1, 15, 8)
    assert found.masses[2].tolist() == [[0] * 6 + [1] * 9]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("padding", ["none", "bool"])
def test_torch_encoder(batch_first, padding):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = spread_out(nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first))
    x = numbers(2, 6, 8)
    absent = torch.arange(6) >= torch.tensor([[6], [4]])
    named = {} if padding == "none" else {"src_key_padding_mask": absent}
    found = hidden_states(model, x if batch_first else x.transpose(0, 1), **named)
    with torch.no_grad():
        model.eval()
        first = model.layers[0](x if batch_first else x.transpose(0, 1), **named)
        first = first if batch_first else first.transpose(0, 1)
    assert torch.equal(found.states[0], x)
    here = ~absent if named else torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(found.states[1][here], first[here])
    if named:
        assert torch.equal(found.masses[1] > 0, here)


def test_other_models_name_their_blocks():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = numbers(5, 4)
    found = hidden_states(model, x, blocks=["1", "2"])
    assert found.names == ("input", "1", "2")
    assert torch.equal(found.states[2], model(x).detach())
    with pytest.raises(ValueError, match="has no module '7'"):
        hidden_states(model, x, blocks=["7"])
    with pytest.raises(ValueError, match="MLP holds no DIFFormer"):
        hidden_states(MLP(4, 4, 2), x)


def test_after_an_error_the_model_is_as_before():
    model = LanguageModel(11, 8, num_layers=2, num_heads=2)
    before = traces(model)
    with pytest.raises(IndexError):
        hidden_states(model, torch.tensor([[99]]))
    assert traces(model) == before
    assert model.training


@pytest.mark.parametrize("centre", [False, True])
def test_study_of_a_softmax_model_equals_its_parts(centre):
    model = spread_out(LanguageModel(11, 8, num_layers=2, num_heads=2, mixer="softmax"), std=0.5)
    inputs = [(ids(2),), (ids(1).flip(0),)]
    found = particle_study(model, inputs, centre=centre, bins=10)
    states = [hidden_states(model, *one).stacked() for one in inputs]
    model.eval()
    with torch.no_grad(), capture(model) as seen:
        for one in inputs:
            model(*one)
    for layer, (name, structures) in enumerate(seen.items()):
        reading = found.attentions[layer]
        assert (reading.name, reading.layer, reading.causal) == (name, layer + 1, True)
        points = [x for some in states for x in some[layer]]
        each = [
            effective_beta(s.matrix, directions(x, centre=centre)[0], causal=True)
            for s, x in zip(structures, points, strict=True)
        ]
        for head in range(2):
            got = reading.heads[head]
            assert got.inputs == 3
            matched = [one[head].matched for one in each]
            assert got.matched == pytest.approx(sum(matched) / 3, rel=1e-3)
            assert min(one[head].slope for one in each) - 1e-3 <= got.slope
            assert got.slope <= max(one[head].slope for one in each) + 1e-3
    want = particle_report(
        torch.cat(states, 1), beta=found.beta, scale=found.scale, centre=centre, bins=10, diagonal=True
    )
    for a, b in zip(found.layers, want, strict=True):
        assert a["clusters"] == b["clusters"]
        assert a["mean_product"].mean == pytest.approx(b["mean_product"].mean)
        torch.testing.assert_close(a.share, b.share)
    assert torch.equal(found.first.states[1], states[0][1, 0])


class Particles(nn.Module):
    """SA itself, in the clothes of an encoder: Q = sqrt(beta) K = I on unit tokens."""

    def __init__(self, beta, n=12, d=4):
        super().__init__()
        block = EncoderBlock(d, 1, 4, mixer="softmax", dropout=0.0, norm_first=False)
        for p in block.parameters():
            nn.init.zeros_(p)
        with torch.no_grad():
            weight = torch.eye(d).repeat(3, 1)
            weight[:d] *= beta * math.sqrt(d)
            block.self_attn.in_proj_weight.copy_(weight)
        self.blocks = nn.ModuleList([block])

    def forward(self, x, tokens=None):
        return self.blocks[0](x, tokens)


def test_study_finds_the_beta_of_the_particle_model():
    model = Particles(5.0)
    x = directions(numbers(3, 12, 4))[0]
    found = particle_study(model, [(x,)])
    [head] = found.attentions[0].heads
    assert head.slope == pytest.approx(5, rel=1e-4)
    assert head.matched == pytest.approx(5, rel=1e-4)
    assert head.r2 == pytest.approx(1, abs=1e-6)
    assert found.beta == pytest.approx(5, rel=1e-4)
    assert found.scale == pytest.approx(1 / math.sqrt(5), rel=1e-4)


def test_padding_takes_no_part_in_a_study_and_few_rows_are_like_all():
    model = spread_out(SequenceClassifier(3, 8, 4, num_layers=2, num_heads=2, mixer="softmax"))
    values = numbers(2, 9, 3)
    padded = particle_study(model, [(values, torch.tensor([9, 5]))], scale=0.5)
    alone = particle_study(model, [(values[:1],), (values[1:, :5],)], scale=0.5)
    for a, b in zip(padded.attentions, alone.attentions, strict=True):
        for one, other in zip(a.heads, b.heads, strict=True):
            assert one.slope == pytest.approx(other.slope, rel=1e-3)
            assert one.matched == pytest.approx(other.matched, rel=1e-3)
    for a, b in zip(padded.layers, alone.layers, strict=True):
        assert a["clusters"] == b["clusters"]
        assert a["effective_rank"].mean == pytest.approx(b["effective_rank"].mean, rel=1e-4)
    exact = Particles(5.0)
    x = directions(numbers(1, 12, 4))[0]
    assert particle_study(exact, [(x,)], read=3).attentions[0].heads[0].slope == pytest.approx(5, rel=1e-4)


@pytest.mark.parametrize("kernel", ["simple", "sigmoid", "mean"])
def test_difformers_have_positive_weights_and_so_a_beta(kernel):
    model = spread_out(DIFFormer(5, 8, 3, num_layers=2, num_heads=2, kernel=kernel))
    batch = torch.tensor([0, 1] * 10)
    found = particle_study(model, [(numbers(20, 5),)])
    heads = [head for one in found.attentions for head in one.heads]
    assert [one.layer for one in found.attentions] == [1, 2]
    if kernel == "mean":
        assert {(head.slope, head.r2, head.matched) for head in heads} == {(0.0, 1.0, 0.0)}
        assert found.beta == 1
        assert "below 1" in found.beta_from
        assert "nearest token" in found.scale_from
    else:
        assert all(head.matched > 0 and 0 <= head.r2 <= 1 for head in heads)
    sets = particle_study(model, [(numbers(20, 5), None, None)], run=lambda *a: model(*a, batch=batch))
    assert {head.inputs for one in sets.attentions for head in one.heads} == {2}
    assert len(sets.first.states[0]) == 10


def test_without_attention_there_are_still_particles():
    found = particle_study(ExactDIFFormer(5, 8, 3, num_layers=2), [(numbers(6, 5),)])
    assert found.attentions == []
    assert "No attention found" in found.unseen
    assert found.beta == 1
    assert len(found.layers) == 3
    with pytest.raises(ValueError, match="there is no input"):
        particle_study(ExactDIFFormer(5, 8, 3), [])
