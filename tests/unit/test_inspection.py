"""Taking layers and models apart: the true matrix of every mixer, Phi and J, capture without traces, replacement."""

import pytest
import torch
from torch import nn

from osmose.inspection import (
    capture,
    constant,
    jacobian,
    jacobian_gap,
    operator,
    replacement_test,
    replacing,
    structure,
    study,
)
from osmose.inspection.capture import in_grids, stage_grids
from osmose.mixers import MIXERS
from osmose.models import DIFFormer, LanguageModel, SequenceClassifier, VisionClassifier
from osmose.models.difformer import DIFFormerConv
from osmose.nn import MultiheadMixer
from osmose.nn.mixed import layers
from osmose.operators import DenseLimitError, Operator, dense_limit
from osmose.tokens import Tokens

B, N, M, E, H, F64 = 2, 6, 4, 8, 2, torch.float64
ALL = list(MIXERS)
CAUSAL = [name for name in ALL if name != "diffusion-sigmoid"]


def layer(mixer, **options):
    torch.manual_seed(0)
    made = MultiheadMixer(E, H, batch_first=True, dtype=F64, mixer=mixer, **options).eval()
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    return made


def points(n=N, lead=(B,), seed=0):
    return torch.randn(*lead, n, E, dtype=F64, generator=torch.Generator().manual_seed(seed))


def masses(n=N):
    return Tokens.of(n, mask=torch.arange(n) < torch.tensor([[n], [n - 2]]))


@pytest.mark.parametrize("mixer", ALL)
@pytest.mark.parametrize("how", ["plain", "masses", "causal", "cross", "one set"])
def test_structure_is_the_matrix_that_carries_the_values(mixer, how):
    if how == "causal" and mixer not in CAUSAL:
        return
    mix, x = layer(mixer), points(lead=() if how == "one set" else (B,))
    call, key = {}, x
    if how == "masses":
        tokens = masses()
        call = {"targets": tokens, "sources": tokens}
    elif how == "causal":
        call = {"causal": True}
    elif how == "cross":
        key = points(M, seed=1)
    a = structure(mix, x, key, **call)
    assert isinstance(a, Operator)
    _, weights = mix.attend(x, key, key, **call, need_weights=True)
    torch.testing.assert_close(a.to_dense(), weights)
    torch.testing.assert_close(a.rows(torch.tensor([3, -1])), weights[..., [3, -1], :])
    _, _, v = mix.project(x, key, key)
    torch.testing.assert_close(mix.merge(a @ v), mix.attend(x, key, key, **call)[0])
    u = torch.randn(H, N, 3, dtype=F64)
    torch.testing.assert_close(a.mT @ u, weights.mT @ u)
    assert "carry" not in vars(mix)
    assert "forward" not in vars(mix)


def test_added_sources_are_the_last_columns():
    mix, x = layer("softmax", add_bias_kv=True, add_zero_attn=True), points()
    a = structure(mix, x)
    assert a.shape == (B, H, N, N + 2)
    torch.testing.assert_close(a.to_dense(), mix.attend(x, x, x, need_weights=True)[1])


@pytest.mark.parametrize("mixer", ["softmax", "flow", "diffusion"])
@pytest.mark.parametrize("how", ["plain", "masses", "cross", "one set", "added"])
def test_the_layer_is_its_operator_and_a_constant(mixer, how):
    mix = layer(mixer, add_bias_kv=how == "added", add_zero_attn=how == "added")
    x, key, call = points(lead=() if how == "one set" else (B,)), None, {}
    if how == "masses":
        call = {"targets": masses(), "sources": masses()}
    elif how == "cross":
        key = points(M, seed=1)
    phi = operator(mix, x, key, **call)
    value = x if key is None else key
    y = (phi @ value.flatten(-2).unsqueeze(-1)).squeeze(-1).unflatten(-1, (N, E))
    want = mix.attend(x, value, value, **call)[0]
    torch.testing.assert_close(y + constant(mix, x, key, **call), want)
    dense = phi.to_dense()
    a = structure(mix, x, key, **call).to_dense()[..., : value.shape[-2]]
    w_v = mix.in_proj_weight[2 * E :].unflatten(0, (H, -1))  # (H, d, P)
    w_o = mix.out_proj.weight.unflatten(1, (H, -1))  # (Q, H, d)
    kron = torch.einsum("...hnm,hdp,qhd->...nqmp", a, w_v, w_o).flatten(-4, -3).flatten(-2)
    torch.testing.assert_close(dense, kron)
    torch.testing.assert_close(phi.rows(slice(2, 5)), kron[..., 2:5, :])


@pytest.mark.parametrize("mixer", ["softmax", "flow", "linear", "diffusion-sigmoid"])
def test_the_jacobian_is_that_of_autograd(mixer):
    mix, x = layer(mixer), points()
    tokens = masses()
    j = jacobian(mix, x, targets=tokens, sources=tokens)
    for b in range(B):

        def f(one, b=b):
            many = torch.stack([one if i == b else x[i] for i in range(B)])
            return mix.attend(many, many, many, targets=tokens, sources=tokens)[0][b]

        want = torch.autograd.functional.jacobian(f, x[b]).flatten(2).flatten(0, 1)
        torch.testing.assert_close(j.to_dense()[b], want)
    v = torch.randn(B, N * E, 2, dtype=F64)
    torch.testing.assert_close(j @ v, j.to_dense() @ v)


def test_jacobian_and_operator_differ_unless_the_matrix_is_given():
    x = points(8, lead=())
    mix = layer("softmax")
    j, phi = jacobian(mix, x).to_dense(), operator(mix, x).to_dense().detach()
    gap = float((j - phi).norm() / j.norm())
    assert gap > 0.3
    got = jacobian_gap(mix, x, probes=2000)
    assert got == pytest.approx(gap, rel=0.05)
    fixed = layer("mean")
    torch.testing.assert_close(jacobian(fixed, x).to_dense(), operator(fixed, x).to_dense().detach())
    assert jacobian_gap(fixed, x) == 0.0


def test_a_norm_over_the_batch_is_read_one_input_at_a_time():
    mix, x = layer("diffusion", normalization="frobenius", scope="batch"), points(lead=())
    phi = operator(mix, x)
    y = (phi @ x.flatten()).unflatten(-1, (N, E)) + constant(mix, x)
    torch.testing.assert_close(y, mix.attend(x, x, x)[0])
    with pytest.raises(ValueError, match="depend on each other"):
        jacobian(mix, points())


def test_torchs_attention_is_read_as_softmax():
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(E, H, batch_first=True, dtype=F64).eval()
    x = points()
    want = theirs(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(structure(theirs, x).to_dense(), want)
    torch.testing.assert_close(
        (operator(theirs, x) @ x.flatten(-2).unsqueeze(-1)).squeeze(-1).unflatten(-1, (N, E))
        + constant(theirs, x),
        theirs(x, x, x)[0],
    )


def test_a_layer_that_drops_at_random_is_refused():
    mix = MultiheadMixer(E, H, 0.5)
    with pytest.raises(ValueError, match=r"call layer\.eval\(\)"):
        jacobian(mix, points().float())
    with pytest.raises(ValueError, match="is a Linear"):
        jacobian(nn.Linear(3, 3), points())
    with pytest.raises(ValueError, match=r"is a MixedProduct.*layer\.family\(x\)"):
        structure(layers.attention(E, H), points())


def test_large_matrices_are_refused_with_the_way_by_rows():
    mix, x = layer("flow"), points()
    with dense_limit(50):
        with pytest.raises(DenseLimitError, match=r"144 matrix entries"):
            structure(mix, x).to_dense()
        assert structure(mix, x[0]).rows(0).shape == (H, 1, N)
        with pytest.raises(DenseLimitError, match=r"\(2, 2, 6, 6\).*144.*rows\(i\)"), capture(mix):
            mix(x, x, x)


# ---- capture --------------------------------------------------------------------------------------


def snapshot(model):
    return {name: (vars(m).copy(), m.training) for name, m in model.named_modules()}


def same(model, before):
    for name, module in model.named_modules():
        attributes, training = before[name]
        assert vars(module).keys() == attributes.keys(), name
        assert module.training == training


MODELS = {
    "language": (lambda: LanguageModel(11, E, 2, H, mixer="softmax"), lambda: (torch.arange(10).view(2, 5),)),
    "language, flow": (lambda: LanguageModel(11, E, 2, H), lambda: (torch.arange(10).view(2, 5),)),
    "sequences": (
        lambda: SequenceClassifier(3, E, 2, num_heads=H, mixer="linear"),
        lambda: (torch.randn(2, 5, 3), torch.tensor([5, 3])),
    ),
    "images": (
        lambda: VisionClassifier(1, 3, hidden=(8, 8), depths=(1, 1), num_heads=H, patch=2),
        lambda: (torch.randn(2, 1, 8, 8),),
    ),
    "difformer": (lambda: DIFFormer(3, E, 2, num_heads=H), lambda: (torch.randn(2, 5, 3),)),
    "transformer": (
        lambda: nn.Transformer(E, H, 1, 1, 16, batch_first=True),
        lambda: (torch.randn(2, 5, E), torch.randn(2, 4, E)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_capture_sees_every_attention_and_changes_no_output(name, training):
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, given = make().train(training), inputs()
    torch.manual_seed(3)
    with torch.no_grad():
        want = model(*given)
    before = snapshot(model)
    torch.manual_seed(3)
    with torch.no_grad(), capture(model) as seen:
        got = model(*given)
    if training and name == "transformer":  # softmax of torch's and ours draw dropout differently
        assert got.shape == want.shape
    else:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    same(model, before)
    kinds = (MultiheadMixer, nn.MultiheadAttention, DIFFormerConv)
    assert list(seen) == [n for n, m in model.named_modules() if isinstance(m, kinds)]
    for structures in seen.values():
        assert len(structures) == 2
        for matrix, causal in structures:
            assert matrix.shape[0] == H
            assert causal == name.startswith("language")
            if "flow" not in name and name != "images":
                torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1]))
    if name == "sequences":
        assert [s.matrix.shape[-1] for s in next(iter(seen.values()))] == [5, 3]
    with capture(model) as again:
        pass
    assert all(not structures for structures in again.values())


def test_captured_matrices_are_those_of_the_layer():
    model = LanguageModel(11, E, 1, H, mixer="flow").eval()
    ids = torch.arange(5)[None]
    inputs = []
    model.blocks[0].norm1.register_forward_hook(lambda module, args, out: inputs.append(out))
    with torch.no_grad(), capture(model) as seen:
        model(ids)
    want = structure(model.blocks[0].self_attn, inputs[0], causal=True).to_dense()
    torch.testing.assert_close(seen["blocks.0.self_attn"][0].matrix, want[0])
    assert not want[0].triu(1).any()


@pytest.mark.parametrize("mask", ["none", "padding", "causal"])
def test_torchs_encoder_is_captured_in_evaluation_where_it_would_go_around(mask):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, batch_first=True), 2).eval()
    x = torch.randn(B, N, E)
    padding = torch.arange(N) >= torch.tensor([[N], [3]]) if mask == "padding" else None
    order = nn.Transformer.generate_square_subsequent_mask(N) if mask == "causal" else None
    with torch.no_grad():
        want = encoder(x, order, padding)
        with capture(encoder) as seen:
            got = encoder(x, order, padding)
    real = ~padding if padding is not None else torch.ones(B, N, dtype=torch.bool)
    torch.testing.assert_close(got[real], want[real], rtol=1e-5, atol=1e-6)
    first = encoder.layers[0].self_attn
    h = x  # post-norm: the first attention sees the input itself
    theirs = first(h, h, h, padding, True, order, average_attn_weights=False)[1]
    for b, (matrix, causal) in enumerate(seen["layers.0.self_attn"]):
        size = int(real[b].sum())
        assert matrix.shape == (H, size, size)
        torch.testing.assert_close(matrix, theirs[b, :, :size, :size])
        assert causal == (mask == "causal")
    assert encoder.use_nested_tensor


def test_nested_input_of_a_mixer_is_captured_set_by_set():
    mix = layer("linear")
    parts = [points(5, ()), points(3, (), seed=2)]
    nested = torch.nested.as_nested_tensor(parts, layout=torch.strided)
    with torch.no_grad(), capture(mix) as seen:
        mix(nested, nested, nested, need_weights=False)
    for (matrix, _), x in zip(seen[""], parts, strict=True):
        torch.testing.assert_close(matrix, structure(mix, x).to_dense())


def test_an_error_inside_leaves_no_trace():
    model = MODELS["transformer"][0]()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="on purpose"), capture(model):
        raise RuntimeError("on purpose")
    same(model, before)
    with (
        pytest.raises(ValueError, match=r"No attention found in Linear.*adapters\.hf"),
        capture(nn.Linear(2, 2)),
    ):
        pass


def test_hooks_of_the_user_still_run():
    attention, called = nn.MultiheadAttention(E, H), []
    attention.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(3, 2, E)
    with capture(attention) as seen:
        attention(x, x, x)
    assert called == [1]
    assert len(seen[""]) == 2


def test_padding_in_the_middle_has_no_offsets():
    mix, x = layer("softmax"), points()
    tokens = Tokens.of(x, mask=torch.tensor([1, 1, 0, 1, 1, 1]).bool().expand(B, N))
    with capture(mix), pytest.raises(ValueError, match="places 0 and 5, with absent ones among them"):
        mix.attend(x, x, x, targets=tokens, sources=tokens)


# ---- study ----------------------------------------------------------------------------------------


def test_study_is_the_anova_of_what_capture_keeps():
    torch.manual_seed(0)
    model = LanguageModel(11, E, 2, H, mixer="softmax", dropout=0.3)
    batches = [(torch.randint(11, (3, 7)),) for _ in range(3)]
    found = study(model, batches)
    assert model.training
    with torch.no_grad(), capture(model.eval()) as seen:
        for batch in batches:
            model(*batch)
    assert list(found) == ["blocks.0.self_attn", "blocks.1.self_attn"]
    for name, anova in found.items():
        assert anova.samples == 9
        mean = torch.stack([s.matrix for s in seen[name]]).double().mean(0)
        torch.testing.assert_close(anova.mean(7, 7), mean)
        assert float(anova.shares().outside.max()) == 0.0, "the order is known"
    with pytest.raises(ValueError, match="no attention of LanguageModel was called"):
        study(model, [])


def test_images_are_studied_in_two_dimensions():
    model = MODELS["images"][0]()
    found = study(model, [(torch.randn(3, 1, 8, 6),)], classes=stage_grids(model, 8, 6))
    assert found["stages.0.blocks.0.self_attn"].heads().offsets[0] == (-3, -2)
    assert found["stages.1.blocks.0.self_attn"].lengths == [(4, 4)]
    with pytest.raises(ValueError, match=r"its grid is 3 x 3; expected 9 of both \(no class token\)"):
        study(model, [(torch.randn(3, 1, 8, 8),)], classes=in_grids(lambda name: (3, 3)))


# ---- replacement ----------------------------------------------------------------------------------


def shifter(d):
    """A classifier of steps whose only head reads its neighbour, by position alone: A is near S_d for every input."""
    mix = MultiheadMixer(N, 1, bias=False, batch_first=True, mixer="softmax", dtype=F64)
    with torch.no_grad():
        mix.in_proj_weight.copy_(torch.cat([40 * torch.eye(N), torch.eye(N).roll(d, 0), torch.eye(N)]))
        mix.out_proj.weight.copy_(torch.eye(N))
    return mix


def test_a_replaced_head_carries_by_the_matrix_and_the_others_as_before():
    mix, x = layer("flow"), points()
    given = torch.rand(N, N, dtype=F64)
    tokens = masses()
    with replacing(mix, {"": {1: lambda n, m: given[:n, :m]}}):
        got = mix.attend(x, x, x, targets=tokens, sources=tokens)[0]
    a = structure(mix, x, targets=tokens, sources=tokens).to_dense().clone()
    a[:, 1] = given
    a[1, 1, N - 2 :] = 0
    a[1, 1, :, N - 2 :] = 0
    v = mix.project(x, x, x)[2]
    torch.testing.assert_close(got, mix.merge(a @ v))
    assert "carry" not in vars(mix)


def test_replacing_by_its_own_matrix_changes_nothing():
    for make, inputs in (MODELS["difformer"], MODELS["language, flow"], MODELS["transformer"]):
        torch.manual_seed(0)
        model, given = make().eval(), tuple(part[:1] for part in inputs())
        with torch.no_grad():
            want = model(*given)
            with capture(model) as seen:
                model(*given)
            own = {name: dict(enumerate(s[0].matrix)) for name, s in seen.items()}
            with replacing(model, own):
                torch.testing.assert_close(model(*given), want, rtol=1e-4, atol=1e-5)
            zero = {name: {0: torch.zeros_like(m[0])} for name, m in own.items()}
            with replacing(model, zero):
                assert (model(*given) - want).abs().max() > 1e-4


def test_a_head_that_is_a_shift_can_be_replaced_by_it():
    mix = shifter(1)  # queries of place i meet keys of place i - 1
    positions = torch.eye(N, dtype=F64)
    inputs = [(p := positions + 0.01 * points(N, ())[:, :N].abs(), p, p) for _ in range(3)]
    found = study(mix, inputs)
    assert found[""].heads().top_offset == [-1]
    target = mix(*inputs[0])[0].detach()

    @torch.no_grad()
    def score(model):
        return float((model(*inputs[0])[0] - target)[1:].square().mean())

    whole, results = replacement_test(mix, found, score)
    assert whole == 0
    assert [r.kind for r in results] == ["mean", "toeplitz", "shift"]
    by_kind = {r.kind: r.change for r in results}
    assert by_kind["shift"] < 1e-8
    assert by_kind["mean"] < 1e-8
    with replacing(mix, {"": {0: torch.eye(N)}}):
        assert score(mix) > 0.1, "another shift is another head"


def test_heads_are_replaced_alone_and_together():
    torch.manual_seed(0)
    model = LanguageModel(11, E, 2, H, mixer="softmax")
    batch = torch.randint(11, (3, 7))
    found = study(model, [(batch,)])
    seen = []

    def score(model):
        return float(model(batch).square().mean())

    whole, results = replacement_test(model, found, score, kinds=["mean"], told=seen.append)
    assert [r.heads for r in results] == [((f"blocks.{i}.self_attn", h),) for i in range(2) for h in range(H)]
    assert seen == results
    assert results[0].change == results[0].score - whole
    everything = [head for r in results for head in r.heads]
    _, [together] = replacement_test(model, found, score, kinds=["toeplitz"], groups=[everything])
    assert len(together.heads) == 4
    assert model.training


def test_packed_sets_are_replaced_one_by_one():
    mix, parts = layer("linear"), [points(5, ()), points(3, (), seed=2)]
    order = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])  # the sets' tokens stand mixed
    x = torch.empty(8, E, dtype=F64)
    for i, part in enumerate(parts):
        x[order == i] = part
    tokens, given = Tokens.of(8, batch=order), torch.rand(5, 5, dtype=F64)
    matrices = {"": {0: lambda n, m: given[:n, :m]}}
    with replacing(mix, matrices):
        got = mix.attend(x, x, x, targets=tokens, sources=tokens)[0]
    for i, part in enumerate(parts):
        with replacing(mix, matrices):
            torch.testing.assert_close(got[order == i], mix.attend(part, part, part)[0])


def test_mistakes_in_replacement_are_named():
    model = LanguageModel(11, E, 1, H, mixer="softmax").eval()
    found = study(model, [(torch.randint(11, (3, 7)),)])
    name = "blocks.0.self_attn"
    longer = torch.randint(11, (1, 9))
    with pytest.raises(ValueError, match="9 x 9 is asked for, but means are known for 7 x 7"):
        replacement_test(model, found, lambda m: float(m(longer).mean()))
    with (
        pytest.raises(ValueError, match=r"is \(7, 7\), but an input has 9 targets"),
        replacing(model, {name: {0: torch.eye(7)}}),
    ):
        model(longer)
    with (
        pytest.raises(ValueError, match=r"head 2 of blocks\.0\.self_attn, which has 2"),
        replacing(model, {name: {2: torch.eye(9)}}),
    ):
        model(longer)
    with (
        pytest.raises(ValueError, match=r"'blocks.5' is no attention .* 'blocks.0.self_attn'"),
        replacing(model, {"blocks.5": {}}),
    ):
        pass
    with pytest.raises(ValueError, match="kind is 'men'"):
        replacement_test(model, found, lambda m: 0.0, kinds=["men"])
