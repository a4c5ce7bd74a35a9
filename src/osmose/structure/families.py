"""Structure families: K operators of one shape that share work, as one thing.

Shapes: ``(..., n, m)`` each operator, rows = targets; P channels in, Q channels out, K members, c channels of any kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from ..laws import Law
from ..operators import Cost, LinearMap, Operator, Sum, matrix_product, polynomial
from ..operators.products import Kind, polynomial_products
from ..tokens import Tokens


class Family(ABC):
    """K operators ``A_k (..., n, m)`` that act together.

    A kind says how many there are, gives each of them as an operator, and may do the three products below with less
    work than one by one.
    """

    shape: torch.Size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, k: int) -> Operator: ...

    def __iter__(self) -> Iterator[Operator]:
        return (self[k] for k in range(len(self)))

    def spread(self, x: Tensor) -> Tensor:
        """``A_k x`` for all k: ``(..., m, c)`` to ``(..., K, n, c)``."""
        return torch.stack([op @ x for op in self], -3)

    def carry(self, z: Tensor) -> Tensor:
        """``A_k z_k``, each with values of its own: ``(..., K, m, c)`` to ``(..., K, n, c)``."""
        return torch.stack([op @ z_k for op, z_k in zip(self, z.unbind(-3), strict=True)], -3)

    def mixed(self, x: Tensor, theta: Tensor, groups: int = 1) -> Tensor:
        """The mixed product ``sum_k A_k x Theta_k``: ``(..., m, P)`` to ``(..., n, Q)`` for ``theta (K, P, Q)``.

        With ``groups`` each Theta_k is block-diagonal, given as ``(K, P / groups, Q)``: outputs fall into as many
        blocks, which see their own inputs only. The order is the cheaper one: project first where Q <= P.
        """
        if groups > 1:
            return self._mixed(x, block_diagonal(theta, groups))
        return self._mixed(x, theta)

    def _mixed(self, x: Tensor, theta: Tensor) -> Tensor:
        if theta.shape[-1] <= theta.shape[-2]:
            return _total(op @ (x @ theta_k) for op, theta_k in zip(self, theta, strict=True))
        return _total(
            mixed @ theta_k for mixed, theta_k in zip(self.spread(x).unbind(-3), theta, strict=True)
        )

    def under(self, law: Law, *, sources: Tokens | None = None, targets: Tokens | None = None) -> Family:
        """The same family with every operator under a law."""
        return Given([law(op, sources=sources, targets=targets) for op in self])

    def cost(self) -> Cost:
        """What one column through every member takes."""
        return sum((op.cost() for op in self), Cost(0, 0))

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{len(self)}]{tuple(self.shape)}"


def block_diagonal(theta: Tensor, groups: int) -> Tensor:
    """``(K, P / groups, Q)`` blocks to the full ``(K, P, Q)``."""
    k, p, q = theta.shape
    block = torch.eye(groups, dtype=theta.dtype, device=theta.device).repeat_interleave(q // groups, 1)
    return (block[None, :, None, :] * theta[:, None]).reshape(k, groups * p, q)


def _total(parts: Iterator[Tensor]) -> Tensor:
    out = next(parts)
    for part in parts:
        out = out + part
    return out


class Given(Family):
    """Operators as they are.

    Raises:
        ValueError: none, or operators of different (n, m).
    """

    def __init__(self, operators: Sequence[Operator]):
        sizes = [tuple(op.shape[-2:]) for op in operators]
        if not operators or len(set(sizes)) > 1:
            raise ValueError(
                f"Given: the operators have shapes {', '.join(map(str, sizes)) or '(none)'}; expected one (n, m) for all."
            )
        self.operators = tuple(operators)
        lead = torch.broadcast_shapes(*(op.shape[:-2] for op in operators))
        self.shape = torch.Size((*lead, *sizes[0]))

    def __len__(self) -> int:
        return len(self.operators)

    def __getitem__(self, k: int) -> Operator:
        return self.operators[k]


class Union(Family):
    """The members of several families over the same tokens, one family after the other."""

    def __init__(self, *families: Family):
        sizes = [tuple(f.shape[-2:]) for f in families]
        if len(set(sizes)) != 1:
            raise ValueError(
                f"Union: the families are of {', '.join(f'{f!r}' for f in families)}; expected the same (n, m) in all."
            )
        self.families = families
        lead = torch.broadcast_shapes(*(f.shape[:-2] for f in families))
        self.shape = torch.Size((*lead, *sizes[0]))

    def __len__(self) -> int:
        return sum(len(f) for f in self.families)

    def __getitem__(self, k: int) -> Operator:
        for family in self.families:
            if k < len(family):
                return family[k]
            k -= len(family)
        raise IndexError(f"{self!r} has no member {k}")

    def _parts(self) -> list[slice]:
        ends = [sum(len(f) for f in self.families[: i + 1]) for i in range(len(self.families))]
        return [slice(end - len(f), end) for f, end in zip(self.families, ends, strict=True)]

    def spread(self, x: Tensor) -> Tensor:
        return torch.cat([f.spread(x) for f in self.families], -3)

    def carry(self, z: Tensor) -> Tensor:
        return torch.cat(
            [f.carry(z[..., s, :, :]) for f, s in zip(self.families, self._parts(), strict=True)], -3
        )

    def _mixed(self, x: Tensor, theta: Tensor) -> Tensor:
        return _total(f.mixed(x, theta[s]) for f, s in zip(self.families, self._parts(), strict=True))


class Polynomials(Family):
    """``A^k`` (``power``) or ``T_k(A)`` (``chebyshev``) for k = 0 .. K-1, by the recurrence: K-1 products for all."""

    def __init__(self, inner: Operator, count: int, kind: Kind = "power"):
        self.inner, self.count, self.kind = inner, count, kind
        self.shape = polynomial(inner, max(count - 1, 0), kind).shape

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Operator:
        return polynomial(self.inner, range(self.count)[k], self.kind)

    def spread(self, x: Tensor) -> Tensor:
        return torch.stack(polynomial_products(self.inner, x, self.count - 1, self.kind), -3)

    def _mixed(self, x: Tensor, theta: Tensor) -> Tensor:
        k, p, q = theta.shape
        if q < p and self.kind == "power":  # Horner's scheme, on the narrow side
            out = x @ theta[-1]
            for theta_k in theta[:-1].flip(0):
                out = self.inner @ out + x @ theta_k
            return out
        return self.spread(x).transpose(-3, -2).flatten(-2) @ theta.reshape(k * p, q)


class Blends(Family):
    """Mixtures ``B_b = sum_k c_bk A_k`` of a family, with coefficients ``c (B, K)`` that may be learnt."""

    def __init__(self, family: Family, coefficients: Tensor):
        if coefficients.ndim != 2 or coefficients.shape[1] != len(family):
            raise ValueError(
                f"Blends: coefficients have shape {tuple(coefficients.shape)}; expected (blends, {len(family)}) for {family!r}."
            )
        self.family, self.coefficients, self.shape = family, coefficients, family.shape

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, k: int) -> Operator:
        return Sum.of(*(op * c for op, c in zip(self.family, self.coefficients[k], strict=True)))

    def spread(self, x: Tensor) -> Tensor:
        return torch.einsum("bk,...knc->...bnc", self.coefficients.to(x.dtype), self.family.spread(x))

    def carry(self, z: Tensor) -> Tensor:
        return torch.stack(
            [
                self._blend(self.family.spread(z_b), c)
                for z_b, c in zip(z.unbind(-3), self.coefficients, strict=True)
            ],
            -3,
        )

    @staticmethod
    def _blend(mixed: Tensor, c: Tensor) -> Tensor:
        return torch.einsum("k,...knc->...nc", c.to(mixed.dtype), mixed)

    def _mixed(self, x: Tensor, theta: Tensor) -> Tensor:
        return self.family.mixed(x, torch.einsum("bk,bpq->kpq", self.coefficients.to(theta.dtype), theta))


def products(a: Family, b: Family, how: Literal["matrix", "entrywise"] = "matrix") -> Given:
    """All ``A_i B_j`` (``matrix``: one after the other) or ``A_i * B_j`` (``entrywise``), i slowest.

    What an entrywise product of two kinds costs, :func:`~osmose.operators.algebra.hadamard` says.
    """
    if how not in ("matrix", "entrywise"):
        raise ValueError(f"products: how is {how!r}; expected matrix or entrywise.")
    return Given([matrix_product(x, y) if how == "matrix" else x * y for x, y in product(a, b)])


class Heads(Family):
    """Computed structure: ``carry(z)`` moves values ``(..., K, m, c)`` head by head, linear in them.

    Args:
        carry: the map, for any number of columns.
        count: K.
        shape: ``(..., n, m)`` of each operator.
        dtype, device: of the entries.
    """

    def __init__(
        self, carry: Callable[[Tensor], Tensor], count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ):  # fmt: skip
        self._carry, self.count, self.shape = carry, count, torch.Size(shape)
        self.dtype, self.device = dtype, device

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Operator:
        """Head k as an operator; one product with it moves all heads, since they are computed together."""
        k = range(self.count)[k]

        def one(v: Tensor) -> Tensor:
            lead = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
            z = v.new_zeros(*lead, self.count, *v.shape[-2:])
            z[..., k, :, :] = v
            return self._carry(z)[..., k, :, :]

        n, m = self.shape[-2:]
        return LinearMap(one, n, m, lead=self.shape[:-2], dtype=self.dtype, device=self.device)

    def carry(self, z: Tensor) -> Tensor:
        return self._carry(z)

    def spread(self, x: Tensor) -> Tensor:
        return self._carry(x.unsqueeze(-3).expand(*x.shape[:-2], self.count, *x.shape[-2:]))

    def _mixed(self, x: Tensor, theta: Tensor) -> Tensor:
        return self._carry(x.unsqueeze(-3) @ theta).sum(-3)
