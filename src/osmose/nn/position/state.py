"""Decoding with a position made of shifts: the mixer's state, and the last tokens that the shifts still reach.

Shapes: B batch, H heads, n tokens, R tokens that are kept at most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tokens import Tokens

if TYPE_CHECKING:
    from ..mixer import MultiheadMixer


@dataclass(frozen=True, eq=False)
class PlacedState:
    """A sequence so far, under a mixer with a position: ``inner`` is what the mixer remembers.

    ``keys (B, H, r, d)``, ``values (B, H, r, d)`` and masses ``(B, r)`` are those of the last r <= R tokens, where R is
    the farthest that the position reaches back: constant size. One call equals the same tokens in one causal call.
    """

    mixer: MultiheadMixer
    inner: Any
    keys: Tensor
    values: Tensor
    mass: Tensor

    @classmethod
    def empty(cls, mixer: MultiheadMixer, inner: Any, batch: int, **made: Any) -> PlacedState:
        """Before the first token."""
        none = torch.zeros(batch, mixer.num_heads, 0, mixer.head_dim, **made)
        return cls(mixer, inner, none, none, none[:, 0, :, 0].float())

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None = None
    ) -> tuple[Tensor, PlacedState]:
        position: Any = self.mixer.position
        n, before = q.shape[-2], self.keys.shape[-2]
        mass = torch.ones(len(q), n, device=q.device) if mass is None else mass.to(self.mass.dtype)
        k, v = torch.cat([self.keys, k], -2), torch.cat([self.values, v], -2)
        mass = torch.cat([self.mass, mass], -1)
        tokens = Tokens(before + n, mass).heads()
        inner = _Continued(self.inner, n, mass[:, before:])
        out, _ = position.carry(
            inner, F.pad(q, (0, 0, before, 0)), k, position.values(v, tokens, True),
            targets=tokens, sources=tokens, causal=True, bias=None, need_weights=False,
        )  # fmt: skip
        out = position.beside(out, v, tokens, tokens, True)[..., before:, :]
        first = max(0, before + n - position.remembers)
        kept = replace(
            self, inner=inner.state, keys=k[..., first:, :], values=v[..., first:, :], mass=mass[:, first:]
        )
        return out, kept

    def reorder(self, index: Tensor) -> PlacedState:
        """The state of other batch entries."""
        return replace(
            self,
            inner=self.inner.reorder(index),
            keys=self.keys[index],
            values=self.values[index],
            mass=self.mass[index],
        )


class _Continued:
    """Stands in for a mixer inside a position's ``carry``: mixes the last n tokens by going on from a state."""

    def __init__(self, state: Any, n: int, mass: Tensor):
        self.state, self.n, self.mass = state, n, mass

    def mix(self, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> tuple[Tensor, None]:
        before = q.shape[-2] - self.n
        last = (x[..., before:, :] for x in (q, k, v))
        out, self.state = self.state(*last, self.mass)
        return F.pad(out, (0, 0, before, 0)), None
