"""Linear attention, and the mean over all sources: mixers whose weights are products of features.

Shapes: as in table.py; ``r`` features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators import LowRank
from ..ops.diffusion.causal import prefix_product
from ..tokens import Tokens
from .sides import both_sides


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    targets: Tokens | None = None,
    sources: Tokens | None = None,
    causal: bool = False,
) -> Tensor:
    """``a_i = sum_j m_j phi(q_i) . phi(k_j) v_j / sum_j m_j phi(q_i) . phi(k_j)`` with ``phi(x) = elu(x) + 1``.

    Args:
        q, k, v: ``(..., H, n, d)``, ``(..., H, m, d)``, ``(..., H, m, c)``.
        targets, sources: masses and sets; None means 1 and one set.
        causal: target i sees sources j <= i of its set.

    Returns:
        ``(..., H, n, c)``; 0 for targets of mass 0 and where no source has mass. Sums in float32 or better.

    Raises:
        ValueError: tokens that do not fit, or causal with different tokens on the two sides.

    Cost: time ``(n + m) d c`` a head, memory O(n + m), causal ``n / 64`` matrices ``d x c``.

    Source: Katharopoulos et al., ICML 2020, arXiv:2006.16236.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = F.elu(q.to(wide)) + 1.0, F.elu(k.to(wide)) + 1.0
    return _mean_by_features("linear_attention", q, k, v, targets, sources, causal)


def mean_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    targets: Tokens | None = None,
    sources: Tokens | None = None,
    causal: bool = False,
) -> Tensor:
    """``a_i = sum_j m_j v_j / sum_j m_j``: what any attention has to beat. Queries and keys give shapes only.

    Arguments, result and errors as in :func:`linear_attention`; time ``(n + m) c`` a head.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = torch.ones_like(q[..., :1], dtype=wide), torch.ones_like(k[..., :1], dtype=wide)
    return _mean_by_features("mean_attention", q, k, v, targets, sources, causal)


def _mean_by_features(
    what: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    targets: Tokens | None,
    sources: Tokens | None,
    causal: bool,
) -> Tensor:
    """The law ``row`` on ``q k^T`` for features ``(..., H, n, r)``, with the row sums as one more column of values."""
    targets, sources = both_sides(what, q, k, targets, sources, causal)
    with torch.autocast(v.device.type, enabled=False):
        values = F.pad(v.to(q.dtype), (0, 1), value=1.0)
        if sources.mass is not None:
            mass = sources.mass.to(q.dtype).unsqueeze(-1)
            k, values = torch.where(mass > 0, k, 0.0), torch.where(mass > 0, mass * values, 0.0)
        if targets.mass is not None:
            q = torch.where(targets.mass.unsqueeze(-1) > 0, q, 0.0)
        if causal and targets.packed:
            parts = zip(
                *(sources.sort(x).split(sources.sizes.tolist(), -2) for x in (q, k, values)), strict=True
            )
            sums = sources.unsort(torch.cat([prefix_product(*part) for part in parts], -2))
        elif causal:
            sums = prefix_product(q, k, values)
        else:
            sums = LowRank(q, k, targets=targets, sources=sources) @ values
        weight = sums[..., -1:]
        return (sums[..., :-1] / torch.where(weight > 0, weight, 1.0)).to(v.dtype)
