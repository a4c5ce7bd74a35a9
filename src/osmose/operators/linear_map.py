"""An operator made from any function that is linear in the values: its matrix becomes readable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Cost, Operator

COLUMNS = 256  # unit vectors that go through the function at once


class LinearMap(Operator):
    """The matrix A behind ``v -> A v``, given only as that function.

    Its products are the function itself; rows of A are what comes back for unit vectors through the reverse,
    ``A^T u``, columns what the function makes of unit vectors. Every mixer is such a function of its values, so this
    reads its true matrix, whatever it says about itself.

    Args:
        function: linear, ``(*lead, m, c)`` to ``(*lead, n, c)`` for any number of columns c, which it treats alike.
        n, m: rows and columns.
        transposed: ``u -> A^T u``, ``(*lead, n, c)`` to ``(*lead, m, c)``; None: the vector-Jacobian product of the
            function, which autograd has for every linear function.
        lead: leading dimensions that are different matrices; values may have more, or only some of them.
        dtype, device: in which the function works; None: torch's defaults.
        cost: of the function with one column; None: unknown, told as that of a dense matrix.

    That the function is linear is the caller's word; for one that is not the entries mean nothing.

    Memory of ``rows(i)``: the result and that of the function for 256 columns. Time of a block: a call of the function
    for every 256 columns, or of its reverse for every 256 rows, whichever are fewer.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        n: int,
        m: int,
        *,
        transposed: Callable[[Tensor], Tensor] | None = None,
        lead: tuple[int, ...] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        cost: Cost | None = None,
    ):
        self.function, self.transposed = function, transposed
        self.shape = torch.Size((*lead, n, m))
        self._like = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=device)
        self._cost = cost

    def _matmul(self, v: Tensor) -> Tensor:
        return self._by_columns(self.function, v, self.shape[-2])

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._by_columns(self.transposed or self._reverse, u, self.shape[-1])

    def _reverse(self, u: Tensor) -> Tensor:
        kept = torch.is_grad_enabled()
        with torch.enable_grad():
            v = u.new_zeros(*self.shape[:-2], self.shape[-1], u.shape[-1], requires_grad=True)
            out = self.function(v)
            if not out.requires_grad:  # the function does not look at its values
                return v.detach()
            (back,) = torch.autograd.grad(out, v, u, create_graph=kept, materialize_grads=True)
        return back if kept else back.detach()

    def _by_columns(self, function: Callable[[Tensor], Tensor], v: Tensor, size: int) -> Tensor:
        """``function(v)``; leading dimensions of v that the matrices do not have become columns."""
        lead, dtype = tuple(self.shape[:-2]), v.dtype
        v = v.to(self.dtype)
        v = v.reshape((1,) * (len(lead) + 2 - v.ndim) + v.shape)
        extra, most = v.ndim - 2 - len(lead), v.ndim - 2
        own = (1,) * extra + lead
        more = [i for i in range(most) if own[i] == 1 < v.shape[i]]
        stays = [i for i in range(most) if i not in more]
        columns = v.permute(*stays, most, *more, -1).flatten(len(stays) + 1)
        sizes = [1 if i in more else v.shape[i] for i in range(extra, most)]
        out = function(columns.reshape(*sizes, *columns.shape[-2:]).expand(*lead, *columns.shape[-2:]))
        out = out.reshape(*lead, size, *(v.shape[i] for i in more), v.shape[-1])
        place = {i: len(lead) + 1 + k for k, i in enumerate(more)} | {
            i: i - extra for i in stays if i >= extra
        }
        order = [place[i] for i in range(most) if i in place] + [len(lead), out.ndim - 1]
        ones = [axis for axis in range(out.ndim) if axis not in order]
        final = torch.broadcast_shapes(own, v.shape[:-2])
        return out.permute(*ones, *order).reshape(*final, size, v.shape[-1]).to(dtype)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        i, j = torch.broadcast_tensors(i, j)
        rows, row = i.unique(return_inverse=True)
        columns, column = j.unique(return_inverse=True)
        return self._block(rows, columns)[..., row, column]

    def _block(self, i: Tensor, j: Tensor) -> Tensor:
        if len(j) <= len(i):
            return self._columns(self._matmul, self.shape[-1], j, i)
        return self._columns(self._rmatmul, self.shape[-2], i, j).mT

    def _columns(self, product: Callable[[Tensor], Tensor], size: int, j: Tensor, i: Tensor) -> Tensor:
        """Entries ``i`` of what a product makes of the unit vectors ``j``, ``(*lead, len(i), len(j))``."""
        parts = []
        for some in j.split(COLUMNS):
            unit = torch.zeros(size, len(some), dtype=self._wide, device=self.device)
            unit[some, torch.arange(len(some), device=self.device)] = 1.0
            parts.append(product(unit)[..., i, :].to(self.dtype))
        if not parts:
            return torch.zeros(*self.shape[:-2], len(i), 0, dtype=self.dtype, device=self.device)
        return torch.cat(parts, -1)

    def cost(self) -> Cost:
        if self._cost is not None:
            return self._cost
        n, m = self.shape[-2:]
        return Cost(self.shape.numel(), n + m, (f"{self._name()} of unknown cost",))
