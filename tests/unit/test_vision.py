"""The vision classifier: any size of image, nothing from beyond an image, weights of sources, the released network."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osmose.data import load
from osmose.mixers import MIXERS
from osmose.models import VisionClassifier
from osmose.models.vision import LearnedPositions, VisionBlock

SIZES = [(7, 9), (4, 4), (1, 2), (10, 12)]
POSITIONS = {"conv": {}, "learned": {"positions": "learned", "grid": (4, 3)}}


def model(mixer="flow", **settings) -> VisionClassifier:
    torch.manual_seed(0)
    sizes = {"hidden": (8, 16), "depths": (2, 1), "num_heads": (2, 4), "patch": 2}
    made = VisionClassifier(2, 5, mixer=mixer, **(sizes | settings)).double().eval()
    for p in made.parameters():  # larger than at the start, so that attention matters
        nn.init.normal_(p, std=0.4)
    return made


def images(*shape: int, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images of SIZES in the corner of 10 x 12, and garbage beside them."""
    x, sizes = images(4, 2, 10, 12), torch.tensor(SIZES)
    for i, (h, w) in enumerate(SIZES):
        x[i, :, h:], x[i, :, :, w:] = torch.nan, torch.inf
    return x, sizes


# ---- any size


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_an_image_alone_equals_the_same_image_in_any_batch(mixer, positions):
    net, (x, sizes) = model(mixer, **POSITIONS[positions]), batch()
    alone = torch.cat([net(x[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(SIZES)])
    torch.testing.assert_close(net(x, sizes), alone, atol=1e-10, rtol=1e-10)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x[order], sizes[order]), alone[order], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 4), (2, 31)])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_size_that_no_patch_divides_is_filled_with_zeros(size, positions):
    net, x = model(depths=(1, 1), **POSITIONS[positions]), images(2, 2, *size)
    h, w = (-(-side // 2) * 2 for side in size)
    filled = F.pad(x, (0, w - size[1], 0, h - size[0]))
    torch.testing.assert_close(net(x), net(filled))
    assert net.source_weights(x, 0).shape[-2:] == (h // 2, w // 2)
    assert net.source_weights(x, 1).shape[-2:] == (-(-h // 4), -(-w // 4))


def test_positions_tell_places_apart():
    """With the same content everywhere: without positions, all tokens would stay alike."""
    x = torch.ones(1, 2, 12, 12, dtype=torch.float64)
    for settings in POSITIONS.values():
        grid, _ = model(patch=1, depths=(0, 0), **settings).stages[0](x, None)
        middle, corner = grid[0, :, 6, 6], grid[0, :, 0, 0]
        assert (middle - corner).abs().max() > 0.1


def test_learned_positions_are_interpolated():
    table = LearnedPositions(3, (4, 4))
    with torch.no_grad():
        table.weight.copy_(torch.linspace(0, 1, 4).expand(1, 3, 4, 4))
    at = table(torch.zeros(1, 3, 8, 8), None)
    assert torch.equal(table(torch.zeros(1, 3, 4, 4), None), table.weight)
    assert bool((at.diff(dim=-1) > -0.05).all())
    torch.testing.assert_close(at.mean(), torch.tensor(0.5))
    torch.testing.assert_close(at[..., 0, :], at[..., 5, :])


def test_gradients_are_finite_and_none_comes_from_beyond_an_image():
    for mixer in MIXERS:
        net, (x, sizes) = model(mixer, layer_scale=0.5, dropout=0.1, drop_path=0.1).train(), batch()
        x.requires_grad_()
        net(x, sizes).square().sum().backward()
        assert x.grad is not None
        for i, (h, w) in enumerate(SIZES):
            assert bool(x.grad[i, :, :h, :w].abs().sum() > 0)
            assert not x.grad[i, :, h:].any()
            assert not x.grad[i, :, :, w:].any()
        for name, p in net.named_parameters():
            assert p.grad is not None, name
            assert bool(torch.isfinite(p.grad).all()), name


# ---- blocks


def test_an_image_skips_a_branch_or_takes_it_whole():
    block = VisionBlock(4, 2, mixer="mean", drop_path=0.25, dropout=0.0)
    torch.manual_seed(0)
    x = torch.zeros(4000, 3, 4)
    taken = block._branch(x, nn.Identity(), torch.ones_like)
    per_image = taken[:, 0, 0]
    assert torch.equal(taken, per_image.view(-1, 1, 1).expand_as(taken))
    assert per_image.unique().tolist() == pytest.approx([0, 4 / 3])
    assert per_image.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(block.eval()._branch(x, nn.Identity(), torch.ones_like), torch.ones_like(x))
    rates = [b.drop_path for s in model(depths=(3, 2), drop_path=0.4).stages for b in s.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_the_scale_is_on_the_feed_forward_branch_only():
    block, x = VisionBlock(4, 2, layer_scale=0.5, dropout=0.0).eval(), torch.randn(2, 3, 4)
    mixed = x + block.self_attn.attend(*[block.norm1(x)] * 3)[0]
    fed = block.linear2(F.gelu(block.linear1(block.norm2(mixed))))
    torch.testing.assert_close(block(x), mixed + 0.5 * fed)


# ---- weights of sources


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("stage", "block"), [(0, 1), (-1, 0)])
def test_source_weights_are_those_of_the_dense_matrix(mixer, stage, block):
    """Of the matrix that `attend` shows, or for flow from the definition: w = n softmax(c), c = sum_i C_ij / I_i."""
    net, (x, sizes) = model(mixer), batch()
    chosen = net.stages[stage].blocks[block]
    seen = []
    handle = chosen.register_forward_pre_hook(lambda _, given: seen.append(given))
    net(x, sizes)
    handle.remove()
    points, tokens = seen[0]
    h = chosen.norm1(points)
    exists = tokens.mass.unsqueeze(-2)
    n = exists.sum(-1, keepdim=True)
    if mixer == "flow":
        q, k, _ = chosen.self_attn.project(h, h, h)
        pairs = (q.sigmoid() @ k.sigmoid().mT) * exists.unsqueeze(-1) * exists.unsqueeze(-2)
        c = (pairs / pairs.sum(-1, keepdim=True).clamp_min(1e-30)).sum(-2)
        expected = n * c.where(exists > 0, -torch.inf).softmax(-1)
    else:
        matrix = chosen.self_attn.attend(h, h, h, targets=tokens, sources=tokens, need_weights=True)[1]
        expected = (matrix * exists.unsqueeze(-1)).sum(-2) / n
    found = net.source_weights(x, stage, block, sizes)
    assert not found.requires_grad
    torch.testing.assert_close(found.flatten(2), expected, atol=1e-10, rtol=1e-10)
    beyond = exists.expand_as(expected) == 0
    assert beyond.any()
    assert not found.flatten(2)[beyond].any()
    alone = net.source_weights(x[1:2, :, :4, :4], stage, block)
    torch.testing.assert_close(found[1:2, :, : alone.shape[-2], : alone.shape[-1]], alone)


def test_source_weights_are_those_of_evaluation_and_leave_the_mode():
    net, (x, sizes) = model("softmax", dropout=0.5, drop_path=0.5), batch()
    expected = net.source_weights(x, sizes=sizes)
    net.train()
    assert torch.equal(net.source_weights(x, sizes=sizes), expected)
    assert net.training
    torch.testing.assert_close(expected.sum((-2, -1)), torch.ones(4, 4, dtype=torch.float64))
    flow = model().source_weights(images(4, 2, 10, 12))
    torch.testing.assert_close(flow.mean((-2, -1)), torch.ones(4, 4, dtype=torch.float64))
    with pytest.raises(IndexError):
        net.source_weights(x, stage=2)
    with pytest.raises(IndexError):
        net.source_weights(x, block=1)


# ---- names and the released network

BLOCK = [
    *(f"{name}.{kind}" for name in ("linear1", "linear2", "norm1", "norm2") for kind in ("weight", "bias")),
    *("self_attn.in_proj_weight", "self_attn.in_proj_bias"),
    *("self_attn.out_proj.weight", "self_attn.out_proj.bias"),
]


def test_names_of_the_parameters():
    def names(**settings) -> set[str]:
        return set(VisionClassifier(1, 2, hidden=(4, 8), depths=(1, 1), num_heads=2, **settings).state_dict())

    ends = {f"{name}.{kind}" for name in ("norm", "output") for kind in ("weight", "bias")}
    stages = {f"stages.{i}.embed.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    blocks = {f"stages.{i}.blocks.0.{name}" for i in (0, 1) for name in BLOCK}
    conv = {f"stages.{i}.positions.conv.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert names() == ends | stages | blocks | conv
    scales = {f"stages.{i}.blocks.0.scale" for i in (0, 1)}
    learned = {"stages.0.positions.weight"}
    assert names(layer_scale=1.0, **POSITIONS["learned"]) == ends | stages | blocks | scales | learned


def test_the_released_size():
    with torch.device("meta"):
        net = VisionClassifier.imagenet()
        assert sum(p.numel() for p in net.parameters()) == 43_311_304
        assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
        block = VisionClassifier.imagenet(10, mixer="softmax", drop_path=0.0).stages[3].blocks[2]
    assert net.stages[0].blocks[0].self_attn.options == {"preset": "vision"}
    assert [len(stage.blocks) for stage in net.stages] == [3, 3, 10, 3]
    assert (block.self_attn.mixer, block.self_attn.num_heads, block.drop_path) == ("softmax", 12, 0.0)


def released(hidden=(12, 24, 48, 60), depths=(1, 2, 1, 1), grid=8, classes=7) -> dict[str, torch.Tensor]:
    """Random weights under the names of the released code."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, grid * grid, hidden[0])}
    for i, (e, depth) in enumerate(zip(hidden, depths, strict=True)):
        before, side = (hidden[i - 1], 2) if i else (3, 4)
        shapes |= {
            f"patch_embed.{i}.proj.weight": (e, before, side, side),
            f"patch_embed.{i}.proj.bias": (e,),
        }
        for j in range(depth):
            parts = {
                "attn.qkv": (3 * e, e),
                "attn.proj": (e, e),
                "mlp.fc1": (4 * e, e),
                "mlp.fc2": (e, 4 * e),
            }
            for name, shape in (parts | {"norm1": (e,), "norm2": (e,)}).items():
                shapes |= {f"blocks.{i}.{j}.{name}.weight": shape, f"blocks.{i}.{j}.{name}.bias": shape[:1]}
            shapes[f"blocks.{i}.{j}.gamma"] = (e,)
    e = hidden[-1]
    shapes |= {"norm.weight": (e,), "norm.bias": (e,), "head.weight": (classes, e), "head.bias": (classes,)}
    g = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=g, dtype=torch.float64) / math.sqrt(math.prod(shape[1:]) or 1)
        for name, shape in shapes.items()
    }


def by_the_formulas(
    w: dict[str, torch.Tensor], x: torch.Tensor, depths=(1, 2, 1, 1), heads=12
) -> torch.Tensor:
    """Logits of the released network from its weights, pair by pair."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    for i, depth in enumerate(depths):
        if i:
            side = math.isqrt(x.shape[1])
            x = x.mT.unflatten(-1, (side, side))
        weight = w[f"patch_embed.{i}.proj.weight"]
        x = F.conv2d(x, weight, w[f"patch_embed.{i}.proj.bias"], stride=weight.shape[-1]).flatten(2).mT
        x = x + w["pos_embed"] if i == 0 else x
        for j in range(depth):
            at = f"blocks.{i}.{j}"
            q, k, v = (
                part.unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in linear(f"{at}.attn.qkv", norm(f"{at}.norm1", x)).chunk(3, -1)
            )
            pairs = q.sigmoid() @ k.sigmoid().mT
            incoming, outgoing = pairs.sum(-1, keepdim=True), pairs.sum(-2, keepdim=True)
            open_ = (pairs / outgoing).sum(-1, keepdim=True).sigmoid()
            c = (pairs / incoming).sum(-2, keepdim=True).clamp(-1, 1)
            mixed = open_ * (pairs / incoming * (x.shape[1] * c.softmax(-1))) @ v
            x = x + linear(f"{at}.attn.proj", mixed.transpose(1, 2).flatten(2))
            fed = linear(f"{at}.mlp.fc2", F.gelu(linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", x))))
            x = x + w[f"{at}.gamma"] * fed
    return linear("head", norm("norm", x).mean(1))


def test_released_weights_give_what_the_formulas_give():
    state, x = released(), images(2, 3, 32, 32)
    net = VisionClassifier.from_official(state).eval()
    torch.testing.assert_close(net(x), by_the_formulas(state, x), atol=1e-5, rtol=1e-5)  # eps of the preset
    sharper = VisionClassifier.from_official(state, preset="osmose").eval()
    assert not torch.allclose(net(x), sharper(x), atol=1e-3), "the clamp matters"
    assert net(images(1, 3, 40, 20)).shape == (1, 7)


def test_weights_of_another_network_are_refused():
    with pytest.raises(
        ValueError, match=r"has no patch_embed.0.proj.weight, .*it holds model.*entry 'model'"
    ):
        VisionClassifier.from_official({"model": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"pos_embed has 64 tokens and the grid is \(8, 7\)"):
        VisionClassifier.from_official(released(), grid=(8, 7))
    with pytest.raises(ValueError, match=r'from_official: Error[^"]*Unexpected key[^"]*"extra"'):
        VisionClassifier.from_official(released() | {"extra": torch.zeros(1)})


# ---- refused, and learning


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model(hidden=(8,)), r"hidden is \(8,\), depths \(2, 1\)"),
        (lambda: model(hidden=(), depths=(), num_heads=()), r"one of each for every stage"),
        (lambda: model(patch=0), r"patch is 0"),
        (lambda: model(drop_path=1.0), r"drop_path is 1.0"),
        (lambda: model(positions="learned"), r"positions is 'learned' and grid None"),
        (lambda: model(grid=(2, 2)), r"positions is 'conv' and grid \(2, 2\)"),
        (lambda: model(positions="rotary"), r"positions is 'rotary'"),
        (lambda: model("flwo"), r"Did you mean 'flow'"),
        (lambda: model(num_heads=3), r"num_heads 3"),
        (lambda: model()(images(2, 3, 8, 8)), r"shape \(2, 3, 8, 8\); expected \(batch, 2, height, width\)"),
        (lambda: model()(images(2, 8, 8)), r"shape \(2, 8, 8\)"),
        (lambda: model()(images(2, 2, 0, 8)), r"shape \(2, 2, 0, 8\)"),
        (lambda: model()(images(1, 2, 8, 8).byte()), r"are torch.uint8; expected floats"),
        (lambda: model()(images(2, 2, 8, 8), torch.tensor([[8, 8]])), r"sizes are \(1, 2\)"),
        (
            lambda: model()(images(1, 2, 8, 6), torch.tensor([[6, 8]])),
            r"from 6 to 6 x 8; expected 1 to 8 x 6",
        ),
        (lambda: model()(images(1, 2, 8, 6), torch.tensor([[0, 6]])), r"from 0 to"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_it_learns_digits():
    data = load("digits-images", splits=1)
    (split,) = data.splits
    torch.manual_seed(0)
    net = VisionClassifier(1, 10, hidden=(32, 64), depths=(1, 1), num_heads=4, patch=2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.05)
    for _ in range(4):
        for index in split.train[torch.randperm(len(split.train))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(*data.batch(index)), data.y[index]).backward()
            optimizer.step()
    with torch.no_grad():
        right = net.eval()(*data.batch(split.test)).argmax(-1) == data.y[split.test]
    assert right.float().mean() > 0.85
