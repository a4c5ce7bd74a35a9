"""What every op checks of its arguments: points, and the tokens on the two sides."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens, check_pair


def check_points(what: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless ``q (..., H, n, d)``, ``k (..., H, m, d)``, ``v (..., H, m, c)`` go together."""
    if not q.ndim == k.ndim == v.ndim >= 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"{what}: {shapes(q, k, v)}; expected (..., H, n, d), (..., H, m, d), (..., H, m, c), or two dimensions each."
        )
    if q.shape[:-2] != k.shape[:-2] or q.shape[:-2] != v.shape[:-2]:
        for sizes in zip(q.shape[:-2], k.shape[:-2], v.shape[:-2], strict=True):
            if len(set(sizes) - {1}) > 1:
                raise ValueError(
                    f"{what}: {shapes(q, k, v)}; expected leading dimensions that are equal or 1."
                )
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"{what}: q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; expected one float type for all."
        )


def shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q has shape {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def spread_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points with the leading dimensions of all of them, a head dimension added where there is none."""
    if q.ndim == 2:
        q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    return q.expand(*lead, *q.shape[-2:]), k.expand(*lead, *k.shape[-2:]), v.expand(*lead, *v.shape[-2:])


def both_tokens(
    what: str, q: Tensor, k: Tensor, sources: Tokens | None, targets: Tokens | None
) -> tuple[Tokens, Tokens]:
    """Sources and targets with masses of shape ``(n,)`` where packed, else ``(..., 1 or H, n)``."""
    n, m = q.shape[-2], k.shape[-2]
    targets, sources = targets or Tokens(n), sources or Tokens(m)
    check_pair(what, targets, sources, n, m)
    return _with_heads(what, "sources", sources, q), _with_heads(what, "targets", targets, q)


def _with_heads(what: str, name: str, tokens: Tokens, q: Tensor) -> Tokens:
    mass = tokens.mass
    if mass is None or (mass.ndim == 1 and tokens.packed):
        return tokens
    lead = q.shape[:-2]
    shaped = mass.unsqueeze(-2) if mass.ndim == q.ndim - 2 else mass
    fits = mass.ndim in (1, q.ndim - 2, q.ndim - 1) and not tokens.packed
    if not fits or any(a not in (1, b) for a, b in zip(shaped.shape[-2::-1], lead[::-1], strict=False)):
        expected = f"({tokens.n},)" if tokens.packed else f"({tokens.n},) or {(*lead[:-1], tokens.n)}"
        raise ValueError(
            f"{what}: {name} have a mass of shape {tuple(mass.shape)} but q has leading shape "
            f"{tuple(lead)} (the last of them heads); expected {expected}."
        )
    return tokens.with_mass(shaped)


def check_same_sets(what: str, sources: Tokens, targets: Tokens) -> None:
    if sources.batch is not None and targets.batch is not None and not sources.batch.equal(targets.batch):
        raise ValueError(
            f"{what}: causal=True with targets and sources of different sets; 'earlier' is defined for one "
            "sequence of tokens only: pass the same Tokens as targets and sources."
        )
