"""Laws whose diagonals are closed formulas: none, row, mean, sym."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.base import Operator
from ..tokens import Tokens
from .base import ROW_SUM, SYMMETRIC, Law, mass_of, reciprocal


def _present(tokens: Tokens) -> Tensor | None:
    return None if tokens.mass is None else tokens.mass > 0


def _targets_only(left: Tensor, targets: Tokens) -> Tensor:
    return left if targets.mass is None else torch.where(targets.mass > 0, left, 0.0)


class NoLaw(Law):
    """``C diag(s)``: sums over the mass, nothing is normalised."""

    name = "none"

    def _apply(self, op: Operator, sources: Tokens, targets: Tokens) -> Operator:
        left = None if targets.mass is None else (targets.mass > 0).to(targets.mass.dtype)
        return op if left is None and sources.mass is None else op.scale(left, sources.mass)


class Row(Law):
    """``diag(C s)^-1 C diag(s)``: every target receives a mean; softmax attention for an exponential kernel.

    The exponential kernel is shifted row by row first, so scores of any size are safe. A kernel with signs is
    divided by its row sum as it is; a sum of 0 gives 0.
    """

    name = "row"
    conserves = frozenset({ROW_SUM})

    def _apply(self, op: Operator, sources: Tokens, targets: Tokens) -> Operator:
        op = op.up_to_row_scale(_present(sources))
        taken = (op @ mass_of(sources, op).unsqueeze(-1)).squeeze(-1)
        return op.scale(_targets_only(reciprocal(taken, signed=True), targets), sources.mass)


class Mean(Law):
    """``C diag(s) / sum(s)``: the mean-field scaling, linear in the kernel (USA particles)."""

    name = "mean"

    def _apply(self, op: Operator, sources: Tokens, targets: Tokens) -> Operator:
        share = reciprocal(sources.total(mass_of(sources, op))).unsqueeze(-1)
        left = targets.spread(share).squeeze(-1)
        left = left.expand(*left.shape[:-1], op.shape[-2])
        return op.scale(_targets_only(left, targets), sources.mass)


class Sym(Law):
    """``diag(C s)^-1/2 C diag(C^T t)^-1/2 diag(s)``: GCN's normalisation, for a graph ``C = A + I``.

    A symmetric kernel with equal masses on both sides stays symmetric, and its eigenvalues are then in [-1, 1].
    """

    name = "sym"
    conserves = frozenset({SYMMETRIC})
    uses_columns = True

    def _apply(self, op: Operator, sources: Tokens, targets: Tokens) -> Operator:
        taken = (op @ mass_of(sources, op).unsqueeze(-1)).squeeze(-1)
        given = (op.mT @ mass_of(targets, op).unsqueeze(-1)).squeeze(-1)
        right = reciprocal(given, 0.5)
        if sources.mass is not None:
            right = right * sources.mass.to(right.dtype)
        return op.scale(_targets_only(reciprocal(taken, 0.5), targets), right)
