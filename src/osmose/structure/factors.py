"""Values in factors: what a Theta ``<K, P, Q>`` (or the scores Lambda) is made of, and how free it really is.

Shapes: K members, P channels in (of the source), Q channels out (of the target), D rank of a head, G groups, B bases.

Every kind is made from parameters, gives the whole tensor by :meth:`Factors.full`, and is found for any tensor by its
``of``: exactly where the tensor has that form, else the nearest (by singular values) in the Frobenius norm.

======================= ============================================== =============== ============================
kind                    Theta_k                                        parameters      degrees of freedom
======================= ============================================== =============== ============================
:class:`Full`           free                                           K P Q           K P Q
:class:`Heads`          left_k right_k^T                               K (P + Q) D     K D (P + Q - D)
:class:`GroupedQuery`   left_g right_k^T, g the group of k             G P D + K Q D   G D (P + Q K/G - D)
:class:`Grouped`        G diagonal blocks                              K P Q / G       K P Q / G
:class:`Diagonal`       diagonal                                       K P             K P
:class:`Bases`          sum_b c_kb V_b                                 K B + B P Q     B (K + P Q - B)
:class:`CP`             left diag(m_k) right^T                         R (K + P + Q)   R (K + P + Q - 2), see there
:class:`Tucker`         left (sum_a m_ka core_a) right^T               see there       see there
======================= ============================================== =============== ============================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from .rank import column_signs


class Factors(ABC):
    """A tensor ``(K, P, Q)`` in factors. Kinds are frozen dataclasses whose fields are the parameters."""

    @abstractmethod
    def full(self) -> Tensor:
        """The tensor ``(K, P, Q)`` itself."""

    @property
    @abstractmethod
    def degrees_of_freedom(self) -> int:
        """Dimension of the set of tensors that these factors reach, at a generic point: parameters minus gauge."""

    @abstractmethod
    def canonical(self) -> Self:
        """The same tensor with the gauge fixed: equal tensors have equal canonical factors, where values are distinct."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return tuple(value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor))  # type: ignore[arg-type]

    @property
    def num_parameters(self) -> int:
        """How many numbers are stored."""
        return sum(p.numel() for p in self.parameters)

    def error(self, theta: Tensor | Factors) -> float:
        """``|theta - full|_F / |theta|_F`` (absolute for theta = 0)."""
        theta = whole(theta)
        difference = float(torch.linalg.vector_norm(theta - self.full()))
        norm = float(torch.linalg.vector_norm(theta))
        return difference / norm if norm > 0 else difference

    def measured_degrees_of_freedom(self, *, seed: int = 0) -> int:
        """The same dimension, measured: rank of the Jacobian from parameters to tensor at a random point in float64.

        Cost: a Jacobian of ``K P Q`` by ``num_parameters``; for small sizes.
        """
        generator = torch.Generator().manual_seed(seed)
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]  # type: ignore[arg-type]
        point = [
            torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.device)
            for p in self.parameters
        ]
        rest = {
            f.name: getattr(self, f.name)
            for f in fields(self)  # type: ignore[arg-type]
            if f.name not in names
        }

        def tensor_of(*parameters: Tensor) -> Tensor:
            return type(self)(**dict(zip(names, parameters, strict=True)), **rest).full()

        return jacobian_rank(tensor_of, *point)


def jacobian_rank(function, *point: Tensor) -> int:
    """Rank of the Jacobian of ``function(*point)`` with respect to all of ``point``: how many directions it moves in.

    Cost: one vector-Jacobian product for every number of the result, and the singular values.
    """
    parts = torch.autograd.functional.jacobian(function, point, vectorize=True)
    rows = function(*point).numel()
    matrix = torch.cat([part.reshape(rows, -1) for part in parts], 1)
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-9))


def whole(theta: Tensor | Factors) -> Tensor:
    """The tensor ``(K, P, Q)`` of a tensor or of factors, float32 or better.

    Raises:
        ValueError: another number of dimensions.
    """
    full = theta.full() if isinstance(theta, Factors) else theta
    if full.ndim != 3 or not full.is_floating_point():
        raise ValueError(
            f"theta has shape {tuple(full.shape)} and dtype {full.dtype}; expected float (K, P, Q): members, channels in, channels out."
        )
    return full.to(torch.promote_types(full.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Full(Factors):
    """Every Theta_k free: a convolution. ``theta (K, P, Q)``."""

    theta: Tensor

    def full(self) -> Tensor:
        return self.theta

    @property
    def degrees_of_freedom(self) -> int:
        return self.theta.numel()

    def canonical(self) -> Full:
        return self

    @classmethod
    def of(cls, theta: Tensor | Factors) -> Full:
        """Any tensor or factors, exactly."""
        return cls(whole(theta))


@dataclass(frozen=True, eq=False)
class Heads(Factors):
    """``Theta_k = left_k right_k^T``: attention heads, value times output projection, or keys times queries.

    ``left (K, P, D)``, ``right (K, Q, D)``. The gauge of a head, ``(left G, right G^-T)``, has D^2 dimensions: with
    P = Q = d and D = d / K the 2 d^2 parameters have ``2 d^2 - d^2 / K`` degrees of freedom, a whole attention layer
    (Theta and Lambda, biases aside) ``4 d^2 - 2 d^2 / K``.
    """

    left: Tensor
    right: Tensor

    def full(self) -> Tensor:
        return self.left @ self.right.mT

    @property
    def rank(self) -> int:
        """D, or less where P or Q is smaller."""
        return min(self.left.shape[-1], self.left.shape[-2], self.right.shape[-2])

    @property
    def degrees_of_freedom(self) -> int:
        (K, P, _), Q = self.left.shape, self.right.shape[-2]
        return K * self.rank * (P + Q - self.rank)

    def singular_values(self) -> Tensor:
        """Of every ``Theta_k``, largest first: ``(K, min(P, Q, D))``. Time ``K (P + Q) D^2``."""
        return self._svd()[1][..., : self.rank]

    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        return product_svd(self.left, self.right)

    def canonical(self) -> Heads:
        u, s, v = self._svd()
        return Heads(u * s.sqrt().unsqueeze(-2), v * s.sqrt().unsqueeze(-2))

    @classmethod
    def of(cls, theta: Tensor | Factors, rank: int) -> Heads:
        """The nearest of rank ``rank`` head by head."""
        theta = whole(theta)
        _check_rank("Heads.of", rank, min(theta.shape[1:]), "min(P, Q)")
        u, s, vt = torch.linalg.svd(theta, full_matrices=False)
        root = s[:, :rank].sqrt().unsqueeze(-2)
        return cls(u[..., :rank] * root, vt.mT[..., :rank] * root)


@dataclass(frozen=True, eq=False)
class GroupedQuery(Factors):
    """``Theta_k = left_g right_k^T`` with one left factor for each of G groups of consecutive members.

    ``left (G, P, D)``, ``right (K, Q, D)``. As Lambda it is grouped-query attention, whose heads share keys (G = 1:
    multi-query); as Theta they share values.

    Source: Ainslie et al., GQA, 2305.13245.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self):
        if self.left.ndim != 3 or self.right.ndim != 3 or len(self.right) % len(self.left):
            raise ValueError(
                f"GroupedQuery: left has shape {tuple(self.left.shape)} and right {tuple(self.right.shape)}; expected "
                "(G, P, D) and (K, Q, D) with K a multiple of G."
            )

    def full(self) -> Tensor:
        return self.left.repeat_interleave(len(self.right) // len(self.left), 0) @ self.right.mT

    def _stacked(self) -> Tensor:
        """Right factors of a group side by side, ``(G, Q K/G, D)``: a group is one matrix of rank D."""
        return self.right.unflatten(0, (len(self.left), -1)).flatten(1, 2)

    @property
    def degrees_of_freedom(self) -> int:
        (G, P, D), wide = self.left.shape, self._stacked().shape[1]
        rank = min(D, P, wide)
        return G * rank * (P + wide - rank)

    def canonical(self) -> GroupedQuery:
        u, s, v = product_svd(self.left, self._stacked())
        root = s.sqrt().unsqueeze(-2)
        right = (v * root).unflatten(1, (-1, self.right.shape[1])).flatten(0, 1)
        return GroupedQuery(u * root, right)

    @classmethod
    def of(cls, theta: Tensor | Factors, groups: int, rank: int) -> GroupedQuery:
        """The nearest with ``groups`` shared left factors of rank ``rank``."""
        theta = whole(theta)
        K, Q = len(theta), theta.shape[-1]
        if groups < 1 or K % groups:
            raise ValueError(f"GroupedQuery.of: groups is {groups}; expected a divisor of the {K} members.")
        side = theta.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)  # (G, P, K/G Q)
        _check_rank("GroupedQuery.of", rank, min(side.shape[1:]), "min(P, Q K/G)")
        u, s, vt = torch.linalg.svd(side, full_matrices=False)
        root = s[:, :rank].sqrt().unsqueeze(-2)
        right = (vt.mT[..., :rank] * root).unflatten(1, (-1, Q)).flatten(0, 1)
        return cls(u[..., :rank] * root, right)


@dataclass(frozen=True, eq=False)
class Grouped(Factors):
    """G diagonal blocks, as a grouped convolution: ``blocks (K, G, P/G, Q/G)``."""

    blocks: Tensor

    def full(self) -> Tensor:
        K, G, p, q = self.blocks.shape
        out = self.blocks.new_zeros(K, G, p, G, q)
        index = torch.arange(G, device=out.device)
        out[:, index, :, index] = self.blocks.transpose(0, 1)
        return out.reshape(K, G * p, G * q)

    @property
    def degrees_of_freedom(self) -> int:
        return self.blocks.numel()

    def canonical(self) -> Grouped:
        return self

    @classmethod
    def of(cls, theta: Tensor | Factors, groups: int) -> Grouped:
        """The diagonal blocks; what stands outside is dropped."""
        theta = whole(theta)
        K, P, Q = theta.shape
        if groups < 1 or P % groups or Q % groups:
            raise ValueError(f"Grouped.of: groups is {groups}; expected a divisor of P = {P} and Q = {Q}.")
        parts = theta.reshape(K, groups, P // groups, groups, Q // groups)
        index = torch.arange(groups, device=theta.device)
        return cls(parts[:, index, :, index].transpose(0, 1).contiguous())


@dataclass(frozen=True, eq=False)
class Diagonal(Factors):
    """A weight for each channel, as a depthwise convolution: ``values (K, P)``."""

    values: Tensor

    def full(self) -> Tensor:
        return torch.diag_embed(self.values)

    @property
    def degrees_of_freedom(self) -> int:
        return self.values.numel()

    def canonical(self) -> Diagonal:
        return self

    @classmethod
    def of(cls, theta: Tensor | Factors) -> Diagonal:
        """The diagonals of a tensor with P = Q; what stands outside is dropped."""
        theta = whole(theta)
        if theta.shape[1] != theta.shape[2]:
            raise ValueError(f"Diagonal.of: theta has shape {tuple(theta.shape)}; expected (K, P, P).")
        return cls(theta.diagonal(dim1=1, dim2=2).contiguous())


@dataclass(frozen=True, eq=False)
class Bases(Factors):
    """``Theta_k = sum_b c_kb V_b``, the basis of R-GCN: again a mixed product, of c and V.

    ``coefficients (K, B)``, ``values (B, P, Q)``. Grouped the other way it is B learned mixtures of the structures,
    ``sum_k c_kb A_k``, with values ``V_b``: :meth:`mixtures`. The gauge is GL(B).

    Source: Schlichtkrull et al., 1703.06103.
    """

    coefficients: Tensor
    values: Tensor

    def full(self) -> Tensor:
        return torch.tensordot(self.coefficients, self.values, ([1], [0]))

    def mixtures(self, a: Tensor) -> Tensor:
        """``sum_k c_kb a_k`` for structures ``(K, *S)``: ``(B, *S)``, so that ``a o Theta = mixtures o V``."""
        return torch.tensordot(self.coefficients.mT, a, ([1], [0]))

    @property
    def degrees_of_freedom(self) -> int:
        (K, B), wide = self.coefficients.shape, self.values[0].numel()
        rank = min(B, K, wide)
        return rank * (K + wide - rank)

    def canonical(self) -> Bases:
        u, s, v = product_svd(self.coefficients, self.values.flatten(1).mT)
        return Bases(u, (v * s).mT.unflatten(1, self.values.shape[1:]))

    @classmethod
    def of(cls, theta: Tensor | Factors, bases: int) -> Bases:
        """The nearest with ``bases`` bases."""
        theta = whole(theta)
        _check_rank("Bases.of", bases, min(len(theta), theta[0].numel()), "min(K, P Q)", name="bases")
        u, s, vt = torch.linalg.svd(theta.flatten(1), full_matrices=False)
        return cls(u[:, :bases], (s[:bases, None] * vt[:bases]).unflatten(1, theta.shape[1:]))


def product_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U (..., P, D)``, ``s (..., D)``, ``V (..., Q, D)`` with ``left right^T = U diag(s) V^T``, without forming it.

    The largest entry of every column of U is positive. Columns beyond min(P, Q) are 0. Time ``(P + Q) D^2``.
    """
    rank = left.shape[-1]
    (ql, rl), (qr, rr) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, s, vt = torch.linalg.svd(rl @ rr.mT, full_matrices=False)
    u, v = ql @ u, qr @ vt.mT
    sign = column_signs(u).unsqueeze(-2)
    fill = (0, rank - s.shape[-1])
    return tuple(torch.nn.functional.pad(x, fill) for x in (u * sign, s, v * sign))  # type: ignore[return-value]


def _check_rank(what: str, rank: int, largest: int, meaning: str, *, name: str = "rank") -> None:
    if not 1 <= rank <= largest:
        raise ValueError(f"{what}: {name} is {rank}; expected 1 to {largest} = {meaning}.")
