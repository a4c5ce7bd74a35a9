"""What every mixer asks of the tokens on its two sides."""

from __future__ import annotations

from torch import Tensor

from ..tokens import Tokens, check_pair


def both_sides(
    what: str, q: Tensor, k: Tensor, targets: Tokens | None, sources: Tokens | None, causal: bool
) -> tuple[Tokens, Tokens]:
    """The tokens of targets ``q (..., n, d)`` and sources ``k (..., m, d)``; None becomes one set of mass 1.

    Raises:
        ValueError: they do not fit, or ``causal`` and not the same tokens on both sides.
    """
    n, m = q.shape[-2], k.shape[-2]
    targets, sources = targets or Tokens(n), sources or Tokens(m)
    check_pair(what, targets, sources, n, m)
    if not causal:
        return targets, sources
    if n != m:
        raise ValueError(
            f"{what}: causal=True with {n} targets and {m} sources; 'earlier' is defined for one sequence of tokens "
            "only. Leave causal out for cross attention."
        )
    if targets.batch is not sources.batch and not _equal(targets.batch, sources.batch):
        raise ValueError(
            f"{what}: causal=True with targets and sources of different sets; pass the same Tokens as both."
        )
    return targets, sources


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.equal(b)
