"""Every position on every mixer against its dense formula in float64: values, gradients, padding, packing, order."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osmose import nn as osmose_nn
from osmose.mixers import MIXERS
from osmose.nn import POSITIONS, DecoderBlock, EncoderBlock, MultiheadMixer, replace_attention
from osmose.nn.position import (
    T5,
    FixedShift,
    Learned,
    Relative,
    Shift,
    ShiftMixture,
    ShiftScore,
    ShortConv,
    score,
)
from osmose.operators import DenseLimitError, dense_limit
from osmose.tokens import Tokens

F64 = torch.float64
B, N, E, H = 2, 7, 8, 2
D = E // H
SETTINGS = {
    "shift": Shift(2), "shift-mixture": ShiftMixture(2), "shift-score": ShiftScore(2), "short-conv": ShortConv(2),
    "fixed-shift": FixedShift((-2,)), "learned": Learned(9), "sinusoidal": POSITIONS["sinusoidal"], "relative": Relative(3),
    "t5": T5(8, 6), "alibi": POSITIONS["alibi"], "rope": POSITIONS["rope"],
}  # fmt: skip
SCORES = ("shift-score", "relative", "t5", "alibi")
PAIRS = [
    (mixer, position, causal)
    for mixer in MIXERS
    for position in POSITIONS
    for causal in (False, True)
    if not (causal and mixer == "diffusion-sigmoid") and not (mixer == "mean" and position == "rope")
]


def module_of(mixer, position, **options):
    torch.manual_seed(0)
    options = {"batch_first": True, "dtype": F64} | options
    module = MultiheadMixer(E, H, mixer=mixer, position=SETTINGS[position], **options)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module


def points(*lead, seed=1, c=E):
    return torch.randn(*lead, c, dtype=F64, generator=torch.Generator().manual_seed(seed))


# ---- the formulas, pair by pair --------------------------------------------------------------------


def shift_matrix(d, n, causal):
    s = torch.zeros(n, n, dtype=F64)
    for i in range(n):
        if 0 <= i + d < n and not (causal and d > 0):
            s[i, i + d] = 1
    return s


def channelwise(x, weight, causal):
    """``sum_d S_d x diag(w_d)`` for ``x (B, n, E)`` and ``weight (E, K)``."""
    radius = weight.shape[1] // 2
    return sum(
        shift_matrix(d, x.shape[1], causal) @ x * weight[:, d + radius] for d in range(-radius, radius + 1)
    )


def bias_of(module, position, n, causal):
    """``b_h(j - i)``, ``(H, n, n)``."""
    made, out = module.position, torch.zeros(H, n, n, dtype=F64)
    for i in range(n):
        for j in range(n):
            d = j - i
            if position == "shift-score" and abs(d) <= 2:
                out[:, i, j] = made.bias[:, d + 2]
            elif position == "relative":
                out[:, i, j] = made.bias[:, max(-3, min(3, d)) + 3]
            elif position == "t5":
                out[:, i, j] = made.weight[bucket(d, causal)]
            elif position == "alibi":
                out[:, i, j] = -torch.tensor([2**-4, 2**-8], dtype=F64) * abs(d)
    return out


def bucket(d, causal, buckets=8, longest=6):
    """T5's table, written out: half of the buckets exact, the others logarithmic."""
    if causal:
        base, distance = 0, max(-d, 0)
    else:
        buckets //= 2
        base, distance = (buckets if d > 0 else 0), abs(d)
    exact = buckets // 2
    if distance < exact:
        return base + distance
    step = math.floor(math.log(distance / exact) / math.log(longest / exact) * (buckets - exact))
    return base + min(exact + step, buckets - 1)


def matrix_of(mixer, q, k, t, causal):
    """The matrix of a mixer whose kernel is multiplied by ``t (H, n, n)``, all masses 1."""
    n = q.shape[-2]
    order = torch.ones(n, n, dtype=F64).tril() if causal else torch.ones(n, n, dtype=F64)
    if mixer == "flow":
        return flow_of(q.sigmoid() @ k.sigmoid().mT * t, causal)
    kernel = {
        "softmax": lambda: (q @ k.mT / D**0.5).exp(),
        "diffusion": lambda: 1 + F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT,
        "diffusion-sigmoid": lambda: (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).sigmoid(),
        "linear": lambda: (F.elu(q) + 1) @ (F.elu(k) + 1).mT,
        "mean": lambda: torch.ones(*q.shape[:-1], n, dtype=F64),
    }[mixer]()
    kernel = kernel * t * order
    return kernel / kernel.sum(-1, keepdim=True)


def flow_of(c, causal):
    n = c.shape[-1]
    if not causal:
        taken, given = c.sum(-1, keepdim=True), c.sum(-2, keepdim=True)
        opened = torch.sigmoid((c / given).sum(-1, keepdim=True))
        return opened / taken * c * n * (c / taken).sum(-2, keepdim=True).softmax(-1)
    # target i takes from j <= i; source j gives to i <= j; all of them means of what came so far
    seen = torch.arange(1, n + 1, dtype=F64)
    taken = c.tril().sum(-1) / seen
    given = c.triu().sum(-2) / seen
    s = (c / given.unsqueeze(-2)).tril().sum(-1) / seen
    w = (c / taken.unsqueeze(-1)).triu().sum(-2) / seen
    share = (w - w.logcumsumexp(-1)).exp() * seen
    return (torch.sigmoid(s) / (taken * seen)).unsqueeze(-1) * c.tril() * share.unsqueeze(-2)


def turned(x):
    """Channels i and i + d/2 as a complex number, turned by p 10000^(-2i/d)."""
    n, d = x.shape[-2:]
    place = torch.arange(n, dtype=F64).unsqueeze(-1) * 10_000.0 ** (-torch.arange(0, d, 2, dtype=F64) / d)
    z = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(torch.ones_like(place), place)
    return torch.cat([z.real, z.imag], -1)


def formula(module, position, x, causal):
    """Output and matrices of a mixer with a position, for one padded batch of mass 1."""
    made, n = module.position, x.shape[1]
    if position == "learned":
        x = x + made.weight[:n]
    if position == "sinusoidal":
        place = torch.arange(n, dtype=F64).unsqueeze(-1)
        wave = place / 10_000 ** (torch.arange(0, E, 2, dtype=F64) / E)
        x = x + torch.stack([wave.sin(), wave.cos()], -1).reshape(n, E)
    q, k, v = module.project(x, x, x)
    merged = v.transpose(1, 2).flatten(2)
    if position == "rope":
        q, k = turned(q), turned(k)
    if position == "short-conv":
        k = (
            channelwise(k.transpose(1, 2).flatten(2), made.key_weight, causal)
            .unflatten(-1, (H, D))
            .transpose(1, 2)
        )
        v = channelwise(merged, made.value_weight, causal).unflatten(-1, (H, D)).transpose(1, 2)
    t = bias_of(module, position, n, causal).exp()
    if position == "fixed-shift":
        a = matrix_of(module.mixer, q[:, 1:], k[:, 1:], t[1:], causal)
        a = torch.cat([shift_matrix(-2, n, causal).expand(len(x), 1, n, n), a], 1)
    else:
        a = matrix_of(module.mixer, q, k, t, causal)
    if position == "shift-mixture":
        g = made.gate.sigmoid()[:, None, None]
        share = made.logits[:, :3] if causal else made.logits
        share = share.exp() / share.exp().sum(-1, keepdim=True)
        offsets = range(-2, 1 if causal else 3)
        a = (1 - g) * a + g * sum(
            share[:, i, None, None] * shift_matrix(d, n, causal) for i, d in enumerate(offsets)
        )
    out = (a @ v).transpose(1, 2).flatten(2)
    if position == "shift":
        out = out + channelwise(merged, made.weight, causal)
    return module.out_proj(out), a


@pytest.mark.parametrize(("mixer", "position", "causal"), PAIRS)
def test_equals_the_formula(mixer, position, causal):
    module = module_of(mixer, position)
    x = points(B, N).requires_grad_()
    out, weights = module(x, x, x, average_attn_weights=False, is_causal=causal)
    plain, _ = module(x, x, x, need_weights=False, is_causal=causal)
    wanted, matrix = formula(module, position, x, causal)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(plain, wanted)
    torch.testing.assert_close(weights, matrix)
    parameters = [x, *module.parameters()]
    got, want = (torch.autograd.grad(y.sin().sum(), parameters, allow_unused=True) for y in (plain, wanted))
    for g, w, p in zip(got, want, parameters, strict=True):
        torch.testing.assert_close(*(torch.zeros_like(p) if z is None else z for z in (g, w)))


@pytest.mark.parametrize(("mixer", "position", "causal"), PAIRS)
def test_a_sequence_alone_equals_the_sequence_in_any_batch(mixer, position, causal):
    """Padded on the right, padded on the left, packed with others token by token: outputs, matrices, gradients."""
    module = module_of(mixer, position)
    attend = partial(module.attend, causal=causal, need_weights=True)
    one, other = points(4, seed=2).requires_grad_(), points(6, seed=3).requires_grad_()
    alone, matrix = attend(one, one, one)
    (want,) = torch.autograd.grad(alone.sin().sum(), one)
    full, full_matrix = attend(other, other, other)

    def check(out, weights, x):
        torch.testing.assert_close(out, alone)
        torch.testing.assert_close(weights, matrix)
        (got,) = torch.autograd.grad(out.sin().sum(), x, retain_graph=True)
        torch.testing.assert_close(got, want)

    for left in (False, True):
        junk = torch.full((2, E), 7.0, dtype=F64)
        row = torch.cat([junk, one]) if left else torch.cat([one, junk])
        mass = torch.ones(2, 6, dtype=F64)
        mass[0, :2] = 0 if left else 1
        mass[0, 4:] = 1 if left else 0
        tokens = Tokens(6, mass)
        batch = torch.stack([row, other])
        out, weights = attend(batch, batch, batch, targets=tokens, sources=tokens)
        here = slice(2, 6) if left else slice(0, 4)
        check(out[0, here], weights[0, :, here, here], one)
        torch.testing.assert_close(out[1], full)
        assert (weights[0, :, mass[0] == 0] == 0).all()
        assert (weights[0, :, :, mass[0] == 0] == 0).all()
        torch.testing.assert_close(out[0, mass[0] == 0], module.out_proj.bias.expand(2, E))
    sets = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 1, 1])
    x = torch.empty(10, E, dtype=F64).index_put((sets == 0,), one).index_put((sets == 1,), other)
    tokens = Tokens.of(10, batch=sets)
    out, weights = attend(x, x, x, targets=tokens, sources=tokens)
    check(out[sets == 0], weights[:, sets == 0][:, :, sets == 0], one)
    torch.testing.assert_close(out[sets == 1], full)
    torch.testing.assert_close(weights[:, sets == 1][:, :, sets == 1], full_matrix)
    assert (weights[:, sets == 0][:, :, sets == 1] == 0).all()


@pytest.mark.parametrize("position", SCORES)
@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "softmax"])
@pytest.mark.parametrize("causal", [False, True])
def test_long_sequences_take_the_linear_form_of_the_same_operator(mixer, position, causal, monkeypatch):
    """Windows and prefix sums against all pairs formed, alone and packed; ALiBi streams instead."""
    if causal and mixer in ("diffusion-sigmoid", "flow"):
        return
    module = module_of(mixer, position)
    x = points(400)
    sizes = torch.tensor([161, 0, 239])
    tokens = Tokens.of(400, ptr=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))
    parameters = list(module.position.parameters())
    results = []
    for pairs in (False, True):
        # what is left of the forms: the linear one (ALiBi: the stream), then all pairs
        monkeypatch.setattr(score, "FORMED", 2**20 if pairs else 0)
        if pairs:
            monkeypatch.setattr(score.Score, "_is_linear", lambda *_: False)
        found = [module.attend(x, x, x, targets=t, sources=t, causal=causal)[0] for t in (None, tokens)]
        found += torch.autograd.grad(sum(y.sin().sum() for y in found), [*parameters, module.in_proj_weight])
        results.append(found)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


def test_the_linear_form_needs_no_pairs():
    for mixer, position, causal in (
        ("flow", "relative", False),
        ("linear", "t5", True),
        ("diffusion", "shift-score", False),
    ):
        module, x = module_of(mixer, position), points(500)
        with dense_limit(1000):
            module.attend(x, x, x, causal=causal)
    for mixer, position, causal in (("flow", "alibi", False), ("flow", "shift-score", True)):
        module, x = module_of(mixer, position), points(1100)
        with dense_limit(1000), pytest.raises(DenseLimitError):
            module.attend(x, x, x, causal=causal)


@pytest.mark.parametrize("position", ["shift-score", "relative", "t5"])
@pytest.mark.parametrize("preset", ["core", "vision", "paper", "lra"])
def test_a_bias_of_0_leaves_every_flow_as_it_is(position, preset):
    module = module_of("flow", position, preset=preset)
    for p in module.position.parameters():
        nn.init.zeros_(p)
    x = points(B, N)
    tokens = Tokens(N, torch.tensor([[1.0, 2, 1, 0.5, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]], dtype=F64))
    for causal in (False, True) if preset != "lra" else (False,):
        call = {"targets": tokens, "sources": tokens, "causal": causal}
        got, _ = module.attend(x, x, x, **call)
        kept, module.position = module.position, None
        want, _ = module.attend(x, x, x, **call)
        module.position = kept
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mixer", ["softmax", "flow"])
def test_a_causal_mask_is_causal_order_and_shows_no_future(mixer, position):
    module = module_of(mixer, position)
    x = points(B, N)
    mask = torch.ones(N, N, dtype=torch.bool).triu(1)
    wanted, _ = module(x, x, x, is_causal=True)
    for given in (mask, torch.zeros(N, N, dtype=F64).masked_fill(mask, -torch.inf)):
        out, _ = module(x, x, x, attn_mask=given)
        torch.testing.assert_close(out, wanted)
    later = x.clone()
    later[:, 4:] = points(B, 3, seed=9)
    torch.testing.assert_close(module(later, later, later, is_causal=True)[0][:, :4], wanted[:, :4])


@pytest.mark.parametrize("position", POSITIONS)
def test_a_mask_that_hides_pairs_hides_them_from_the_position_too(position):
    module = module_of("softmax", position)
    x = points(B, N)
    mask = torch.zeros(N, N, dtype=torch.bool)
    mask[:4, 4:] = mask[4:, :4] = True
    if module.position.carries:
        with pytest.raises(ValueError, match="carries values past it"):
            module(x, x, x, attn_mask=mask)
        module(x, x, x, attn_mask=torch.randn(N, N, dtype=F64))
        return
    out, _ = module(x, x, x, attn_mask=mask)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(module(changed, changed, changed, attn_mask=mask)[0][:, :4], out[:, :4])


@pytest.mark.parametrize("position", POSITIONS)
def test_cross_attention_counts_from_the_same_start(position):
    """Fewer targets than sources are the first rows of the square case, where rows do not depend on each other."""
    module = module_of("linear", position)
    x = points(B, N)
    square, _ = module.attend(x, x, x)
    rows, _ = module.attend(x[:, :3], x, x)
    torch.testing.assert_close(rows, square[:, :3])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mixer", ["softmax", "diffusion", "flow"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_and_autocast_stay_close(mixer, position, dtype):
    module = module_of(mixer, position)
    x = points(B, N)
    want, _ = module(x, x, x)
    half = module.to(torch.float32)
    single = x.float().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        out, _ = half(single, single, single)
    out.float().square().sum().backward()
    assert torch.isfinite(single.grad).all()
    assert (out.double() - want).norm() / want.norm() < (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_names_of_parameters_without_a_position_stay_and_with_one_are_added():
    plain = MultiheadMixer(E, H).state_dict()
    placed = MultiheadMixer(E, H, position="shift")
    assert set(plain) == {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert set(placed.state_dict()) == {*plain, "position.weight"}
    x = torch.randn(B, N, E)
    alone = MultiheadMixer(E, H, batch_first=True)
    placed.batch_first = True
    placed.load_state_dict(alone.state_dict(), strict=False)
    assert placed(x, x, x)[0].equal(alone(x, x, x)[0]), "a shift branch starts as nothing"


def test_blocks_pass_it_to_their_self_attention():
    x, memory = torch.randn(B, N, E), torch.randn(B, 5, E)
    block = EncoderBlock(E, H, position=ShiftMixture(3), causal=True, dropout=0.0)
    assert isinstance(block.self_attn.position, type(ShiftMixture().build(E, H)))
    assert block(x).shape == x.shape
    with pytest.raises(ValueError, match="a state with position Rotation"):
        EncoderBlock(E, H, position="rope", causal=True).start(B)
    decoder = DecoderBlock(E, H, position="rope", dropout=0.0)
    assert decoder.multihead_attn.position is None
    assert decoder.self_attn.position is not None
    assert decoder(x, memory).shape == x.shape


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("position", ["shift-score", "relative", "t5"])
def test_a_batch_too_large_to_be_formed_takes_the_linear_form(position, packed):
    module = module_of("diffusion", position)
    x = points(3 * N) if packed else points(3, N)
    tokens = Tokens.of(3 * N, batch=torch.arange(3 * N) % 3) if packed else None
    formed, _ = module.attend(x, x, x, targets=tokens, sources=tokens)
    with dense_limit(H * N * N):  # one of the three
        linear, _ = module.attend(x, x, x, targets=tokens, sources=tokens)
    torch.testing.assert_close(linear, formed)


@pytest.mark.parametrize("position", ["shift", "shift-mixture", "short-conv", "fixed-shift"])
def test_steps_of_any_number_of_tokens_equal_one_call(position):
    """No tokens too, also after some: the state then is the one before."""
    for mixer in ("flow", "softmax", "linear"):
        block = EncoderBlock(E, H, mixer=mixer, position=SETTINGS[position], causal=True, dtype=F64).eval()
        nn.init.normal_(block.self_attn.in_proj_weight)
        for p in block.self_attn.position.parameters():
            nn.init.normal_(p)
        x, state, parts = points(B, N), block.start(B, dtype=F64), []
        for part in x.split([0, 1, 3, 0, N - 4], 1):
            out, state = block.step(part, state)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, 1), block(x))


def test_replace_attention_gives_a_position_and_keeps_one():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, batch_first=True, dtype=F64), 2)
    names = replace_attention(model, "diffusion", position="shift")
    made = [model.get_submodule(name) for name in names]
    assert all(m.position.weight.dtype == F64 for m in made)
    assert made[0].position.weight is not made[1].position.weight
    x = points(B, N)
    model(x).sum().backward()
    assert made[0].position.weight.grad.abs().max() > 0
    replace_attention(model, "flow")
    assert model.get_submodule(names[0]).position is made[0].position
    replace_attention(model, "flow", position="t5")
    assert "position.weight" in dict(model.get_submodule(names[0]).named_parameters())


def test_dropout_draws_what_it_draws_without_a_position():
    for mixer in ("softmax", "linear"):
        module = module_of(mixer, "shift-score", dropout=0.5)
        nn.init.zeros_(module.position.bias)
        x = points(B, N)
        torch.manual_seed(3)
        got, _ = module(x, x, x, need_weights=mixer == "softmax")
        module.position = None
        torch.manual_seed(3)
        torch.testing.assert_close(got, module(x, x, x, need_weights=mixer == "softmax")[0])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MultiheadMixer(E, H, position="shfit"), "Did you mean 'shift'"),
        (lambda: MultiheadMixer(E, H, position=3), "expected None, settings"),
        (lambda: MultiheadMixer(6, 2, position="rope"), "3 a head; expected an even number"),
        (lambda: MultiheadMixer(E, H, mixer="mean", position="rope"), "looks at no query"),
        (
            lambda: MultiheadMixer(E, H, position="learned", kdim=4),
            "channels to keys and values, which have 4",
        ),
        (lambda: MultiheadMixer(E, H, position="t5", add_zero_attn=True), "stands nowhere"),
        (lambda: MultiheadMixer(E, H, position=Shift(-1)), "Shift: radius is -1"),
        (lambda: MultiheadMixer(E, H, position=FixedShift((-1, -2, -3))), "from 1 to 2 of them"),
        (lambda: MultiheadMixer(E, H, position=T5(7)), "even number"),
        (lambda: MultiheadMixer(E, H, position=Learned(0)), "1 or more"),
        (
            lambda: MultiheadMixer(E, H, position=Learned(4)).attend(*[torch.zeros(5, E)] * 3),
            "a sequence of 5 tokens, but there are vectors for max_length=4",
        ),
        (
            lambda: MultiheadMixer(E, H, position=FixedShift((1,))).attend(
                *[torch.zeros(5, E)] * 3, causal=True
            ),
            "offset > 0 is later",
        ),
        (
            lambda: MultiheadMixer(E, H, mixer="diffusion", normalization="frobenius", position="t5").attend(
                *[torch.zeros(5, E)] * 3, causal=True
            ),
            "normalization row or none",
        ),
    ],
)
def test_what_does_not_fit_says_what_to_take(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_the_table_names_every_member():
    assert {s.name for s in POSITIONS.values()} == set(POSITIONS) == set(SETTINGS)
    assert osmose_nn.POSITIONS is POSITIONS


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # from torch's tracer
def test_it_compiles_in_one_graph():
    for mixer, position in (
        ("diffusion", "shift"),
        ("softmax", "t5"),
        ("flow", "shift-mixture"),
        ("linear", "rope"),
    ):
        module = module_of(mixer, position).float()
        x = points(B, N).float()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, x, x, need_weights=False)[0], module(x, x, x)[0])
