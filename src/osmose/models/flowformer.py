"""Flowformer for whole sequences: time series, bytes, pixels, expressions; one answer for each.

    h_0 = dropout(W_in [x_tP, ..., x_tP+P-1] + p_t)      P steps joined (symbols: E[x_t], then the same)
    h_l = block_l(h_{l-1})                               post-norm: flow-attention, then feed-forward with GELU
    y   = W_out mean_t(norm(h_L))                        the mean over what exists

Wu et al., ICML 2022 (2202.06258). Positions are sinusoids: a sequence may be longer than any that was seen. With another
mixer it is a Transformer, or a linear one, of the same size. The released code for series flattens all positions,
padding too, in place of the mean, and learns its positions.

Shapes: B sequences of at most n steps, c channels, E hidden channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import EncoderBlock
from ..tokens import Tokens
from .language import sinusoids


class SequenceClassifier(nn.Module):
    """Classes of sequences of different lengths, by an encoder around any mixer.

    Args:
        in_channels: c, or the number of symbols.
        hidden_channels: E, a multiple of ``num_heads``; the feed-forward part has 4 E.
        out_channels: number of classes.
        symbols: whether steps are ids below ``in_channels``, not vectors of them.
        num_layers, num_heads, dropout: of the encoder.
        patch: P, the steps that are joined into one token; the last patch is filled with zeros.
        mixer, options: as for :class:`~osmose.nn.EncoderBlock`.

    Raises:
        ValueError: sizes or options that do not fit.

    Cost: with ``flow`` and ``linear`` O(n E^2 / P), with ``softmax`` also n^2 E / P^2. Padding costs as much as steps.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        symbols: bool = False,
        num_layers: int = 2,
        num_heads: int = 8,
        dropout: float = 0.1,
        patch: int = 1,
        mixer: str = "flow",
        **options: Any,
    ):
        super().__init__()
        if patch < 1:
            raise ValueError(f"SequenceClassifier: patch is {patch}; expected 1 or more steps.")
        width = hidden_channels if symbols else in_channels
        self.symbols = nn.Embedding(in_channels, hidden_channels) if symbols else None
        self.input = nn.Linear(patch * width, hidden_channels)
        self.blocks = nn.ModuleList(
            EncoderBlock(hidden_channels, num_heads, mixer=mixer, dropout=dropout, **options)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_channels)
        self.output = nn.Linear(hidden_channels, out_channels)
        self.in_channels, self.patch, self.dropout = in_channels, patch, dropout

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits ``(B, out_channels)``.

        Args:
            values: ``(B, n, c)``, or ids ``(B, n)``.
            lengths: ``(B,)``, the steps that exist; the others count nowhere. None: all.

        Raises:
            ValueError: a shape that does not fit, or a sequence shorter than the patch.
        """
        tokens, x = self._tokens(values, lengths)
        x = self.input(x)
        x = x + sinusoids(torch.arange(x.shape[1], device=x.device), x.shape[-1]).to(x.dtype)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, tokens)
        return self.output(tokens.mean(self.norm(x)).to(x.dtype))

    def _tokens(self, values: Tensor, lengths: Tensor | None) -> tuple[Tokens, Tensor]:
        """Which patches exist, and their steps side by side, ``(B, patches, P width)``."""
        ndim = 3 if self.symbols is None else 2
        if values.ndim != ndim or (ndim == 3 and values.shape[-1] != self.in_channels):
            expected = f"(batch, steps, {self.in_channels})" if ndim == 3 else "(batch, steps) of symbols"
            raise ValueError(
                f"SequenceClassifier: values have shape {tuple(values.shape)}; expected {expected}."
            )
        n = values.shape[1]
        if lengths is None:
            lengths = torch.full((len(values),), n, device=values.device)
        if not torch.compiler.is_compiling() and lengths.numel() and int(lengths.min()) < self.patch:
            raise ValueError(
                f"SequenceClassifier: a sequence of {int(lengths.min())} steps is shorter than the patch of {self.patch}; "
                "take a smaller patch."
            )
        x = values if self.symbols is None else self.symbols(values)
        x = x.where((torch.arange(n, device=x.device) < lengths.unsqueeze(-1)).unsqueeze(-1), 0.0)
        x = F.pad(x, (0, 0, 0, -n % self.patch)).unflatten(1, (-1, self.patch)).flatten(2)
        patches = lengths.add(self.patch - 1).div(self.patch, rounding_mode="floor")
        return Tokens.of(x, lengths=patches), x
