"""What causal mixers remember of a sequence, so that it can go on: every state is a value that gives the next one.

A state is called with the queries, keys and values of the next tokens, ``(B, H, n, d)``, and masses ``(B, n)`` or None;
it gives their outputs and the state after them. ``reorder`` takes other batch entries. Flow has its own,
:class:`osmose.ops.flow.FlowState`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators.causal import prefix_product
from ..tokens import Tokens
from .linear import positive
from .softmax import softmax_attention


class State(Protocol):
    """The sequence so far."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None = None
    ) -> tuple[Tensor, Self]: ...

    def reorder(self, index: Tensor) -> Self: ...


@dataclass(frozen=True, eq=False)
class StackState:
    """What a stack of causal blocks remembers: how many steps, ``(B,)`` int64, and the state of every block."""

    length: Tensor
    blocks: tuple[State, ...]

    def reorder(self, index: Tensor) -> StackState:
        """The state of other batch entries."""
        return StackState(self.length[index], tuple(block.reorder(index) for block in self.blocks))


@dataclass(frozen=True, eq=False)
class KeyValueState:
    """Softmax: all keys ``(B, H, n, d)``, values ``(B, H, n, c)`` and masses ``(B, n)`` so far; grows with the sequence."""

    keys: Tensor
    values: Tensor
    mass: Tensor

    @classmethod
    def empty(
        cls, batch: int, heads: int, d: int, c: int, *, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> KeyValueState:  # fmt: skip
        made = {"dtype": dtype, "device": device}
        return cls(
            torch.zeros(batch, heads, 0, d, **made),  # type: ignore[arg-type]
            torch.zeros(batch, heads, 0, c, **made),  # type: ignore[arg-type]
            torch.zeros(batch, 0, device=device),
        )

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None = None
    ) -> tuple[Tensor, KeyValueState]:
        n, before = q.shape[-2], self.keys.shape[-2]
        mass = torch.ones(len(q), n, device=q.device) if mass is None else mass.to(self.mass.dtype)
        after = KeyValueState(
            torch.cat([self.keys, k], -2), torch.cat([self.values, v], -2), torch.cat([self.mass, mass], -1)
        )
        hidden = torch.ones(n, before + n, dtype=torch.bool, device=q.device).triu(before + 1)
        bias = torch.zeros(n, before + n, dtype=q.dtype, device=q.device).masked_fill(hidden, -torch.inf)
        out = softmax_attention(
            q, after.keys, after.values,
            targets=Tokens(n, mass).heads(), sources=Tokens(before + n, after.mass).heads(), bias=bias,
        )  # fmt: skip
        return out, after

    def reorder(self, index: Tensor) -> KeyValueState:
        return KeyValueState(self.keys[index], self.values[index], self.mass[index])


@dataclass(frozen=True, eq=False)
class LinearState:
    """Linear attention: ``sum m phi(k) [v, 1]^T``, ``(B, H, d, c + 1)`` in float32 or better."""

    moments: Tensor

    @classmethod
    def empty(
        cls, batch: int, heads: int, d: int, c: int, *, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> LinearState:  # fmt: skip
        wide = torch.promote_types(dtype, torch.float32)
        return cls(torch.zeros(batch, heads, d, c + 1, dtype=wide, device=device))

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None = None
    ) -> tuple[Tensor, LinearState]:
        wide = self.moments.dtype
        with torch.autocast(q.device.type, enabled=False):
            q, k, values = positive(q.to(wide)), positive(k.to(wide)), F.pad(v.to(wide), (0, 1), value=1.0)
            if mass is not None:
                m = mass[:, None, :, None].to(wide)
                q, k = q.masked_fill(m <= 0, 0.0), k.masked_fill(m <= 0, 0.0)
                values = (values * m).masked_fill(m <= 0, 0.0)
            sums = prefix_product(q, k, values) + q @ self.moments
            after = LinearState(self.moments + k.mT @ values)
        weight = sums[..., -1:]
        return (sums[..., :-1] / torch.where(weight > 0, weight, 1.0)).to(v.dtype), after

    def reorder(self, index: Tensor) -> LinearState:
        return LinearState(self.moments[index])
