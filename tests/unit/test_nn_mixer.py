"""MultiheadMixer: matrices against dense formulas, masses, masks, causal order, dropout, types and errors."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osmose.mixers import MIXERS, linear_attention
from osmose.nn import MultiheadMixer
from osmose.nn.masks import require_causal
from osmose.ops.flow import flow_attention_reference
from osmose.tokens import Tokens

F64 = torch.float64
B, N, M, E, H = 3, 6, 4, 8, 2
ALL = list(MIXERS)
LINEAR = [name for name in ALL if not MIXERS[name].pairwise]
ORDERED = [name for name in ALL if name != "diffusion-sigmoid"]  # those that have a causal form
LENGTHS = torch.tensor([N, 4, 1])
PADDING = torch.arange(N) >= LENGTHS[:, None]


def module_of(mixer, **options):
    torch.manual_seed(0)
    options = {"batch_first": True, "dtype": F64} | options
    module = MultiheadMixer(E, H, mixer=mixer, **options)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module


def points(*lead, seed=1, c=E, dtype=F64):
    return torch.randn(*lead, c, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(mixer, q, k, mass, mu):
    """The matrix of each mixer by its formula, for masses of sources ``(..., 1, 1, m)`` and targets ``(..., 1, n, 1)``."""
    unit_q, unit_k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if mixer == "flow":
        identity = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:-1], -1)
        sides = {
            "targets": Tokens(q.shape[-2], mu.squeeze(-1)),
            "sources": Tokens(k.shape[-2], mass.squeeze(-2)),
        }
        return flow_attention_reference(q, k, identity, **sides)
    weight = {
        "softmax": lambda: (q @ k.mT / (E // H) ** 0.5).exp(),
        "diffusion": lambda: 1 + unit_q @ unit_k.mT,
        "diffusion-sigmoid": lambda: (unit_q @ unit_k.mT).sigmoid(),
        "linear": lambda: (F.elu(q) + 1) @ (F.elu(k) + 1).mT,
        "mean": lambda: torch.ones(*q.shape[:-1], k.shape[-2], dtype=q.dtype),
    }[mixer]() * mass
    return weight / weight.sum(-1, keepdim=True)


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("cross", [False, True])
def test_output_and_matrix_are_those_of_the_formula(mixer, cross):
    module = module_of(mixer)
    query = points(B, N)
    key = points(B, M, seed=2) if cross else query
    m = key.shape[1]
    logs = (
        points(B, m, seed=3, c=1)
        .squeeze(-1)
        .masked_fill(torch.arange(m) >= torch.tensor([[m], [2], [3]]), -torch.inf)
    )
    out, weights = module(query, key, key, key_padding_mask=logs, average_attn_weights=False)
    q, k, v = module.project(query, key, key)
    mass = logs.exp()[:, None, None, :]
    mu = mass.mT if not cross else torch.ones(B, 1, N, 1, dtype=F64)
    wanted = dense(mixer, q, k, mass, mu)
    if not cross and mixer != "softmax":
        wanted = wanted * (mu > 0)
    torch.testing.assert_close(weights, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out, module.merge(wanted @ v), rtol=1e-6, atol=1e-9)
    _, averaged = module(query, key, key, key_padding_mask=logs)
    torch.testing.assert_close(averaged, wanted.mean(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_padded_sequence_equals_the_sequence_alone(mixer, causal, kind):
    """Outputs, weights and gradients, whatever the padding holds."""
    if causal and mixer not in ORDERED:
        return
    module = module_of(mixer)
    x = points(B, N).requires_grad_()
    padding = PADDING if kind == "bool" else torch.zeros(B, N, dtype=F64).masked_fill(PADDING, -torch.inf)
    mask = torch.ones(N, N, dtype=torch.bool).triu(1) if causal else None
    filled = torch.where(PADDING.unsqueeze(-1), 1e3, x)
    out, weights = module(filled, filled, filled, padding, attn_mask=mask)
    (dx,) = torch.autograd.grad(out[~PADDING].sin().sum(), x)
    for b, n in enumerate(LENGTHS.tolist()):
        alone = x[b, :n].detach().requires_grad_()
        wanted, matrix = module(alone, alone, alone, attn_mask=None if mask is None else mask[:n, :n])
        torch.testing.assert_close(out[b, :n], wanted)
        torch.testing.assert_close(weights[b, :n, :n], matrix)
        assert (weights[b, :n, n:] == 0).all()
        (d,) = torch.autograd.grad(wanted.sin().sum(), alone)
        torch.testing.assert_close(dx[b, :n], d)
    assert (dx[PADDING] == 0).all()


@pytest.mark.parametrize("mixer", LINEAR)
def test_left_padding_is_as_exact_in_causal_order(mixer):
    if mixer not in ORDERED:
        return
    module = module_of(mixer)
    x = points(2, N)
    padding = torch.arange(N) < torch.tensor([[0], [2]])
    out, _ = module(x, x, x, padding, is_causal=True)
    alone, _ = module(x[1, 2:], x[1, 2:], x[1, 2:], is_causal=True)
    torch.testing.assert_close(out[1, 2:], alone)


@pytest.mark.parametrize("mixer", ALL)
def test_the_log_of_a_mass_counts_a_token_twice(mixer):
    module = module_of(mixer)
    x = points(N)
    twice = torch.cat([x, x[:1]])
    logs = torch.zeros(N, dtype=F64)
    logs[0] = torch.tensor(2.0, dtype=F64).log()
    out, _ = module(x, x, x, logs)
    torch.testing.assert_close(out, module(twice, twice, twice)[0][:N], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mixer", ALL)
def test_layouts_say_the_same(mixer):
    module, other = module_of(mixer), module_of(mixer, batch_first=False)
    query, key = points(B, N), points(B, M, seed=2)
    want, matrix = module(query, key, key)
    q, k = query.transpose(0, 1), key.transpose(0, 1)
    for got, part in zip(other(q, k, k), (want.transpose(0, 1), matrix), strict=True):
        torch.testing.assert_close(got, part)
    for got, part in zip(other(query[0], key[0], key[0]), (want[0], matrix[0]), strict=True):
        torch.testing.assert_close(got, part)
    own = other(q, q, q, PADDING)[0].transpose(0, 1)
    torch.testing.assert_close(own, module(query, query, query, PADDING)[0])
    parts = [query[b, :n] for b, n in enumerate(LENGTHS.tolist())]
    tokens = Tokens.of(sum(LENGTHS.tolist()), ptr=F.pad(LENGTHS.cumsum(0), (1, 0)))
    x = torch.cat(parts)
    packed, matrix = module.attend(x, x, x, targets=tokens, sources=tokens, need_weights=True)
    torch.testing.assert_close(packed, own[~PADDING])
    torch.testing.assert_close(module.merge(matrix @ module.project(x, x, x)[2]), packed)


@pytest.mark.parametrize("mixer", LINEAR)
def test_no_source_left_gives_zero_and_finite_gradients(mixer):
    module = module_of(mixer)
    query, key = points(2, N), points(2, M, seed=2).requires_grad_()
    padding = torch.tensor([[True] * M, [False] * M])
    out, weights = module(query, key, key, padding)
    assert out[0].equal(module.out_proj.bias.expand(N, E))
    assert (weights[0] == 0).all()
    (dk,) = torch.autograd.grad(out.sin().sum(), key)
    assert dk.isfinite().all()
    assert (dk[0] == 0).all()


# ---- order and pair masks ---------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ORDERED)
def test_the_future_does_not_leak(mixer):
    module = module_of(mixer)
    x = points(2, N)
    changed = x.clone()
    changed[:, 4:] += points(2, 2, seed=9)
    mask = torch.ones(N, N, dtype=torch.bool).triu(1)
    before, matrix = module(x, x, x, attn_mask=mask)
    after, _ = module(changed, changed, changed, attn_mask=mask)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=1e-13, atol=1e-13)
    assert (after[:, 4:] - before[:, 4:]).abs().min() > 1e-6
    assert (matrix.triu(1) == 0).all()
    additive = torch.zeros(N, N, dtype=F64).masked_fill(mask, -torch.inf)
    for same in ({"attn_mask": additive}, {"is_causal": True}, {"attn_mask": additive, "is_causal": True}):
        torch.testing.assert_close(module(x, x, x, **same)[0], before)
        torch.testing.assert_close(module(x, x, x, need_weights=False, **same)[0], before)


def wrong_masks():
    causal = torch.ones(N, N, dtype=torch.bool).triu(1)
    changed = causal.clone()
    changed[2, 0] = True
    additive = torch.zeros(N, N).masked_fill(causal, -torch.inf)
    return {
        "one more pair": changed,
        "one pair less": causal & ~F.one_hot(torch.tensor([1] * N), N).bool(),
        "the past": causal.mT,
        "the present too": torch.ones(N, N, dtype=torch.bool).triu(),
        "none": torch.zeros(N, N, dtype=torch.bool),
        "for every head": causal.expand(B * H, N, N),
        "a bias": torch.where(causal, additive, 0.1),
        "nearly -inf": additive.clamp(min=-1e9),
        "integers": causal.long(),
        "another size": torch.ones(N, N + 1, dtype=torch.bool).triu(1),
    }


@pytest.mark.parametrize("mixer", LINEAR)
@pytest.mark.parametrize("name", wrong_masks())
@pytest.mark.parametrize("hint", [False, True])
def test_pair_masks_are_refused_not_dropped(mixer, name, hint):
    x = points(B, N)
    with pytest.raises(
        ValueError, match=r"not the causal mask.*is_causal=True.*key_padding_mask.*mixer='softmax'"
    ):
        module_of(mixer)(x, x, x, attn_mask=wrong_masks()[name], is_causal=hint)


def test_what_has_no_causal_form_says_so():
    x, y = points(B, N), points(B, M)
    for mixer in ORDERED:
        with pytest.raises(ValueError, match="causal"):
            module_of(mixer)(x, y, y, is_causal=True)
        for extra in ("add_bias_kv", "add_zero_attn"):
            with pytest.raises(ValueError, match="the added source has no place"):
                module_of(mixer, **{extra: True})(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match="expected the simple kernel"):
        module_of("diffusion-sigmoid")(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match="never forms them"):
        module_of("linear").attend(x, x, x, bias=torch.zeros(N, N))


# ---- added sources, dropout -------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize(
    "extra", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True}]
)
def test_added_sources_are_sources(mixer, extra):
    module = module_of(mixer, **extra)
    x = points(B, N)
    out, weights = module(x, x, x, PADDING, average_attn_weights=False)
    assert weights.shape == (B, H, N, N + len(extra))
    q, k, v = module.project(x, x, x)
    added = []
    if "add_bias_kv" in extra:
        added.append([p.view(1, H, 1, E // H).expand(B, -1, -1, -1) for p in (module.bias_k, module.bias_v)])
    if "add_zero_attn" in extra:
        added.append([torch.zeros(B, H, 1, E // H, dtype=F64)] * 2)
    k, v = (torch.cat([x, *more], -2) for x, more in zip((k, v), zip(*added, strict=True), strict=True))
    mass = F.pad((~PADDING).to(F64), (0, len(extra)), value=1.0)[:, None]
    targets = None if mixer == "softmax" else Tokens(N, (~PADDING).to(F64)[:, None])
    wanted = MIXERS[mixer].function(q, k, v, targets=targets, sources=Tokens(N + len(extra), mass))
    torch.testing.assert_close(out, module.merge(wanted))
    torch.testing.assert_close(module.merge(weights @ v), out)
    if mixer != "mean" and "add_bias_kv" in extra:
        assert (torch.autograd.grad(out.sum(), module.bias_k)[0] != 0).any()


@pytest.mark.parametrize("mixer", LINEAR)
def test_dropout_drops_sources_and_keeps_the_mean(mixer):
    module = module_of(mixer, dropout=0.5)
    x = points(N)
    still = module.eval()(x, x, x, average_attn_weights=False)
    module.train()
    torch.manual_seed(0)
    total = torch.zeros_like(still[0])
    for _ in range(400):
        out, weights = module(x, x, x, average_attn_weights=False)
        total += out / 400
    v = module.project(x, x, x)[2]
    torch.testing.assert_close(module.merge(weights @ v), out)
    columns = (weights == 0).all(-2)
    assert columns.any()
    torch.testing.assert_close(weights, 2 * still[1] * ~columns.unsqueeze(-2))
    assert (total - still[0]).abs().max() < 0.25 * (still[0] - module.out_proj.bias).abs().max()


# ---- states, types, tools ---------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize(
    "options", [{}, {"bias": False, "add_bias_kv": True}, {"kdim": 3, "vdim": 5}], ids=str
)
def test_states_are_those_of_multihead_attention(mixer, options):
    theirs = nn.MultiheadAttention(E, H, dtype=F64, batch_first=True, **options)
    ours, back = module_of(mixer, **options), module_of("mean", **options)
    ours.load_state_dict(theirs.state_dict())
    back.load_state_dict(ours.state_dict())
    theirs.load_state_dict(back.state_dict())
    x, k, v = points(B, N), points(B, M, c=options.get("kdim", E)), points(B, M, c=options.get("vdim", E))
    again = MultiheadMixer(E, H, dtype=F64, batch_first=True, mixer=mixer, **options)
    again.load_state_dict(theirs.state_dict())
    assert ours(x, k, v)[0].equal(again(x, k, v)[0])


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision(mixer, dtype, bound):
    torch.manual_seed(0)
    module = MultiheadMixer(32, 4, batch_first=True, mixer=mixer, add_bias_kv=True)
    x = points(2, 300, c=32, dtype=torch.float32)
    padding = torch.arange(300) >= torch.tensor([[300], [170]])
    real = ~padding
    want, matrix = module(x, x, x, padding)
    with torch.autocast("cpu", dtype):
        out, weights = module(x, x, x, padding)
        out.float().square().mean().backward()
    assert out.dtype == dtype
    assert (out.float() - want)[real].norm() < bound * want[real].norm()
    assert (weights.float() - matrix)[real].norm() < bound * matrix[real].norm()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    narrow = module.to(dtype)
    additive = torch.zeros(2, 300, dtype=dtype).masked_fill(padding, -torch.inf)
    got, _ = narrow(*[x.to(dtype)] * 3, additive, need_weights=False)
    assert got.dtype == dtype
    assert (got.float() - want)[real].norm() < 2 * bound * want[real].norm()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # from torch's tracer
@pytest.mark.parametrize("mixer", ORDERED)
def test_a_compiled_graph_checks_the_mask_when_it_runs(mixer):
    torch.compiler.reset()
    module = module_of(mixer)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = points(B, N)
    mask = torch.ones(N, N, dtype=torch.bool).triu(1)
    got, _ = compiled(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(got, module(x, x, x, attn_mask=mask)[0])
    if mixer != "softmax":
        with pytest.raises(RuntimeError, match="not the causal mask"):
            compiled(x, x, x, attn_mask=mask.mT.contiguous(), need_weights=False)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")
def test_one_graph_serves_every_length():
    torch.compiler.reset()
    compile_ = partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=True)
    checked = compile_(lambda x, mask: (require_causal(mask, "mean", *mask.shape), x + 1)[1])
    for n in (5, 9):
        assert checked(torch.zeros(n), torch.ones(n, n).triu(1).bool()).shape == (n,)
    with torch.no_grad():
        x = points(5, H, c=4).transpose(0, 1)
        got = compile_(lambda x: linear_attention(x, x, x, causal=True))(x)
    torch.testing.assert_close(got, linear_attention(x, x, x, causal=True))


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage.*")
def test_nested_tensors_are_packed_sets(mixer):
    module = module_of(mixer).eval()
    x = points(B, N)
    nested = torch.nested.nested_tensor([x[b, :n] for b, n in enumerate(LENGTHS.tolist())])
    with torch.no_grad():
        out, none = module(nested, nested, nested, need_weights=False)
        want, _ = module(x, x, x, PADDING)
    assert none is None
    for b, part in enumerate(out.unbind()):
        torch.testing.assert_close(part, want[b, : len(part)])
    with pytest.raises(ValueError, match="pass need_weights=False"):
        module(nested, nested, nested)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: MultiheadMixer(8, 3), "embed_dim is 8 and num_heads 3"),
        (lambda: MultiheadMixer(8, 2, dropout=1.0), "dropout is 1.0"),
        (lambda: MultiheadMixer(8, 2, mixer="softmx"), "Did you mean 'softmax'"),
        (lambda: MultiheadMixer(8, 2, mixer="diffusion", normalisation="row"), "Did you mean 'normalization'"),
        (lambda: MultiheadMixer(8, 2, mixer="diffusion", kernel="sigmoid"), "no option 'kernel'"),
        (lambda: MultiheadMixer(8, 2, mixer="mean", sources=None), "no option 'sources'; it has none"),
        (lambda: MultiheadMixer(8, 2, mixer="diffusion", normalization="rows"), "normalization is 'rows'"),
        (lambda: module_of("mean")(points(B, N), points(B, M), points(B, N)), "a value for each key"),
        (lambda: module_of("mean")(points(B, N), points(2, M), points(2, M)), "one batch size"),
        (lambda: module_of("mean")(points(B, N, c=7), *[points(B, M)] * 2), "8, 8, 8 channels"),
        (lambda: module_of("mean")(points(N), *[points(B, M)] * 2), "batch_first=True"),
        (
            lambda: module_of("mean")(points(B, N), *[points(B, M)] * 2, torch.zeros(B, N, dtype=torch.bool)),
            r"key_padding_mask has shape \(3, 6\) but key has batch 3 and length 4; expected \(3, 4\). True means 'ignore'",
        ),
        (
            lambda: module_of("mean")(points(N), points(M), points(M), torch.zeros(N, dtype=torch.bool)),
            r"key has length 4; expected \(4,\)",
        ),
        (
            lambda: module_of("softmax")(points(B, N), *[points(B, M)] * 2, attn_mask=torch.zeros(M, N)),
            r"expected \(6, 4\) or \(6, 6, 4\)",
        ),
        (
            lambda: module_of("softmax")(points(B, N), *[points(B, M)] * 2, attn_mask=torch.ones(N, M).long()),
            "expected bool, True = hidden",
        ),
        (
            lambda: module_of("mean").attend(*[points(B, N)] * 3, sources=Tokens(N, torch.ones(2, N))),
            r"masses of shape \(2, 6\); expected \(3, 6\)",
        ),
        (
            lambda: module_of("mean").attend(*[points(B, N)] * 3, targets=Tokens(M)),
            "targets describe 4 tokens, but there are 6",
        ),
        (
            lambda: module_of("mean", add_zero_attn=True).attend(
                *[points(N)] * 3, **dict.fromkeys(("targets", "sources"), Tokens.of(N, ptr=torch.tensor([0, 2, N])))
            ),
            "every set would need the source",
        ),
    ],
)  # fmt: skip
def test_bad_input_says_what_to_do(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()
