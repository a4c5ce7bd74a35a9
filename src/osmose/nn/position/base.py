"""What a position encoding is: settings that build a module, and a module with a hook for every place where it acts.

Shapes: ``(..., H, n, d)`` heads of targets, ``(..., H, m, d)`` of sources, E = H d embedding channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...operators import Operator, Toeplitz
from ...operators.toeplitz import Slots
from ...tokens import Tokens


class PositionSettings(ABC):
    """Settings of a position encoding, a frozen dataclass."""

    name: ClassVar[str]

    @abstractmethod
    def build(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Position:
        """The module for a mixer of ``embed_dim`` channels in ``num_heads`` heads."""

    def check(self, mixer: str, *, kdim: int, vdim: int, embed_dim: int) -> None:  # noqa: B027, most fit every mixer
        """Raise ValueError for a mixer under which it means nothing."""


class Position(nn.Module):
    """Where a token stands, brought into a mixer. Every hook leaves things as they are unless a member overrides it.

    A place is the index of a token in its sequence, in a packed batch its place inside the set. A token of mass 0 keeps
    its place and is absent: what reads it reads 0, as beyond the borders. Other masses weigh tokens in the mixer; a
    shift reads a token as it is.

    Attributes:
        carries: whether it moves values past the scores, so that a mask on pairs would not hide them.
        placed_sources: whether it needs the place of every key after the projection.
        remembers: how many tokens back it looks in causal order, beyond what the mixer remembers; None where a sequence
            cannot go on from a state of constant size.
        taken_heads: heads that it takes from the mixer.
    """

    remembers: int | None = None
    taken_heads: int = 0

    carries: ClassVar[bool] = False
    placed_sources: ClassVar[bool] = True

    def inputs(self, x: Tensor, tokens: Tokens | None) -> Tensor:
        """Tokens ``(..., n, E)`` as they enter the projections."""
        return x

    def values(self, v: Tensor, sources: Tokens | None, causal: bool) -> Tensor:
        """Values ``(..., H, m, d)`` before the mixer, channel by channel."""
        return v

    def beside(
        self, out: Tensor, v: Tensor, targets: Tokens | None, sources: Tokens | None, causal: bool
    ) -> Tensor:
        """The mixer's result ``(..., H, n, d)`` with what stands beside the heads, made of the values channel by channel."""
        return out

    def carry(
        self,
        mixer: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        targets: Tokens | None,
        sources: Tokens | None,
        causal: bool,
        bias: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What stands between the projections, in the place of ``mixer.mix`` and with its arguments and results.

        ``mixer`` is a :class:`~osmose.nn.MultiheadMixer`, or a state that goes on (state.py).
        """
        return mixer.mix(
            q, k, v, targets=targets, sources=sources, causal=causal, bias=bias, need_weights=need_weights
        )


def shifts(
    coefficients: Tensor,
    offsets: tuple[int, ...] | range,
    n: int,
    m: int,
    targets: Tokens | None,
    sources: Tokens | None,
) -> Operator:
    """``sum_d c_d S_d`` between tokens that are there, ``(H, n, m)`` for coefficients ``(H, K)``."""
    sets = (targets, sources) if _packed(targets, sources) else (None, None)
    op = Toeplitz(coefficients, offsets, n, m, targets=sets[0], sources=sets[1])
    left, right = (
        None if t is None or t.mass is None else (t.mass > 0).to(coefficients) for t in (targets, sources)
    )
    return op if left is None and right is None else op.scale(left, right)


def carried(op: Operator, v: Tensor) -> Tensor:
    """``op @ v`` in the type of v; a compiler follows it, which it does not for an operator beside ``@``."""
    with torch.autocast(v.device.type, enabled=False):
        return op._matmul(v.to(torch.promote_types(v.dtype, torch.float32))).to(v.dtype)


def present(x: Tensor, tokens: Tokens | None) -> Tensor:
    """Points ``(..., n, c)``, 0 where there is no token."""
    if tokens is None or tokens.mass is None:
        return x
    return torch.where(tokens.mass.unsqueeze(-1) > 0, x, 0.0)


def slots_of(targets: Tokens | None, sources: Tokens | None, reach: int) -> Slots | None:
    """Packed sets in one line, for offsets up to ``reach``; None where they are not packed."""
    if targets is None or sources is None or not _packed(targets, sources):
        return None
    slots = Slots(targets, sources)
    slots.spread(reach)
    return slots


def _packed(targets: Tokens | None, sources: Tokens | None) -> bool:
    return targets is not None and sources is not None and targets.packed


def places(tokens: Tokens | None, n: int, device: torch.device) -> Tensor:
    """The place of every token counted from the first that is there, ``(n,)`` or ``(..., n)`` as the mass."""
    index, start = index_of(tokens, n, device), start_of(tokens)
    return index if start is None else (index - start).clamp(min=0)


def index_of(tokens: Tokens | None, n: int, device: torch.device) -> Tensor:
    """The place of every token in its sequence or packed set, ``(n,)``; absent tokens count."""
    packed = tokens is not None and tokens.packed
    return tokens.positions.to(device) if tokens is not None and packed else torch.arange(n, device=device)


def start_of(tokens: Tokens | None) -> Tensor | None:
    """The index of the first token that is there, ``(..., 1)``: padding on the left moves nothing. None for index 0."""
    if tokens is None or tokens.packed or tokens.mass is None:
        return None
    return (tokens.mass > 0).to(torch.int64).argmax(-1, keepdim=True)


def check_radius(what: str, radius: int) -> None:
    if radius < 0 or int(radius) != radius:
        raise ValueError(f"{what}: radius is {radius}; expected a whole number of places, 0 or more.")
