"""The flow law: what sinks take and sources give is conserved in turn; softmax-free attention without an inductive bias.

Wu et al., ICML 2022 (2202.06258), with masses, for any non-negative operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..operators.base import Operator
from ..tokens import Tokens
from .base import Law, mass_of, mass_ratio, reciprocal
from .diagonal import _targets_only

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Flows:
    """The flows of a network of targets (sinks) and sources, before and after conservation.

    Attributes:
        incoming: ``I_i = sum_j nu_j C_ij``, capacity into every target, ``(..., n)``.
        outgoing: ``O_j = sum_i mu_i C_ij``, capacity out of every source, ``(..., m)``.
        sink_flow: ``s_i``, what comes in when every source gives 1; the allocation's logit.
        source_flow: ``c_j``, what goes out when every target takes 1; the competition's logit before any clamp.
        competition: ``w_j``, the weight of every source.
        allocation: ``alpha_i = sigmoid(s_i)``, how open every target is.
        saturated: share of the sources' mass whose logit was cut by the clamp, ``(...)`` or ``(..., sets)``.
    """

    incoming: Tensor
    outgoing: Tensor
    sink_flow: Tensor
    source_flow: Tensor
    competition: Tensor
    allocation: Tensor
    saturated: Tensor


class Flow(Law):
    """``diag(alpha / C s) C diag(w s)``: competition among sources, a mean for every target, allocation at targets.

    With ``I = C s``, ``O = C^T t`` (S, T total masses): ``s_i = (T/S) C(s / O)``, ``c_j = (S/T) C^T(t / I)``, ``w = S
    softmax(c)`` under the masses and ``alpha = sigmoid(s_i)``. Both logits have mean 1 whatever the sizes, one
    Sinkhorn half-step each way. The result conserves neither side: a row sums to ``alpha_i (P w)_i``.
    Four products with a vector. Mass 0 and the splitting of mass are exact.

    Args:
        clamp: cut the competition's logits to ``[-clamp, clamp]``; None leaves them. A cut logit has no gradient, and
            as their mean is 1, a clamp of 1 makes about half of the sources equal.
        competition: the softmax runs over the sources of a set, or for every source over the heads (the dimension
            before the tokens).
        mean_weight: weights have mean 1, not sum 1.
        sink_correction, source_correction: the factors ``T/S`` and ``S/T``; without them the logits depend on how
            many tokens stand on the two sides.
    """

    name = "flow"
    uses_columns = True

    def __init__(
        self,
        *,
        clamp: float | None = None,
        competition: Literal["sources", "heads"] = "sources",
        mean_weight: bool = True,
        sink_correction: bool = True,
        source_correction: bool = True,
    ):
        if clamp is not None and not clamp > 0:
            raise ValueError(f"Flow: clamp is {clamp}; expected a positive bound, or None for no clamp.")
        if competition not in ("sources", "heads"):
            raise ValueError(f"Flow: competition is {competition!r}; expected sources or heads.")
        self.clamp, self.competition, self.mean_weight = clamp, competition, mean_weight
        self.sink_correction, self.source_correction = sink_correction, source_correction

    def _apply(self, op: Operator, sources: Tokens, targets: Tokens) -> Operator:
        flows = self.conserve(lambda u: op @ u, lambda u: op.mT @ u, op, sources, targets)
        left = _targets_only(flows.allocation * reciprocal(flows.incoming), targets)
        right = flows.competition
        return op.scale(left, right if sources.mass is None else right * mass_of(sources, op))

    def flows(self, op: Operator, *, sources: Tokens | None = None, targets: Tokens | None = None) -> Flows:
        """The flows that this law finds on an operator, with the arguments of the law itself."""
        sides = self._sides(op, sources, targets)
        return self.conserve(lambda u: op @ u, lambda u: op.mT @ u, op, *sides)

    def conserve(
        self, receive: Product, give: Product, like: Operator | Tensor, sources: Tokens, targets: Tokens
    ) -> Flows:
        """Both half-steps from the products ``C @ u`` and ``C^T @ u`` with a column, in the type of ``like``."""
        nu, mu = mass_of(sources, like), mass_of(targets, like)

        def column(product: Product, u: Tensor) -> Tensor:
            return product(u.unsqueeze(-1)).squeeze(-1)

        incoming, outgoing = column(receive, nu), column(give, mu)
        a, b = _targets_only(reciprocal(incoming), targets), _targets_only(reciprocal(outgoing), sources)
        s, c = column(receive, b * nu), column(give, a * mu)
        if self.sink_correction:
            s = s * reciprocal(mass_ratio(sources, targets, like))
        if self.source_correction:
            c = c * reciprocal(mass_ratio(targets, sources, like))
        cut = c if self.clamp is None else c.clamp(-self.clamp, self.clamp)
        if self.competition == "heads":
            weight = cut.softmax(-2) * _at_tokens(sources, sources.total(nu))
        else:
            peak = _at_tokens(sources, sources.amax(cut.detach().unsqueeze(-1)).squeeze(-1))
            e = torch.exp(cut - torch.where(peak == -torch.inf, 0.0, peak))
            weight = e * reciprocal(_at_tokens(sources, sources.mean(e.unsqueeze(-1)).squeeze(-1)))
        if not self.mean_weight:
            weight = weight * reciprocal(_at_tokens(sources, sources.total(nu)))
        saturated = sources.mean((cut != c).to(c.dtype).unsqueeze(-1)).squeeze(-1)
        weight = _targets_only(weight, sources)
        return Flows(incoming, outgoing, s, c, weight, torch.sigmoid(s), saturated)


def _at_tokens(tokens: Tokens, x: Tensor) -> Tensor:
    """A value of each set, ``(...)`` or ``(..., sets)``, at each of its tokens."""
    return tokens.spread(x.unsqueeze(-1)).squeeze(-1)
