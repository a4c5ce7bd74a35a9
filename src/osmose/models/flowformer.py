"""Flowformer for whole sequences: time series, bytes, pixels, expressions; one answer for each.

    h_0 = dropout(W_in [x_tP, ..., x_tP+P-1] + p_t)      P steps joined (symbols: E[x_t], then the same)
    h_l = block_l(h_{l-1})                               post-norm: flow-attention, then feed-forward with GELU
    y   = W_out mean_t(norm(h_L))                        the mean over what exists

Wu et al., ICML 2022 (2202.06258). Positions are sinusoids: a sequence may be longer than any that was seen. With another
mixer it is a Transformer, or a linear one, of the same size. The released code for series has a table of positions, and in
place of the mean one row of weights for every position, ``y = W_out [gelu(norm(h_L))_1, ..., gelu(norm(h_L))_n]`` with 0
where there is no step; ``max_length`` and ``flatten`` give that.

Shapes: B sequences of at most n steps, c channels, E hidden channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import EncoderBlock
from ..nn.position import PositionSettings
from ..tokens import Tokens
from .language import sinusoids
from .official import Checkpoint, attention, check_names, count, moved, read_state


class SequenceClassifier(nn.Module):
    """Classes of sequences of different lengths, by an encoder around any mixer.

    Args:
        in_channels: c, or the number of symbols.
        hidden_channels: E, a multiple of ``num_heads``; the feed-forward part has 4 E.
        out_channels: number of classes.
        symbols: whether steps are ids below ``in_channels``, not vectors of them.
        num_layers, num_heads, dropout: of the encoder.
        patch: P, the steps that are joined into one token; the last patch is filled with zeros.
        max_length: number of learned positions; None takes sinusoids, which have no end.
        flatten: weigh every position by itself, up to ``max_length``, in place of the mean.
        position: where steps stand as a part of every mixer (:data:`osmose.nn.POSITIONS`), in place of added vectors.
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
        max_length: int | None = None,
        flatten: bool = False,
        mixer: str = "flow",
        position: str | PositionSettings | None = None,
        **options: Any,
    ):
        super().__init__()
        if position is not None and max_length is not None:
            raise ValueError(
                f"SequenceClassifier: position {position!r} and max_length {max_length}; expected one way to place tokens."
            )
        if patch < 1:
            raise ValueError(f"SequenceClassifier: patch is {patch}; expected 1 or more steps.")
        if flatten and max_length is None:
            raise ValueError(
                "SequenceClassifier: flatten needs max_length, the number of positions; expected a number."
            )
        width = hidden_channels if symbols else in_channels
        self.symbols = nn.Embedding(in_channels, hidden_channels) if symbols else None
        self.input = nn.Linear(patch * width, hidden_channels)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                hidden_channels, num_heads, mixer=mixer, position=position, dropout=dropout, **options
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_channels)
        self.positions = None if max_length is None else nn.Embedding(max_length, hidden_channels)
        rows = max_length if flatten and max_length is not None else 1
        self.output = nn.Linear(rows * hidden_channels, out_channels)
        self.in_channels, self.patch, self.dropout, self.flatten = in_channels, patch, dropout, flatten
        self.placed = position is not None

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits ``(B, out_channels)``.

        Args:
            values: ``(B, n, c)``, or ids ``(B, n)``.
            lengths: ``(B,)``, the steps that exist; the others count nowhere. None: all.

        Raises:
            ValueError: a shape that does not fit, or a sequence shorter than the patch.
        """
        tokens, x = self._tokens(values, lengths)
        x = F.dropout(self._placed(self.input(x)), self.dropout, self.training)
        for block in self.blocks:
            x = block(x, tokens)
        x = self.norm(x)
        if not self.flatten:
            return self.output(tokens.mean(x).to(x.dtype))
        assert self.positions is not None
        x = tokens.weigh(F.dropout(F.gelu(x), self.dropout, self.training)).to(x.dtype)
        return self.output(F.pad(x, (0, 0, 0, self.positions.num_embeddings - x.shape[1])).flatten(1))

    def _placed(self, x: Tensor) -> Tensor:
        """The tokens with their positions."""
        if self.placed:
            return x
        place = torch.arange(x.shape[1], device=x.device)
        if self.positions is None:
            return x + sinusoids(place, x.shape[-1]).to(x.dtype)
        if x.shape[1] > self.positions.num_embeddings:
            raise ValueError(
                f"SequenceClassifier: a sequence of {x.shape[1]} tokens, but the model has learned "
                f"{self.positions.num_embeddings} positions; shorten it, or train with max_length=None."
            )
        return x + self.positions(place)

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

    @classmethod
    def from_official(cls, checkpoint: Checkpoint, *, num_heads: int, **settings: Any) -> SequenceClassifier:
        """A model with the weights of the authors' series model (``FlowformerClassiregressor``).

        Where all sequences have one length it gives what that gives. Else it does not: there padding takes part in the
        attention, here it counts nowhere. Arguments and errors are those of :meth:`LanguageModel.from_official`; the preset
        is ``series``.
        """
        state = read_state(checkpoint)
        names = (
            "project_inp.weight",
            "project_inp.bias",
            "pos_enc.pe",
            "encoder.norm.weight",
            "output_layer.weight",
        )
        check_names("SequenceClassifier.from_official", state, (*names, "encoder.attn_layers.0.conv1.weight"))
        layers, (width, channels) = count(state, "encoder.attn_layers."), state["project_inp.weight"].shape
        if (ff := len(state["encoder.attn_layers.0.conv1.weight"])) != 4 * width:
            settings = {"ff_dim": ff} | settings
        found = moved(state, {"norm": "encoder.norm", "output": "output_layer", "input": "project_inp"})
        for name in ("input.weight", "input.bias"):  # there the projection is multiplied by this root
            found[name] = found[name] * width**0.5
        found["positions.weight"] = state["pos_enc.pe"].squeeze(1)
        for i in range(layers):
            ours, theirs = f"blocks.{i}", f"encoder.attn_layers.{i}"
            parts = {"norm1": "norm1", "norm2": "norm2", "linear1": "conv1", "linear2": "conv2"}
            found |= moved(state, {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()})
            found |= attention(state, f"{ours}.self_attn", f"{theirs}.attention")
        model = cls(
            channels,
            width,
            len(state["output_layer.weight"]),
            num_layers=layers,
            num_heads=num_heads,
            max_length=len(state["pos_enc.pe"]),
            flatten=True,
            **({"preset": "series"} | settings),
        ).to(state["project_inp.weight"].dtype)
        model.load_state_dict(found)
        return model
