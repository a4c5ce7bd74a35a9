"""The decoding state: recurrent equals parallel, and states are values that can be kept, reordered and saved."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from osmose.ops.flow import PRESETS, FlowState, flow_attention
from osmose.tokens import Tokens

CAUSAL = [name for name in PRESETS if name != "lra"]


def points(n, dtype=torch.float64, batch=2, heads=3, d=8, c=5):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, n, w, generator=g, dtype=torch.float64).to(dtype) for w in (d, d, c)]


def empty(dtype=torch.float64, preset="osmose", batch=2):
    return FlowState.empty(batch, 3, 8, 5, dtype=dtype, preset=preset)


def decode(state, q, k, v, steps, mass=None):
    """Outputs of the given numbers of tokens after each other, and the last state."""
    outputs, start = [], 0
    for n in steps:
        part = slice(start, start + n)
        out, state = state(*(x[:, :, part] for x in (q, k, v)), None if mass is None else mass[:, part])
        outputs.append(out)
        start += n
    return torch.cat(outputs, 2), state


@pytest.mark.parametrize("preset", CAUSAL)
def test_prefill_and_steps_equal_the_parallel_form(preset):
    q, k, v = points(150)
    expected = flow_attention(q, k, v, preset=preset, causal=True)
    for steps in ([150], [1] * 150, [100, 0, *[1] * 50], [1, 64, 85]):
        out, _ = decode(empty(preset=preset), q, k, v, steps)
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


def test_4096_steps_in_single_precision():
    q, k, v = points(4096, torch.float32, batch=1)
    out, _ = decode(empty(torch.float32, batch=1), q, k, v, [1000, *[1] * 3096])
    expected = flow_attention(q, k, v, causal=True)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    exact = flow_attention(q.double(), k.double(), v.double(), causal=True)
    torch.testing.assert_close(out.double(), exact, atol=2e-6, rtol=2e-6)


def test_masses_and_left_padding():
    q, k, v = points(40)
    mass = torch.rand(2, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mass[0, :7], mass[1, 20:23] = 0, 0
    tokens = Tokens(40, mass).heads()
    out, _ = decode(empty(), q, k, v, [10, *[1] * 30], mass)
    torch.testing.assert_close(out, flow_attention(q, k, v, causal=True, sources=tokens, targets=tokens))


def test_the_size_is_constant():
    sizes = []
    for n in (1, 500):
        _, state = decode(empty(), *points(n), [n])
        sizes.append([x.shape for x in state.tensors().values()])
    assert sizes[0] == sizes[1]
    assert sum(s[2:].numel() for s in sizes[0]) == 8 * 5 + 4 * 8 + 2


def test_an_old_state_is_a_way_back():
    q, k, v = points(20)
    _, before = decode(empty(), q, k, v, [10])
    kept = {name: x.clone() for name, x in before.tensors().items()}
    first, _ = before(*(x[:, :, 10:] for x in (q, k, v)))
    again, _ = before(*(x[:, :, 10:] for x in (q, k, v)))
    assert torch.equal(first, again)
    assert all(torch.equal(x, kept[name]) for name, x in before.tensors().items())


def test_reordering_is_reordering_the_past():
    q, k, v = points(20)
    index = torch.tensor([1, 1, 0])
    _, state = decode(empty(), q, k, v, [12])
    later = [x[index, :, 12:] for x in (q, k, v)]
    ours, _ = state.reorder(index)(*later)
    theirs = flow_attention(
        *(torch.cat([x[index, :, :12], y], 2) for x, y in zip((q, k, v), later, strict=True)), causal=True
    )
    torch.testing.assert_close(ours, theirs[:, :, 12:])


def test_saved_and_loaded(tmp_path):
    q, k, v = points(20)
    _, state = decode(empty(), q, k, v, [10])
    save_file({name: x.contiguous() for name, x in state.tensors().items()}, tmp_path / "state.safetensors")
    back = FlowState.of_tensors(load_file(tmp_path / "state.safetensors"))
    rest = [x[:, :, 10:] for x in (q, k, v)]
    assert torch.equal(back(*rest)[0], state(*rest)[0])
    with pytest.raises(ValueError, match="moments missing"):
        FlowState.of_tensors({name: x for name, x in state.tensors().items() if name != "moments"})


def test_gradients_pass_through_states():
    """Truncated backpropagation by hand: the state is differentiable."""
    q, k, v = (x.requires_grad_() for x in points(20))
    out, _ = decode(empty(), q, k, v, [7, 13])
    ours = torch.autograd.grad(out.square().sum(), (q, k, v))
    theirs = torch.autograd.grad(flow_attention(q, k, v, causal=True).square().sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_states_of_another_model_are_refused():
    q, k, v = points(4)
    for wrong, message in (
        ((q[:1], k[:1], v[:1]), r"expected \(2, 3, n, 8\)"),
        ((q[..., :4], k[..., :4], v), r"expected \(2, 3, n, 8\)"),
        ((q.to("meta"), k, v), "on meta and the state on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            empty()(*wrong)
    with pytest.raises(ValueError, match=r"make the state with dtype=torch\.float64"):
        empty(torch.float32)(q, k, v)
    with pytest.raises(ValueError, match="no causal form"):
        FlowState.empty(1, 1, 4, 4, preset="lra")
    with pytest.raises(ValueError, match="mass has shape"):
        empty()(q, k, v, torch.ones(2, 5))
