"""Diffusion attention written down from its formula: dense, in any float type, for tests and small inputs.

Notation as in the DIFFormer papers: ``omega_ij = f(|z_i - z_j|^2)`` with ``z~ = z / |z|`` and
``|z~_i - z~_j|^2 = 2 - 2 z~_i . z~_j``, so that the simple kernel ``2 - u / 2`` is ``1 + q~ . k~`` and the sigmoid
kernel ``1 / (1 + exp(u / 2 - 1))`` is ``sigmoid(q~ . k~)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...tokens import Tokens

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "simple": lambda s: 1 + s,
    "sigmoid": torch.sigmoid,
    "softmax": torch.exp,
}


def diffusion_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel: str | Callable[[Tensor], Tensor] = "simple",
    normalization: str = "row",
    scope: str = "set",
    joint_heads: bool = True,
    sources: Tokens | None = None,
    targets: Tokens | None = None,
    causal: bool = False,
) -> Tensor:
    """:func:`.attention.diffusion_attention` by the dense formula, for any elementwise kernel of the scores.

    Args:
        q, k, v: ``(..., H, n, d)``, ``(..., H, m, d)``, ``(..., H, m, c)``.
        kernel: a name of ``KERNELS``, or a function of the scores.
        sources, targets: masses that broadcast to ``(..., H, n)``; packed tokens in any order.

    The other arguments are those of ``diffusion_attention``. Time and memory ``n m``.
    """
    n, m = q.shape[-2], k.shape[-2]
    targets, sources = targets or Tokens(n), sources or Tokens(m)
    q_mass, k_mass = (
        q.new_ones(t.n) if t.mass is None else torch.where(t.mass > 0, t.mass, 0.0).to(q.dtype)
        for t in (targets, sources)
    )
    q, k, v = (torch.where(w.unsqueeze(-1) > 0, x, 0.0) for x, w in ((q, q_mass), (k, k_mass), (v, k_mass)))
    if normalization == "row":
        q, k = _unit(q), _unit(k)
    elif normalization == "frobenius":
        q, k = (
            x * _inverse_frobenius(x, w, t, scope, joint_heads)
            for x, w, t in ((q, q_mass, targets), (k, k_mass, sources))
        )
    f = KERNELS[kernel] if isinstance(kernel, str) else kernel
    weights = f(q @ k.mT) * k_mass.unsqueeze(-2)
    same = targets.same_set(sources)
    if same is not None:
        weights = torch.where(same, weights, 0.0)
    if causal:
        order = torch.arange(m, device=q.device)
        weights = torch.where(order[:, None] >= order, weights, 0.0)
    total = weights.sum(-1, keepdim=True)
    out = (weights @ v) / torch.where(total == 0, 1.0, total)
    return torch.where((total != 0) & (q_mass.unsqueeze(-1) > 0), out, 0.0)


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, x / torch.where(norm > 0, norm, 1.0), 0.0)


def _inverse_frobenius(x: Tensor, mass: Tensor, tokens: Tokens, scope: str, joint_heads: bool) -> Tensor:
    """``1 / |x|_F`` for every token, ``(..., H, n, 1)``, over the entries that its scope joins."""
    squares = x.square().sum(-1) * mass
    if scope == "batch":
        over = [i for i in range(squares.ndim) if joint_heads or i != squares.ndim - 2]
        sums = squares.sum(over, keepdim=True).expand_as(squares)
    else:
        sums = (
            squares.sum(-2, keepdim=True).expand_as(squares) if joint_heads and squares.ndim > 1 else squares
        )
        same = tokens.same_set(tokens)
        own = torch.ones(tokens.n, tokens.n) if same is None else same
        sums = sums @ own.to(x)
    return torch.where(sums > 0, torch.where(sums > 0, sums, 1.0).rsqrt(), 0.0).unsqueeze(-1)
