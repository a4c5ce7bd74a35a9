"""The biases of an offset: free ones of near offsets, clipped ones, T5's buckets, ALiBi's slopes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Position, PositionSettings, check_radius
from .score import Score, lookup, slopes


@dataclass(frozen=True)
class ShiftScore(PositionSettings):
    """``law(C_h * exp(sum_{|d| <= radius} b_hd S_d))``: near offsets have a weight of their own, the others 1.

    0 at the start. ``H (2 radius + 1)`` parameters; linear mixers stay linear, O(n (64 + 2 radius) (r + d)).
    """

    name = "shift-score"
    radius: int = 8

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        check_radius("ShiftScore", self.radius)
        return NearBias(torch.zeros(num_heads, 2 * self.radius + 1, device=device, dtype=dtype))


class NearBias(Score):
    """The module of :class:`ShiftScore`."""

    two_sided = False

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias)

    @property
    def reach(self) -> int:
        return self.bias.shape[-1] // 2

    def bias_at(self, offsets: Tensor, causal: bool) -> Tensor:
        reach = self.reach
        return lookup(F.pad(self.bias, (1, 1)), (offsets + reach + 1).clamp(0, 2 * reach + 2))


@dataclass(frozen=True)
class Relative(PositionSettings):
    """A learned bias of every offset, clipped: ``b_h(d) = b_h,clip(d, -radius, radius)``, as in Shaw et al. (1803.02155).

    0 at the start. ``H (2 radius + 1)`` parameters; linear mixers stay linear.
    """

    name = "relative"
    radius: int = 32

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        check_radius("Relative", self.radius)
        return ClippedBias(torch.zeros(num_heads, 2 * self.radius + 1, device=device, dtype=dtype))


class ClippedBias(Score):
    """The module of :class:`Relative`."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias)

    @property
    def reach(self) -> int:
        return self.bias.shape[-1] // 2

    def bias_at(self, offsets: Tensor, causal: bool) -> Tensor:
        return lookup(self.bias, (offsets + self.reach).clamp(0, 2 * self.reach))


@dataclass(frozen=True)
class T5(PositionSettings):
    """T5's buckets (Raffel et al., 1910.10683): exact near, logarithmic up to ``max_distance``, one bucket beyond.

    In causal order all buckets are for earlier sources, else half of them for each side. ``H num_buckets`` parameters,
    0 at the start; linear mixers stay linear, with a band of ``2 max_distance``.
    """

    name = "t5"
    num_buckets: int = 32
    max_distance: int = 128

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        if self.num_buckets < 4 or self.num_buckets % 2 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"T5: num_buckets is {self.num_buckets} and max_distance {self.max_distance}; expected an even number of at "
                "least 4 buckets, and a distance of more than half of them."
            )
        table = torch.zeros(self.num_buckets, num_heads, device=device, dtype=dtype)
        return BucketBias(table, self.max_distance)


class BucketBias(Score):
    """The module of :class:`T5`; its table ``(num_buckets, H)`` is T5's ``relative_attention_bias``."""

    def __init__(self, weight: Tensor, max_distance: int):
        super().__init__()
        self.weight, self.max_distance = nn.Parameter(weight), max_distance

    @property
    def reach(self) -> int:
        return self.max_distance

    def bias_at(self, offsets: Tensor, causal: bool) -> Tensor:
        bucket = t5_bucket(offsets, self.weight.shape[0], self.max_distance, causal=causal)
        return F.embedding(bucket, self.weight).mT


def t5_bucket(offsets: Tensor, num_buckets: int, max_distance: int, *, causal: bool) -> Tensor:
    """T5's bucket of every offset source - target, int64."""
    if causal:
        side, distance = torch.zeros_like(offsets), (-offsets).clamp(min=0)
    else:
        num_buckets //= 2
        side, distance = (offsets > 0) * num_buckets, offsets.abs()
    exact = num_buckets // 2
    far = (
        torch.log(distance.clamp(min=1).float() / exact)
        / math.log(max_distance / exact)
        * (num_buckets - exact)
    )
    far = (exact + far.to(torch.int64)).clamp(max=num_buckets - 1)
    return side + torch.where(distance < exact, distance, far)


@dataclass(frozen=True)
class ALiBi(PositionSettings):
    """``b_h(d) = -slope_h |d|`` with fixed slopes (Press et al., 2108.12409). No parameters.

    It ends nowhere: on the linear mixers it costs all pairs, and is refused past the dense limit.
    """

    name = "alibi"

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        return SlopeBias(slopes(num_heads).to(device=device, dtype=dtype or torch.get_default_dtype()))


class SlopeBias(Score):
    """The module of :class:`ALiBi`."""

    slope: Tensor

    def __init__(self, slope: Tensor):
        super().__init__()
        self.register_buffer("slope", slope, persistent=False)

    @property
    def reach(self) -> None:
        return None

    def bias_at(self, offsets: Tensor, causal: bool) -> Tensor:
        return -self.slope.unsqueeze(-1) * offsets.abs()
