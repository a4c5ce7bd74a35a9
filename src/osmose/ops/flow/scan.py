"""The causal form as one step over any number of tokens: what came before is a state of constant size.

The step serves training (many tokens, no state), prefill and decoding (one token) alike. Inside, tokens are cut into
chunks; every chunk's products ``q_i . k_j`` are formed once and serve all four levels of sums, and what earlier chunks
left behind enters as running sums.

Shapes: ``P`` batch entries and heads, ``G`` chunks of ``L`` tokens, ``d`` key and ``c`` value channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .settings import FlowSettings
from .sweeps import safe_inverse

CHUNK = 64
NOTHING = -1e30  # log of no mass: finite, so that gradients stay so


class Carry(NamedTuple):
    """Sums over the tokens so far, of ``P`` sequences and heads (or with more leading dimensions in place of P).

    All but the moments are float64: they are small, and 10^5 additions of float32 lose three digits.
    """

    total: Tensor  # (P,)  mass
    keys: Tensor  # (P, d)  sum nu k
    queries: Tensor  # (P, d)  sum mu q
    key_flow: Tensor  # (P, d)  sum nu b k
    query_flow: Tensor  # (P, d)  sum mu a q
    log_total: Tensor  # (P,)  log sum nu e^c, NOTHING before the first source
    moments: Tensor  # (P, d, c)  sum nu w k v^T

    @classmethod
    def empty(
        cls, parts: int, d: int, c: int, dtype: torch.dtype, device: torch.device | str | None
    ) -> Carry:
        """Nothing seen yet; ``dtype`` is that of the moments."""
        nothing = torch.zeros(parts, dtype=torch.float64, device=device)
        vector = torch.zeros(parts, d, dtype=torch.float64, device=device)
        moments = torch.zeros(parts, d, c, dtype=dtype, device=device)
        return cls(nothing, vector, vector, vector, vector, nothing + NOTHING, moments)


def scan(
    q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None, settings: FlowSettings, before: Carry
) -> tuple[Tensor, Carry]:
    """Outputs ``(P, n, c)`` and the carry after them, from features ``(P, n, d)`` and values in float32 or better.

    ``mass (P, n)`` counts for a token as source and as target; points of mass 0 hold zeros.
    Cost: time ``n (L d + d c)`` and memory ``n (L + d + c)`` a part. Differentiable.
    """
    n, dtype = q.shape[-2], q.dtype
    size = min(CHUNK, n)
    fill = -n % size
    if mass is None:
        mass = q.new_ones(q.shape[:-1])
    q, k, v = (pad(x, (0, 0, 0, fill)).unflatten(-2, (-1, size)) for x in (q, k, v))  # (P, G, L, ...)
    mass = pad(mass, (0, fill)).unflatten(-1, (-1, size))
    present = mass > 0
    scores = q @ k.mT
    past, future = scores.tril(), scores.triu().mT  # what a target takes from, what a source gives to
    forth = _Sums(q, k, past, settings)
    back = _Sums(k, q, future, settings)
    count = before.total.unsqueeze(-1) + mass.flatten(1).cumsum(-1, dtype=torch.float64)
    seen = count.to(dtype).unflatten(-1, (-1, size))
    per = safe_inverse(seen)
    taken, keys = forth(mass, before.keys)
    given, queries = back(mass, before.queries)
    inverse = torch.where(present, safe_inverse(taken), 0.0)
    s, key_flow = forth(mass * seen * safe_inverse(given), before.key_flow)
    c, query_flow = back(mass * seen * inverse, before.query_flow)
    c = c * per
    if settings.clamp is not None:
        c = c.clamp(-settings.clamp, settings.clamp)
    log_mass = torch.where(present, mass, 1.0).double().log().masked_fill(~present, NOTHING)
    logits = torch.cat([before.log_total.unsqueeze(-1), (c + log_mass).flatten(1)], -1)
    totals = torch.logcumsumexp(logits, -1)[:, 1:]
    known = totals > 0.5 * NOTHING
    share = torch.where(known, (c.double().flatten(1) - torch.where(known, totals, 0.0)).exp(), 0.0)
    weight = (share * count if settings.mean_weight else share).to(dtype).unflatten(-1, (-1, size))
    carried = (mass * weight).unsqueeze(-1) * v
    moments = before.moments.unsqueeze(1) + (k.mT @ carried).cumsum(1)
    earlier = torch.cat([before.moments.unsqueeze(1), moments[:, :-1]], 1)
    open_ = torch.sigmoid(s * per) * inverse
    out = open_.unsqueeze(-1) * (past @ carried + q @ earlier)
    after = Carry(count[:, -1], keys, queries, key_flow, query_flow, totals[:, -1], moments[:, -1])
    return out.flatten(1, 2)[:, :n], after


class _Sums:
    """``x_i . sum_{j <= i} w_j y_j`` with the eps of the variant, for the weights of one level after the other."""

    def __init__(self, x: Tensor, y: Tensor, pairs: Tensor, settings: FlowSettings):
        self.x, self.y, self.pairs, self.eps = x, y, pairs, settings.eps
        self.shift = settings.eps if settings.eps_at == "factors" else 0.0
        self.y_total = y.sum(-1) if self.shift else None

    def __call__(self, weight: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The flow ``(P, G, L)``, and the sum over all tokens and what came before them, ``(P, d)``."""
        added = (weight.unsqueeze(-2) @ self.y).squeeze(-2)
        base = torch.cat([start.unsqueeze(-2), added.to(start.dtype)], -2).cumsum(-2)
        earlier = base[:, :-1].to(self.x.dtype) + self.shift
        out = (self.pairs @ weight.unsqueeze(-1) + self.x @ earlier.unsqueeze(-1)).squeeze(-1)
        if self.y_total is not None:
            out = out + self.shift * (earlier.sum(-1, keepdim=True) + (self.y_total * weight).cumsum(-1))
        elif self.eps:
            out = out + self.eps
        return out, base[:, -1]
