"""The rank of a linear map as a mixed product, and its best approximation by few terms.

Shapes: N targets, M sources, P channels in, Q channels out; ``Phi (N, M, P, Q)`` as made by
:func:`~osmose.structure.mixed_product` or :func:`~osmose.structure.layer_tensor`.

``Phi = sum_k A_k o Theta_k`` is a matrix ``(N M, P Q)`` written as a sum of K outer products: so the fewest terms are its
rank, which is at most K and equal to K exactly if both lists of factors are independent, and the best approximation
by k terms is its truncated singular value decomposition (Van Loan and Pitsianis, 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import Basis
from .mixed import KroneckerSum, mixed_product


def spectrum(phi: Tensor | KroneckerSum) -> Tensor:
    """Singular values of ``Phi`` as a matrix ``(N M, P Q)``, largest first.

    Of a :class:`KroneckerSum` only K by K matrices and the ``(K, P Q)`` values are decomposed, and Phi is not formed; what
    is below the square root of the precision, as a share of the largest, is rounding.

    Cost: ``N M P Q min(N M, P Q)`` time; lazily K^2 inner products of members and ``K^2 P Q``.
    """
    if isinstance(phi, KroneckerSum):
        lower = _root(Basis(phi.members).gram())  # gram = lower lower^T
        theta = phi.theta.to(lower.dtype).flatten(1)
        return torch.linalg.svdvals(lower.mT @ theta)
    return torch.linalg.svdvals(_wide(_rearranged(phi, "spectrum")))


def _root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


def mixed_product_rank(phi: Tensor | KroneckerSum, tolerance: float | None = None) -> int:
    """The fewest terms ``A_k o Theta_k`` that make up Phi.

    Args:
        phi: ``(N, M, P, Q)`` or lazy.
        tolerance: singular values below this share of the largest count as 0; None means the larger side of
            the matrix times the precision of the type (lazily the square root of the precision).
    """
    if tolerance is None and isinstance(phi, KroneckerSum):
        tolerance = torch.finfo(phi._wide).eps ** 0.5
    size = 1 if isinstance(phi, KroneckerSum) else max(_rearranged(phi, "mixed_product_rank").shape)
    return numerical_rank(spectrum(phi), tolerance, size=size)


def numerical_rank(values: Tensor, tolerance: float | None = None, *, size: int | None = None) -> int:
    """How many singular values exceed ``tolerance`` times the largest; None means ``size`` times the precision."""
    if not values.numel() or float(values.max()) == 0:
        return 0
    share = torch.finfo(values.dtype).eps * (size or len(values)) if tolerance is None else tolerance
    return int((values > share * values.max()).sum())


def stable_rank(values: Tensor) -> float:
    """``|X|_F^2 / |X|_2^2`` of the matrix with these singular values: a rank that small ones hardly move; 0 for X = 0."""
    top = float(values.max()) if values.numel() else 0.0
    return float((values / top).square().sum()) if top > 0 else 0.0


@dataclass(frozen=True, eq=False)
class MixedApproximation:
    """``Phi`` as few terms: ``a (k, N, M)``, ``theta (k, P, Q)``.

    The ``theta_k`` are orthonormal, the ``a_k`` orthogonal with norms the singular values, the largest entry of every theta_k
    positive: equal maps with distinct singular values give equal factors.

    Attributes:
        a: structures.
        theta: values.
        error: ``|Phi - a o theta|_F / |Phi|_F``; 0 for Phi = 0.
        spectrum: all singular values of Phi.
    """

    a: Tensor
    theta: Tensor
    error: float
    spectrum: Tensor

    def phi(self) -> Tensor:
        """``a o theta``, ``(N, M, P, Q)``."""
        return mixed_product(self.a, self.theta)


def best_mixed_product(phi: Tensor, terms: int | None = None) -> MixedApproximation:
    """The nearest mixed product of ``terms`` terms in the Frobenius norm; None takes the rank, without error.

    Raises:
        ValueError: phi is not ``(N, M, P, Q)``, or terms out of range.

    Cost: a singular value decomposition of ``(N M, P Q)``.
    """
    matrix = _wide(_rearranged(phi, "best_mixed_product"))
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    if terms is None:
        terms = numerical_rank(s, size=max(matrix.shape))
    if not 0 <= terms <= len(s):
        raise ValueError(
            f"best_mixed_product: terms is {terms}; expected 0 to {len(s)}, the smaller of N M and P Q."
        )
    sign = column_signs(vt[:terms].mT)
    a = (u[:, :terms] * (s[:terms] * sign)).mT.unflatten(1, phi.shape[:2])
    theta = (vt[:terms] * sign.unsqueeze(-1)).unflatten(1, phi.shape[2:])
    total = float(torch.linalg.vector_norm(s))
    error = float(torch.linalg.vector_norm(s[terms:])) / total if total > 0 else 0.0
    return MixedApproximation(a, theta, error, s)


def column_signs(x: Tensor) -> Tensor:
    """+1 or -1 for every column of ``x (..., n, r)``, the sign of its largest entry (+1 for a column of zeros)."""
    largest = x.gather(-2, x.abs().argmax(-2, keepdim=True)).squeeze(-2)
    return torch.where(largest < 0, -1.0, 1.0).to(x.dtype)


def _rearranged(phi: Tensor, what: str) -> Tensor:
    if phi.ndim != 4:
        raise ValueError(
            f"{what}: phi has shape {tuple(phi.shape)}; expected (N, M, P, Q). A layer's matrix (N Q, M P) becomes one by "
            "layer_tensor(matrix, N, M)."
        )
    return phi.flatten(2).flatten(0, 1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
