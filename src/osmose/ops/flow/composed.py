"""Flow-Attention as the law on a low-rank operator: every variant, any masses, memory O(n d), differentiable twice.

The slower of two linear paths: it serves what the sweeps do not, which is competition over heads and masses that need
a gradient.
"""

from __future__ import annotations

from torch import Tensor

from ...laws import Flows
from ...laws.base import mass_of, reciprocal
from ...operators.low_rank import low_rank_product
from ...tokens import Tokens
from .settings import FlowSettings


def composed_flow(
    q: Tensor, k: Tensor, v: Tensor, settings: FlowSettings, targets: Tokens, sources: Tokens
) -> tuple[Tensor, Flows]:
    """Outputs ``(..., H, n, c)`` and flows from features ``q (..., H, n, d)``, ``k (..., H, m, d)``, in the type of v."""
    flows = flows_of(q, k, settings, targets, sources)
    weighed = (flows.competition * mass_of(sources, v)).unsqueeze(-1) * v
    carried = low_rank_product(q, k, weighed, targets, sources)
    open_ = flows.allocation * reciprocal(flows.incoming)
    if targets.mass is not None:
        open_ = open_.where(targets.mass > 0, 0.0)
    return open_.unsqueeze(-1) * carried, flows


def flows_of(q: Tensor, k: Tensor, settings: FlowSettings, targets: Tokens, sources: Tokens) -> Flows:
    """The flows between features, with the eps of the variant in every flow sum."""
    eps = settings.eps
    inside = eps if settings.eps_at == "factors" else 0.0
    taken, given = (eps * (x + inside).sum(-1, keepdim=True) if inside else eps for x in (q, k))
    return settings.law.conserve(
        lambda u: low_rank_product(q + inside, k, u, targets, sources) + taken,
        lambda u: low_rank_product(k + inside, q, u, sources, targets) + given,
        q,
        sources,
        targets,
    )
