"""Operators that are given as they are: a dense matrix and the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Cost, Operator


class Dense(Operator):
    """A matrix ``(..., n, m)`` held as a tensor. Time and memory n m."""

    _hadamard_order = 3

    def __init__(self, matrix: Tensor):
        if matrix.ndim < 2 or not matrix.is_floating_point():
            raise ValueError(
                f"Dense: matrix has shape {tuple(matrix.shape)} and dtype {matrix.dtype}; expected float (..., n, m)."
            )
        self.matrix = self._like = matrix
        self.shape = matrix.shape

    def _matmul(self, v: Tensor) -> Tensor:
        return self.matrix.to(v.dtype) @ v

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self.matrix.mT.to(u.dtype) @ u

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self.matrix[..., i, j]

    def _hadamard(self, other: Operator) -> Operator:
        return Dense(self.matrix * other.to_dense())

    def cost(self) -> Cost:
        return Cost(self.shape.numel(), self.shape.numel(), (self._name(),))


class Identity(Operator):
    """The identity on ``n`` tokens. Free."""

    _hadamard_order = 2

    def __init__(self, n: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None):
        self.shape = torch.Size((n, n))
        self._like = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=device)

    @property
    def mT(self) -> Operator:  # noqa: N802
        return self

    @property
    def _sees_no_later(self) -> bool:
        return True

    def _matmul(self, v: Tensor) -> Tensor:
        return v

    def _rmatmul(self, u: Tensor) -> Tensor:
        return u

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return (i == j).to(self.dtype)

    def _hadamard(self, other: Operator) -> Operator:
        node = torch.arange(self.shape[-1], device=self.device)
        return self.scale(left=other.entries(node, node))

    def cost(self) -> Cost:
        return Cost(0, 0)
