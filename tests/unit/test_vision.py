"""The image model: any resolution, maps that are the matrix's columns, and the released weights under their names."""

import pytest
import torch
import torch.nn.functional as F

from osmose.models import VisionClassifier
from osmose.models.config import SEQUENCE_MODELS
from osmose.models.vision import RELEASED

MIXERS = list(SEQUENCE_MODELS.values())


def model(mixer="flow", **settings):
    torch.manual_seed(0)
    made = VisionClassifier(
        2, 5, **({"hidden": (8, 16), "depths": (1, 2), "num_heads": 2, "mixer": mixer} | settings)
    )
    return made.double().eval()


def images(*size, batch=3, seed=1):
    return torch.randn(batch, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (3, 1), (1, 1)])
def test_any_size_and_every_gradient(mixer, size):
    net = model(mixer, layer_scale=0.1)
    out = net(images(*size))
    assert out.shape == (3, 5)
    out.square().sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    if size == (7, 13):
        assert all((g != 0).any() for name, g in grads.items() if not name.endswith("in_proj_bias"))


@pytest.mark.parametrize("positions", [None, (4, 4)])
def test_what_lacks_at_the_border_is_zero(positions):
    """A size that no stage divides is the size above it with zeros, as long as the grids are the same."""
    net = model(positions=positions)
    x = images(7, 5)
    torch.testing.assert_close(net(x), net(F.pad(x, (0, 1, 0, 1))), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mixer", MIXERS)
def test_images_of_a_batch_do_not_see_each_other(mixer):
    net, x = model(mixer), images(8, 6)
    torch.testing.assert_close(net(x.flip(0)), net(x).flip(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2], atol=1e-12, rtol=0)


def test_places_are_told_apart_at_any_resolution():
    for positions in (None, (4, 4)):
        net = model(positions=positions)
        table = net._places(torch.zeros(1, 8, 9, 6, dtype=torch.float64)).flatten(1).T
        assert torch.pdist(table).min() > 1e-4
        assert table.shape == (54, 8)
    x = images(8, 8)
    turned = x.flip(-1)
    assert not torch.allclose(model()(x), model()(turned))


def test_a_learned_table_is_itself_on_its_own_grid_and_smooth_between():
    net = model(positions=(4, 4))
    assert net._places(torch.zeros(1, 8, 4, 4)) is net.positions
    with torch.no_grad():
        net.positions.copy_(torch.linspace(0, 1, 4).expand(8, 4, 4))
    row = net._places(torch.zeros(1, 8, 8, 8))[0, 3]
    assert (row.diff() > 0).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_received_is_the_column_mean_of_the_true_matrix(mixer):
    net, x = model(mixer), images(8, 6)
    maps = net.received(x, stage=1, block=1)
    assert maps.shape == (3, 2, 2, 2)
    torch.testing.assert_close(maps.mean((-1, -2)), torch.ones(3, 2, dtype=torch.float64))
    caught = {}
    block = net.stages[1][1]
    block.self_attn.register_forward_pre_hook(lambda _, args: caught.update(h=args[0]))
    hook = block.norm1.register_forward_hook(lambda _, args, out: caught.update(h=out))
    net(x)
    hook.remove()
    h = caught["h"]
    n, e = h.shape[1], h.shape[2] // 2
    q, k, _ = block.self_attn.project(h, h, h)
    unit = torch.eye(n, dtype=torch.float64).expand(3, 2, n, n)
    from osmose.mixers import mixer_of

    matrix = mixer_of(mixer, "test").function(q, k, unit, targets=None, sources=None, causal=False)
    assert e == q.shape[-1]
    columns = matrix.mean(-2)
    torch.testing.assert_close(
        maps.flatten(2), columns / columns.mean(-1, keepdim=True), atol=1e-10, rtol=1e-10
    )


def test_a_skipped_branch_keeps_the_mean():
    net = model(drop_path=0.5, depths=(1, 1)).train()
    last = net.stages[1][0]
    assert (net.stages[0][0].drop_path, last.drop_path) == (0.0, 0.5)
    torch.manual_seed(0)
    x = torch.ones(4000, 1, 1, dtype=torch.float64)
    out = last._branch(x, torch.nn.Identity(), lambda h: h)
    assert set(out.flatten().tolist()) == {1.0, 3.0}
    assert out.mean() == pytest.approx(2.0, abs=0.05)
    assert (last.eval()._branch(x, torch.nn.Identity(), lambda h: h) == 2).all()


def test_the_released_size_and_names():
    with torch.device("meta"):
        net = VisionClassifier(3, 1000, **RELEASED)
    assert sum(p.numel() for p in net.parameters()) == 43_311_304, "43.31 M in the paper"
    assert {name.split(".")[0] for name in net.state_dict()} == {
        "patches",
        "positions",
        "stages",
        "norm",
        "output",
    }


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: model(depths=(1,)), "as many of each as there are stages"),
        (lambda: model(hidden=(0, 16)), "expected positive numbers"),
        (lambda: model(drop_path=1.0), "drop_path is 1.0"),
        (lambda: model()(torch.zeros(2, 3, 8, 8)), r"have shape \(2, 3, 8, 8\); expected \(batch, 2"),
        (lambda: model()(torch.zeros(2, 8, 8)), "expected"),
        (lambda: model().received(images(8, 8), stage=2), "stage is 2; expected one of 2"),
        (
            lambda: model().received(images(8, 8), stage=0, block=1),
            "block is 1; expected one of 1 in stage 0",
        ),
        (lambda: VisionClassifier.from_official({"x": torch.zeros(1)}), "no pos_embed.*holds x"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
