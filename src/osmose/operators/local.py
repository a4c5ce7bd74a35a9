"""Local windows: a low-rank kernel times a band, entry by entry, in linear time.

Shapes: ``n`` targets, ``m`` sources, ``r`` rank, ``c`` values; ``G`` chunks of ``L`` targets, whose windows hold
``W = L + high - low`` sources; ``lead`` leading dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Cost, Operator
from .toeplitz import dense_toeplitz

if TYPE_CHECKING:
    from .low_rank import LowRank
    from .toeplitz import Toeplitz

CHUNK = 64


class Local(Operator):
    """``(L R^T) * T`` for a band T of Toeplitz form: made by ``LowRank * Toeplitz``.

    A chunk of 64 targets meets the window of sources that the band lets them see. The blocks of weights are kept, so that
    a law's products cost no more scores: they are shared by the graph of all products, as the diagonals of a law are.

    Time ``n (64 + high - low) (r + c)``, memory ``n (64 + high - low)`` a head, forward and backward.
    """

    def __init__(self, kernel: LowRank, band: Toeplitz):
        self.kernel, self.band = kernel, band
        lead = torch.broadcast_shapes(kernel.shape[:-2], band.shape[:-2])
        self.shape = torch.Size((*lead, *kernel.shape[-2:]))
        dtype = torch.promote_types(kernel.dtype, band.dtype)
        self._like = torch.empty(0, dtype=dtype, device=kernel.device)
        slots = band.slots
        self.n, self.m = self.shape[-2:] if slots is None else (slots.count, slots.count)
        self.low, self.high = band.low, band.high
        self._kept: dict[bool, Tensor] = {}

    @property
    def is_causal(self) -> bool:
        return self.band.is_causal

    def _matmul(self, v: Tensor) -> Tensor:
        blocks, slots = self._blocks(), self.band.slots
        if blocks is None:
            return self._nothing(v, self.shape[-2])
        out = blocks.to(v.dtype) @ self._windows(v if slots is None else slots.put(v))
        out = out.flatten(-3, -2)[..., : self.n, :]
        return out if slots is None else slots.take(out)

    def _rmatmul(self, u: Tensor) -> Tensor:
        blocks, slots = self._blocks(), self.band.slots
        if blocks is None:
            return self._nothing(u, self.shape[-1])
        chunks = self._chunks(u if slots is None else slots.put(u, targets=True))
        out = self._fold(blocks.to(u.dtype).mT @ chunks)
        return out if slots is None else slots.take(out, targets=False)

    def _nothing(self, v: Tensor, size: int) -> Tensor:
        lead = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
        return v[..., :0, :].sum().expand(*lead, size, v.shape[-1])

    def _blocks(self) -> Tensor | None:
        """The weights of all chunks, ``(*lead, G, L, W)``; None where there are none."""
        if not self.n or not self.m:
            return None
        grad = torch.is_grad_enabled()
        if grad not in self._kept:
            left, right = self.kernel.left.to(self._wide), self.kernel.right.to(self._wide)
            if self.band.slots is not None:
                left, right = self.band.slots.put(left, targets=True), self.band.slots.put(right)
            size = min(CHUNK, self.n)
            pattern = dense_toeplitz(self.band.line().to(self._wide), 0, size, size + self.high - self.low)
            scores = self._chunks(left) @ self._windows(right).mT
            self._kept[grad] = scores * pattern.unsqueeze(-3)
        return self._kept[grad]

    def _chunks(self, x: Tensor) -> Tensor:
        """Rows of targets ``(..., n, c)`` to ``(..., G, L, c)``."""
        size = min(CHUNK, self.n)
        return F.pad(x, (0, 0, 0, -self.n % size)).unflatten(-2, (-1, size))

    def _windows(self, x: Tensor) -> Tensor:
        """Rows of sources ``(..., m, c)`` to the windows of the chunks, ``(..., G, W, c)``; 0 beyond the borders."""
        size = min(CHUNK, self.n)
        count, width = -(-self.n // size), size + self.high - self.low
        parts = -(-width // size)
        length = (count + parts - 1) * size
        x = F.pad(x, (0, 0, -self.low, 0))  # a negative padding cuts
        x = F.pad(x[..., :length, :], (0, 0, 0, max(0, length - x.shape[-2]))).unflatten(-2, (-1, size))
        return torch.cat([x[..., s : s + count, :, :] for s in range(parts)], -2)[..., :width, :]

    def _fold(self, x: Tensor) -> Tensor:
        """The transpose of :meth:`_windows`: what windows hold ``(..., G, W, c)``, summed at the sources."""
        size = min(CHUNK, self.n)
        count, width = x.shape[-3:-1]
        parts = -(-width // size)
        x = F.pad(x, (0, 0, 0, parts * size - width))
        total = x.new_zeros(*x.shape[:-3], count + parts - 1, size, x.shape[-1])
        for s in range(parts):
            part = x[..., s * size : (s + 1) * size, :]
            total = total + F.pad(part, (0, 0, 0, 0, s, parts - 1 - s))
        out = F.pad(total.flatten(-3, -2), (0, 0, self.low, 0))
        return F.pad(out, (0, 0, 0, self.m - out.shape[-2]))

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self.kernel._entries(i, j) * self.band._entries(i, j)

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.kernel._block(i, j) * self.band._block(i, j)

    def cost(self) -> Cost:
        size = min(CHUNK, self.n)
        width = size + max(self.high - self.low, 0)
        lead = self.shape[:-2].numel()
        return Cost(lead * self.n * width * (self.kernel.left.shape[-1] + 1), lead * self.n * width)

    def _entry_time(self) -> int:
        return self.kernel._entry_time() + 1

    def _name(self) -> str:
        return f"Local[{self.kernel._name()}, {self.band.low}..{self.band.high}]"
