"""What attention rows look like: entropy, distance to Boolean attention, leaders.

They are functions of any operator or matrix with rows that sum to one (softmax, causal, hardmax), read in blocks of
rows: time that of forming the rows, memory 512 rows. :func:`attention_operator` makes the operator of a state.

Shapes: attention ``(..., n, m)``, rows = targets; ``x (..., n, d)``, ``mass (..., n)``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ... import laws
from ...operators import Causal, Operator, Pairwise
from ...operators.streaming import row_max
from ...tokens import Tokens
from ._points import inverse_temperature, weighted

ROWS = 512


def attention_operator(
    x: Tensor,
    beta: float | Tensor = 1.0,
    mass: Tensor | None = None,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
    causal: bool = False,
) -> Operator:
    """``P_ij = m_j e^{beta <Q x_i, K x_j>} / sum_k m_k e^{beta <Q x_i, K x_k>}`` as an operator, nothing formed.

    ``query`` and ``key`` are Q and K ``(r, d)``, None the identity; ``causal`` keeps j <= i.
    """
    x, m = weighted("attention_operator", x, mass)
    b = inverse_temperature("attention_operator", beta, x)
    q = x if query is None else x @ query.to(x.dtype).mT
    k = x if key is None else x @ key.to(x.dtype).mT
    op: Operator = Pairwise(b.unsqueeze(-1).unsqueeze(-1) * q, k)
    if causal:
        op = op * Causal(x.shape[-2], dtype=x.dtype, device=x.device)
    tokens = None if mass is None else Tokens(x.shape[-2], m)
    return laws.row(op, sources=tokens, targets=tokens)


def attention_entropy(weights: Operator | Tensor, mass: Tensor | None = None) -> Tensor:
    """``-sum_j P_ij log(P_ij / m_j)`` of every row, ``(..., n)``: 0 for Boolean attention, log n for uniform attention.

    With masses it counts the unit tokens that a mass stands for; rows of absent targets give 0.
    """
    log_mass = None if mass is None else torch.where(mass > 0, mass, 1.0).log().unsqueeze(-2)

    def of(p: Tensor) -> Tensor:
        out = -torch.xlogy(p, p).sum(-1)
        return out if log_mass is None else out + (p * log_mass.to(p.dtype)).sum(-1)

    return _by_rows(weights, of)


def boolean_distance(weights: Operator | Tensor) -> Tensor:
    """``min_e |P_i - e|`` over Boolean rows e (one 1) for every row, ``(..., n)``: ``sqrt(|P_i|^2 - 2 max_j P_ij + 1)``.

    0 where a target listens to a single token; at most ``sqrt(1 - 1/m)``. For unprojected tokens in d = 1 it goes to 0 for
    all but at most one row (2305.05465). It tells tokens apart, not places: two tokens at one place
    share a weight.
    """

    def of(p: Tensor) -> Tensor:
        top, j = p.max(-1, keepdim=True)
        away = p.scatter(-1, j, 1 - top)  # the difference from e, without cancellation, up to a sign
        return torch.linalg.vector_norm(away, dim=-1)

    return _by_rows(weights, of)


def listeners(weights: Operator | Tensor) -> Tensor:
    """How many targets listen most to each source, ``(..., m)`` int64: the leaders of Boolean attention are those with any.

    Rows that sum to 0 (absent targets) listen to nobody.
    """
    m = weights.shape[-1]
    out: Tensor | None = None
    for p in _rows(weights):
        best = p.argmax(-1)
        count = torch.zeros(*p.shape[:-2], m, dtype=torch.int64, device=p.device)
        count.scatter_add_(-1, best, (p.sum(-1) != 0).long())
        out = count if out is None else out + count
    return torch.zeros(*weights.shape[:-2], m, dtype=torch.int64) if out is None else out


def leaders(
    x: Tensor, mass: Tensor | None = None, *, matrix: Tensor | None = None, tolerance: float = 1e-9
) -> Tensor:
    """Which tokens point at themselves, ``<A x_i, x_i> >= max_j <A x_i, x_j>``: the leaders of hardmax attention.

    Args:
        matrix: A = ``K^T Q`` ``(d, d)``, so that the score is ``<A x_i, x_j>``; None the identity.
        tolerance: relative slack of the comparison.

    Returns:
        ``(..., n)`` bool; False for absent tokens. On the sphere with A = I every token is one.

    Source: 2407.01602 (a leader is a token that attends to itself alone). Time ``n^2 d``, memory O(n).
    """
    x, m = weighted("leaders", x, mass)
    q = x if matrix is None else x @ matrix.to(x.dtype).mT
    own = (q * x).sum(-1)
    top = row_max(q, x, present=m > 0)
    return (m > 0) & (own >= top - tolerance * top.abs().clamp(min=1e-300))


def _rows(weights: Operator | Tensor) -> Iterator[Tensor]:
    for start in range(0, weights.shape[-2], ROWS):
        rows = slice(start, start + ROWS)
        yield weights[..., rows, :] if isinstance(weights, Tensor) else weights.rows(rows)


def _by_rows(weights: Operator | Tensor, of) -> Tensor:
    parts = [of(p) for p in _rows(weights)]
    return torch.cat(parts, -1) if parts else torch.zeros(weights.shape[:-1])
