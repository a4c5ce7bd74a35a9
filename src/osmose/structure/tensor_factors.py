"""Values as CP and Tucker tensors: channels shared by all members. Fits are TensorLy's, imported when used.

Shapes: K members, P channels in, Q channels out, R terms of CP, (A, B, C) ranks of Tucker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .factors import Factors, Heads, whole
from .rank import column_signs

# 3 x n x n with n odd at rank (3 n - 1) / 2, and 4 x 4 x 3 at rank 5, reach one dimension less than they could
_DEFECTIVE = {(3, 4, 4): 5}


@dataclass(frozen=True, eq=False)
class CP(Factors):
    """``Theta_k = left diag(members_k) right^T``: all members share their channels, and weigh them.

    ``members (K, R)``, ``left (P, R)``, ``right (Q, R)``. As Theta it is a separable convolution, as Lambda
    collaborative attention. Two scales of every term are gauge, which leaves ``R (K + P + Q - 2)`` degrees of
    freedom, where the tensors have room for them.

    Source: Cordonnier et al., collaborative attention, 2006.16362. Dimensions: Abo, Ottaviani and Peterson,
    math/0607191.
    """

    members: Tensor
    left: Tensor
    right: Tensor

    def full(self) -> Tensor:
        return torch.einsum("kr,pr,qr->kpq", self.members, self.left, self.right)

    @property
    def degrees_of_freedom(self) -> int:
        """The expected dimension, less where one side is much longer than the others, and in the known defective cases."""
        sizes, R = sorted((len(self.members), len(self.left), len(self.right))), self.members.shape[1]
        a, b, c = sizes
        room = a * b * c
        expected = min(room, R * (a + b + c - 2))
        # seen along its longest side it is a matrix of rank R
        rank = min(R, a * b, c)
        expected = min(expected, rank * (a * b + c - rank))
        odd = a == 3 and b == c and b % 2 == 1 and 3 * b == 2 * R + 1
        return expected - (1 if odd or _DEFECTIVE.get((a, b, c)) == R else 0)

    def canonical(self) -> Self:
        """Columns of left and right of length 1 with positive largest entries, terms by falling weight."""
        scale = [torch.linalg.vector_norm(x, dim=0) for x in (self.left, self.right)]
        sign = [column_signs(x) for x in (self.left, self.right)]
        members = self.members * scale[0] * scale[1] * sign[0] * sign[1]
        order = torch.linalg.vector_norm(members, dim=0).argsort(descending=True)
        left, right = (
            torch.where(s > 0, x * g / torch.where(s > 0, s, 1.0), 0.0)
            for x, s, g in zip((self.left, self.right), scale, sign, strict=True)
        )
        return type(self)(members[:, order], left[:, order], right[:, order])

    @classmethod
    def of_heads(cls, heads: Heads) -> Self:
        """Heads as a CP tensor of K D terms, exactly: every term belongs to one head."""
        K, _, D = heads.left.shape
        owner = torch.eye(K, dtype=heads.left.dtype, device=heads.left.device).repeat_interleave(D, 1)
        return cls(owner, heads.left.transpose(0, 1).flatten(1), heads.right.transpose(0, 1).flatten(1))

    @classmethod
    def of(
        cls,
        theta: Tensor | Factors,
        rank: int,
        *,
        starts: int = 3,
        iterations: int = 500,
        tolerance: float = 1e-9,
        seed: int = 0,
    ) -> Self:
        """A near tensor of ``rank`` terms, by alternating least squares from several starts.

        Args:
            theta: ``(K, P, Q)``.
            rank: R.
            starts: random starts, of which the best fit is taken; a best one need not exist, and local optima do.
            iterations: at most, for each start.
            tolerance: a change of the relative error that ends it.
            seed: of the starts.

        Raises:
            ModuleNotFoundError: without TensorLy (``pip install 'osmose[tensor]'``).

        Cost: ``K P Q R`` an iteration and start.
        """
        theta = whole(theta)
        if rank < 1 or starts < 1:
            raise ValueError(f"CP.of: rank is {rank} and starts {starts}; expected 1 or more.")
        import tensorly
        from tensorly.decomposition import parafac

        best: tuple[float, Self] | None = None
        with tensorly.backend_context("numpy", local_threadsafe=True):
            target = theta.detach().cpu().double().numpy()
            for start in range(starts):
                weights, parts = parafac(
                    target,
                    rank,
                    init="random",
                    n_iter_max=iterations,
                    tol=tolerance,
                    random_state=seed + start,
                )
                parts = [torch.as_tensor(x).to(theta) for x in (parts[0] * weights, *parts[1:])]
                found = cls(*parts)
                error = found.error(theta)
                if best is None or error < best[0]:
                    best = error, found
        assert best is not None
        return best[1]


@dataclass(frozen=True, eq=False)
class Tucker(Factors):
    """``Theta = core x members x left x right``: members and channels each in few directions.

    ``core (A, B, C)``, ``members (K, A)``, ``left (P, B)``, ``right (Q, C)``. The gauge is
    GL(A) x GL(B) x GL(C): ``A B C + A (K - A) + B (P - B) + C (Q - C)`` degrees of freedom.
    """

    core: Tensor
    members: Tensor
    left: Tensor
    right: Tensor

    def full(self) -> Tensor:
        return torch.einsum("abc,ka,pb,qc->kpq", self.core, self.members, self.left, self.right)

    @property
    def degrees_of_freedom(self) -> int:
        """A rank above the product of the other two, or above its side, counts as that."""
        sizes = [len(self.members), len(self.left), len(self.right)]
        ranks = [min(r, n) for r, n in zip(self.core.shape, sizes, strict=True)]
        for _ in range(3):
            for i in range(3):
                ranks[i] = min(ranks[i], ranks[i - 1] * ranks[i - 2])
        core = ranks[0] * ranks[1] * ranks[2]
        return core + sum(r * (n - r) for r, n in zip(ranks, sizes, strict=True))

    def canonical(self) -> Self:
        """Orthonormal factors by the higher-order singular value decomposition, largest entries positive."""
        parts, core = [], self.core
        for axis, factor in enumerate((self.members, self.left, self.right)):
            q, r = torch.linalg.qr(factor)
            core = torch.tensordot(r, core, ([1], [axis])).movedim(0, axis)
            parts.append(q)
        rotated = core
        for axis, q in enumerate(parts):
            unfolded = core.movedim(axis, 0).flatten(1)
            u = torch.linalg.svd(unfolded, full_matrices=False)[0]
            u = u * column_signs(q @ u)
            parts[axis] = q @ u
            rotated = torch.tensordot(u.mT, rotated, ([1], [axis])).movedim(0, axis)
        return type(self)(rotated, *parts)

    @classmethod
    def of(
        cls,
        theta: Tensor | Factors,
        ranks: tuple[int, int, int],
        *,
        iterations: int = 100,
        tolerance: float = 1e-9,
    ) -> Self:
        """A near tensor of these ranks, by higher-order orthogonal iteration; exact where theta has them.

        Raises:
            ValueError: ranks that the sizes do not allow.
            ModuleNotFoundError: without TensorLy (``pip install 'osmose[tensor]'``).
        """
        theta = whole(theta)
        allowed = tuple(min(n, theta.numel() // n) for n in theta.shape)
        if len(ranks) != 3 or any(not 1 <= r <= n for r, n in zip(ranks, allowed, strict=True)):
            raise ValueError(f"Tucker.of: ranks are {ranks}; expected 1 to {allowed}.")
        import tensorly
        from tensorly.decomposition import tucker

        with tensorly.backend_context("numpy", local_threadsafe=True):
            core, parts = tucker(
                theta.detach().cpu().double().numpy(), list(ranks), n_iter_max=iterations, tol=tolerance
            )
        return cls(*(torch.as_tensor(x.copy()).to(theta) for x in (core, *parts)))
