"""The additive statistics of DIFFormer-s: what sources leave behind, and what targets read from it.

They are sums over sources, so chunked inference, tokens sharded over processes, and token-by-token decoding
are additions of states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .normalize import inverse_norm, square_norms, unit_rows

__all__ = ["DiffusionState"]


@dataclass(frozen=True, eq=False)
class DiffusionState:
    """``sum_j m_j [k~_j, 1]^T [v_j, 1]`` over the sources seen so far.

    Attributes:
        moments: ``(..., d + 1, c + 1)`` in float32 or better: ``sum m k~ v^T`` and ``sum m k~`` (last column), below
            them ``sum m v`` and ``sum m`` (last row).
        key_squares: ``(...)``, ``sum m |k|^2`` before normalisation; what Frobenius needs of the sources.
        normalization: ``"row"``, ``"frobenius"`` or ``"none"``, as in ``diffusion_attention``. With Frobenius the
            moments hold keys as they came, and :meth:`apply` scales, since the norm is known only at the end.

    States of equal shapes add up; the sum over any split of the sources equals the state of all of them.
    Everything is differentiable. Sharded over processes, all-reduce ``moments`` and ``key_squares`` by sum.
    """

    moments: Tensor
    key_squares: Tensor
    normalization: str = "row"

    @classmethod
    def empty(
        cls, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None,
        normalization: str = "row",
    ) -> DiffusionState:  # fmt: skip
        """No source seen yet; ``shape`` is ``(..., d, c)``."""
        *lead, d, c = shape
        dtype = torch.promote_types(dtype, torch.float32)
        return cls(
            torch.zeros(*lead, d + 1, c + 1, dtype=dtype, device=device),
            torch.zeros(*lead, dtype=dtype, device=device),
            _known(normalization),
        )

    @classmethod
    def of(
        cls, k: Tensor, v: Tensor, mass: Tensor | None = None, *, normalization: str = "row"
    ) -> DiffusionState:
        """The state of sources ``k (..., m, d)``, ``v (..., m, c)`` with masses that broadcast to ``(..., m)``."""
        if k.shape[-2] != v.shape[-2]:
            raise ValueError(
                f"DiffusionState: k has shape {tuple(k.shape)} and v {tuple(v.shape)}; expected as many keys as values."
            )
        acc = torch.promote_types(v.dtype, torch.float32)
        squares = square_norms(k, mass).sum(-1)
        keys = unit_rows(k) if _known(normalization) == "row" else k.to(acc)
        values = pad(v.to(acc), (0, 1), value=1.0)
        if mass is not None:
            m = mass.to(acc).unsqueeze(-1)
            keys, values = torch.where(m > 0, keys, 0.0), torch.where(m > 0, values * m, 0.0)
        with torch.autocast(v.device.type, enabled=False):
            return cls(pad(keys, (0, 1), value=1.0).mT @ values, squares, normalization)

    def accumulate(self, k: Tensor, v: Tensor, mass: Tensor | None = None) -> DiffusionState:
        """This state with more sources."""
        return self + DiffusionState.of(k, v, mass, normalization=self.normalization)

    def __add__(self, other: DiffusionState) -> DiffusionState:
        if self.normalization != other.normalization:
            raise ValueError(
                f"DiffusionState: one state has normalization {self.normalization!r} and the other "
                f"{other.normalization!r}; only states of one normalization add up."
            )
        return DiffusionState(
            self.moments + other.moments, self.key_squares + other.key_squares, self.normalization
        )

    @property
    def total(self) -> Tensor:
        """``(...)``, the mass of the sources."""
        return self.moments[..., -1, -1]

    def apply(
        self, q: Tensor, *, query_squares: Tensor | None = None, key_squares: Tensor | None = None
    ) -> Tensor:
        """Outputs ``(..., n, c)`` of targets ``q (..., n, d)``; 0 where the sources have no mass.

        Args:
            query_squares: ``(...)``, ``sum |q|^2`` over all targets that share the Frobenius norm. It cannot be
                read from a chunk of them, so Frobenius requires it.
            key_squares: instead of :attr:`key_squares`, where the norm runs over more than this state: joint
                heads, a whole batch.
        """
        acc = self.moments.dtype
        if self.normalization == "row":
            q_ = unit_rows(q).to(acc)
        elif self.normalization == "none":
            q_ = q.to(acc)
        elif query_squares is None:
            raise ValueError(
                "DiffusionState.apply: normalization 'frobenius' needs query_squares, the sum of |q|^2 over all "
                "targets; for one chunk of all of them pass q.square().sum((-2, -1))."
            )
        else:
            keys = self.key_squares if key_squares is None else key_squares
            scale = inverse_norm(query_squares.to(acc)) * inverse_norm(keys)
            q_ = q.to(acc) * scale[..., None, None]
        with torch.autocast(q.device.type, enabled=False):
            sums = pad(q_, (0, 1), value=1.0) @ self.moments
        weight = sums[..., -1:]
        return (sums[..., :-1] / torch.where(weight == 0, 1.0, weight)).to(q.dtype)


def _known(normalization: str) -> str:
    if normalization not in ("row", "frobenius", "none"):
        raise ValueError(
            f"DiffusionState: normalization is {normalization!r}; expected row, frobenius or none."
        )
    return normalization
