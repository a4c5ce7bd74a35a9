"""What the mixers of this folder ask of their arguments."""

from __future__ import annotations

from torch import Tensor

from ..ops.arguments import both_tokens, check_points, check_same_sets
from ..tokens import Tokens


def both_sides(
    what: str, q: Tensor, k: Tensor, v: Tensor, targets: Tokens | None, sources: Tokens | None, causal: bool
) -> tuple[Tokens, Tokens]:
    """Targets and sources with masses ``(n,)`` or ``(..., 1 or H, n)``; None becomes one set of mass 1.

    Raises:
        ValueError: they do not fit, or ``causal`` and not the same tokens on both sides.
    """
    check_points(what, q, k, v)
    sources, targets = both_tokens(what, q, k, sources, targets)
    if causal:
        if targets.n != sources.n:
            raise ValueError(
                f"{what}: causal=True with {targets.n} targets and {sources.n} sources; 'earlier' is defined within one "
                "sequence. For cross attention leave causal out."
            )
        check_same_sets(what, sources, targets)
    return targets, sources
