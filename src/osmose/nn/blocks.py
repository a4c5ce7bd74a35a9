"""Encoder, decoder and cross blocks: transformer layers around any mixer, on tokens with mass.

Parameter names are those of torch's ``nn.TransformerEncoderLayer`` and ``nn.TransformerDecoderLayer``, whose state dicts
they load. Shapes: points ``(B, n, E)`` padded, ``(n, E)`` packed or one set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers import MIXERS, mixer_of
from ..mixers.states import State
from ..tokens import Tokens
from .mixer import MultiheadMixer
from .position import PositionSettings
from .position.state import PlacedState

Activation = Literal["gelu", "gelu_tanh", "relu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class _Block(nn.Module):
    """Residual branches with norm and dropout, the last of them ``W_2 act(W_1 x)``."""

    def __init__(
        self,
        embed_dim: int,
        ff_dim: int | None,
        dropout: float,
        activation: str,
        norm_first: bool,
        made: dict[str, Any],
    ):
        super().__init__()
        if activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise ValueError(f"{type(self).__name__}: activation is {activation!r}; expected one of {known}.")
        ff_dim = 4 * embed_dim if ff_dim is None else ff_dim
        self.linear1 = nn.Linear(embed_dim, ff_dim, **made)
        self.linear2 = nn.Linear(ff_dim, embed_dim, **made)
        self.norm1 = nn.LayerNorm(embed_dim, **made)
        self.norm2 = nn.LayerNorm(embed_dim, **made)
        self.dropout, self.activation, self.norm_first = dropout, activation, norm_first

    def _branch(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self._drop(branch(norm(x)))
        return norm(x + self._drop(branch(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self._drop(_ACTIVATIONS[self.activation](self.linear1(x))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class EncoderBlock(_Block):
    """``x <- x + mix(x)``, then ``x <- x + feed_forward(x)``, each with LayerNorm before it (``norm_first``) or after.

    Args:
        embed_dim: E.
        num_heads: H.
        ff_dim: width of the feed-forward part; None means 4 E.
        mixer, position, options: as for :class:`MultiheadMixer`.
        causal: token i sees tokens j <= i of its set.
        dropout: in training, of the mixing weights, the feed-forward part and both branches.
        activation: ``gelu``, its approximation by tanh (GPT's) ``gelu_tanh``, or ``relu``.
        norm_first: LayerNorm before the branches.

    Raises:
        ValueError: as :class:`MultiheadMixer`, or causal order that the mixer does not have.

    With ``mixer="softmax"`` it is ``nn.TransformerEncoderLayer`` with ``batch_first``, which also gives its state dict.
    Cost: the mixer's, and ``n E ff_dim``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ff_dim: int | None = None,
        *,
        mixer: str = "flow",
        position: str | PositionSettings | None = None,
        causal: bool = False,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        norm_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, ff_dim, dropout, activation, norm_first, made)
        options |= made | {"position": position}
        self.self_attn = _mixer("EncoderBlock", embed_dim, num_heads, dropout, mixer, causal, options)
        self.causal = causal

    def forward(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        """``(..., n, E)`` to ``(..., n, E)``.

        Args:
            x: padded ``(B, n, E)``, packed ``(n, E)``, or one set; padding may hold anything finite.
            tokens: masses ``(B, n)`` or packed sets; None means all, mass 1.
        """
        x = self._branch(x, self.norm1, lambda h: _mix_own(self.self_attn, h, tokens, self.causal))
        return self._branch(x, self.norm2, self._feed_forward)

    def start(
        self, batch: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> State:
        """What a causal block remembers of an empty sequence, for :meth:`step`.

        Raises:
            ValueError: the block is not causal, or its mixer or position has no state to go on from.
        """
        mixer = self.self_attn
        state = mixer_of(mixer.mixer, "EncoderBlock").state
        if not self.causal or state is None:
            known = ", ".join(name for name, entry in MIXERS.items() if entry.state is not None)
            raise ValueError(
                f"EncoderBlock: mixer {mixer.mixer!r} with causal={self.causal} has no state; expected causal=True and "
                f"one of {known}."
            )
        d, made, position = mixer.head_dim, {"dtype": dtype, "device": device}, mixer.position
        if position is not None and position.remembers is None:
            raise ValueError(
                f"EncoderBlock: a state with position {type(position).__name__}, which asks where a token stands from the start; "
                "take shift, shift-mixture, short-conv or fixed-shift, or call forward on the whole sequence."
            )
        heads = mixer.num_heads - (0 if position is None else position.taken_heads)
        inner = state(batch, heads, d, d, **made, **mixer.options)
        return inner if position is None else PlacedState.empty(mixer, inner, batch, **made)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next tokens ``(B, n, E)`` of sequences: what :meth:`forward` gives for them, and the state after them."""
        after = state

        def mix(h: Tensor) -> Tensor:
            nonlocal after
            out, after = state(*self.self_attn.project(h, h, h))
            return self.self_attn.merge(out)

        x = self._branch(x, self.norm1, mix)
        return self._branch(x, self.norm2, self._feed_forward), after


class CrossBlock(_Block):
    """``x <- x + mix(x, memory)``, then ``x <- x + feed_forward(x)``: targets take from a memory of other tokens.

    Args:
        memory_dim: channels of the memory; None means E.
        others: as for :class:`EncoderBlock`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ff_dim: int | None = None,
        *,
        memory_dim: int | None = None,
        mixer: str = "flow",
        dropout: float = 0.1,
        activation: Activation = "gelu",
        norm_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, ff_dim, dropout, activation, norm_first, made)
        sides = {"kdim": memory_dim, "vdim": memory_dim}
        self.multihead_attn = _mixer(
            "CrossBlock", embed_dim, num_heads, dropout, mixer, False, made | sides | options
        )

    def forward(
        self, x: Tensor, memory: Tensor, tokens: Tokens | None = None, memory_tokens: Tokens | None = None
    ) -> Tensor:
        """``x (..., n, E)`` and ``memory (..., m, memory_dim)`` to ``(..., n, E)``; both padded or both packed."""
        x = self._branch(
            x, self.norm1, lambda h: _mix_memory(self.multihead_attn, h, memory, tokens, memory_tokens)
        )
        return self._branch(x, self.norm2, self._feed_forward)


class DecoderBlock(_Block):
    """``x <- x + mix(x)`` in causal order, ``x <- x + mix(x, memory)``, ``x <- x + feed_forward(x)``.

    Args:
        memory_dim: channels of the memory; None means E.
        causal: token i sees tokens j <= i of its set in the first step; it sees all of the memory.
        position: of the first step, as for :class:`MultiheadMixer`.
        memory_mixer: of the second step. None means ``mixer`` with its options; but in causal order ``linear`` in the
            place of ``flow``, whose outgoing flow counts all targets and so would show each of them the future.
        others: as for :class:`EncoderBlock`.

    Raises:
        ValueError: also a ``memory_mixer`` that would show the future in causal order.

    With ``mixer="softmax"`` it is ``nn.TransformerDecoderLayer`` with ``batch_first``, which also gives its state dict.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ff_dim: int | None = None,
        *,
        memory_dim: int | None = None,
        mixer: str = "flow",
        position: str | PositionSettings | None = None,
        causal: bool = True,
        memory_mixer: str | None = None,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        norm_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, ff_dim, dropout, activation, norm_first, made)
        self.norm3 = nn.LayerNorm(embed_dim, **made)
        placed = made | options | {"position": position}
        self.self_attn = _mixer("DecoderBlock", embed_dim, num_heads, dropout, mixer, causal, placed)
        leaks = causal and mixer_of(memory_mixer or mixer, "DecoderBlock").uses_columns
        if leaks and memory_mixer is not None:
            raise ValueError(
                f"DecoderBlock: memory_mixer is {memory_mixer!r} with causal=True; what one of its targets takes depends on "
                "the others, later ones too. Take linear, diffusion or softmax."
            )
        sides = {"kdim": memory_dim, "vdim": memory_dim}
        if memory_mixer is None and not leaks:
            memory_mixer, sides = mixer, sides | options
        self.multihead_attn = _mixer(
            "DecoderBlock", embed_dim, num_heads, dropout, memory_mixer or "linear", False, made | sides
        )
        self.causal = causal

    def forward(
        self, x: Tensor, memory: Tensor, tokens: Tokens | None = None, memory_tokens: Tokens | None = None
    ) -> Tensor:
        """``x (..., n, E)`` and ``memory (..., m, memory_dim)`` to ``(..., n, E)``; both padded or both packed."""
        x = self._branch(x, self.norm1, lambda h: _mix_own(self.self_attn, h, tokens, self.causal))
        x = self._branch(
            x, self.norm2, lambda h: _mix_memory(self.multihead_attn, h, memory, tokens, memory_tokens)
        )
        return self._branch(x, self.norm3, self._feed_forward)


def _mixer(
    what: str,
    embed_dim: int,
    num_heads: int,
    dropout: float,
    mixer: str,
    causal: bool,
    options: dict[str, Any],
) -> MultiheadMixer:
    made = MultiheadMixer(embed_dim, num_heads, dropout, batch_first=True, mixer=mixer, **options)
    if causal:
        mixer_of(mixer, what).check(f"{what}: mixer {mixer!r}", causal=True, **made.options)
    return made


def _mix_own(mixer: MultiheadMixer, x: Tensor, tokens: Tokens | None, causal: bool) -> Tensor:
    return mixer.attend(x, x, x, targets=tokens, sources=tokens, causal=causal)[0]


def _mix_memory(
    mixer: MultiheadMixer, x: Tensor, memory: Tensor, tokens: Tokens | None, memory_tokens: Tokens | None
) -> Tensor:
    return mixer.attend(x, memory, memory, targets=tokens, sources=memory_tokens)[0]
