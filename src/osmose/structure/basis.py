"""The basis of a family of structures: coefficients of a linear map in it, and what lies outside.

Shapes: K members, N targets, M sources; S the shape of a structure, such as (N, M), T that of a value, such as (P, Q).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operators import Dense, Graph, Operator
from .mixed import KroneckerSum, Members, check_shapes, mixed_product, stacked


class Basis:
    """A family of structures ``(a_k)`` in which a linear map is written: ``Phi = a o Theta``.

    If the members are independent, Theta is unique: ``Theta = (a a^T)^-1 a Phi`` with a as the matrix ``(K, |S|)``, and
    ``Phi`` is ``a o Theta`` exactly where it lies in their span. Two Thetas can be compared only in one basis:
    ``(G^T a, G^-1 Theta)`` is the same map for every invertible G.

    Args:
        members: ``(K, *S)``, or K operators ``(N, M)``. Operators are never formed for inner products, which are sums
            of entrywise products (O(edges) for graphs), but only half of the digits count: they are squares.
        tolerance: singular values below this share of the largest are 0; None means ``max(K, |S|)`` times the precision of
            the type, for operators the square root of ``K`` times the precision.

    Raises:
        ValueError: no members, or members of different shapes.
    """

    def __init__(self, members: Members, *, tolerance: float | None = None):
        self.members: Tensor | tuple[Operator, ...]
        if isinstance(members, Tensor):
            if members.ndim < 2 or not len(members):
                raise ValueError(
                    f"Basis: members have shape {tuple(members.shape)}; expected (K, *S), K >= 1."
                )
            self.members = members.to(torch.promote_types(members.dtype, torch.float32))
            self.shape = members.shape[1:]
        else:
            self.members = tuple(a if isinstance(a, Operator) else Dense(a) for a in members)
            if not self.members:
                raise ValueError("Basis: no members were given; expected at least one.")
            check_shapes("Basis", self.members)
            if any(a.shape[:-2] for a in self.members):
                raise ValueError(
                    f"Basis: members have shape {tuple(self.members[0].shape)}; expected (N, M), one set. "
                    "Make a basis for each leading index."
                )
            self.shape = self.members[0].shape
        self.tolerance = tolerance
        self._factors: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"Basis of {len(self)} members {tuple(self.shape)}"

    @property
    def rank(self) -> int:
        """Number of independent members."""
        return len(self._decomposed()[1])

    @property
    def independent(self) -> bool:
        """Whether no member is a combination of the others."""
        return self.rank == len(self)

    def gram(self) -> Tensor:
        """``<a_k, a_l>``, the sum of products of entries: ``(K, K)``. Cost: ``K^2`` inner products."""
        if isinstance(self.members, Tensor):
            return self.members.flatten(1) @ self.members.flatten(1).mT
        size = len(self)
        upper = {
            (k, l): _inner(self.members[k], self.members[l]) for k in range(size) for l in range(k, size)
        }
        return torch.stack([upper[min(k, l), max(k, l)] for k in range(size) for l in range(size)]).view(
            size, size
        )

    def inner(self, phi: Tensor | Sequence[Operator]) -> Tensor:
        """``<a_k, phi_t>`` for ``phi (*S, *T)``: ``(K, *T)``; for L operators ``(K, L)``.

        Raises:
            ValueError: phi of another shape.
        """
        if not isinstance(phi, Tensor):
            if isinstance(self.members, Tensor):
                return torch.stack([self.inner(b.to_dense()) for b in phi], -1)
            return torch.stack([torch.stack([_inner(a, b) for b in phi]) for a in self.members])
        tail = self._tail(phi)
        if isinstance(self.members, Tensor):
            return _product(self.members.flatten(1), phi.reshape(self.shape.numel(), -1)).reshape(
                len(self), *tail
            )
        flat = phi.reshape(*self.shape, -1)
        return torch.stack([_inner_with_tensor(a, flat) for a in self.members]).reshape(len(self), *tail)

    def dual(self) -> Tensor:
        """``(a a^T)^-1 a``, shape ``(K, *S)``: ``<dual_k, a_l> = [k = l]``, so ``Theta_k = <dual_k, Phi>``.

        Raises:
            ValueError: the members are not independent.
        """
        self._require_independent("dual")
        return self._dual().unflatten(1, self.shape)

    def coefficients(self, phi: Tensor | KroneckerSum, *, least_norm: bool = False) -> Tensor:
        """``Theta (K, *T)`` that brings ``a o Theta`` nearest to ``phi (*S, *T)``; equal to it inside the span.

        Args:
            phi: a tensor, or a lazy :class:`KroneckerSum`, of which only inner products of members are taken.
            least_norm: of the many answers of members that are not independent take the smallest.

        Raises:
            ValueError: the members are not independent and ``least_norm`` is False; phi of another shape.

        Cost: the inner products, ``K |S| |T|`` for tensors, and the members' decomposition once.
        """
        if not least_norm:
            self._require_independent("coefficients")
        if isinstance(phi, KroneckerSum):
            if phi.members[0].shape != self.shape:
                raise ValueError(
                    f"Basis.coefficients: phi is made of {tuple(phi.members[0].shape)} operators; expected {tuple(self.shape)}."
                )
            change = self._from_inner(self.inner(phi.members))  # (K, L)
            return _product(change, phi.theta.flatten(1)).unflatten(1, phi.theta.shape[1:])
        tail = self._tail(phi)
        if isinstance(self.members, Tensor):
            return _product(self._dual(), phi.reshape(self.shape.numel(), -1)).reshape(len(self), *tail)
        return self._from_inner(self.inner(phi).reshape(len(self), -1)).reshape(len(self), *tail)

    def combine(self, theta: Tensor) -> Tensor:
        """``a o Theta`` for ``theta (K, *T)``: ``(*S, *T)``."""
        return mixed_product(self.members, theta)

    def residual(self, phi: Tensor) -> Tensor:
        """What of ``phi (*S, *T)`` lies outside the span: ``phi - a o coefficients(phi)``; it is orthogonal to it."""
        return phi - self.combine(self.coefficients(phi, least_norm=True))

    # ---- decomposition ------------------------------------------------------------------------------

    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """``U (K, r)``, the r singular values that count, and of tensors ``V^T (r, |S|)``."""
        if self._factors is None:
            if isinstance(self.members, Tensor):
                # not by the Gram matrix: singular values keep all digits
                flat = self.members.flatten(1)
                u, s, vt = torch.linalg.svd(flat, full_matrices=False)
                share = torch.finfo(s.dtype).eps * max(flat.shape)
                keep = s > (share if self.tolerance is None else self.tolerance) * s.max()
                self._factors = u[:, keep], s[keep], vt[keep]
            else:
                squares, u = torch.linalg.eigh(self.gram())
                s = squares.clamp(min=0).sqrt()
                share = (torch.finfo(s.dtype).eps * len(self)) ** 0.5
                keep = s > (share if self.tolerance is None else self.tolerance) * s.max()
                self._factors = u[:, keep], s[keep], None
        return self._factors

    def _dual(self) -> Tensor:
        """The transposed pseudo-inverse of the matrix ``(K, |S|)``."""
        u, s, vt = self._decomposed()
        if vt is None:
            return self._from_inner(stacked(self.members, "Basis.dual").flatten(1))
        return (u / s) @ vt

    def _from_inner(self, x: Tensor) -> Tensor:
        """``(a a^T)^+ x`` for ``x (K, c)``."""
        u, s, _ = self._decomposed()
        return _product(u / s.square(), _product(u.mT, x))

    def _require_independent(self, what: str) -> None:
        if not self.independent:
            raise ValueError(
                f"Basis.{what}: the {len(self)} members have rank {self.rank}, so coefficients are not unique. Leave out "
                f"{len(self) - self.rank} of them, or ask for coefficients(phi, least_norm=True)."
            )

    def _tail(self, phi: Tensor) -> torch.Size:
        if phi.shape[: len(self.shape)] != self.shape:
            raise ValueError(
                f"{self!r}: phi has shape {tuple(phi.shape)}; expected (*S, *T) with S = {tuple(self.shape)}."
            )
        return phi.shape[len(self.shape) :]


def _product(a: Tensor, b: Tensor) -> Tensor:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) @ b.to(dtype)


def _inner(a: Operator, b: Operator) -> Tensor:
    """``sum_nm A[n, m] B[n, m]`` at the cost of the cheapest entrywise product of the two kinds."""
    return (a * b).row_sum().sum()


def _inner_with_tensor(a: Operator, phi_NMt: Tensor) -> Tensor:
    """``sum_nm A[n, m] phi[n, m, t]``: a graph reads its edges only, another operator comes in blocks of rows."""
    if isinstance(a, Graph):
        return _product(a.weight.unsqueeze(0), phi_NMt[a.target, a.source])[0]
    step = max(1, 2**22 // max(1, a.shape[-1]))
    parts = [
        _product(a.rows(rows).flatten().unsqueeze(0), phi_NMt[rows].flatten(0, 1))[0]
        for rows in torch.arange(a.shape[-2], device=a.device).split(step)
    ]
    return torch.stack(parts).sum(0)
