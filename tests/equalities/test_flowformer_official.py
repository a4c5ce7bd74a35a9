"""Weights of the authors' Flowformer under their names, against their formulas written out here on dense tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from osmose.models import DecisionModel, LanguageModel, SequenceClassifier

E, H, FF, LAYERS, V, LONGEST, C, OUT = 8, 2, 12, 2, 7, 15, 3, 4


def numbers(*shape):
    return 0.4 * torch.randn(*shape, generator=numbers.draw, dtype=torch.float64)


numbers.draw = torch.Generator().manual_seed(0)


def linear(state, name, x):
    weight = state[f"{name}.weight"]
    out = x @ (weight.squeeze(-1) if weight.ndim == 3 else weight).T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def norm(state, name, x):
    return F.layer_norm(x, (E,), state[f"{name}.weight"], state[f"{name}.bias"])


def flow(state, name, x, causal, cut=1):
    """The released core, dense: every pair of a source and a target, in causal form those with j <= i."""
    q, k, v = (
        linear(state, f"{name}.{part}_projection", x).unflatten(-1, (H, -1)).transpose(1, 2)
        for part in ("query", "key", "value")
    )
    q, k, n, eps = q.sigmoid(), k.sigmoid(), x.shape[1], 1e-6
    seen = (
        torch.ones(n, n, dtype=x.dtype).tril() if causal else torch.ones(n, n, dtype=x.dtype)
    )  # target, source
    number = torch.arange(1, n + 1, dtype=x.dtype) if causal else torch.ones(n, dtype=x.dtype)

    def sums(a, b, weight):  # a_i . (sum of b_j over what i goes with), with eps in both factors
        return ((a + eps) * (torch.einsum("ij,bhj,bhjd->bhid", seen, weight, b) + eps)).sum(-1)

    one = torch.ones(q.shape[:3], dtype=x.dtype)
    if causal:
        inward, outward = number / sums(q, k, one), number / sums(k, q, one)
    else:
        inward, outward = 1 / sums(q, k, one), 1 / sums(k, q, one)
    sink, source = sums(q, k, outward) / number, sums(k, q, inward) / number
    if causal:
        e = source.clamp(-cut, cut).exp()
        weight = e / e.cumsum(-1) * number
    else:
        weight = source.softmax(-1) * n
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * seen
    out = (inward / number * sink.sigmoid()).unsqueeze(-1) * (scores @ (weight.unsqueeze(-1) * v))
    return linear(state, f"{name}.out_projection", out.transpose(1, 2).flatten(2))


def projections(name):
    return {
        f"{name}.{part}_projection.{kind}": numbers(*((E, E) if kind == "weight" else (E,)))
        for part in ("query", "key", "value", "out")
        for kind in ("weight", "bias")
    }


def dense(name, rows, columns, *more, bias=True):
    return {f"{name}.weight": numbers(rows, columns, *more)} | (
        {f"{name}.bias": numbers(rows)} if bias else {}
    )


def norms(*names, width=E):
    return {f"{n}.{kind}": numbers(width) + (kind == "weight") for n in names for kind in ("weight", "bias")}


def gpt_state():
    t = "transformer"
    state = {f"{t}.wte.weight": numbers(V, E), f"{t}.wpe.weight": numbers(LONGEST, E), **norms(f"{t}.ln_f")}
    for i in range(LAYERS):
        state |= norms(f"{t}.h.{i}.ln_1", f"{t}.h.{i}.ln_2") | projections(f"{t}.h.{i}.attn")
        state |= dense(f"{t}.h.{i}.mlp.c_fc", FF, E) | dense(f"{t}.h.{i}.mlp.c_proj", E, FF)
    return state | dense("lm_head", V, E, bias=False)


def gpt(state, ids):
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][: ids.shape[1]]
    for i in range(LAYERS):
        name = f"transformer.h.{i}"
        x = x + flow(state, f"{name}.attn", norm(state, f"{name}.ln_1", x), causal=True)
        h = linear(state, f"{name}.mlp.c_fc", norm(state, f"{name}.ln_2", x))
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(state, f"{name}.mlp.c_proj", h)
    return linear(state, "lm_head", norm(state, "transformer.ln_f", x))


@pytest.mark.parametrize("as_file", [False, True])
def test_gpt(as_file, tmp_path):
    state = gpt_state()
    if as_file:
        save_file(state, tmp_path / "gpt.safetensors")
    model = LanguageModel.from_official(
        tmp_path / "gpt.safetensors" if as_file else state, num_heads=H
    ).eval()
    ids = torch.randint(0, V, (3, LONGEST), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids), gpt(state, ids), atol=1e-12, rtol=1e-10)
    assert sum(p.numel() for p in model.parameters()) == sum(x.numel() for x in state.values())


def series_state():
    state = dense("project_inp", E, C) | {"pos_enc.pe": numbers(LONGEST, 1, E)} | norms("encoder.norm")
    for i in range(LAYERS):
        name = f"encoder.attn_layers.{i}"
        state |= norms(f"{name}.norm1", f"{name}.norm2") | projections(f"{name}.attention")
        state |= dense(f"{name}.conv1", FF, E, 1) | dense(f"{name}.conv2", E, FF, 1)
    return state | dense("output_layer", OUT, E * LONGEST)


def series(state, x):
    x = linear(state, "project_inp", x) * math.sqrt(E) + state["pos_enc.pe"][: x.shape[1], 0]
    for i in range(LAYERS):
        name = f"encoder.attn_layers.{i}"
        x = norm(state, f"{name}.norm1", x + flow(state, f"{name}.attention", x, causal=False))
        h = F.gelu(linear(state, f"{name}.conv1", x))
        x = norm(state, f"{name}.norm2", x + linear(state, f"{name}.conv2", h))
    return linear(state, "output_layer", F.gelu(norm(state, "encoder.norm", x)).flatten(1))


def test_series():
    state = series_state()
    model = SequenceClassifier.from_official(state, num_heads=H).eval()
    x = torch.randn(5, LONGEST, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), series(state, x), atol=1e-12, rtol=1e-10)
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for v in state.values())


def decision_state():
    state = dense("embed_return", E, 1) | dense("embed_state", E, C) | dense("embed_action", E, OUT)
    state |= {"embed_timestep.weight": numbers(LONGEST, E)} | norms("embed_ln", "transformer.ln_f")
    for i in range(LAYERS):
        name = f"transformer.h.{i}"
        state |= norms(f"{name}.ln_1", f"{name}.ln_2") | projections(f"{name}.attn.att")
        for part, rows, columns in (("c_fc", E, 4 * E), ("c_proj", 4 * E, E)):
            state |= {
                f"{name}.mlp.{part}.weight": numbers(rows, columns),
                f"{name}.mlp.{part}.bias": numbers(columns),
            }
    return state | dense("predict_action.0", OUT, E) | dense("predict_state", C, E)


def decision(state, returns, states, actions, timesteps):
    time = state["embed_timestep.weight"][timesteps]
    parts = {"return": returns, "state": states, "action": actions}
    x = torch.stack(
        [linear(state, f"embed_{name}", value) + time for name, value in parts.items()], 2
    ).flatten(1, 2)
    x = norm(state, "embed_ln", x)
    for i in range(LAYERS):
        name = f"transformer.h.{i}"
        x = x + flow(state, f"{name}.attn.att", norm(state, f"{name}.ln_1", x), causal=True, cut=10)
        h = norm(state, f"{name}.ln_2", x)
        h = F.relu(h @ state[f"{name}.mlp.c_fc.weight"] + state[f"{name}.mlp.c_fc.bias"])
        x = x + h @ state[f"{name}.mlp.c_proj.weight"] + state[f"{name}.mlp.c_proj.bias"]
    x = norm(state, "transformer.ln_f", x).unflatten(1, (-1, 3))[:, :, 1]
    return torch.tanh(linear(state, "predict_action.0", x))


def test_decision():
    state = decision_state()
    model = DecisionModel.from_official(dict(state), num_heads=H).eval()
    draw = torch.Generator().manual_seed(1)
    returns, states, actions = (
        torch.randn(3, 5, size, dtype=torch.float64, generator=draw) for size in (1, C, OUT)
    )
    timesteps = torch.arange(4, 9).expand(3, -1)
    ours = model(returns, states, actions, timesteps)
    torch.testing.assert_close(
        ours, decision(state, returns, states, actions, timesteps), atol=1e-12, rtol=1e-10
    )


def test_padding_counts_nowhere_in_a_flattened_model():
    model = SequenceClassifier.from_official(series_state(), num_heads=H).eval()
    x = torch.randn(2, LONGEST, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([LONGEST, 6])
    other = x.clone()
    other[1, 6:] = 99.0
    assert torch.equal(model(x, lengths), model(other, lengths))
    torch.testing.assert_close(model(x, lengths)[1:], model(x[1:, :6]), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: LanguageModel.from_official({"a": torch.zeros(1)}, num_heads=1),
            r"no transformer.wte.weight.*holds a\.",
        ),
        (lambda: SequenceClassifier.from_official({}, num_heads=1), r"no project_inp.weight.*holds nothing"),
        (lambda: SequenceClassifier(3, 8, 2, flatten=True), "flatten needs max_length"),
        (lambda: SequenceClassifier(3, 8, 2, max_length=4)(torch.zeros(1, 5, 3)), "learned 4 positions"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
