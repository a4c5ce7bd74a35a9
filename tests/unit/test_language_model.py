"""The language model: no future, steps equal the whole, and what generation promises."""

import pytest
import torch

from osmose.models import LanguageModel
from osmose.models.language import choose, sinusoids

STATEFUL = ["flow", "softmax", "linear"]


def model(mixer="flow", **settings):
    torch.manual_seed(0)
    made = LanguageModel(11, 16, 2, 2, mixer=mixer, **settings).double().eval()
    for p in made.parameters():  # larger than at the start, so that attention matters
        torch.nn.init.normal_(p, std=0.3)
    return made


def text(n=40, batch=3):
    return torch.randint(0, 11, (batch, n), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixer", [*STATEFUL, "diffusion"])
def test_the_future_does_not_leak(mixer):
    one, other = text(), text()
    other[:, 25:] = (other[:, 25:] + 3) % 11
    ours, theirs = model(mixer)(one), model(mixer)(other)
    torch.testing.assert_close(ours[:, :25], theirs[:, :25], atol=1e-12, rtol=0)
    assert not torch.allclose(ours[:, 25:], theirs[:, 25:])


@pytest.mark.parametrize("mixer", STATEFUL)
@pytest.mark.parametrize("max_length", [None, 40])
def test_steps_equal_the_whole(mixer, max_length):
    lm, tokens = model(mixer, max_length=max_length), text()
    state, parts = lm.start(3), []
    for part in tokens.split([10, 1, 1, 20, 8], 1):
        logits, state = lm.step(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), lm(tokens), atol=1e-10, rtol=1e-10)
    assert state.length.tolist() == [40] * 3


@pytest.mark.parametrize("mixer", STATEFUL)
def test_greedy_text_is_what_the_model_finds_likeliest(mixer):
    lm = model(mixer)
    out = lm.generate(text(5), 12, temperature=0)
    assert out.shape == (3, 17)
    assert torch.equal(out[:, :5], text(5))
    assert torch.equal(lm(out)[:, 4:-1].argmax(-1), out[:, 5:])


@pytest.mark.parametrize("mixer", STATEFUL)
def test_reordered_states_continue_other_texts(mixer):
    lm, tokens = model(mixer), text()
    _, state = lm.step(tokens[:, :20], lm.start(3))
    index = torch.tensor([2, 2, 0])
    logits, _ = lm.step(tokens[index, 20:], state.reorder(index))
    torch.testing.assert_close(logits, lm(tokens[index])[:, 20:], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mixer", STATEFUL)
def test_beyond_the_context_it_goes_on_from_the_last_half(mixer):
    lm = model(mixer, max_length=8)
    out = lm.generate(text(5), 30, temperature=0, context=8)
    seen = 5  # tokens that the state holds
    for i in range(5, 35):
        start = i - seen
        assert torch.equal(lm(out[:, start:i])[:, -1].argmax(-1), out[:, i]), i
        seen = 4 if seen == 8 else seen + 1
    longer = lm.generate(text(20), 2, temperature=0, context=8)
    assert torch.equal(lm(longer[:, 16:20])[:, -1].argmax(-1), longer[:, 20])


def test_generation_is_seeded_and_leaves_the_mode():
    lm = model().train()
    draws = [lm.generate(text(5), 8, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert lm.training


def test_choice_keeps_to_its_set():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)
    g = torch.Generator().manual_seed(0)
    p = logits[0].softmax(-1)
    drawn = choose(logits, generator=g).flatten().bincount(minlength=4)
    torch.testing.assert_close(drawn / 4000, p, atol=0.03, rtol=0)
    assert set(choose(logits, top_k=2, generator=g).flatten().tolist()) == {0, 1}
    assert set(choose(logits, top_p=float(p[0]) - 0.01, generator=g).flatten().tolist()) == {0}
    assert set(choose(logits, top_p=float(p[0]) + 0.01, generator=g).flatten().tolist()) == {0, 1}
    assert set(choose(logits, temperature=1e-3, generator=g).flatten().tolist()) == {0}


def test_positions_tell_places_apart():
    table = sinusoids(torch.arange(500), 17)
    assert table.shape == (500, 17)
    assert torch.pdist(table).min() > 0.1
    lm = model()
    assert not torch.allclose(
        lm(torch.zeros(1, 2, dtype=torch.int64))[:, 0], lm(torch.zeros(1, 2, dtype=torch.int64))[:, 1]
    )


def test_padding_changes_nothing():
    lm, tokens = model(), text()
    mask = torch.arange(40) < torch.tensor([40, 13, 27])[:, None]
    logits = lm(tokens, mask)
    for i, n in enumerate((40, 13, 27)):
        torch.testing.assert_close(logits[i, :n], lm(tokens[i : i + 1, :n])[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm.generate(text(0), 3), "at least one token"),
        (lambda lm: lm.generate(text(3), -1), "length -1"),
        (lambda lm: lm.generate(text(3), 1, top_p=1.5), "top_p in"),
        (lambda lm: lm.generate(text(3), 1, top_k=0), "top_k >= 1"),
        (lambda lm: lm.generate(text(3), 1, top_p=0.0), "top_p in"),
        (lambda lm: lm.generate(text(3), 1, context=0), "context is 0"),
        (lambda lm: model(max_length=8).generate(text(6), 5), "learned 8 positions"),
        (lambda lm: model("diffusion").generate(text(3), 1), "has no state"),
        (lambda lm: LanguageModel(11, 16, 1, 2, mixer="diffusion-sigmoid"), "causal"),
        (lambda lm: LanguageModel(0), "vocab_size is 0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(model())


@pytest.mark.parametrize("mixer", ["flow", "linear", "softmax"])
@pytest.mark.parametrize("position", ["shift", "shift-mixture", "short-conv", "fixed-shift"])
def test_a_state_with_shifts_equals_the_whole_text_and_keeps_its_size(mixer, position):
    torch.manual_seed(0)
    model = LanguageModel(17, 16, 2, 4, mixer=mixer, position=position, dropout=0.0).double().eval()
    for name, parameter in model.named_parameters():
        if ".position." in name:
            torch.nn.init.normal_(parameter)
    text = torch.randint(0, 17, (3, 40))
    state, parts = model.start(3), []
    for part in text.split([1, 7, 1, 1, 20, 10], 1):
        logits, state = model.step(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(text))
    assert state.blocks[0].keys.shape[-2] <= 8
    swapped = state.reorder(torch.tensor([2, 0, 1]))
    one, _ = model.step(text[:, :1], state)
    other, _ = model.step(text[[2, 0, 1], :1], swapped)
    torch.testing.assert_close(other, one[[2, 0, 1]])


def test_a_position_replaces_the_vectors_and_one_that_counts_from_the_start_has_no_state():
    model = LanguageModel(5, 8, 1, 2, mixer="flow", position="shift")
    assert not any("positions" in name for name, _ in model.named_parameters())
    assert not model.blocks[0].self_attn.position.weight.any()  # as it starts
    with pytest.raises(ValueError, match="take shift, shift-mixture"):
        LanguageModel(5, 8, 1, 2, mixer="softmax", position="rope").start(1)
    with pytest.raises(ValueError, match="one way to place tokens"):
        LanguageModel(5, 8, 1, 2, position="shift", max_length=9)
