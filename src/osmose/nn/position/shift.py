"""Positions by shift matrices: S_d reads the token d places further, so a few of them replace position vectors.

After Andreoli, "Convolution, attention and structure embedding" (arXiv:1905.01289): a structure that is given stands
beside the one that is computed. The forms are our reading. ``S_d[i, j] = [j - i = d]``: d = -1 is the previous token.

In causal order offsets > 0 do not exist. Shapes: as in base.py; ``K`` offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...operators.band import channel_band_product
from ...tokens import Tokens
from .base import Position, PositionSettings, carried, check_radius, present, shifts, slots_of


@dataclass(frozen=True)
class Shift(PositionSettings):
    """A branch beside the heads: ``y = sum_h A_h v_h + sum_{|d| <= radius} S_d v Theta_d`` with a diagonal ``Theta_d``.

    A depthwise convolution of the values; zero at the start. ``E (2 radius + 1)`` parameters, time ``n E (2 radius + 1)``.
    """

    name = "shift"
    radius: int = 8

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        check_radius("Shift", self.radius)
        return ShiftBranch(torch.zeros(embed_dim, 2 * self.radius + 1, device=device, dtype=dtype))


class ShiftBranch(Position):
    """The module of :class:`Shift`. Not a matrix of a head: it stands outside of what ``carry`` and weights show."""

    carries = True

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.remembers = weight.shape[-1] // 2

    def beside(
        self, out: Tensor, v: Tensor, targets: Tokens | None, sources: Tokens | None, causal: bool
    ) -> Tensor:
        return depthwise_shifts(self.weight, v, out.shape[-2], targets, sources, causal, out)


@dataclass(frozen=True)
class ShortConv(PositionSettings):
    """A short depthwise convolution of keys and of values, ``(A S) x = A (S x)``: a head that finds j gets what is near j.

    The identity at the start. ``2 E (2 radius + 1)`` parameters, time ``2 n E (2 radius + 1)``.
    """

    name = "short-conv"
    radius: int = 3

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        check_radius("ShortConv", self.radius)
        weight = torch.zeros(embed_dim, 2 * self.radius + 1, device=device, dtype=dtype)
        weight[:, self.radius] = 1
        return KeyValueConv(weight)


class KeyValueConv(Position):
    """The module of :class:`ShortConv`. What it does to values stands outside of what ``carry`` and weights show."""

    carries = True

    def __init__(self, weight: Tensor):
        super().__init__()
        self.remembers = weight.shape[-1] // 2
        self.key_weight = nn.Parameter(weight.clone())
        self.value_weight = nn.Parameter(weight.clone())

    def values(self, v: Tensor, sources: Tokens | None, causal: bool) -> Tensor:
        return depthwise_shifts(self.value_weight, v, v.shape[-2], sources, sources, causal)

    def carry(self, mixer: Any, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> tuple[Tensor, Tensor | None]:
        sources = call["sources"]
        k = depthwise_shifts(self.key_weight, k, k.shape[-2], sources, sources, call["causal"])
        return mixer.mix(q, k, v, **call)


def depthwise_shifts(
    weight: Tensor,
    x: Tensor,
    n: int,
    targets: Tokens | None,
    sources: Tokens | None,
    causal: bool,
    beside: Tensor | None = None,
) -> Tensor:
    """``y[i, c] = z[i, c] + sum_d w[c, d] x[i + d, c]`` over the channels of all heads.

    Args:
        weight: ``(E, 2 radius + 1)``, offsets from -radius to radius.
        x: ``(..., H, m, d)``.
        n: number of targets.
        targets, sources, causal: as for a mixer; what is not there reads 0.
        beside: ``z (..., H, n, d)``, or nothing.

    Returns:
        ``(..., H, n, d)``; the shifts are those of targets that are there.
    """
    heads, radius = x.shape[-3], weight.shape[-1] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = (weight[:, : radius + 1] if causal else weight).to(dtype)
    wide = _merged(present(x, sources)).to(dtype)
    z = None if beside is None else _merged(beside).to(dtype)
    slots = slots_of(targets, sources, radius)
    if slots is not None:
        out = slots.take(channel_band_product(slots.put(wide), weight, -radius, slots.count))
    elif z is None or (targets is not None and targets.mass is not None):
        out = channel_band_product(wide, weight, -radius, n)
    else:
        out, z = channel_band_product(wide, weight, -radius, n, beside=z), None
    out = present(out.unflatten(-1, (heads, -1)).transpose(-3, -2), targets)
    return (out if z is None else out + z.unflatten(-1, (heads, -1)).transpose(-3, -2)).to(x.dtype)


def _merged(x: Tensor) -> Tensor:
    """``(..., H, n, d)`` to ``(..., n, E)``: a view where the memory is token-major."""
    return x.transpose(-3, -2).flatten(-2)


@dataclass(frozen=True)
class ShiftMixture(PositionSettings):
    """Every head a mixture: ``A_h <- (1 - g_h) A_h + g_h sum_{|d| <= radius} c_hd S_d``, c_h in the simplex, g_h in (0, 1).

    In causal order the simplex is that of the offsets d <= 0. ``H (2 radius + 2)`` parameters, time ``n E (2 radius + 1)``.
    """

    name = "shift-mixture"
    radius: int = 8

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        check_radius("ShiftMixture", self.radius)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        return MixedHeads(torch.zeros(num_heads, 2 * self.radius + 1, **made), torch.zeros(num_heads, **made))


class MixedHeads(Position):
    """The module of :class:`ShiftMixture`: ``c = softmax(logits)``, ``g = sigmoid(gate)``."""

    carries = True

    def __init__(self, logits: Tensor, gate: Tensor):
        super().__init__()
        self.logits, self.gate = nn.Parameter(logits), nn.Parameter(gate)
        self.remembers = logits.shape[-1] // 2

    def carry(self, mixer: Any, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> tuple[Tensor, Tensor | None]:
        radius = self.logits.shape[-1] // 2
        last = 0 if call["causal"] else radius
        share = self.logits[:, : radius + last + 1].softmax(-1)
        gate = self.gate.sigmoid()
        given = shifts(
            gate.unsqueeze(-1) * share, range(-radius, last + 1), q.shape[-2], k.shape[-2], call["targets"], call["sources"]
        )  # fmt: skip
        out, weights = mixer.mix(q, k, v, **call)
        keep = (1 - gate)[:, None, None]
        out = (keep * out + carried(given, v)).to(v.dtype)
        return out, None if weights is None else keep * weights + given.to_dense()


@dataclass(frozen=True)
class FixedShift(PositionSettings):
    """The first heads are hard shifts, ``A_h = S_{offsets[h]}``; the others are the mixer's. No parameters.

    Args:
        offsets: source - target, one for each fixed head; at most as many as heads.
    """

    name = "fixed-shift"
    offsets: tuple[int, ...] = (-1,)

    def build(
        self, embed_dim: int, num_heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Position:  # fmt: skip
        if not 1 <= len(self.offsets) <= num_heads or any(int(d) != d for d in self.offsets):
            raise ValueError(
                f"FixedShift: offsets are {self.offsets} with {num_heads} heads; expected whole numbers source - target, "
                f"from 1 to {num_heads} of them."
            )
        return FixedHeads(tuple(int(d) for d in self.offsets))


class FixedHeads(Position):
    """The module of :class:`FixedShift`."""

    carries = True
    offsets: tuple[int, ...]

    def __init__(self, offsets: tuple[int, ...]):
        super().__init__()
        self.offsets = offsets
        self.remembers, self.taken_heads = max(0, *(-d for d in offsets)), len(offsets)

    def carry(self, mixer: Any, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> tuple[Tensor, Tensor | None]:
        if call["causal"] and max(self.offsets) > 0:
            raise ValueError(
                f"FixedShift: offsets {self.offsets} in causal order, where a source with an offset > 0 is later; take offsets "
                "<= 0, or leave causal order out."
            )
        fixed, every = len(self.offsets), sorted(set(self.offsets))
        chosen = torch.tensor([[float(d == one) for d in every] for one in self.offsets], device=v.device)
        given = shifts(
            chosen.to(torch.promote_types(v.dtype, torch.float32)), tuple(every), q.shape[-2], k.shape[-2],
            call["targets"], call["sources"],
        )  # fmt: skip
        outs = [carried(given, v[..., :fixed, :, :])]
        maps = [given.to_dense()] if call["need_weights"] else []
        if fixed < v.shape[-3]:
            bias = call["bias"]
            if bias is not None and bias.ndim > 2 and bias.shape[-3] > 1:
                call["bias"] = bias[..., fixed:, :, :]
            out, weights = mixer.mix(q[..., fixed:, :, :], k[..., fixed:, :, :], v[..., fixed:, :, :], **call)
            outs.append(out)
            maps += [] if weights is None else [weights]
        if not maps:
            return torch.cat(outs, -3), None
        lead = torch.broadcast_shapes(*(x.shape[:-3] for x in maps), v.shape[:-3])
        return torch.cat(outs, -3), torch.cat([x.expand(*lead, *x.shape[-3:]) for x in maps], -3)

    def extra_repr(self) -> str:
        return f"offsets={self.offsets}"
