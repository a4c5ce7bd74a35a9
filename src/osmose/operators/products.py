"""Matrix products of operators and polynomials of one: ``A B`` and ``p_k(A)``, applied factor by factor, never formed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .algebra import _common_dtype
from .base import Cost, Operator
from .linear_map import LinearMap

Kind = Literal["power", "chebyshev"]
KINDS = ("power", "chebyshev")


def matrix_product(a: Operator, b: Operator) -> Operator:
    """``A B``: what reaches a target in two steps. Costs what both cost; a row of it costs a product."""
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matrix_product: {a!r} takes from {a.shape[-1]} places and {b!r} gives to {b.shape[-2]}; expected the same number."
        )
    dtype = _common_dtype(a, b)
    wide = torch.promote_types(dtype, torch.float32)  # between the factors too
    return LinearMap(
        lambda v: a._matmul(b._matmul(v.to(wide))),
        a.shape[-2],
        b.shape[-1],
        transposed=lambda u: b._rmatmul(a._rmatmul(u.to(wide))),
        lead=tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])),
        dtype=dtype,
        device=a.device,
        cost=a.cost() + b.cost(),
    )


def polynomial(inner: Operator, degree: int, kind: Kind = "power") -> Operator:
    """``A^k`` (``power``) or the Chebyshev polynomial ``T_k(A)``: ``T_k = 2 A T_{k-1} - T_{k-2}``, T_0 = I, T_1 = A.

    Args:
        inner: ``(..., n, n)``.
        degree: k.
        kind: ``power`` or ``chebyshev``.

    A product costs k products with ``inner``.
    """
    if degree < 0 or kind not in KINDS or inner.shape[-1] != inner.shape[-2]:
        raise ValueError(
            f"polynomial: got {inner!r}, degree {degree} and kind {kind!r}; expected a square operator, a degree of at "
            f"least 0, and one of {', '.join(KINDS)}."
        )
    n, lead = inner.shape[-1], inner.shape[:-2].numel()
    return LinearMap(
        lambda v: polynomial_products(inner, v, degree, kind)[-1],
        n,
        n,
        transposed=lambda u: polynomial_products(inner.mT, u, degree, kind)[-1],
        lead=tuple(inner.shape[:-2]),
        dtype=inner.dtype,
        device=inner.device,
        cost=sum([inner.cost()] * degree, Cost(degree * n * lead, 3 * n * lead)),
    )


def polynomial_products(inner: Operator, v: Tensor, degree: int, kind: Kind) -> list[Tensor]:
    """``p_0(A) v ... p_k(A) v`` for ``v (..., n, c)``, by the recurrence: k products for all."""
    lead = torch.broadcast_shapes(inner.shape[:-2], v.shape[:-2])
    out = [v.expand(*lead, *v.shape[-2:])]
    for k in range(degree):
        following = inner @ out[-1]
        out.append(2 * following - out[-2] if kind == "chebyshev" and k else following)
    return out
