"""Torch's layers as mixed products: the factors read from a module give its output."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from osmose.operators import Identity
from osmose.structure import Grouped, KroneckerSum, ShiftAxis, mixed_product
from osmose.structure.layers import attention_factors, convolution_factors, linear_factors


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, padding=1),
    nn.Conv1d(4, 6, 4, stride=2, padding=3, dilation=2),
    nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"),
    nn.Conv1d(4, 6, 3, stride=3, padding=2, padding_mode="reflect"),
    nn.Conv1d(4, 6, 3, padding=2, padding_mode="replicate"),
    nn.Conv1d(4, 6, 3, groups=2),
    nn.Conv1d(4, 4, 3, padding=1, groups=4),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_convolution_is_a_sum_over_shifts(layer: nn.Conv1d) -> None:
    layer = layer.double()
    x = torch.randn(2, 4, 13, dtype=torch.float64)
    y = layer(x)
    (k,), (s,), (p,), (r,) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    axis = ShiftAxis(tuple(i * r - p for i in range(k)), s, border=layer.padding_mode)  # type: ignore[arg-type]
    factors = convolution_factors(layer)
    assert isinstance(factors, Grouped) == (layer.groups > 1)
    out = KroneckerSum(axis.members(y.shape[-1], 13, x), factors.full()).apply(x.mT)
    close(out.mT + layer.bias[:, None], y)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_scatters(groups: int) -> None:
    layer = nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, groups=groups, dtype=torch.float64)
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    y = layer(x)
    axis = ShiftAxis(tuple(1 - i for i in range(3)), 2, upsampling=True)
    out = KroneckerSum(axis.members(y.shape[-1], 7, x), convolution_factors(layer).full()).apply(x.mT)
    close(out.mT + layer.bias[:, None], y)


def test_convolution_of_images_is_a_sum_over_products_of_shifts() -> None:
    layer = nn.Conv2d(2, 3, (3, 2), padding=(1, 0), stride=(2, 1), dtype=torch.float64)
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    y = layer(x)
    rows = ShiftAxis((-1, 0, 1), 2).members(y.shape[2], 6, x)
    columns = ShiftAxis((0, 1)).members(y.shape[3], 5, x)
    members = torch.stack([torch.kron(a, b) for a in rows for b in columns])
    out = KroneckerSum(members, convolution_factors(layer).full()).apply(x.flatten(2).mT)
    close(out.mT.unflatten(-1, y.shape[2:]) + layer.bias[:, None, None], y)


def test_linear_has_the_structure_of_the_identity() -> None:
    layer = nn.Linear(4, 6, dtype=torch.float64)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    op = KroneckerSum([Identity(5, dtype=torch.float64)], linear_factors(layer).full())
    close(op.apply(x) + layer.bias, layer(x))


@pytest.mark.parametrize("joint", [True, False])
def test_attention_is_a_sum_over_heads(joint: bool) -> None:
    """``y = sum_k softmax(y' Lambda_k^T x'^T / sqrt D) x Theta_k``, with keys and values of other widths too."""
    E, H, kdim, vdim = 6, 3, (None, 5)[not joint], (None, 4)[not joint]
    layer = nn.MultiheadAttention(
        E, H, bias=False, kdim=kdim, vdim=vdim, batch_first=True, dtype=torch.float64
    )
    query = torch.randn(1, 4, E, dtype=torch.float64)
    key = torch.randn(1, 7, kdim or E, dtype=torch.float64)
    value = torch.randn(1, 7, vdim or E, dtype=torch.float64)
    theta, scores = attention_factors(layer)
    lambda_ = scores.full()
    assert lambda_.shape == (H, kdim or E, E)
    a = ((query @ lambda_.mT @ key.mT) / math.sqrt(E // H)).softmax(-1)  # (H, n, m)
    y, weights = layer(query, key, value, average_attn_weights=False)
    close(a, weights[0])
    close(torch.einsum("nmpq,mp->nq", mixed_product(a, theta.full()), value[0]), y[0])
