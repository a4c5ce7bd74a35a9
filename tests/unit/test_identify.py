"""Identification by probes: what it finds in torch's modules, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from osmose.diagnostics import NotLinearError, identify
from osmose.nn import MultiheadMixer
from osmose.operators import DenseLimitError, dense_limit
from osmose.structure.layers import convolution_factors


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_a_convolution_is_found_by_its_answers() -> None:
    layer = nn.Conv1d(4, 6, 3, padding=1)
    found = identify(layer, 16)
    assert found.offsets == (-1, 0, 1)
    close(found.theta, layer.weight.detach().double().permute(2, 1, 0))
    close(found.bias, layer.bias.detach().double())
    assert (found.rank, found.ranks, found.coupling, found.groups) == (3, [4, 4, 4], "full", 1)
    assert found.shift_invariant
    assert found.axes[0].border == "zeros"
    assert layer.weight.dtype == torch.float32, "the module itself is left as it is"
    assert layer.training


CONVOLUTIONS = {
    "strided, dilated": (nn.Conv1d(3, 2, 3, stride=2, padding=2, dilation=2), (-2, 0, 2), 2, "zeros"),
    "patches": (nn.Conv1d(2, 3, 4, stride=4), (0, 1, 2, 3), 4, "zeros"),
    "padded far": (nn.Conv1d(2, 2, 3, padding=9), (-9, -8, -7), 1, "zeros"),
    "circular": (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (-1, 0, 1), 1, "circular"),
    "circular, dilated, strided": (
        nn.Conv1d(2, 3, 5, 2, 2, 2, padding_mode="circular"),
        (-2, 0, 2, 4, 6),
        2,
        "circular",
    ),
    "reflect": (nn.Conv1d(2, 3, 5, padding=2, padding_mode="reflect"), (-2, -1, 0, 1, 2), 1, "reflect"),
    "reflect, dilated": (
        nn.Conv1d(2, 3, 3, padding=3, dilation=3, padding_mode="reflect"),
        (-3, 0, 3),
        1,
        "reflect",
    ),
    "replicate": (nn.Conv1d(2, 3, 3, 3, 2, padding_mode="replicate"), (-2, -1, 0), 3, "replicate"),
    "grouped": (nn.Conv1d(4, 6, 3, groups=2), (0, 1, 2), 1, "zeros"),
    "depthwise": (nn.Conv1d(3, 3, 3, groups=3, bias=False), (0, 1, 2), 1, "zeros"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_stride_border_and_weights(name: str) -> None:
    layer, offsets, stride, border = CONVOLUTIONS[name]
    found = identify(layer, 18)
    assert found.offsets == offsets
    axis = found.axes[0]
    assert (axis.stride, axis.upsampling, axis.border) == (stride, False, border)
    assert found.shift_invariant
    close(found.theta, convolution_factors(layer.double()).full(), 1e-10)
    groups = {"grouped": ("grouped", 2), "depthwise": ("diagonal", 3)}
    assert (found.coupling, found.groups) == groups.get(name, ("full", 1))
    assert (found.bias is None) == (layer.bias is None)
    layer.float()


def test_transposed_convolution_reads_a_coarser_grid() -> None:
    layer = nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1)
    found = identify(layer, 9)
    assert found.offsets == (-2, -1, 0, 1)
    assert (found.axes[0].stride, found.axes[0].upsampling) == (2, True)
    close(found.theta, layer.weight.detach().double().permute(2, 0, 1).flip(0))
    assert found.rank == 4


@pytest.mark.parametrize(
    ("layer", "sizes", "offsets"),
    [
        (
            nn.Conv2d(2, 3, (3, 2), padding=(1, 0), stride=(2, 1)),
            (7, 6),
            [(i, j) for i in (-1, 0, 1) for j in (0, 1)],
        ),
        (
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
            (5, 6),
            [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)],
        ),
        (nn.Conv3d(1, 2, 2), 3, [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]),
    ],
    ids=str,
)
def test_grids(layer: nn.Module, sizes: int | tuple[int, ...], offsets: list) -> None:
    found = identify(layer, sizes)
    assert list(found.offsets) == offsets
    close(found.theta, convolution_factors(layer.double()).full(), 1e-10)
    assert found.rank == min(len(offsets), found.theta[0].numel())
    layer.float()


def test_other_linear_modules() -> None:
    linear = nn.Linear(5, 3)
    found = identify(linear, 8)
    assert (found.offsets, found.rank) == ((0,), 1)
    close(found.theta[0], linear.weight.detach().double().mT)
    pool = identify(nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False), 15, channels=2)
    assert (pool.offsets, pool.rank, pool.coupling, pool.axes[0].border) == (
        (-1, 0, 1),
        1,
        "scalar",
        "renormalise",
    )
    close(pool.theta, torch.eye(2, dtype=torch.float64).expand(3, 2, 2) / 3)
    norm = nn.BatchNorm1d(3)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0])
    found = identify(norm, 6)
    assert (found.offsets, found.coupling) == ((0,), "diagonal")
    close(found.bias, torch.full((3,), -1.0, dtype=torch.float64), 1e-4)
    assert identify(nn.Upsample(scale_factor=2), 5, channels=1).offsets == (-1, 0)
    assert identify(nn.Dropout(0.5), 5, channels=2).offsets == (0,), "in evaluation mode"
    two = identify(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Conv1d(3, 4, 2)), 12)
    assert (two.offsets, two.rank) == ((0, 1, 2, 3), 4)
    nothing = identify(lambda x: 0 * x, 4, channels=2)
    assert (nothing.offsets, nothing.rank, nothing.residual) == ((), 0, 0.0)
    mean = identify(MultiheadMixer(4, 2, mixer="mean"), 6)  # attention that does not look is linear
    assert (mean.rank, mean.axes[0].border, len(mean.offsets)) == (1, "circular", 6)


def test_a_linear_map_that_is_no_shift_is_told() -> None:
    weight = torch.randn(6, 6, dtype=torch.float64)
    found = identify(lambda x: weight @ x, 6, channels=2)
    assert not found.shift_invariant
    means = torch.stack([weight.diagonal(d).mean() for d in range(-5, 6)])
    shifts = sum(
        m * torch.diag(torch.ones(6 - abs(d), dtype=torch.float64), d)
        for m, d in zip(means, range(-5, 6), strict=True)
    )
    assert found.residual == pytest.approx(float((weight - shifts).norm() / weight.norm()))
    close(found.theta[:, 0, 0], means)
    assert (found.rank, found.coupling) == (1, "scalar")
    position = torch.randn(6, 2, dtype=torch.float64)
    placed = identify(lambda x: x + position, 6, channels=2)
    assert placed.shift_invariant
    close(placed.bias, position)


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.GELU(),
        nn.Hardtanh(-50, 50),
        nn.LayerNorm(3),
        nn.Softmax(-1),
        nn.MaxPool1d(2),
        nn.InstanceNorm1d(3),
        nn.MultiheadAttention(3, 1),
        MultiheadMixer(3, 1, mixer="flow"),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_is_not_linear_is_told_how_far_off_it_is(module: nn.Module) -> None:
    channels = 4 if isinstance(module, nn.TransformerEncoderLayer) else 3
    with pytest.raises(NotLinearError, match=r"is not linear: .* of \|f\| away") as error:
        identify(module, 8, channels)
    assert 0.05 < error.value.distance < 10


def test_the_distance_from_linear_measures_the_nonlinear_part() -> None:
    distances = []
    for share in (1e-3, 1e-6):
        with pytest.raises(NotLinearError) as error:
            identify(lambda x, share=share: x + share * x.abs(), 8, 2)
        distances.append(error.value.distance)
    assert distances[0] / distances[1] == pytest.approx(1e3, rel=0.01)
    assert identify(lambda x: x + 1e-6 * x.abs(), 8, 2, tolerance=1e-4).offsets == (0,)


@pytest.mark.parametrize(
    "module", [lambda x: x - x.mean(0), lambda x: x * torch.rand(())], ids=["batch", "chance"]
)
def test_what_is_no_function_of_one_input_is_told(module) -> None:
    with pytest.raises(NotLinearError, match="no function of one input"):
        identify(module, 8, 2)


def test_single_precision_is_enough_for_single_precision() -> None:
    layer = nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect")
    found = identify(layer, 16, dtype=torch.float32)
    assert (found.offsets, found.rank, found.axes[0].border) == ((-1, 0, 1), 3, "reflect")
    assert 1e-5 < found.tolerance < 1e-4
    inside = identify(
        lambda x: layer(x.float()), 16, 4, layout="channels_first"
    )  # float64 probes, float32 answers
    assert (inside.offsets, inside.rank) == ((-1, 0, 1), 3)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="AvgPool1d does not tell its channels"):
        identify(nn.AvgPool1d(2), 8)
    with pytest.raises(ValueError, match=r"does not take an input of shape \(4, 2, 3\).*Kernel size"):
        identify(nn.Conv1d(2, 2, 9), 3)
    with pytest.raises(ValueError, match="length is 0"):
        identify(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match=r"tolerance is -1; expected a share in \[0, 1\)"):
        identify(nn.Linear(2, 2), 4, tolerance=-1)
    with pytest.raises(ValueError, match="channels is 0"):
        identify(nn.Linear(2, 2), 4, 0)
    with pytest.raises(ValueError, match="expected a float tensor"):
        identify(lambda x: x.argmax(-1), 4, 2)
    with dense_limit(1000), pytest.raises(DenseLimitError, match="Probe a shorter length or fewer channels"):
        identify(nn.Linear(4, 4), 16)
