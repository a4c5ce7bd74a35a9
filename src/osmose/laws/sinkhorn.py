"""The Sinkhorn law: both sides conserved."""

from __future__ import annotations

import torch

from ..operators.base import Operator
from ..tokens import Tokens
from .base import COL_SUM, ROW_SUM, Law, mass_of, mass_ratio, reciprocal
from .diagonal import _present, _targets_only


class Sinkhorn(Law):
    """``diag(a) C diag(b s)`` with rows that sum to 1 and columns that give what they weigh.

    Alternates ``b = (T/S) / C^T(a t)`` and ``a = 1 / C(b s)`` (Sinkhorn 1964; T, S total masses), ending
    on the rows: those are exact, the columns within ``tolerance`` unless ``iterations`` run out.
    Needs a non-negative kernel with total support. Differentiates through the iterations.

    Args:
        iterations: at most so many; two products each.
        tolerance: stop where the columns are off by at most this, relative to their mass.
    """

    name = "sinkhorn"
    conserves = frozenset({ROW_SUM, COL_SUM})
    uses_columns = True

    def __init__(self, iterations: int = 100, tolerance: float = 1e-6):
        if iterations < 1 or tolerance < 0:
            raise ValueError(
                f"Sinkhorn: got iterations={iterations}, tolerance={tolerance}; expected at least 1 and at least 0."
            )
        self.iterations, self.tolerance = iterations, tolerance

    def _apply(self, op: Operator, sources: Tokens, targets: Tokens) -> Operator:
        op = op.up_to_row_scale(_present(sources))
        s, t = mass_of(sources, op), mass_of(targets, op)
        ratio = mass_ratio(targets, sources, op)
        a = _targets_only(reciprocal((op @ s.unsqueeze(-1)).squeeze(-1)), targets)
        b, back = torch.ones_like(s), op.mT
        for _ in range(self.iterations):
            given = (back @ (a * t).unsqueeze(-1)).squeeze(-1)
            if not torch.compiler.is_compiling() and self._close(given * b, ratio, s):
                break
            b = ratio * reciprocal(given)
            a = _targets_only(reciprocal((op @ (b * s).unsqueeze(-1)).squeeze(-1)), targets)
        return op.scale(a, b if sources.mass is None else b * s)

    def _close(self, given: torch.Tensor, ratio: torch.Tensor, s: torch.Tensor) -> bool:
        with torch.no_grad():
            off = torch.where(
                (s > 0) & (given > 0), (given / torch.where(ratio > 0, ratio, 1.0) - 1).abs(), 0.0
            )
            return bool((off <= self.tolerance).all())
