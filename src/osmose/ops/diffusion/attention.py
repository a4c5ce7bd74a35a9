"""Diffusion attention: one entry for its kernels, normalisations and token layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from ...operators.streaming import SIGMOID, pairwise_product
from ...tokens import Tokens
from ..arguments import both_tokens, check_points, check_same_sets, shapes, spread_heads
from ..layout import Layout
from .causal import causal_simple_attention
from .linear import simple_attention
from .normalize import (
    NORMALIZATIONS,
    SCOPES,
    frobenius_rows,
    inverse_norm,
    pool,
    square_norms,
    unit_rows,
)

__all__ = ["diffusion_attention"]

KERNELS = ("simple", "sigmoid")


def diffusion_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel: str = "simple",
    normalization: str = "row",
    scope: str = "set",
    joint_heads: bool = True,
    sources: Tokens | None = None,
    targets: Tokens | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention of DIFFormer: every target receives a mean of the values of its set.

    ``a_i = sum_j m_j f(q~_i . k~_j) v_j / sum_j m_j f(q~_i . k~_j)``

    Args:
        q: ``(..., H, n, d)`` or ``(n, d)``; any strides. Output keeps the memory order.
        k: ``(..., H, m, d)``; leading dimensions of q, k, v broadcast.
        v: ``(..., H, m, c)``.
        kernel: ``"simple"``, ``f(s) = 1 + s`` (DIFFormer-s), or ``"sigmoid"`` (DIFFormer-a).
        normalization: what ``q~`` and ``k~`` are. ``"row"``, the paper: rows of length 1. ``"frobenius"``, the
            released code for the simple kernel: ``q / |q|_F``; the attention is then nearly uniform, see README.md.
            ``"none"``, the released code for the sigmoid kernel: rows as they are; the simple kernel may then
            have weights of any sign and denominators near 0.
        scope: over what ``|.|_F`` runs: each ``"set"`` (a set alone equals the set in any batch), or the whole
            ``"batch"`` as in the released code.
        joint_heads: whether ``|.|_F`` runs over all heads, as in the released code, or over each.
        sources: masses and sets of the sources. The mass is differentiable; a source of mass 0 is absent and gets
            gradient 0. None: one set, mass 1.
        targets: likewise of the targets, for self-attention the same object; None: one set, mass 1. A target of mass 0
            gets 0. The masses of targets weigh ``|q|_F^2`` and nothing else.
        causal: target i sees sources j <= i of its set (simple kernel, ``n = m``, not Frobenius, whose norm would
            see the future).

    Returns:
        ``(..., H, n, c)``, of the dtype of v. Zero where the sources have no mass. Sums are kept in float32 or
        better whatever the dtype, under autocast too.

    Raises:
        ValueError: unknown names, shapes that do not fit, a combination that does not exist.

    Cost: simple ``(n + m) d c`` a head and memory O(n + m); sigmoid ``n m (d + c)`` and memory O(n + m);
    packed sets cost the sum over sets.

    Source: Wu et al., DIFFormer, ICLR 2023, arXiv:2301.09474, and JMLR 2025, arXiv:2409.09111.
    """
    _check(q, k, v, kernel, normalization, scope, causal)
    flat = q.ndim == 2
    q, k, v = spread_heads(q, k, v)
    sources_, targets_ = both_tokens("diffusion_attention", q, k, sources, targets)
    if not q.shape[:-2].numel():
        return v.new_zeros(*q.shape[:-1], v.shape[-1])
    if causal:
        check_same_sets("diffusion_attention", sources_, targets_)
        out = causal_simple_attention(
            q, k, v, sources=sources_, targets=targets_, unit=normalization == "row"
        )
    elif kernel == "simple":
        out = _simple(q, k, v, normalization, scope, joint_heads, sources_, targets_)
    else:
        out = _sigmoid(q, k, v, normalization, scope, joint_heads, sources_, targets_)
    return out.squeeze(0) if flat else out


def _simple(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    normalization: str,
    scope: str,
    joint_heads: bool,
    sources: Tokens,
    targets: Tokens,
) -> Tensor:
    layout = Layout.of(q, sources, targets)
    q_, k_, v_ = layout.points(q, targets), layout.points(k, sources), layout.points(v, sources)
    mass, present = layout.mass(sources), layout.mass(targets)
    q_ptr, k_ptr = layout.bounds(targets), layout.bounds(sources)
    q_scale, k_scale = (
        _scales(x, m, ptr, layout, normalization, scope, joint_heads)
        for x, m, ptr in ((q_, present, q_ptr), (k_, mass, k_ptr))
    )
    out = simple_attention(
        q_, k_, v_, q_ptr, k_ptr, mass=mass, present=None if present is None else present > 0,
        q_scale=q_scale, k_scale=k_scale,
    )  # fmt: skip
    return layout.restore(out, targets)


def _scales(
    x: Tensor,
    mass: Tensor | None,
    ptr: Tensor,
    layout: Layout,
    normalization: str,
    scope: str,
    joint_heads: bool,
) -> Tensor | None:
    """One scale for each head and set of ``(heads, tokens, d)``; None where every row has its own."""
    if normalization == "row":
        return None
    sets = ptr.shape[0] - 1
    if normalization == "none":
        return x.new_ones(x.shape[0], sets, dtype=torch.promote_types(x.dtype, torch.float32))
    squares = square_norms(x, mass)
    index = torch.arange(sets, device=x.device).repeat_interleave(
        ptr.diff().to(x.device), output_size=x.shape[1]
    )
    sums = squares.new_zeros(x.shape[0], sets).index_add(1, index, squares)
    return layout.from_set(inverse_norm(pool(layout.by_set(sums), scope, joint_heads)))


def _sigmoid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    normalization: str,
    scope: str,
    joint_heads: bool,
    sources: Tokens,
    targets: Tokens,
) -> Tensor:
    acc = torch.promote_types(v.dtype, torch.float32)
    weighted, mass = v.to(acc), v.new_ones(sources.n, dtype=acc)
    if sources.mass is not None:
        exists = (sources.mass > 0).unsqueeze(-1)
        mass = torch.where(exists[..., 0], sources.mass.to(acc), 0.0)
        k = torch.where(exists, k, 0.0)
        weighted = torch.where(exists, weighted, 0.0) * mass.unsqueeze(-1)
    if targets.mass is not None:
        q = torch.where((targets.mass > 0).unsqueeze(-1), q, 0.0)
    if normalization == "row":
        q, k = unit_rows(q), unit_rows(k)
    elif normalization == "frobenius":
        q, k = (frobenius_rows(x, t, scope, joint_heads) for x, t in ((q, targets), (k, sources)))
    packed = sources.packed
    out, sums = pairwise_product(
        targets.sort(q), sources.sort(k), sources.sort(weighted), SIGMOID, column=sources.sort(mass, -1),
        q_ptr=targets.ptr if packed else None, k_ptr=sources.ptr if packed else None,
    )  # fmt: skip
    out, sums = targets.unsort(out), targets.unsort(sums, -1).unsqueeze(-1)
    out = out / torch.where(sums > 0, sums, 1.0)
    if targets.mass is not None:
        out = torch.where((targets.mass > 0).unsqueeze(-1), out, 0.0)
    return out.to(v.dtype)


def _check(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, normalization: str, scope: str, causal: bool
) -> None:
    for name, value, known in (
        ("kernel", kernel, KERNELS),
        ("normalization", normalization, NORMALIZATIONS),
        ("scope", scope, SCOPES),
    ):
        if value not in known:
            raise ValueError(f"diffusion_attention: {name} is {value!r}; expected one of {', '.join(known)}.")
    check_points("diffusion_attention", q, k, v)
    if causal and (kernel != "simple" or normalization == "frobenius" or q.shape[-2] != k.shape[-2]):
        raise ValueError(
            f"diffusion_attention: causal=True with kernel={kernel!r}, normalization={normalization!r} and "
            f"{shapes(q, k, v)}; expected the simple kernel, normalization row or none, and as many sources as targets."
        )
