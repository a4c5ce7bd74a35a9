"""Softmax attention on tokens with mass: torch's kernels, with a bias for masses and pairs.

Shapes: as in table.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Tokens
from .sides import both_sides


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    targets: Tokens | None = None,
    sources: Tokens | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """``a_i = sum_j m_j e_ij v_j / sum_j m_j e_ij`` with ``e_ij = exp(q_i . k_j / sqrt(d) + bias_ij)``.

    Args:
        q, k, v: ``(..., H, n, d)``, ``(..., H, m, d)``, ``(..., H, m, c)``.
        targets, sources: masses and sets; None means 1 and one set.
        causal: target i sees sources j <= i of its set.
        bias: broadcasts to ``(..., H, n, m)``; -inf hides a pair. Not for packed tokens.
        dropout: probability that a weight becomes 0; the others grow by ``1 / (1 - dropout)``.

    Returns:
        ``(..., H, n, c)``; 0 for targets of mass 0 and where no source is left, where torch gives NaN.

    Raises:
        ValueError: tokens that do not fit, or causal with different tokens on the two sides.

    Cost: that of ``torch.nn.functional.scaled_dot_product_attention``; packed sets one call of it each.
    """
    targets, sources = both_sides("softmax_attention", q, k, v, targets, sources, causal)
    if sources.packed:
        if bias is not None:
            raise ValueError("softmax_attention: a bias of pairs goes with padded tokens; these are packed.")
        return _by_set(q, k, v, targets, sources, causal, dropout)
    if not k.shape[-2]:
        return v.new_zeros(*q.shape[:-1], v.shape[-1])
    bias, hidden = _bias(q, k, targets, sources, causal, bias)
    if bias is None:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
    else:
        out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), dropout_p=dropout)
    return out if hidden is None else out.masked_fill(hidden, 0.0)


def softmax_weights(
    q: Tensor,
    k: Tensor,
    *,
    targets: Tokens | None = None,
    sources: Tokens | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The matrix of :func:`softmax_attention`, ``(..., H, n, m)``; packed sets are its blocks."""
    targets, sources = both_sides("softmax_weights", q, k, k, targets, sources, causal)
    bias, hidden = _bias(q, k, targets, sources, causal, bias, explicit=True)
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.mT
    weights = F.dropout((scores if bias is None else scores + bias).softmax(-1).to(q.dtype), dropout)
    return weights if hidden is None else weights.masked_fill(hidden, 0.0)


def _bias(
    q: Tensor,
    k: Tensor,
    targets: Tokens,
    sources: Tokens,
    causal: bool,
    bias: Tensor | None,
    explicit: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """All masks as one bias ``(..., n or 1, m)``, and the targets ``(..., n or 1, 1)`` that receive 0.

    The order of a causal call is left to torch where it is the only mask, unless ``explicit``.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    hidden = None if targets.mass is None else targets.mass.unsqueeze(-1) <= 0
    if sources.mass is not None:
        mass = sources.mass.to(wide).unsqueeze(-2)
        exists = mass > 0
        logs = torch.where(exists, torch.where(exists, mass, 1.0).log(), -torch.inf)
        bias = logs if bias is None else bias + logs
    if causal and (explicit or bias is not None):
        order = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        bias = torch.where(order, 0.0 if bias is None else bias, -torch.inf)
    same = targets.same_set(sources)
    if same is not None:
        bias = torch.where(same, 0.0 if bias is None else bias, -torch.inf)
    if bias is None:
        return None, hidden
    empty = (bias == -torch.inf).all(-1, keepdim=True)
    return bias.masked_fill(empty, 0.0), empty if hidden is None else hidden | empty


def _by_set(
    q: Tensor, k: Tensor, v: Tensor, targets: Tokens, sources: Tokens, causal: bool, dropout: float
) -> Tensor:
    n, m = targets.sizes.tolist(), sources.sizes.tolist()
    masses = [
        [None] * len(sizes) if t.mass is None else t.sort(t.mass, -1).split(sizes, -1)
        for t, sizes in ((targets, n), (sources, m))
    ]
    parts = zip(
        targets.sort(q).split(n, -2), sources.sort(k).split(m, -2), sources.sort(v).split(m, -2), *masses,
        strict=True,
    )  # fmt: skip
    out = [
        softmax_attention(
            qs, ks, vs, targets=Tokens(qs.shape[-2], mu), sources=Tokens(ks.shape[-2], nu),
            causal=causal, dropout=dropout,
        )
        for qs, ks, vs, mu, nu in parts
    ]  # fmt: skip
    return targets.unsort(torch.cat(out, -2))
