"""Tokens with mass: one canonical form for masks, lengths, ragged batches and measures.

Shapes: ``...`` leading (batch, head) dimensions, ``n`` tokens, ``c`` channels, ``S`` token sets of a packed batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Tokens"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Which tokens there are, how much each weighs, and which of them form a set.

    Three layouts say the same thing:

    ========== ================= ============ ==========================================
    layout     points            ``mass``     ``batch``
    ========== ================= ============ ==========================================
    one set    ``(n, c)``        ``(n,)``     None
    padded     ``(B, n, c)``     ``(B, n)``   None; a padding token is a token of mass 0
    packed     ``(n, c)``        ``(n,)``     ``(n,)``: the set of each token, any order
    ========== ================= ============ ==========================================

    A mass of None means 1 for every token. Between the leading dimensions and ``n`` more may stand
    (heads): :meth:`heads` adds one. Build it with :meth:`of`, which speaks every dialect.

    Cost: O(n). Sums over tokens are kept in float32 or better, whatever the input.
    """

    n: int
    mass: Tensor | None = None
    batch: Tensor | None = None
    num_sets: int = 1

    @classmethod
    def of(
        cls,
        x: Tensor | int,
        *,
        mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        mass: Tensor | None = None,
        batch: Tensor | None = None,
        ptr: Tensor | None = None,
        num_sets: int | None = None,
    ) -> Tokens:
        """The canonical form of whatever the caller has.

        Args:
            x: the points ``(..., n, c)``, against which shapes are checked, or just ``n``.
            mask: bool ``(..., n)``, True = keep.
            key_padding_mask: as in ``torch.nn.MultiheadAttention``: bool with True = ignore, or an
                additive float mask, which is the log of the mass (0 keeps, -inf removes).
            lengths: integer ``(...)``: the first ``lengths`` tokens exist.
            mass: real ``(..., n)``, non-negative and finite.
            batch: integer ``(n,)``, the set of each token as in PyG, in any order.
            ptr: integer ``(S + 1,)``, the bounds of consecutive sets as in PyG.
            num_sets: number of sets, where the last ones may be empty (with ``batch`` only).

        At most one of ``mask``, ``key_padding_mask``, ``lengths``, ``mass``, and one of ``batch``, ``ptr``.

        Raises:
            ValueError: two masks at once, or a shape or value that does not fit.
            TypeError: a mask of the wrong kind.
        """
        n, lead = (x, None) if isinstance(x, int) else (x.shape[-2], x.shape[:-2])
        masks = {"mask": mask, "key_padding_mask": key_padding_mask, "lengths": lengths, "mass": mass}
        given = [name for name, value in masks.items() if value is not None]
        if len(given) > 1:
            raise ValueError(
                f"Tokens: {' and '.join(given)} were given; expected at most one of {', '.join(masks)}."
            )
        if batch is not None and ptr is not None:
            raise ValueError("Tokens: batch and ptr were given; expected at most one, they say the same.")
        if batch is None and num_sets is not None:
            raise ValueError("Tokens: num_sets goes with batch; pass batch too, or leave num_sets out.")
        if mask is not None:
            mass = _mass_of_mask(mask)
        elif key_padding_mask is not None:
            mass = _mass_of_padding(key_padding_mask)
        elif lengths is not None:
            mass = _mass_of_lengths(lengths, n)
        elif mass is not None:
            _check_mass(mass)
        if mass is not None:
            _check_shape(given[0] if lengths is None else "lengths", mass, n, lead)
        if ptr is not None:
            batch, num_sets = _batch_of_ptr(ptr, n), ptr.numel() - 1
        elif batch is not None:
            num_sets = _check_batch(batch, n, num_sets)
        return cls(n, mass, batch, 1 if num_sets is None else num_sets)

    @property
    def packed(self) -> bool:
        """Whether several sets lie side by side in one token dimension."""
        return self.batch is not None

    def heads(self) -> Tokens:
        """The same tokens for points ``(..., H, n, c)``: a padded mass gains a head dimension."""
        if self.mass is None or self.mass.ndim < 2:
            return self
        return Tokens(self.n, self.mass.unsqueeze(-2), self.batch, self.num_sets)

    def with_mass(self, mass: Tensor | None) -> Tokens:
        """The same sets with another mass."""
        return Tokens(self.n, mass, self.batch, self.num_sets)

    # ---- sums over tokens -----------------------------------------------------------------------

    def weigh(self, x: Tensor) -> Tensor:
        """``m_i x_i`` for points ``(..., n, c)``."""
        return x if self.mass is None else x * self.mass.unsqueeze(-1).to(x.dtype)

    def sum(self, x: Tensor) -> Tensor:
        """``sum_i m_i x_i`` over each set: ``(..., n, c)`` to ``(..., c)``, packed ``(..., S, c)``.

        A token of mass 0 is absent even where its value is not finite.
        """
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.mass is not None:
            x = self.weigh(torch.where(self.mass.unsqueeze(-1) > 0, x, 0.0))
        return self._sum_sets(x)

    def total(self, like: Tensor | None = None) -> Tensor:
        """Total mass of each set: shape ``()`` or the mass's leading shape, packed ``(..., S)``.

        ``like`` gives the least precise type allowed, and the device where the mass is None.
        """
        dtype = torch.float32 if like is None else torch.promote_types(like.dtype, torch.float32)
        if self.mass is not None:
            dtype = torch.promote_types(dtype, self.mass.dtype)
            return self._sum_sets(self.mass.unsqueeze(-1).to(dtype))[..., 0]
        device = self.batch.device if self.batch is not None else None
        device = device if like is None else like.device
        if self.batch is None:
            return torch.tensor(float(self.n), dtype=dtype, device=device)
        return self.sizes.to(device=device, dtype=dtype)

    def mean(self, x: Tensor) -> Tensor:
        """Mean of each set under its mass; 0 for a set with no mass."""
        total = self.total(x).unsqueeze(-1)
        return self.sum(x) / torch.where(total > 0, total, 1.0)

    def amax(self, x: Tensor) -> Tensor:
        """Largest value of each set, channel by channel, in the shape of :meth:`sum`; -inf for a set with no mass."""
        if self.mass is not None:
            x = torch.where(self.mass.unsqueeze(-1) > 0, x, -torch.inf)
        if self.batch is None:
            return x.amax(-2) if self.n else x.new_full((*x.shape[:-2], x.shape[-1]), -torch.inf)
        out = x.new_full((*x.shape[:-2], self.num_sets, x.shape[-1]), -torch.inf)
        index = self.batch.unsqueeze(-1).expand_as(x)
        return out.scatter_reduce(-2, index, x, "amax")

    def spread(self, s: Tensor) -> Tensor:
        """A value of each set to each of its tokens: ``(..., c)`` to ``(..., 1, c)``, packed ``(..., S, c)`` to ``(..., n, c)``."""
        return s.unsqueeze(-2) if self.batch is None else s.index_select(-2, self.batch)

    def _sum_sets(self, x: Tensor) -> Tensor:
        if self.batch is None:
            return x.sum(-2)
        out = x.new_zeros(*x.shape[:-2], self.num_sets, x.shape[-1])
        return out.index_add(-2, self.batch, x)

    # ---- packed sets ------------------------------------------------------------------------------

    @cached_property
    def sizes(self) -> Tensor:
        """Number of tokens of each set, ``(S,)`` int64."""
        if self.batch is None:
            return torch.tensor([self.n])
        return torch.bincount(self.batch, minlength=self.num_sets)

    @cached_property
    def ptr(self) -> Tensor:
        """Bounds of the sets after :meth:`sort`, ``(S + 1,)`` int64."""
        return torch.cat([self.sizes.new_zeros(1), self.sizes.cumsum(0)])

    @cached_property
    def order(self) -> Tensor | None:
        """The permutation that brings the tokens of a set together; None where they already are."""
        if self.batch is None or self.n < 2 or bool((self.batch[1:] >= self.batch[:-1]).all()):
            return None
        return torch.argsort(self.batch, stable=True)

    @cached_property
    def positions(self) -> Tensor:
        """The place of every token in its set, from 0 in the order of appearance, ``(n,)`` int64; absent ones count."""
        if self.batch is None:
            return torch.arange(self.n, device=None if self.mass is None else self.mass.device)
        place = torch.arange(self.n, device=self.batch.device)
        inside = place - self.ptr[:-1].to(place.device).repeat_interleave(self.sizes, output_size=self.n)
        return self.unsort(inside, -1)

    def sort(self, x: Tensor, dim: int = -2) -> Tensor:
        """Points with the tokens of a set side by side."""
        return x if self.batch is None or self.order is None else x.index_select(dim, self.order)

    def unsort(self, x: Tensor, dim: int = -2) -> Tensor:
        """The inverse of :meth:`sort`."""
        if self.batch is None or self.order is None:
            return x
        return x.index_select(dim, torch.argsort(self.order))

    def same_set(
        self, sources: Tokens, device: torch.device | None = None, rows: Tensor | None = None
    ) -> Tensor | None:
        """``(n, m)`` bool, whether target i and source j share a set, or only chosen rows; None where all do."""
        if self.batch is None or sources.batch is None:
            return None
        targets = self.batch if rows is None else self.batch[rows]
        return (targets[:, None] == sources.batch[None, :]).to(device)

    def pad(self, x: Tensor) -> tuple[Tensor, Tokens]:
        """Packed ``(n, c)`` to padded ``(S, longest, c)``, with its tokens. Padding holds zeros."""
        if self.batch is None:
            raise ValueError("Tokens.pad: these tokens are not packed; pass batch= or ptr= to Tokens.of.")
        longest = int(self.sizes.max()) if self.num_sets else 0
        slot = torch.arange(longest, device=x.device)
        keep = slot < self.sizes.to(x.device)[:, None]
        out = x.new_zeros(self.num_sets, longest, x.shape[-1])
        out[keep] = self.sort(x)
        mass = keep.to(torch.float32)
        if self.mass is not None:
            mass = mass.to(self.mass.dtype)
            mass[keep] = self.sort(self.mass, -1)
        return out, Tokens(longest, mass)

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`pad`: ``(S, longest, c)`` to packed ``(n, c)`` in the caller's order."""
        keep = torch.arange(x.shape[-2], device=x.device) < self.sizes.to(x.device)[:, None]
        return self.unsort(x[keep])


def check_pair(what: str, targets: Tokens | None, sources: Tokens | None, n: int, m: int) -> None:
    """Raise where the tokens on the two sides of an ``(n, m)`` operator do not fit it or each other."""
    for name, tokens, size in (("targets", targets, n), ("sources", sources, m)):
        if tokens is not None and tokens.n != size:
            raise ValueError(
                f"{what}: {name} describe {tokens.n} tokens, but there are {size}; expected the same number."
            )
    if (targets is not None and targets.packed) != (sources is not None and sources.packed):
        raise ValueError(
            f"{what}: one of targets and sources is packed and the other is not; pack both or pad both."
        )
    if targets is not None and sources is not None and targets.num_sets != sources.num_sets:
        raise ValueError(
            f"{what}: targets hold {targets.num_sets} sets and sources {sources.num_sets}; expected the same number "
            "(pass num_sets= to Tokens.of where the last sets are empty)."
        )


def same_sets(*sides: Tokens | None) -> bool:
    """Whether those of them that are packed hold the same tokens in the same sets."""
    batches = [t.batch for t in sides if t is not None and t.batch is not None]
    return all(b is batches[0] or torch.equal(b, batches[0]) for b in batches[1:])


def _mass_of_mask(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(
            f"Tokens: mask has dtype {mask.dtype}; expected bool, True = keep. "
            "For torch's additive mask use key_padding_mask=, for weights mass=."
        )
    return mask.to(torch.get_default_dtype())


def _mass_of_padding(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return (~mask).to(torch.get_default_dtype())
    if not mask.is_floating_point():
        raise TypeError(
            f"Tokens: key_padding_mask has dtype {mask.dtype}; expected bool (True = ignore) or an additive float mask. "
            "For 0/1 integers say which is meant: mask=m.bool() keeps ones, key_padding_mask=m.bool() ignores them."
        )
    mass = mask.exp()
    if _eager() and not bool(torch.isfinite(mass).all()):
        raise ValueError(
            "Tokens: key_padding_mask holds NaN or values whose exp overflows; expected logs of masses (0 keeps, -inf removes)."
        )
    return mass


def _mass_of_lengths(lengths: Tensor, n: int) -> Tensor:
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"Tokens: lengths has dtype {lengths.dtype}; expected integers.")
    if _eager() and lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > n):
        raise ValueError(
            f"Tokens: lengths go from {int(lengths.min())} to {int(lengths.max())}; expected 0 to {n}, the number of tokens."
        )
    return (torch.arange(n, device=lengths.device) < lengths.unsqueeze(-1)).to(torch.get_default_dtype())


def _check_mass(mass: Tensor) -> None:
    if not mass.is_floating_point():
        raise TypeError(
            f"Tokens: mass has dtype {mass.dtype}; expected a float type. A bool mask goes to mask= (True = keep)."
        )
    if not _eager() or not mass.numel():
        return
    values = mass.detach()
    if not (math.isfinite(float(values.sum())) and float(values.min()) >= 0):
        raise ValueError(
            "Tokens: mass holds a negative, infinite or NaN value; expected finite masses >= 0 (0 = absent)."
        )


def _check_shape(name: str, mass: Tensor, n: int, lead: torch.Size | None) -> None:
    shown = tuple(mass.shape[:-1]) if name == "lengths" else tuple(mass.shape)
    if mass.ndim == 0 or mass.shape[-1] != n:
        raise ValueError(
            f"Tokens: {name} has shape {shown}; expected (..., {n}), one value for each of the {n} tokens."
        )
    if lead is None:
        return
    try:
        fits = torch.broadcast_shapes(mass.shape[:-1], lead) == lead
    except RuntimeError:
        fits = False
    if not fits:
        expected = tuple(lead) if name == "lengths" else (*lead, n)
        raise ValueError(
            f"Tokens: {name} has shape {shown} but the points have leading shape {tuple(lead)}; expected {expected}."
        )


def _check_batch(batch: Tensor, n: int, num_sets: int | None) -> int:
    if batch.dtype != torch.int64:
        raise TypeError(f"Tokens: batch has dtype {batch.dtype}; expected int64, the set of each token.")
    if batch.shape != (n,):
        raise ValueError(
            f"Tokens: batch has shape {tuple(batch.shape)}; expected ({n},), one set index for each token."
        )
    low, high = (int(batch.min()), int(batch.max())) if n else (0, -1)
    if low < 0 or (num_sets is not None and high >= num_sets):
        bound = "" if num_sets is None else f" below num_sets={num_sets}"
        raise ValueError(f"Tokens: batch goes from {low} to {high}; expected set indices from 0 up{bound}.")
    return high + 1 if num_sets is None else num_sets


def _batch_of_ptr(ptr: Tensor, n: int) -> Tensor:
    if ptr.dtype != torch.int64 or ptr.ndim != 1 or not ptr.numel():
        raise TypeError(
            f"Tokens: ptr has dtype {ptr.dtype} and shape {tuple(ptr.shape)}; expected int64 of shape (sets + 1,)."
        )
    sizes = ptr.diff()
    if int(ptr[0]) != 0 or int(ptr[-1]) != n or bool((sizes < 0).any()):
        raise ValueError(
            f"Tokens: ptr goes from {int(ptr[0])} to {int(ptr[-1])}; expected bounds that rise from 0 to {n}, the number of tokens."
        )
    return torch.repeat_interleave(torch.arange(ptr.numel() - 1, device=ptr.device), sizes)


def _eager() -> bool:
    """Values are looked at only outside a compiled graph."""
    return not torch.compiler.is_compiling()
