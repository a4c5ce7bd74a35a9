"""Linear attention, and the mean over all sources: mixers whose weights are products of features.

Shapes: as in table.py; ``r`` features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators.causal import prefix_product
from ..ops.arguments import spread_heads
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
    return _mean_by_features("linear_attention", positive, q, k, v, targets, sources, causal)


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
    return _mean_by_features("mean_attention", _one, q, k, v, targets, sources, causal)


def _mean_by_features(
    what: str,
    feature: Callable[[Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    targets: Tokens | None,
    sources: Tokens | None,
    causal: bool,
) -> Tensor:
    """The law ``row`` on ``phi(q) phi(k)^T``, with the row sums as one more column of values."""
    targets, sources = both_sides(what, q, k, v, targets, sources, causal)
    flat, dtype, wide = q.ndim == 2, v.dtype, torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        q, k, v = spread_heads(feature(q.to(wide)), feature(k.to(wide)), v.to(wide))
        values = F.pad(v, (0, 1), value=1.0)
        if sources.mass is not None:
            mass = sources.mass.to(wide).unsqueeze(-1)
            k, values = torch.where(mass > 0, k, 0.0), torch.where(mass > 0, mass * values, 0.0)
        if targets.mass is not None:
            q = torch.where(targets.mass.unsqueeze(-1) > 0, q, 0.0)
        carry = _prefix_product if causal else _product
        if targets.packed:
            n, m = targets.sizes.tolist(), sources.sizes.tolist()
            parts = (
                targets.sort(q).split(n, -2), sources.sort(k).split(m, -2), sources.sort(values).split(m, -2)
            )  # fmt: skip
            sums = targets.unsort(torch.cat([carry(*part) for part in zip(*parts, strict=True)], -2))
        else:
            sums = carry(q, k, values)
        weight = sums[..., -1:]
        out = (sums[..., :-1] / torch.where(weight > 0, weight, 1.0)).to(dtype)
    return out.squeeze(0) if flat else out


def positive(x: Tensor) -> Tensor:
    """``elu(x) + 1`` without the loss of digits below 0, where it is ``exp(x)``."""
    return x.relu() + x.clamp(max=0.0).exp()


def _one(x: Tensor) -> Tensor:
    return torch.ones_like(x[..., :1])


def _prefix_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # contiguous: what it pads to whole chunks would otherwise keep its strides or not, depending on the length, which a
    # graph compiled for every length cannot know
    return prefix_product(q.contiguous(), k.contiguous(), v)


def _product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.mT @ v)
