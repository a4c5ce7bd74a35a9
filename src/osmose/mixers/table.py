"""The table of mixers: one entry for each way to mix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from ..ops.diffusion import diffusion_attention
from ..ops.flow import FlowState, flow_attention
from .linear import linear_attention, mean_attention
from .sigmoid import sigmoid_weights
from .softmax import softmax_attention, softmax_weights
from .states import KeyValueState, LinearState, State

_OF_THE_CALL = frozenset({"targets", "sources", "causal", "bias", "dropout"})


@dataclass(frozen=True)
class Mixer:
    """One way to mix, linear in the values.

    Attributes:
        function: ``function(q, k, v, *, targets, sources, causal, **options)`` for ``q (..., H, n, d)``,
            ``k (..., H, m, d)``, ``v (..., H, m, c)`` to ``(..., H, n, c)``. Masses of padded tokens have a head
            dimension (:meth:`~osmose.tokens.Tokens.heads`). It raises ValueError where it has no causal form.
        weights: ``weights(q, k, **call)``, its matrix ``(..., H, n, m)``; None applies it to the identity.
        pairwise: whether it has a score for each pair, so that both functions also take ``bias``, added to the
            scores, and ``dropout`` of single weights.
        uses_columns: whether what a target takes depends on the other targets, as in
            :class:`~osmose.laws.Law`; in cross attention it then sees later ones.
        state: ``state(batch, heads, d, c, *, dtype, device, **options)``, what its causal form remembers of an empty
            sequence (states.py); None where it keeps nothing that a sequence could go on from.
    """

    function: Callable[..., Tensor]
    weights: Callable[..., Tensor] | None = None
    pairwise: bool = False
    uses_columns: bool = False
    state: Callable[..., State] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options."""
        given = _OF_THE_CALL | set(self.function.keywords if isinstance(self.function, partial) else ())
        parameters = signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name not in given)

    def check(self, what: str, *, causal: bool = False, **options: Any) -> None:
        """Raise ValueError for options that it does not have or cannot take; they are tried on one token."""
        known = self.options
        for name in options:
            if name not in known:
                expected = f"expected one of {', '.join(known)}" if known else "it has none"
                raise ValueError(f"{what} has no option {name!r}; {expected}.{_nearest(name, known)}")
        token = torch.zeros(1, 1, 1, device="cpu")
        self.function(token, token, token, causal=causal, **options)

    def matrix(self, q: Tensor, k: Tensor, **call: Any) -> Tensor:
        """What it multiplies values with, ``(..., H, n, m)``. Time ``n m d``, memory ``n m``."""
        if self.weights is not None:
            return self.weights(q, k, **call)
        identity = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
        return self.function(q, k, identity.expand(*k.shape[:-1], -1), **call)


MIXERS: dict[str, Mixer] = {
    "flow": Mixer(flow_attention, uses_columns=True, state=FlowState.empty),
    "softmax": Mixer(softmax_attention, softmax_weights, pairwise=True, state=KeyValueState.empty),
    "diffusion": Mixer(partial(diffusion_attention, kernel="simple")),
    "diffusion-sigmoid": Mixer(partial(diffusion_attention, kernel="sigmoid"), sigmoid_weights),
    "linear": Mixer(linear_attention, state=LinearState.empty),
    "mean": Mixer(mean_attention),
}
"""A mixer by name; one more entry is one more mixer everywhere."""


def mixer_of(name: str, what: str) -> Mixer:
    """The entry of ``MIXERS``.

    Raises:
        ValueError: an unknown name, with the nearest known one.
    """
    if name not in MIXERS:
        known = tuple(MIXERS)
        raise ValueError(
            f"{what}: mixer is {name!r}; expected one of {', '.join(known)}.{_nearest(name, known)}"
        )
    return MIXERS[name]


def _nearest(name: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
