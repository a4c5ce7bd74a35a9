"""What a law is: operator in, operator out, and what it conserves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..operators.base import Operator
from ..tokens import Tokens, check_pair

ROW_SUM = "row_sum"  # A 1 = 1: what a target takes is a mean
COL_SUM = "col_sum"  # t^T A = s T / S: every source gives what it weighs
SYMMETRIC = "symmetric"  # t_i A_ij = s_j A_ji, for a symmetric kernel and equal masses


class Law(ABC):
    """A rule on the mass that an operator moves: ``diag(r) C diag(c)`` for some r, c.

    The diagonals come from a few products with ``C`` and ``C^T``, so a law costs what ``C`` costs.
    A token of mass 0 is absent: as a source it gives nothing, as a target it receives 0. A set
    with no mass gives 0, never NaN.

    Attributes:
        name: how it is called in tables and settings.
        conserves: which of ``row_sum``, ``col_sum``, ``symmetric`` hold for every non-negative kernel.
        uses_columns: whether what a target takes depends on what other targets are there (column sums). A causal
            operator must refuse such a law: it would leak the future.
    """

    name: ClassVar[str]
    conserves: ClassVar[frozenset[str]] = frozenset()
    uses_columns: ClassVar[bool] = False

    def __call__(
        self, op: Operator, *, sources: Tokens | None = None, targets: Tokens | None = None
    ) -> Operator:
        """The operator under this law.

        Args:
            op: the kernel, ``(..., n, m)``; non-negative where the law is to conserve anything.
            sources: masses of the columns, ``(m,)`` or with the leading dimensions of ``op``; None means 1. A padded
                mass ``(B, m)`` fits all heads of an operator ``(B, H, n, m)``.
            targets: masses of the rows; None means 1. For a square operator both may be the same.

        Raises:
            ValueError: tokens or masses that do not fit the operator; a causal operator under a law over column sums.
        """
        if self.uses_columns and op.is_causal:
            raise ValueError(
                f"law {self.name} on {op!r}: it divides by column sums, so that what a target takes would depend on later "
                "targets: the future leaks through a causal mask. Take row, mean or none; the causal form of flow, whose "
                "sums are prefix sums, is osmose.flow_attention(..., causal=True)."
            )
        return self._apply(op, *self._sides(op, sources, targets))

    def _sides(self, op: Operator, sources: Tokens | None, targets: Tokens | None) -> tuple[Tokens, Tokens]:
        check_pair(f"law {self.name}", targets, sources, op.shape[-2], op.shape[-1])
        sources, targets = sources or Tokens(op.shape[-1]), targets or Tokens(op.shape[-2])
        return _fitted(sources, op, f"{self!r}: sources"), _fitted(targets, op, f"{self!r}: targets")

    @abstractmethod
    def _apply(self, op: Operator, sources: Tokens, targets: Tokens) -> Operator: ...

    def __repr__(self) -> str:
        return f"law {self.name}"

    @torch.no_grad()
    def deviation(
        self, op: Operator, *, sources: Tokens | None = None, targets: Tokens | None = None
    ) -> dict[str, float]:
        """How far an operator is from what this law conserves: the largest absolute error for each item.

        ``op`` is what the law returned. Rows and columns that have nothing to give or take are left out.
        Cost: a product for each of ``row_sum`` and ``col_sum``; ``symmetric`` is checked by one random vector.
        """
        s, t = self._sides(op, sources, targets)
        mass_s, mass_t = mass_of(s, op), mass_of(t, op)
        out = {}
        if ROW_SUM in self.conserves:
            rows = op.row_sum()
            out[ROW_SUM] = _largest((rows - 1) * (rows != 0))
        if COL_SUM in self.conserves:
            columns = (op.mT @ mass_t.unsqueeze(-1)).squeeze(-1)
            out[COL_SUM] = _largest((columns - mass_s * mass_ratio(t, s, op)) * (columns != 0))
        if SYMMETRIC in self.conserves and op.shape[-1] == op.shape[-2]:
            v = torch.randn(op.shape[-1], 1, dtype=op.dtype, device=op.device, generator=_generator(op))
            forward, backward = t.weigh(op @ v), op.mT @ s.weigh(v).expand(*op.shape[:-2], -1, -1)
            out[SYMMETRIC] = _largest(forward - backward)
        return out


def _fitted(tokens: Tokens, op: Operator, what: str) -> Tokens:
    """Tokens whose mass broadcasts with the leading dimensions of the operator; a mass of 0 is a constant."""
    if tokens.mass is None:
        return tokens
    given, lead = tokens.mass.shape, op.shape[:-2]
    tokens = tokens.with_mass(torch.where(tokens.mass > 0, tokens.mass, 0.0))
    if len(given) == 1:
        return tokens
    heads = len(given) == len(lead)  # (B, n) for (B, H, n, m)
    try:
        together = torch.broadcast_shapes((*given[:-1], 1) if heads else given[:-1], lead)
        fits = together == lead if heads else len(given) > len(lead)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{what} have masses of shape {tuple(given)} but {op!r} has leading shape {tuple(lead)}; "
            f"expected ({tokens.n},), {(*lead, tokens.n)}, or {(*lead[:-1], tokens.n)} for all heads."
        )
    return tokens.heads() if heads else tokens


def _generator(op: Operator) -> torch.Generator:
    return torch.Generator(device=op.device).manual_seed(0)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def mass_of(tokens: Tokens, op: Operator | Tensor) -> Tensor:
    """The masses ``(..., n)`` as a tensor that multiplies with the operator's sums."""
    wide = torch.promote_types(op.dtype, torch.float32)
    if tokens.mass is None:
        return torch.ones(tokens.n, dtype=wide, device=op.device)
    return tokens.mass.to(wide)


def reciprocal(x: Tensor, power: float = 1.0, *, signed: bool = False) -> Tensor:
    """``x ** -power``, and 0 (with gradient 0) where x is 0, or negative and not ``signed``.

    NaN and infinity give NaN: an overflow must show.
    """
    usable = (x != 0) if signed else ~(x <= 0)
    out = torch.where(usable, torch.where(usable, x, 1.0) ** -power, 0.0)
    return torch.where(torch.isfinite(x), out, torch.nan)


def mass_ratio(of: Tokens, at: Tokens, op: Operator | Tensor) -> Tensor:
    """Total mass of ``of`` over total mass of ``at``, set by set, at the tokens of ``at``."""
    like = mass_of(at, op)
    ratio = of.total(like) * reciprocal(at.total(like))
    return at.spread(ratio.unsqueeze(-1)).squeeze(-1)
