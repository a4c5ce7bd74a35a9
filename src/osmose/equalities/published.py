"""Published attentions in plain torch, as their code computes them: what ours are held and measured against.

Flow-Attention by sums, einsums and cumulative sums over ``(B, H, n, d)`` (2202.06258); DIFFormer over ``(n, H, d)`` (2301.09474);
linear attention by its features (2006.16236).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def published_diffusion(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """DIFFormer-s in its published form, ``(n, H, d)`` with Frobenius norms over nodes and heads."""
    n = q.shape[0]
    q, k = q / torch.linalg.vector_norm(q), k / torch.linalg.vector_norm(k)
    products = torch.einsum("lhm,lhd->hmd", k, v)
    numerator = torch.einsum("nhm,hmd->nhd", q, products) + v.sum(0)
    denominator = torch.einsum("nhm,hm->nh", q, k.sum(0)) + n
    return numerator / denominator.unsqueeze(-1)


def published_sigmoid_diffusion(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """DIFFormer-a with the matrix of weights, ``(n, d)``; rows are divided after the product, its cheapest dense form."""
    weights = torch.sigmoid(q @ k.mT)
    return (weights @ v) / weights.sum(-1, keepdim=True)


def published_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention with the features elu + 1, ``(B, H, n, d)``."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    carried = torch.einsum("bhsd,bhsc->bhdc", k, v)
    total = torch.einsum("bhld,bhd->bhl", q, k.sum(2))
    return torch.einsum("bhld,bhdc->bhlc", q, carried) / total.unsqueeze(-1)
