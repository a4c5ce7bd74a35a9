"""The family of a convolution: shifts on a line or a grid, whose mixed product torch's convolutions compute.

Shapes: points on a grid ``size = (m_1, ..., m_D)`` flattened row by row, ``(..., m, P)`` to ``(..., n, Q)``; K taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators import Operator, Shift, Transposed
from ..operators.shift import BORDERS, Border
from .families import Family

_CONVOLUTIONS: dict[tuple[int, bool], Callable[..., Tensor]] = {
    (1, False): F.conv1d, (2, False): F.conv2d, (3, False): F.conv3d,
    (1, True): F.conv_transpose1d, (2, True): F.conv_transpose2d, (3, True): F.conv_transpose3d,
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """The taps of a convolution: tap i reads ``stride n + dilation i - padding``, on every axis.

    Attributes:
        taps: on each axis, ``kernel_size`` in torch.
        stride, dilation, padding: one for each axis; padding is ``(before, after)``.
        border: what is read outside the grid.
        transposed: sources and targets change places (transposed convolution); then ``output_padding`` more targets.
    """

    taps: tuple[int, ...]
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    border: Border = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        axes = len(self.taps)
        filled: dict[str, tuple[Any, ...]] = {
            "stride": (1,) * axes, "dilation": (1,) * axes, "padding": ((0, 0),) * axes, "output_padding": (0,) * axes,
        }  # fmt: skip
        for name, default in filled.items():
            given = getattr(self, name) or default
            if len(given) != axes:
                raise ValueError(
                    f"Kernel: {name} {given} for taps {self.taps}; expected one entry for every axis."
                )
            object.__setattr__(self, name, given)
        if not 1 <= axes <= 3 or min(self.taps) < 1 or self.border not in BORDERS:
            raise ValueError(
                f"Kernel: taps {self.taps} and border {self.border!r}; expected one to three axes of at least one tap, and "
                f"one of {', '.join(BORDERS)}."
            )
        if self.transposed and (self.border != "zeros" or any(a != b for a, b in self.padding)):
            raise ValueError(
                f"Kernel: a transposed convolution with border {self.border!r} and padding {self.padding}; it has zeros "
                "only, and the same padding on both sides."
            )

    def targets(self, size: Sequence[int]) -> tuple[int, ...]:
        """Grid of the targets for sources on a grid ``size``."""
        if len(size) != len(self.taps):
            raise ValueError(
                f"Kernel: points on a grid {tuple(size)} for taps {self.taps}; expected {len(self.taps)} axes of tokens "
                "before the channels."
            )
        out = []
        for m, k, s, d, (a, b), extra in zip(
            size, self.taps, self.stride, self.dilation, self.padding, self.output_padding, strict=True
        ):
            span = d * (k - 1) + 1
            n = (m - 1) * s - a - b + span + extra if self.transposed else (m + a + b - span) // s + 1
            if n < 1:
                raise ValueError(
                    f"Kernel: an axis of length {m} is shorter than the {span} places that the taps span (padding {a}, {b}); "
                    "expected a longer one, or more padding."
                )
            out.append(n)
        return tuple(out)

    def offsets(self) -> list[tuple[int, ...]]:
        """Source minus (strided) target of every tap, last axis fastest: the order of torch's weights."""
        return list(
            product(
                *(
                    [i * d - before for i in range(k)]
                    for k, d, (before, _) in zip(self.taps, self.dilation, self.padding, strict=True)
                )
            )
        )


class Convolution(Family):
    """The shifts of a :class:`Kernel` on sources of a grid.

    The mixed product is one call of torch's convolution, on points as they lie in memory (channels last). The other
    products go shift by shift.
    """

    def __init__(self, kernel: Kernel, size: Sequence[int], dtype: torch.dtype, device: torch.device):
        self.kernel, self.size, self.out = kernel, tuple(size), kernel.targets(size)
        self.made: dict[str, Any] = {"dtype": dtype, "device": device}
        self.shape = torch.Size((torch.Size(self.out).numel(), torch.Size(self.size).numel()))
        self._offsets = kernel.offsets()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, k: int) -> Operator:
        turned = self.kernel.transposed
        shift = Shift(
            self.out if turned else self.size, self._offsets[k], stride=self.kernel.stride,
            out=self.size if turned else self.out, border=self.kernel.border, allow_empty=True, **self.made,
        )  # fmt: skip
        return Transposed(shift) if turned else shift

    def mixed(self, x: Tensor, theta: Tensor, groups: int = 1) -> Tensor:
        """``sum_k S_k x Theta_k`` for ``theta (K, P / groups, Q)``; the Q outputs fall into ``groups`` blocks."""
        kernel, axes = self.kernel, len(self.size)
        lead, channels = x.shape[:-2], x.shape[-1]
        points = x.reshape(lead.numel(), *self.size, channels).movedim(-1, 1)
        points, padding = self._padded(points)
        weight = theta.reshape(*kernel.taps, *theta.shape[1:])
        options: dict[str, Any] = {"stride": kernel.stride, "dilation": kernel.dilation, "groups": groups}
        if kernel.transposed:
            per = theta.shape[-1] // groups  # torch: (P, Q / groups, taps)
            weight = (
                weight.unflatten(-1, (groups, per)).movedim(-2, -3).flatten(-3, -2).movedim((-2, -1), (0, 1))
            )
            options["output_padding"] = kernel.output_padding
        else:
            weight = weight.movedim((-1, -2), (0, 1))
        if axes == 1:  # torch keeps channels last where there are two axes of tokens
            points, weight, padding = points.unsqueeze(-2), weight.unsqueeze(-2), (0, *padding)
            options |= {name: (1, *options[name]) for name in ("stride", "dilation")}
            if kernel.transposed:
                options["output_padding"] = (0, *options["output_padding"])
        call = _CONVOLUTIONS[max(axes, 2), kernel.transposed]
        out = call(points, weight.to(points.dtype), None, padding=padding, **options)
        return out.movedim(1, -1).reshape(*lead, self.shape[0], theta.shape[-1])

    def _padded(self, points: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Points padded where torch's convolution cannot, and the padding that is left to it."""
        sides = self.kernel.padding
        if self.kernel.border == "zeros" and all(a == b for a, b in sides):
            return points, tuple(a for a, _ in sides)
        flat = [n for pair in reversed(sides) for n in pair]
        mode = "constant" if self.kernel.border == "zeros" else self.kernel.border
        return F.pad(points, flat, mode=mode), (0,) * len(sides)
