"""Operators that are given as they are: a dense matrix and the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Cost, Operator


class Dense(Operator):
    """A matrix ``(..., n, m)`` held as a tensor. Time and memory n m."""

    def __init__(self, matrix: Tensor):
        if matrix.ndim < 2 or not matrix.is_floating_point():
            raise ValueError(
                f"Dense: matrix has shape {tuple(matrix.shape)} and dtype {matrix.dtype}; expected float (..., n, m)."
            )
        self.matrix = self._like = matrix
        self.shape = matrix.shape

    def _matmul(self, v: Tensor) -> Tensor:
        return self.matrix @ v.to(self.dtype)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self.matrix.mT @ u.to(self.dtype)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self.matrix[..., i, j]

    def cost(self) -> Cost:
        return Cost(self.shape.numel(), self.shape.numel(), (self._name(),))


class Identity(Operator):
    """The identity on ``n`` tokens. Free."""

    def __init__(self, n: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None):
        self.shape = torch.Size((n, n))
        self._like = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=device)

    def _matmul(self, v: Tensor) -> Tensor:
        return v

    def _rmatmul(self, u: Tensor) -> Tensor:
        return u

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return (i == j).to(self.dtype)

    def cost(self) -> Cost:
        return Cost(0, 0)
