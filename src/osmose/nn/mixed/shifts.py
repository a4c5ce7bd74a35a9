"""Structures known beforehand on a line or a grid: the identity, taps of a convolution, averages, single shifts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...operators import Identity, Shift
from ...operators.shift import Border
from ...structure.families import Blends, Family, Given
from ...structure.shifts import Convolution, Kernel
from ...tokens import Tokens
from .product import Structure


class Own(Structure):
    """Every target takes from itself: ``{I}``, a linear layer."""

    count = 1
    across = False

    def forward(self, x: Tensor) -> Family:
        return Given([Identity(x.shape[-2], dtype=x.dtype, device=x.device)])


class Taps(Structure):
    """The shifts of a convolution's kernel, on a line or a grid of up to three axes.

    Args:
        kernel: taps, stride, dilation, padding, border; see :class:`~osmose.structure.shifts.Kernel`.
    """

    def __init__(self, kernel: Kernel):
        super().__init__()
        self.kernel, self.axes = kernel, len(kernel.taps)
        self.count = len(kernel.offsets())

    def forward(self, x: Tensor) -> Family:
        return Convolution(self.kernel, x.shape[-1 - self.axes : -1], x.dtype, x.device)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return self.kernel.targets(size)

    def extra_repr(self) -> str:
        return str(self.kernel)


class Average(Structure):
    """One operator: the mean of what a window of taps reads.

    Args:
        kernel: the window.
        count_padding: divide by the number of taps everywhere; without it by the number of places that are there, which
            is the law ``row``.
    """

    count = 1

    def __init__(self, kernel: Kernel, count_padding: bool = True):
        super().__init__()
        self.kernel, self.axes, self.count_padding = kernel, len(kernel.taps), count_padding

    def forward(self, x: Tensor) -> Family:
        taps = Convolution(self.kernel, x.shape[-1 - self.axes : -1], x.dtype, x.device)
        return _Average(taps, self.count_padding)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return self.kernel.targets(size)


class _Average(Blends):
    """The mean over a convolution's taps; values go through one depthwise convolution."""

    def __init__(self, taps: Convolution, count_padding: bool):
        made = {"dtype": taps.made["dtype"], "device": taps.made["device"]}
        super().__init__(taps, torch.full((1, len(taps)), 1 / len(taps), **made))
        self.taps, self.count_padding = taps, count_padding

    def __getitem__(self, k: int):
        op = super().__getitem__(k)
        return op if self.count_padding else op.scale(left=self._there(op.row_sum()))

    def spread(self, x: Tensor) -> Tensor:
        theta = self.coefficients[0][:, None, None].expand(-1, 1, x.shape[-1])
        out = self.taps.mixed(x, theta, groups=x.shape[-1])
        if not self.count_padding:
            ones = x.new_ones(self.taps.shape[1], 1)
            out = out * self._there(self.taps.mixed(ones, self.coefficients[0][:, None, None])[:, 0])[:, None]
        return out.unsqueeze(-3)

    @staticmethod
    def _there(share: Tensor) -> Tensor:
        return torch.where(share > 0, 1 / torch.where(share > 0, share, 1.0), 0.0)


class Shifts(Structure):
    """Single shifts of tokens: any offsets, source minus target, on a line or a grid.

    Args:
        offsets: ints for a line, tuples for a grid.
        border: what is read outside the grid, as in torch's convolutions.

    On a line ``forward`` takes packed ``sources``: shifts then stay inside their set.

    Raises:
        ValueError: no offset, repeated offsets, or, in the call, one that lies outside the length.
    """

    def __init__(self, offsets: Sequence[int | Sequence[int]], border: Border = "zeros"):
        super().__init__()
        self.offsets = tuple((d,) if isinstance(d, int) else tuple(d) for d in offsets)
        self.border, self.count = border, len(self.offsets)
        if not self.offsets or len(set(self.offsets)) < self.count:
            raise ValueError(
                f"Shifts: offsets are {list(offsets)}; expected at least one, each of them once (equal shifts are not an "
                "independent basis)."
            )
        self.axes = len(self.offsets[0])

    def forward(self, x: Tensor, sources: Tokens | None = None) -> Family:
        size = x.shape[-1 - self.axes : -1]
        packed = sources if sources is not None and sources.packed else None
        return Given(
            [
                Shift(size, d, border=self.border, tokens=packed, dtype=x.dtype, device=x.device)
                for d in self.offsets
            ]
        )

    def extra_repr(self) -> str:
        return f"offsets={[d if len(d) > 1 else d[0] for d in self.offsets]}, border={self.border!r}"
