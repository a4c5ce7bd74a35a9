"""The masks of ``torch.nn.MultiheadAttention`` in our terms: masses of tokens, an order, a bias of pairs.

Shapes: B batch, H heads, n targets, m sources.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens


def check_inputs(
    query: Tensor, key: Tensor, value: Tensor, sizes: tuple[int, int, int], batch_first: bool
) -> None:
    """Raise ValueError unless shapes are those of one batched or unbatched call; ``sizes`` are the channels."""
    batched, layout = (
        query.ndim == 3,
        "(batch, tokens, channels)" if batch_first else "(tokens, batch, channels)",
    )
    fits = query.ndim in (2, 3) and query.ndim == key.ndim == value.ndim
    fits = fits and (query.shape[-1], key.shape[-1], value.shape[-1]) == sizes
    fits = fits and key.shape[:-1] == value.shape[:-1]
    side = 0 if batch_first else 1
    if not fits or (batched and query.shape[side] != key.shape[side]):
        raise ValueError(
            f"MultiheadMixer: query, key, value have shapes {tuple(query.shape)}, {tuple(key.shape)}, "
            f"{tuple(value.shape)}; expected {layout} or (tokens, channels), with {', '.join(map(str, sizes))} channels, "
            f"one batch size, and a value for each key. This module has batch_first={batch_first}."
        )


def key_tokens(mask: Tensor | None, lead: torch.Size, m: int) -> Tokens | None:
    """The sources of a call with ``key_padding_mask``: bool, True = ignore, or additive, the log of the mass.

    Raises:
        ValueError: not ``(*lead, m)``.
        TypeError: neither bool nor float.
    """
    if mask is None:
        return None
    if mask.shape != (*lead, m):
        raise ValueError(
            f"MultiheadMixer: key_padding_mask has shape {tuple(mask.shape)} but key has {_sizes(lead)}length {m}; "
            f"expected {(*lead, m)}. True means 'ignore'."
        )
    if mask.dtype in (torch.float16, torch.bfloat16):
        mask = mask.float()
    return Tokens.of(m, key_padding_mask=mask)


def pair_bias(
    mask: Tensor | None, like: Tensor, lead: torch.Size, heads: int, n: int, m: int
) -> Tensor | None:
    """``attn_mask`` as what is added to scores, ``(n, m)`` or ``(*lead, H, n, m)``, in the type of ``like``."""
    if mask is None:
        return None
    together = (lead.numel() * heads, n, m)
    if mask.shape not in ((n, m), together):
        raise ValueError(
            f"MultiheadMixer: attn_mask has shape {tuple(mask.shape)} with {_sizes(lead)}{heads} heads, {n} targets and "
            f"{m} sources; expected {(n, m)} or {together}."
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, -torch.inf)
    elif not mask.is_floating_point():
        raise TypeError(
            f"MultiheadMixer: attn_mask has dtype {mask.dtype}; expected bool, True = hidden, or an additive float mask."
        )
    return mask if mask.ndim == 2 else mask.view(*lead, heads, n, m)


def require_causal(mask: Tensor, mixer: str, n: int, m: int) -> None:
    """Raise ValueError unless ``attn_mask`` is the causal mask, value by value: the one a linear mixer can honour.

    Inside a compiled graph the check runs with the graph, and raises RuntimeError.
    """
    refused = (
        f"not the causal mask, and the mixer {mixer!r} never forms the pairs that another mask would hide. For causal "
        "order pass is_causal=True, or a 2-D mask that is True (or -inf) above the diagonal and False (or 0) elsewhere; to "
        "ignore keys pass key_padding_mask; to keep sequences apart call attend() with packed Tokens; for any other mask "
        "take mixer='softmax'."
    )
    if mask.shape != (n, m) or n != m or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"MultiheadMixer: attn_mask of shape {tuple(mask.shape)} and dtype {mask.dtype}, for {n} targets and {m} "
            f"sources, is {refused}"
        )
    above = torch.ones(n, m, dtype=torch.bool, device=mask.device).triu(1)
    causal = above if mask.dtype == torch.bool else torch.where(above, -torch.inf, 0.0).to(mask.dtype)
    same = (mask == causal).all()
    if torch.compiler.is_compiling():
        torch._assert_async(same, f"MultiheadMixer: attn_mask is {refused}")
    elif not bool(same):
        raise ValueError(f"MultiheadMixer: attn_mask is {refused}")


def order_of_bias(bias: Tensor | None, causal: bool) -> tuple[Tensor | None, bool]:
    """A bias of pairs that is the causal mask, as causal order: a position has to know it. Others stay what they are.

    Inside a compiled graph values are not looked at: there ``causal`` tells the order.
    """
    if bias is None or bias.shape[-1] != bias.shape[-2] or torch.compiler.is_compiling():
        return bias, causal and bias is None
    above = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
    same = (bias == torch.where(above, -torch.inf, 0.0).to(bias.dtype)).all()
    return (None, True) if bool(same) else (bias, False)


def require_open(bias: Tensor) -> None:
    """Raise ValueError for a bias that hides pairs, where a position carries values past it."""
    hides = (bias == -torch.inf).any()
    says = (
        "MultiheadMixer: a mask that hides pairs, and is not the causal one, with a position that carries values past it: they "
        "would be seen all the same. Take a position in the score (shift-score, relative, t5, alibi, rope), or key_padding_mask "
        "or packed Tokens for what the mask is to hide."
    )
    if torch.compiler.is_compiling():
        torch._assert_async(~hides, says)
    elif bool(hides):
        raise ValueError(says)


def _sizes(lead: torch.Size) -> str:
    return f"batch {lead[0]} and " if lead else ""
