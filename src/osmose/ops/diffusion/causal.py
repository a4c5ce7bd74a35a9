"""Causal DIFFormer-s: target i receives from sources j <= i, in linear time by prefix moments.

The sums are those of :func:`~osmose.operators.causal.prefix_product`. Decoding token by token with
:class:`.state.DiffusionState` gives the same values.

Shapes: ``d`` key and ``c`` value channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...operators.causal import prefix_product
from ...tokens import Tokens
from .normalize import unit_rows


def causal_simple_attention(
    q: Tensor, k: Tensor, v: Tensor, *, sources: Tokens, targets: Tokens, unit: bool = True
) -> Tensor:
    """``a_i = sum_{j <= i} m_j (1 + q~_i . k~_j) v_j / sum_{j <= i} m_j (1 + q~_i . k~_j)``.

    Args:
        q, k: ``(..., n, d)``.
        v: ``(..., n, c)``.
        sources: masses ``(..., n)``, and sets: in a packed batch the order is that inside each set.
        targets: a target of mass 0 gets 0.
        unit: scale rows of q and k to length 1, else take them as they are.

    Returns:
        ``(..., n, c)``; 0 where no source with mass has come yet.

    Cost: time ``n (d c + chunk (d + c))``, memory O(n (d + c)) forward and backward. Differentiable twice.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        q, k = (unit_rows(x) if unit else x.to(dtype) for x in (q, k))
        values = pad(v.to(dtype), (0, 1), value=1.0)
        if sources.mass is not None:
            mass = sources.mass.to(dtype).unsqueeze(-1)
            k, values = torch.where(mass > 0, k, 0.0), torch.where(mass > 0, mass * values, 0.0)
        if targets.mass is not None:
            q = torch.where(targets.mass.unsqueeze(-1) > 0, q, 0.0)
        q, k = pad(q, (0, 1), value=1.0), pad(k, (0, 1), value=1.0)
        if sources.packed and sources.num_sets:
            q, k, values = targets.sort(q), sources.sort(k), sources.sort(values)
            sizes = sources.sizes.tolist()
            parts = zip(*(x.split(sizes, -2) for x in (q, k, values)), strict=True)
            sums = torch.cat([prefix_product(*part) for part in parts], -2)
            sums = targets.unsort(sums)
        else:
            sums = prefix_product(q, k, values)
        weight = sums[..., -1:]
        out = sums[..., :-1] / torch.where(weight == 0, 1.0, weight)
        if targets.mass is not None:
            out = torch.where(targets.mass.unsqueeze(-1) > 0, out, 0.0)
    return out.to(v.dtype)
