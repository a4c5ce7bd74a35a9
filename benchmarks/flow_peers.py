"""Flow-Attention as its code writes it, in plain torch: sums, einsums and cumulative sums over ``(B, H, n, d)``."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6


def published_flow(q: Tensor, k: Tensor, v: Tensor, clamp: float | None = 1.0) -> Tensor:
    """The normal form of the released code, with the sigmoid features."""
    q, k = torch.sigmoid(q), torch.sigmoid(k)
    n, m = q.shape[2], k.shape[2]
    taken = 1 / torch.einsum("bhld,bhd->bhl", q + EPS, k.sum(2) + EPS)
    given = 1 / torch.einsum("bhsd,bhd->bhs", k + EPS, q.sum(2) + EPS)
    sinks = torch.einsum("bhld,bhd->bhl", q + EPS, (k * given.unsqueeze(-1)).sum(2) + EPS)
    logits = torch.einsum("bhsd,bhd->bhs", k + EPS, (q * taken.unsqueeze(-1)).sum(2) + EPS)
    if clamp is not None:
        logits = logits.clamp(-clamp, clamp)
    weight = torch.softmax(logits, -1) * m
    carried = torch.einsum("bhsd,bhsc->bhdc", k, v * weight.unsqueeze(-1))
    out = torch.einsum("bhld,bhdc->bhlc", q * taken.unsqueeze(-1), carried)
    return out * torch.sigmoid(sinks * (n / m)).unsqueeze(-1)


def published_causal_flow(q: Tensor, k: Tensor, v: Tensor, clamp: float | None = 1.0) -> Tensor:
    """The causal form of the released code: every outer product ``k_j v_j^T`` is made and summed cumulatively."""
    q, k = torch.sigmoid(q), torch.sigmoid(k)
    count = torch.arange(1, q.shape[2] + 1, dtype=q.dtype)
    taken = count / ((q + EPS) * (k.cumsum(2) + EPS)).sum(-1)
    given = count / ((k + EPS) * (q.cumsum(2) + EPS)).sum(-1)
    sinks = ((q + EPS) * ((k * given.unsqueeze(-1)).cumsum(2) + EPS)).sum(-1) / count
    logits = ((k + EPS) * ((q * taken.unsqueeze(-1)).cumsum(2) + EPS)).sum(-1) / count
    if clamp is not None:
        logits = logits.clamp(-clamp, clamp)
    e = logits.exp()
    weight = e / e.cumsum(-1) * count
    carried = torch.einsum("bhnd,bhnc->bhndc", k, v * weight.unsqueeze(-1)).cumsum(2)
    out = torch.einsum("bhnd,bhndc->bhnc", q * (taken / count).unsqueeze(-1), carried)
    return out * torch.sigmoid(sinks).unsqueeze(-1)
