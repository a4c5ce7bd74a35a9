"""Positions as vectors that are added to the tokens, and as rotations of queries and keys.

Shapes: as in base.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...tokens import Tokens
from .base import Position, PositionSettings, index_of, places, start_of


class _Added(PositionSettings):
    def check(self, mixer: str, *, kdim: int, vdim: int, embed_dim: int) -> None:
        if not kdim == vdim == embed_dim:
            raise ValueError(
                f"MultiheadMixer: position {self.name!r} adds vectors of embed_dim={embed_dim} channels to keys and values, which "
                f"have {kdim} and {vdim}; take a position that acts after the projections, such as rope or shift."
            )


@dataclass(frozen=True)
class Learned(_Added):
    """A learned vector for every place, added to the tokens that enter the mixer.

    ``E max_length`` parameters. A longer sequence is refused: it has places that no training has seen.
    """

    name = "learned"
    max_length: int = 512

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        if self.max_length < 1:
            raise ValueError(
                f"Learned: max_length is {self.max_length}; expected a number of places, 1 or more."
            )
        return LearnedVectors(torch.empty(self.max_length, embed_dim, device=device, dtype=dtype))


class LearnedVectors(Position):
    """The module of :class:`Learned`."""

    placed_sources = False

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(weight, std=0.02))

    def inputs(self, x: Tensor, tokens: Tokens | None) -> Tensor:
        n, longest = x.shape[-2], self.weight.shape[0]
        if tokens is not None and tokens.packed:
            n = int(tokens.sizes.max()) if tokens.num_sets else 0
        if n > longest:
            raise ValueError(
                f"Learned: a sequence of {n} tokens, but there are vectors for max_length={longest} places; build it with "
                "a larger max_length, or take sinusoidal, rope or a shift, which have no longest sequence."
            )
        return x + self.weight[places(tokens, x.shape[-2], x.device)].to(x.dtype)


@dataclass(frozen=True)
class Sinusoidal(_Added):
    """``sin(p / base^(2i/E))`` and ``cos`` of it for every place p, added to the tokens (Vaswani et al., 1706.03762).

    No parameters, any length.
    """

    name = "sinusoidal"
    base: float = 10_000.0

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        return Waves(embed_dim, self.base)


class Waves(Position):
    """The module of :class:`Sinusoidal`."""

    placed_sources = False

    def __init__(self, embed_dim: int, base: float):
        super().__init__()
        self.embed_dim, self.base = embed_dim, base

    def inputs(self, x: Tensor, tokens: Tokens | None) -> Tensor:
        angles = _angles(places(tokens, x.shape[-2], x.device), self.embed_dim, self.base, x)
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
        return x + waves[..., : self.embed_dim].to(x.dtype)

    def extra_repr(self) -> str:
        return f"base={self.base}"


@dataclass(frozen=True)
class RoPE(PositionSettings):
    """Queries and keys turned by their place, pair of channels by pair, frequency ``base^(-2i/d)`` (Su et al., 2104.09864).

    Channel i is paired with i + d/2. No parameters, any length. Products of queries and keys then depend on offsets
    alone: exact for softmax and diffusion. Linear and flow take their feature map of the turned points, so that weights
    stay positive and depend on places too.
    """

    name = "rope"
    base: float = 10_000.0

    def check(self, mixer: str, *, kdim: int, vdim: int, embed_dim: int) -> None:
        if mixer == "mean":
            raise ValueError(
                "MultiheadMixer: position 'rope' with mixer 'mean', which looks at no query and no key; take a position that it "
                "sees, such as shift, shift-mixture or shift-score."
            )

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        if (embed_dim // num_heads) % 2:
            raise ValueError(
                f"RoPE: {embed_dim} channels in {num_heads} heads are {embed_dim // num_heads} a head; expected an even number, "
                "they are turned in pairs."
            )
        return Rotation(self.base)


class Rotation(Position):
    """The module of :class:`RoPE`."""

    def __init__(self, base: float):
        super().__init__()
        self.base = base

    def carry(self, mixer: Any, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> tuple[Tensor, Tensor | None]:
        start = start_of(call["sources"])  # for both sides: offsets stay those of the indices
        q, k = (
            self.turn(x, index_of(tokens, x.shape[-2], x.device) - (0 if start is None else start))
            for x, tokens in ((q, call["targets"]), (k, call["sources"]))
        )
        return mixer.mix(q, k, v, **call)

    def turn(self, x: Tensor, place: Tensor) -> Tensor:
        """Points ``(..., H, n, d)`` turned by their places, ``(n,)`` or ``(..., 1, n)``."""
        angles = _angles(place, x.shape[-1], self.base, x)
        cos, sin = angles.cos(), angles.sin()
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

    def extra_repr(self) -> str:
        return f"base={self.base}"


def _angles(place: Tensor, channels: int, base: float, like: Tensor) -> Tensor:
    """``p base^(-2i/channels)``, ``(..., n, ceil(channels / 2))``, in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    even = torch.arange(0, channels, 2, device=place.device, dtype=dtype)
    return place.to(dtype).unsqueeze(-1) * torch.exp(even * (-math.log(base) / channels))
