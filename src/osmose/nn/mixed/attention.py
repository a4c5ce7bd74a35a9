"""Structure computed from tokens: the heads of any mixer, as the operators of a mixed product.

Shapes: targets ``(..., n, P')``, sources ``(..., m, P)``; K heads of D' score channels, G groups of heads share keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...mixers import mixer_of
from ...structure.families import Heads
from ...tokens import Tokens
from ..masks import key_tokens, pair_bias, require_causal
from .product import Structure


class Attention(Structure):
    """``A_k`` of a mixer from ``q_k = y W_k + beta_k`` and ``k_k = x' W'_k + beta'_k``: bilinear heads under its law.

    Args:
        in_channels: P', of the targets.
        heads: K.
        rank: D', score channels of a head; None means P' / K.
        key_channels: of what keys are made of; None means P'.
        shared: G, number of key heads; None means K (grouped queries where less).
        mixer, options: a name of ``osmose.mixers.MIXERS`` and its options.
        bias: beta and beta'.
        extra: sources that are added, in order: ``learned`` (a key of its own) or ``zero``. The values add as many.
        causal: target i takes from sources j <= i.

    ``forward`` takes ``y`` (targets, None: the values' points themselves), ``key`` (what keys are made of where it is
    not x), ``attn_mask`` and ``key_padding_mask`` as ``nn.MultiheadAttention`` does, and masses ``sources``,
    ``targets``.

    Raises:
        ValueError: sizes that do not fit, options that the mixer does not have, masks that it cannot honour.
    """

    own_law = True

    def __init__(
        self,
        in_channels: int,
        heads: int,
        rank: int | None = None,
        *,
        key_channels: int | None = None,
        shared: int | None = None,
        mixer: str = "softmax",
        bias: bool = True,
        extra: tuple[str, ...] = (),
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        shared = shared or heads
        if (rank is None and in_channels % heads) or heads % shared:
            raise ValueError(
                f"Attention: {heads} heads for {in_channels} channels with {shared} key heads; expected heads that divide "
                "the channels (or rank=, the score channels of a head) and key heads that divide the heads."
            )
        mixer_of(mixer, "Attention").check(f"Attention: mixer {mixer!r}", causal=causal, **options)
        self.heads, self.rank, self.shared = heads, rank or in_channels // heads, shared
        self.count, self.mixer, self.options = heads, mixer, options
        self.extra, self.causal = extra, causal
        if causal:
            self._refuse_causal()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Linear(in_channels, heads * self.rank, bias=bias, **made)
        self.key = nn.Linear(
            in_channels if key_channels is None else key_channels, shared * self.rank, bias=bias, **made
        )
        for part in (self.query, self.key):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        learned = sum(kind == "learned" for kind in extra)
        self.extra_keys = (
            nn.Parameter(nn.init.xavier_normal_(torch.empty(learned, shared * self.rank, **made)))
            if learned
            else None
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        key: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        sources: Tokens | None = None,
        targets: Tokens | None = None,
    ) -> Heads:
        own = y is None
        y, key = x if y is None else y, x if key is None else key
        for name, points, linear in (("y", y, self.query), ("key", key, self.key)):
            if points.ndim < 2 or points.shape[-1] != linear.in_features:
                raise ValueError(
                    f"Attention: {name} has shape {tuple(points.shape)}; expected (..., tokens, {linear.in_features}). Where it is "
                    "not given it is x."
                )
        lead, n, m = y.shape[:-2], y.shape[-2], key.shape[-2]
        if key_padding_mask is not None:
            if sources is not None:
                raise ValueError(
                    "Attention: sources and key_padding_mask both say what sources weigh; pass one."
                )
            sources = key_tokens(key_padding_mask, lead, m)
        mixer, causal, bias = mixer_of(self.mixer, "Attention"), self.causal, None
        if mixer.pairwise:
            bias = pair_bias(attn_mask, y, lead, self.heads, n, m)
        elif attn_mask is not None:
            require_causal(attn_mask, self.mixer, n, m)
            self._refuse_causal()
            causal = True
        if targets is None and not mixer.pairwise and (own or causal):
            targets = sources
        sides = [None if t is None else t.heads() for t in (targets, sources)]
        q = self.query(y).unflatten(-1, (self.heads, self.rank)).transpose(-3, -2)
        k, sources_, bias = self._keys(self.key(key), sides[1], bias)
        call: dict[str, Any] = {"targets": sides[0], "sources": sources_, "causal": causal} | self.options
        if bias is not None:
            call["bias"] = bias

        def carry(z: Tensor) -> Tensor:
            return mixer.function(q, k, z, **call)

        return Heads(carry, self.heads, (*lead, n, k.shape[-2]), q.dtype, q.device)

    def _refuse_causal(self) -> None:
        if self.extra:
            raise ValueError("Attention: causal order with added sources, which have no place in it.")

    def _keys(
        self, k: Tensor, sources: Tokens | None, bias: Tensor | None
    ) -> tuple[Tensor, Tokens | None, Tensor | None]:
        """Keys ``(..., K, m + e, D')`` with the added sources, and what goes with them."""
        if self.extra:
            if sources is not None and sources.packed:
                raise ValueError(
                    f"Attention: packed tokens with added sources {self.extra}; every set would need them. Pad the batch, or build "
                    "it without them."
                )
            learned = iter(self.extra_keys if self.extra_keys is not None else ())
            rows = [
                next(learned).to(k.dtype) if kind == "learned" else k.new_zeros(k.shape[-1])
                for kind in self.extra
            ]
            k = torch.cat([k, torch.stack(rows).expand(*k.shape[:-2], -1, -1)], -2)
            if sources is not None:
                mass = None if sources.mass is None else F.pad(sources.mass, (0, len(rows)), value=1.0)
                sources = Tokens(sources.n + len(rows), mass)
            bias = None if bias is None else F.pad(bias, (0, len(rows)))
        k = k.unflatten(-1, (self.shared, self.rank)).transpose(-3, -2)
        return (
            k if self.shared == self.heads else k.repeat_interleave(self.heads // self.shared, -3),
            sources,
            bias,
        )

    def extra_repr(self) -> str:
        return f"heads={self.heads}, mixer={self.mixer!r}, causal={self.causal}"
