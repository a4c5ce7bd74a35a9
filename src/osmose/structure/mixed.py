"""The mixed product of structures and values: as a tensor, as the matrix of a layer, and as a lazy matrix.

Shapes: K members; N targets, M sources; P channels in, Q channels out; S the shape of a structure, such as (N, M),
T the shape of a value, such as (P, Q).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operators import Cost, Dense, Operator
from ..operators.base import refuse_past_limit

Members = Tensor | Sequence[Operator | Tensor]


def mixed_product(a: Members, b: Tensor) -> Tensor:
    """``(a o b)[s, t] = sum_k a[k, s] b[k, t]``: a sum of outer products of structures and values.

    Args:
        a: ``(K, *S)``, or K operators or matrices of one shape ``S = (..., N, M)``.
        b: ``(K, *T)``.

    Returns:
        ``(*S, *T)``. For operators ``(K, N, M)`` and values ``(K, P, Q)`` that is the linear map
        ``Phi[n, m, p, q]`` of the layer ``y = sum_k A_k x Theta_k``, which :func:`layer_matrix` lays out as a matrix
        and :class:`KroneckerSum` never forms.

    Raises:
        ValueError: a and b have different numbers of members.
        DenseLimitError: operators larger than :func:`~osmose.operators.dense_limit`.

    Cost: time ``K |S| |T|``, memory ``|S| |T|``.

    Source: Andreoli, 1905.01289, section 2.
    """
    dense = stacked(a, "mixed_product")
    _check_members("mixed_product", len(dense), b)
    dtype = torch.promote_types(dense.dtype, b.dtype)
    return torch.tensordot(dense.to(dtype), b.to(dtype), ([0], [0]))


def layer_matrix(phi: Tensor) -> Tensor:
    """``Phi (..., N, M, P, Q)`` as the matrix ``(..., N Q, M P)`` of the layer: ``vec(y) = matrix vec(x)``.

    ``vec`` is row-major (``flatten``) of ``x (M, P)`` and ``y (N, Q)``; the matrix is ``sum_k A_k kron Theta_k^T``.
    Unflattened to ``(..., N, Q, M, P)`` it is the layer's Jacobian.
    """
    if phi.ndim < 4:
        raise ValueError(f"layer_matrix: phi has shape {tuple(phi.shape)}; expected (..., N, M, P, Q).")
    return phi.movedim(-1, -3).flatten(-2).flatten(-3, -2)


def layer_tensor(matrix: Tensor, targets: int, sources: int) -> Tensor:
    """The inverse of :func:`layer_matrix`: ``(..., N Q, M P)`` to ``Phi (..., N, M, P, Q)``.

    It is Van Loan and Pitsianis' rearrangement of a matrix into blocks; ``flatten(-4, -3).flatten(-2)`` of it is the
    ``(N M, P Q)`` matrix whose rank is the mixed-product rank.

    Raises:
        ValueError: the sizes are not multiples of ``targets`` and ``sources``.
    """
    rows, columns = matrix.shape[-2:] if matrix.ndim > 1 else (0, 0)
    if matrix.ndim < 2 or targets < 1 or sources < 1 or rows % targets or columns % sources:
        raise ValueError(
            f"layer_tensor: matrix has shape {tuple(matrix.shape)}; expected (..., N Q, M P) with N = {targets} targets and "
            f"M = {sources} sources, so multiples of {targets} and {sources}."
        )
    phi = matrix.unflatten(-1, (sources, -1)).unflatten(-3, (targets, -1))  # (..., N, Q, M, P)
    return phi.movedim(-3, -1)


class KroneckerSum(Operator):
    """``sum_k A_k kron Theta_k^T``, the matrix ``(..., N Q, M P)`` of ``y = sum_k A_k x Theta_k``, never formed.

    Args:
        members: K operators or matrices ``(..., N, M)``, or a tensor ``(K, ..., N, M)``.
        theta: ``(K, P, Q)``.

    ``op @ v`` takes ``vec(x)``, row-major; :meth:`apply` takes x itself. Time: K products of the members with
    ``min(P, Q)`` columns and ``K min(N, M) P Q``.

    Raises:
        ValueError: members of different shapes, or as many values as there are not members.
    """

    def __init__(self, members: Members, theta: Tensor):
        if isinstance(members, Tensor) and members.ndim < 3:
            raise ValueError(
                f"KroneckerSum: members have shape {tuple(members.shape)}; expected (K, ..., N, M)."
            )
        self.members = tuple(a if isinstance(a, Operator) else Dense(a) for a in members)
        _check_members("KroneckerSum", len(self.members), theta)
        if theta.ndim != 3:
            raise ValueError(f"KroneckerSum: theta has shape {tuple(theta.shape)}; expected (K, P, Q).")
        check_shapes("KroneckerSum", self.members)
        self.theta = theta
        lead = torch.broadcast_shapes(*(a.shape[:-2] for a in self.members))
        self._n, self._m = self.members[0].shape[-2:]
        _, self._p, self._q = theta.shape
        self.shape = torch.Size((*lead, self._n * self._q, self._m * self._p))
        dtype = theta.dtype
        for a in self.members:
            dtype = torch.promote_types(dtype, a.dtype)
        self._like = torch.empty(0, dtype=dtype, device=theta.device)

    def apply(self, x: Tensor) -> Tensor:
        """``sum_k A_k x Theta_k`` for ``x (..., M, P)``: ``(..., N, Q)``."""
        if x.shape[-2:] != (self._m, self._p):
            raise ValueError(
                f"KroneckerSum.apply: x has shape {tuple(x.shape)}; expected (..., {self._m}, {self._p})."
            )
        return (self @ x.flatten(-2).unsqueeze(-1)).squeeze(-1).unflatten(-1, (self._n, self._q))

    def tensor(self) -> Tensor:
        """``Phi (..., N, M, P, Q)``, the mixed product itself. Memory of all its entries.

        Raises:
            DenseLimitError: they are more than :func:`~osmose.operators.dense_limit`.
        """
        refuse_past_limit(self.shape.numel(), f"{self!r}.tensor", "Use op.apply(x), which forms nothing.")
        return mixed_product(self.members, self.theta)

    @property
    def mT(self) -> Operator:  # noqa: N802
        return KroneckerSum([a.mT for a in self.members], self.theta.mT)

    def _matmul(self, v: Tensor) -> Tensor:
        return self._carry(v, self.members, self.theta, self._p)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._carry(u, [a.mT for a in self.members], self.theta.mT, self._q)

    @staticmethod
    def _carry(v: Tensor, members: Sequence[Operator], theta: Tensor, width: int) -> Tensor:
        columns = v.shape[-1]
        x = v.unflatten(-2, (-1, width)).transpose(-1, -2)  # (..., M, c, P)
        out = None
        for a, value in zip(members, theta.to(v.dtype), strict=True):
            # the narrower side is carried through the structure
            narrow = value.shape[1] <= value.shape[0]
            y = x @ value if narrow else x
            y = (a @ y.flatten(-2)).to(v.dtype).unflatten(-1, (columns, -1))
            y = y if narrow else y @ value
            out = y if out is None else out + y
        assert out is not None
        return out.transpose(-1, -2).flatten(-3, -2)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        wide = self._wide
        parts = [
            a._entries(i // self._q, j // self._p).to(wide) * value[j % self._p, i % self._q].to(wide)
            for a, value in zip(self.members, self.theta, strict=True)
        ]
        return torch.stack(torch.broadcast_tensors(*parts)).sum(0)

    def cost(self) -> Cost:
        narrow = min(self._p, self._q)
        total = Cost(0, 0)
        for a in self.members:
            one = a.cost()
            total += Cost(one.time * narrow, one.memory * narrow, one.quadratic)
        rows = self._m if self._q <= self._p else self._n
        mixing = Cost(len(self.members) * rows * self._p * self._q, rows * max(self._p, self._q))
        return total + mixing

    def _entry_time(self) -> int:
        return sum(a._entry_time() + 1 for a in self.members)

    def _name(self) -> str:
        return f"KroneckerSum[{len(self.members)}]"


def stacked(a: Members, what: str) -> Tensor:
    """The members as one tensor ``(K, *S)``."""
    if isinstance(a, Tensor):
        if a.ndim < 2:
            raise ValueError(f"{what}: members have shape {tuple(a.shape)}; expected (K, *S).")
        return a
    if not len(a):
        raise ValueError(f"{what}: no members were given; expected at least one.")
    dense = [x.to_dense() if isinstance(x, Operator) else x for x in a]
    return torch.stack(torch.broadcast_tensors(*dense))


def _check_members(what: str, size: int, values: Tensor) -> None:
    if values.ndim < 1 or len(values) != size:
        raise ValueError(
            f"{what}: {size} structures and values of shape {tuple(values.shape)}; expected ({size}, ...), one value for "
            "each structure."
        )


def check_shapes(what: str, members: Sequence[Operator]) -> None:
    """Raise ValueError, naming the member, unless all have the same (N, M)."""
    for k, a in enumerate(members):
        if a.shape[-2:] != members[0].shape[-2:]:
            raise ValueError(
                f"{what}: member {k} has shape {tuple(a.shape)}, member 0 has {tuple(members[0].shape)}; expected the same "
                "(N, M) for all."
            )
