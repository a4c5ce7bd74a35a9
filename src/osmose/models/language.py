"""A causal language model in the shape of GPT, around any mixer with a causal form.

    h_0 = dropout(E[token] + P[position])
    h_l = block_l(h_{l-1})            pre-norm: mix in causal order, then feed-forward
    logits = norm(h_L) E^T            or W norm(h_L) with a matrix of its own

With ``flow`` and ``linear`` training costs O(n) and a generated token costs the same however long the text is; with
``softmax`` it is GPT, and the keys and values of the text are kept.

Shapes: B batch, n tokens, E embedding, V symbols.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers.states import StackState
from ..nn import EncoderBlock
from ..nn.blocks import Activation
from ..nn.position import PositionSettings
from ..tokens import Tokens
from .official import Checkpoint, attention, check_names, count, moved, read_state


class LanguageModel(nn.Module):
    """Next-token model over V symbols.

    Args:
        vocab_size: V.
        embed_dim, num_layers, num_heads, ff_dim: sizes; ``ff_dim`` None means 4 E.
        mixer, options: as for :class:`~osmose.nn.MultiheadMixer`; it must have a causal form.
        max_length: number of learned positions; None takes sinusoids, which have no end.
        position: where tokens stand as a part of every mixer (:data:`osmose.nn.POSITIONS`), in place of vectors that are
            added to the embedding: ``shift`` and its kin keep training linear and the state of constant size.
        dropout: after the embedding and in the blocks.
        tied: input and output embedding are one matrix.
        activation: of the blocks.

    Raises:
        ValueError: sizes, a mixer or options that do not go together.

    Source: Radford et al., 2018, 2019; Vaswani et al., 2017, for the sinusoids.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        ff_dim: int | None = None,
        *,
        mixer: str = "flow",
        max_length: int | None = None,
        position: str | PositionSettings | None = None,
        dropout: float = 0.1,
        tied: bool = True,
        activation: Activation = "gelu",
        **options: Any,
    ):
        super().__init__()
        if vocab_size < 1 or num_layers < 1:
            raise ValueError(
                f"LanguageModel: vocab_size is {vocab_size} and num_layers {num_layers}; expected 1 or more."
            )
        if position is not None and max_length is not None:
            raise ValueError(
                f"LanguageModel: position {position!r} and max_length {max_length}; expected one way to place tokens."
            )
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.placed = position is not None
        self.positions = None if max_length is None else nn.Embedding(max_length, embed_dim)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                embed_dim,
                num_heads,
                ff_dim,
                mixer=mixer,
                position=position,
                causal=True,
                dropout=dropout,
                activation=activation,
                norm_first=True,
                **options,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.output = None if tied else nn.Linear(embed_dim, vocab_size, bias=False)
        self.dropout = dropout
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02; those that end a residual branch are divided by ``sqrt(2 L)``."""
        ends = ("out_proj.weight", "linear2.weight")
        for name, value in self.named_parameters():
            if ".position." in name:  # as it starts by itself
                continue
            if name.endswith(".bias") or name.endswith("in_proj_bias"):
                nn.init.zeros_(value)
            elif value.ndim == 2:
                deviation = 0.02 / math.sqrt(2 * len(self.blocks)) if name.endswith(ends) else 0.02
                nn.init.normal_(value, std=deviation)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``(B, n, V)`` of the token after each; ``tokens (B, n)`` int64, ``mask (B, n)`` bool with True = keep.

        Raises ValueError for more tokens than there are learned positions.
        """
        sets = None if mask is None else Tokens.of(tokens.shape[-1], mask=mask)
        x = self._embed(tokens, torch.arange(tokens.shape[-1], device=tokens.device))
        for block in self.blocks:
            x = block(x, sets)
        return self._logits(x)

    def start(self, batch: int = 1) -> StackState:
        """The state of an empty text. Raises ValueError for a mixer that keeps none."""
        weight = self.embedding.weight
        blocks = tuple(block.start(batch, dtype=weight.dtype, device=weight.device) for block in self.blocks)  # type: ignore[operator]
        return StackState(torch.zeros(batch, dtype=torch.int64, device=weight.device), blocks)

    def step(self, tokens: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Logits ``(B, n, V)`` of the next n tokens of a text, and its state after them."""
        n = tokens.shape[-1]
        x = self._embed(tokens, state.length.unsqueeze(-1) + torch.arange(n, device=tokens.device))
        blocks = []
        for block, before in zip(self.blocks, state.blocks, strict=True):
            x, after = block.step(x, before)  # type: ignore[operator]
            blocks.append(after)
        return self._logits(x), StackState(state.length + n, tuple(blocks))

    def generate(self, prompt: Tensor, length: int, **how: Any) -> Tensor:
        """``prompt (B, n)`` and ``length`` tokens more, ``(B, n + length)``: those of :meth:`stream`, with its arguments."""
        return torch.cat([prompt, *self.stream(prompt, length, **how)], -1)

    def stream(
        self,
        prompt: Tensor,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        context: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """``length`` tokens ``(B, 1)`` after ``prompt (B, n)``, one by one as they are drawn, without dropout.

        Args:
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: only the k likeliest tokens.
            top_p: only the likeliest tokens that together have at least this probability.
            context: when the text grows beyond it, go on from the last half of it, read anew. A model that was trained on
                windows is lost beyond their length. None: go on from the whole text.
            generator: of the random choice.

        Raises:
            ValueError: an empty prompt, settings out of range, or more tokens than learned positions.

        Cost: with ``flow`` and ``linear`` the same time and memory for every token, with ``context`` on the average.
        """
        if prompt.ndim != 2 or not prompt.shape[1]:
            raise ValueError(
                f"generate: prompt has shape {tuple(prompt.shape)}; expected (batch, n) with at least one token to start from."
            )
        outside = (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1)
        if length < 0 or temperature < 0 or outside:
            raise ValueError(
                f"generate: length {length}, temperature {temperature}, top_k {top_k}, top_p {top_p}; expected length and "
                "temperature >= 0, top_k >= 1, top_p in (0, 1]."
            )
        if context is not None and context < 1:
            raise ValueError(f"generate: context is {context}; expected 1 or more tokens, or None.")
        if self.positions is not None:
            longest = prompt.shape[1] + max(length - 1, 0)
            self._check_positions(longest if context is None else min(longest, context))
        return self._stream(prompt, length, context, temperature, top_k, top_p, generator)

    def _stream(self, text: Tensor, length: int, context: int | None, *how: Any) -> Iterator[Tensor]:
        training, state, seen, past = self.training, self.start(len(text)), 0, text
        try:
            for _ in range(length):
                if context is not None and seen + text.shape[1] > context:
                    text, state, seen = past[:, -max(context // 2, 1) :], self.start(len(text)), 0
                self.eval()
                with torch.no_grad():
                    logits, state = self.step(text, state)
                    seen, text = seen + text.shape[1], choose(logits[:, -1], *how)
                if context is not None:
                    past = torch.cat([past, text], 1)[:, -context:]
                yield text
        finally:
            self.train(training)

    def _embed(self, tokens: Tensor, position: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is None and not self.placed:
            x = x + 0.02 * math.sqrt(2) * sinusoids(position, x.shape[-1]).to(x.dtype)
        elif self.positions is not None:
            self._check_positions(int(position.max()) + 1 if position.numel() else 0)
            x = x + self.positions(position)
        return F.dropout(x, self.dropout, self.training)

    def _check_positions(self, length: int) -> None:
        assert self.positions is not None
        if length > self.positions.num_embeddings:
            raise ValueError(
                f"LanguageModel: a text of {length} tokens, but the model has learned "
                f"{self.positions.num_embeddings} positions; shorten it, or train with max_length=None."
            )

    def _logits(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return F.linear(x, self.embedding.weight) if self.output is None else self.output(x)

    @classmethod
    def from_official(cls, checkpoint: Checkpoint, *, num_heads: int, **settings: Any) -> LanguageModel:
        """A model with the weights of the authors' GPT (``FlowFormer_GPT``), whose output matrix is its own.

        Args:
            checkpoint: a ``.pt``, ``.pth`` or ``.safetensors`` file, or its state dict.
            num_heads: which weights do not tell.
            settings: ``dropout``, or another ``preset`` than the released code's ``core``.

        Raises:
            ValueError: the names are not those of that model; it lists the first that are missing.
        """
        state = read_state(checkpoint)
        names = (
            "transformer.wte.weight",
            "transformer.wpe.weight",
            "transformer.ln_f.weight",
            "lm_head.weight",
        )
        check_names("LanguageModel.from_official", state, (*names, "transformer.h.0.mlp.c_fc.weight"))
        layers = count(state, "transformer.h.")
        found = moved(
            state,
            {
                "embedding": "transformer.wte",
                "positions": "transformer.wpe",
                "norm": "transformer.ln_f",
                "output": "lm_head",
            },
        )
        for i in range(layers):
            ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
            parts = {"norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
            found |= moved(state, {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()})
            found |= attention(state, f"{ours}.self_attn", f"{theirs}.attn")
        vocab, width = state["transformer.wte.weight"].shape
        released: dict[str, Any] = {"tied": False, "activation": "gelu_tanh", "preset": "core"}
        model = cls(
            vocab,
            width,
            layers,
            num_heads,
            len(state["transformer.h.0.mlp.c_fc.weight"]),
            max_length=len(state["transformer.wpe.weight"]),
            **(released | settings),
        ).to(state["transformer.wte.weight"].dtype)
        model.load_state_dict(found)
        return model


def sinusoids(position: Tensor, width: int) -> Tensor:
    """``sin(p / 10000^(2i/width))`` and cosines side by side: ``(...)`` to ``(..., width)``, float32."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=position.device) * (-math.log(10_000.0) / max(half, 1)))
    angles = position.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A token for each row of ``logits (B, V)``, as ``(B, 1)``; see :meth:`LanguageModel.stream`."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(-1, descending=True)
        p = ordered.softmax(-1)
        beyond = p.cumsum(-1) - p >= top_p  # what comes before already has that probability
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, index, beyond), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)
