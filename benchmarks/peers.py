"""What osmose is measured against: installed packages. Published formulas are in ``osmose.equalities.published``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Alias(torch.autograd.Function):
    """The same memory as a tensor that is no leaf, as a linear layer would give it, without a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Given(torch.nn.Module):
    """Stands in for a projection and returns a tensor made before."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.value = x

    def forward(self, x: Tensor) -> Tensor:
        return _Alias.apply(self.value).view(1, self.value.shape[0], -1)


def sgformer_core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The core of PyG's SGFormerAttention on given queries, keys and values: ``(n, H, d)`` to ``(n, d)``, mean of heads."""
    from torch_geometric.nn.attention import SGFormerAttention

    _, heads, d = q.shape
    layer = SGFormerAttention(heads, heads, d)
    layer.q, layer.k, layer.v = _Given(q), _Given(k), _Given(v)
    return layer(q.new_empty(1, q.shape[0], 0)).squeeze(0)
