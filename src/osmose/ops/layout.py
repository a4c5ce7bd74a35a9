"""One set, a padded batch and packed sets as the one form that the sweeps know: ``(heads, tokens, channels)`` with bounds.

Points are ``(..., H, n, d)``; points ``(n, d)`` have one head. Three layouts, all views where memory allows:

* packed sets: leading dimensions join the heads, ``(... H, n, d)``; bounds from the tokens;
* token-major batches (memory ``B, n, H, d``), and one set: ``(H, B n, d)``, a set for every batch entry;
* other batches, and masses that differ between heads: ``(1, B H n, d)``, a set for every batch entry and head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import Tokens


@dataclass(frozen=True)
class Layout:
    """How points of one call are laid out; ``lead`` are the dimensions before heads."""

    kind: str  # "packed", "batch_first" or "heads_as_sets"
    lead: torch.Size
    heads: int

    @classmethod
    def of(cls, q: Tensor, sources: Tokens, targets: Tokens) -> Layout:
        """The layout for queries ``(..., H, n, d)``, decided by their memory order and the masses."""
        lead, heads = q.shape[:-3], q.shape[-3]
        if sources.packed:
            return cls("packed", lead, heads)
        varied = any(
            t.mass is not None and t.mass.ndim >= 2 and t.mass.shape[-2] > 1 for t in (sources, targets)
        )
        batches = lead.numel()
        mergeable = batches == 1 or (len(lead) == 1 and q.stride(0) == q.shape[-2] * q.stride(-2))
        return cls("batch_first" if mergeable and not varied else "heads_as_sets", lead, heads)

    def points(self, x: Tensor, tokens: Tokens) -> Tensor:
        """``(..., H, n, d)`` to ``(heads, tokens, d)``, the tokens of a set side by side."""
        if self.kind == "packed":
            return tokens.sort(x.flatten(0, -3))
        if self.kind == "heads_as_sets":
            return x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
        if self.lead.numel() == 1:
            return x.reshape(x.shape[-3:])
        return x.flatten(0, -4).transpose(0, 1).flatten(1, 2)

    def restore(self, x: Tensor, tokens: Tokens) -> Tensor:
        """The inverse of :meth:`points`."""
        shape = (*self.lead, self.heads, tokens.n, x.shape[-1])
        if self.kind == "packed":
            return tokens.unsort(x).view(shape)
        if self.kind == "heads_as_sets" or self.lead.numel() == 1:
            return x.view(shape)
        return x.unflatten(1, (self.lead.numel(), tokens.n)).transpose(0, 1).unflatten(0, self.lead)

    def mass(self, tokens: Tokens) -> Tensor | None:
        """Masses ``(..., 1 or H, n)`` or ``(n,)`` to one value for each token of :meth:`points`."""
        if tokens.mass is None:
            return None
        if self.kind == "packed":
            return tokens.sort(tokens.mass, -1)
        heads = self.heads if self.kind == "heads_as_sets" else 1
        return tokens.mass.expand(*self.lead, heads, tokens.n).reshape(-1)

    def bounds(self, tokens: Tokens) -> Tensor:
        """``(sets + 1,)`` int64 on the CPU."""
        if self.kind == "packed":
            return tokens.ptr.cpu()
        sets = self.lead.numel() * (self.heads if self.kind == "heads_as_sets" else 1)
        return torch.arange(sets + 1) * tokens.n

    def by_set(self, x: Tensor) -> Tensor:
        """A value for each of the sweep's heads and sets to ``(batch, H, packed sets or 1)``."""
        batches = self.lead.numel()
        if self.kind == "packed":
            return x.view(batches, self.heads, -1)
        if self.kind == "heads_as_sets":
            return x.view(batches, self.heads, 1)
        return x.mT.unsqueeze(-1)

    def from_set(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`by_set`."""
        if self.kind == "packed":
            return x.reshape(-1, x.shape[-1])
        if self.kind == "heads_as_sets":
            return x.reshape(1, -1)
        return x.squeeze(-1).mT
