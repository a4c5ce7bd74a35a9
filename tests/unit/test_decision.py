"""The decision model: padding is absent, no step sees what comes after it, and a state holds the episode exactly."""

import pytest
import torch

from osmose.models import DecisionModel

S, A, B = 5, 2, 3
STATEFUL = ["flow", "softmax", "linear"]


def model(mixer="flow", dtype=torch.float64, **settings):
    torch.manual_seed(0)
    settings = {"hidden": 16, "num_layers": 2, "num_heads": 2, "context": 6, "max_episode": 100} | settings
    made = DecisionModel(S, A, mixer=mixer, **settings)
    for p in made.parameters():  # larger than at the start, so that attention matters
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.5)
    return made.to(dtype).eval()


def episode(n=9, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    returns, states, actions = (torch.randn(B, n, c, generator=g, dtype=dtype) for c in (1, S, A))
    return returns, states, actions, torch.arange(4, 4 + n).expand(B, n).clone()


@pytest.mark.parametrize("mixer", [*STATEFUL, "diffusion"])
@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding_is_absent(mixer, side):
    m, parts = model(mixer), episode()
    expected = m(*parts)
    place = {"left": [4, *range(5, 13)], "right": list(range(9)), "inside": [0, 1, 2, 4, 5, 7, 8, 9, 11]}[
        side
    ]
    place = torch.tensor(place)
    mask = torch.zeros(B, 13, dtype=torch.bool).index_fill(1, place, True)
    for garbage in (0.0, 50.0, float("nan")):
        wide = [torch.full((B, 13, x.shape[-1]), garbage, dtype=x.dtype) for x in parts[:3]]
        wide.append(torch.full((B, 13), 99))
        for whole, part in zip(wide, parts, strict=True):
            whole[:, place] = part
        torch.testing.assert_close(m(*wide, mask)[:, place], expected, atol=1e-12, rtol=0)


def test_padding_has_no_gradient():
    m, parts = model(), episode()
    mask = torch.tensor([[False] * 4 + [True] * 5, [True] * 9, [True] * 3 + [False] * 6])
    inputs = [x.requires_grad_() for x in parts[:3]]
    m(*inputs, parts[3], mask)[mask].square().sum().backward()
    for x in inputs[:2]:
        assert x.grad is not None
        assert not x.grad[~mask].any()
        assert x.grad[mask].any()


def test_an_episode_of_which_nothing_is_there_is_finite():
    out = model()(*episode(), torch.zeros(B, 9, dtype=torch.bool))
    assert out.isfinite().all()


@pytest.mark.parametrize("mixer", [*STATEFUL, "diffusion"])
def test_an_action_sees_the_past_and_its_own_state_only(mixer):
    m, parts, t = model(mixer), episode(), 5
    returns, states, actions = (x.requires_grad_() for x in parts[:3])
    m(returns, states, actions, parts[3])[:, t].square().sum().backward()
    for x, last in ((returns, t), (states, t), (actions, t - 1)):
        assert x.grad is not None
        assert not x.grad[:, last + 1 :].any()
        assert (x.grad[:, : last + 1].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("mixer", STATEFUL)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize("max_episode", [100, None])
def test_steps_equal_the_whole_episode(mixer, dtype, bound, max_episode):
    m = model(mixer, dtype, max_episode=max_episode)
    returns, states, actions, _ = episode(60, dtype)
    expected = m(returns, states, actions, torch.arange(60).expand(B, 60))
    state, previous = m.start(B), None
    for t in range(60):
        action, state = m.step(returns[:, t], states[:, t], state, previous)
        torch.testing.assert_close(action, expected[:, t], atol=bound, rtol=0)
        previous = actions[:, t]
    assert state.length.tolist() == [60] * B
    order = torch.tensor([2, 0, 0])
    again, _ = m.step(returns[order, 0], states[order, 0], state.reorder(order), previous[order])
    plain, _ = m.step(returns[order, 0], states[order, 0], state, previous)
    assert again.isfinite().all()
    assert not torch.allclose(again[1:], plain[1:])


def test_acting_is_the_last_action_without_dropout():
    m, parts = model(dropout=0.5), episode()
    expected = m(*parts)[:, -1]
    m.train()
    assert torch.equal(m.act(*parts), expected)
    assert m.training
    other = parts[2].clone()
    other[:, -1] = 7.0  # not known yet
    assert torch.equal(m.act(parts[0], parts[1], other, parts[3]), expected)
    assert not torch.equal(m(*parts)[:, -1], expected)


def test_the_range_of_actions():
    parts = episode()
    free = model(action_range=None)(*parts)
    assert free.abs().max() > 1
    torch.testing.assert_close(model(action_range=(-2.0, 6.0))(*parts), 2 + 4 * free.tanh())


@pytest.mark.parametrize("mixer", ["flow", "softmax", "linear"])
def test_it_learns_what_only_the_state_and_the_return_say(mixer):
    torch.manual_seed(0)
    m = DecisionModel(S, 1, hidden=16, num_layers=1, num_heads=2, mixer=mixer, dropout=0.0)
    optimizer = torch.optim.Adam(m.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        states, returns = torch.randn(32, 6, S), torch.randn(32, 6, 1)
        wanted = (states[..., :1] * returns).tanh()
        times = torch.arange(6).expand(32, 6)
        loss = (m(returns, states, wanted, times) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_state_dict_keys_and_options():
    keys = {key.split(".")[0] for key in model().state_dict()}
    assert keys == {"returns", "states", "actions", "timesteps", "norm_in", "blocks", "norm", "output"}
    assert "timesteps.weight" not in model(max_episode=None).state_dict()
    assert model(preset="rl").blocks[0].self_attn.options == {"preset": "rl"}


REFUSED = [
    (lambda m, e: DecisionModel(0, 1), "state_dim is 0; expected 1 or more"),
    (lambda m, e: DecisionModel(1, 1, max_episode=0), "max_episode is 0"),
    (lambda m, e: DecisionModel(1, 1, action_range=(1.0, 1.0)), "low < high"),
    (lambda m, e: DecisionModel(1, 1, mixer="diffusion-sigmoid"), "causal"),
    (lambda m, e: DecisionModel(1, 1, mixer="flow", beta=2), "has no option 'beta'"),
    (
        lambda m, e: m(e[0], e[1][..., :4], e[2], e[3]),
        r"states have shape \(3, 9, 4\) and timesteps \(3, 9\)",
    ),
    (lambda m, e: m(e[0][..., 0], *e[1:]), r"returns have shape \(3, 9\)"),
    (lambda m, e: m(*e, torch.ones(3, 8, dtype=torch.bool)), r"mask is \(3, 8\)"),
    (lambda m, e: m(*e, torch.ones(3, 9)), r"mask is \(3, 9\) torch.float32; expected \(3, 9\) torch.bool"),
    (lambda m, e: m(*e[:3], e[3] + 90), r"go from 94 to 102; the model has learned 0 to 99.*max_episode"),
    (lambda m, e: m(*e[:3], e[3] - 5), r"go from -1"),
    (
        lambda m, e: m.step(e[0][:, 0], e[1][:, 0], m.start(3), e[2][:, 0]),
        "given at timestep 0; expected None",
    ),
    (
        lambda m, e: m.step(e[0][:, 0], e[1][:, 0], m.step(e[0][:, 0], e[1][:, 0], m.start(3))[1]),
        "previous is None at timestep 1; expected the action",
    ),
    (lambda m, e: model("diffusion").start(), "has no state"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(model(), episode())
