r"""The inverse temperature at which the particle model would have the weights that an attention has.

SA on the unit vectors :math:`x_i` has :math:`P_{ij} = m_j e^{\beta \langle x_i, x_j \rangle} / Z_i`. Given other weights
P on the same points, two numbers answer "which beta", and they need not agree:

* **slope**: :math:`\log (P_{ij} / m_j) = \beta \langle x_i, x_j \rangle - \log Z_i`, so beta is the least-squares slope
  of the log weights on the inner products, both centred in each row (Z_i drops out, and so does any scale of a row).
  Its :math:`R^2` is the share of the variance of the log weights inside rows that inner products explain: 1 for SA, near 0 where
  queries and keys look at something else, and then SA with Q = K = I is no model of this attention, at any beta.
* **matched**: the beta >= 0 at which SA on these points has the same mean entropy of a row; that is, the same mean
  :math:`KL(P_i \| u_i)` from the uniform row over the sources that target i sees. It asks for nothing but how concentrated rows
  are, so it exists where R^2 is 0.

Weights must not be negative. Zeros (a softmax that underflows) take no part in the slope. Rows are made to sum to 1.

Shapes: H heads, r targets that are read, m sources, d coordinates.

Sources: the model is 2312.10794v5, section 2; both definitions are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 100  # of Newton's method, which takes about eight
LARGEST = 1e9  # beyond it a temperature is 0


@dataclass(frozen=True)
class HeadBeta:
    """The effective inverse temperature of one head.

    Attributes:
        slope, r2: over the pairs of all inputs together.
        slope_sd: deviation of the slopes of single inputs; None for one.
        matched, matched_sd: mean over inputs and deviation.
        inputs: how many were read.
        used: share of the visible pairs with a positive weight, which made the slope.
        reason: why a number is NaN or infinite; None where all are finite.
    """

    slope: float
    r2: float
    slope_sd: float | None
    matched: float
    matched_sd: float | None
    inputs: int
    used: float
    reason: str | None = None


class EffectiveBeta:
    """Effective inverse temperatures of the heads of one attention, streamed over inputs.

    Args:
        diagonal: whether a token's weight on itself counts, as it does in SA. Its inner product is 1, so it pulls on the
            slope; without it the numbers tell of the weights on others.

    >>> import torch
    >>> x = torch.nn.functional.normalize(torch.randn(6, 3, dtype=torch.float64), dim=-1)
    >>> fit = EffectiveBeta()
    >>> fit.update((4 * x @ x.mT).softmax(-1), x)
    >>> [head] = fit.heads()
    >>> round(head.slope, 6), round(head.r2, 6), round(head.matched, 6)
    (4.0, 1.0, 4.0)

    Memory: some numbers for each head and input.
    """

    def __init__(self, *, diagonal: bool = True):
        self.diagonal = diagonal
        self.sums: Tensor | None = None  # (H, 3): of g^2, g l, l^2, centred in rows
        self.counts: Tensor | None = None  # (H, 3): pairs that were seen, positive, negative
        self.noise = 0.0  # the variance of a logarithm that rounding makes
        self.slopes: list[Tensor] = []
        self.matched: list[Tensor] = []

    @torch.no_grad()
    def update(
        self,
        weights: Tensor,
        x: Tensor,
        *,
        targets: Tensor | None = None,
        mass: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        """Take one input.

        Args:
            weights: ``(H, r, m)`` or ``(r, m)``, rows = targets.
            x: ``(m, d)`` sources; their directions ``x / |x|`` are taken. A zero vector is no source.
            targets: ``(r,)`` int64, the places of the rows among the sources; None: they are all of them.
            mass: ``(m,)``, None is 1. Sources of mass 0 do not exist.
            causal: target i sees the sources j <= i only.

        Raises:
            ValueError: shapes that do not fit each other, another number of heads than before, values that are not finite.

        Cost: time ``r m (d + 10 H)``, memory ``r m H``, float64.
        """
        weights = weights.unsqueeze(0) if weights.ndim == 2 else weights
        n, r = len(x), weights.shape[-2]
        targets = torch.arange(r, device=x.device) if targets is None else targets
        if x.ndim != 2 or weights.ndim != 3 or weights.shape[-1] != n or len(targets) != r or r > n:
            raise ValueError(
                f"EffectiveBeta: weights {tuple(weights.shape)} on points {tuple(x.shape)} with {len(targets)} targets; expected "
                "(heads, targets, n) and (n, d): attention of a set on itself."
            )
        if self.sums is not None and len(self.sums) != len(weights):
            raise ValueError(
                f"EffectiveBeta: {len(weights)} heads after {len(self.sums)}; expected the same."
            )
        kept = x if mass is None else x[mass > 0]
        if not bool(torch.isfinite(weights).all()) or not bool(torch.isfinite(kept).all()):
            raise ValueError(
                "EffectiveBeta: weights or points hold NaN or infinite values; expected finite ones."
            )
        precision = max(torch.finfo(weights.dtype).eps, torch.finfo(x.dtype).eps)
        m = x.new_ones(n, dtype=torch.float64) if mass is None else mass.double()
        x = x.double()
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        here = (m > 0) & (length.squeeze(-1) > 0)
        x = torch.where(here.unsqueeze(-1), x / torch.where(length > 0, length, 1.0), 0.0)
        g_RM = x[targets] @ x.mT
        seen_RM = here[targets].unsqueeze(-1) & here
        if causal:
            seen_RM = seen_RM & (torch.arange(n, device=x.device) <= targets.unsqueeze(-1))
        if not self.diagonal:
            seen_RM = seen_RM & (torch.arange(n, device=x.device) != targets.unsqueeze(-1))
        p_HRM = torch.where(seen_RM, weights.double(), 0.0)
        self.noise = max(self.noise, (4 * precision) ** 2)
        self._count(p_HRM, seen_RM)
        self._regress(p_HRM, g_RM, seen_RM, m)
        m_RM = torch.where(seen_RM, m, 0.0)
        matched = []
        for p_RM in p_HRM.clamp(min=0):
            some = p_RM.sum(-1) > 0  # a row without weight on what it may see says nothing
            matched.append(_match(p_RM[None, some], g_RM[some], m_RM[some], precision))
        self.matched.append(torch.cat(matched).cpu())

    def heads(self) -> list[HeadBeta]:
        """What was found, a :class:`HeadBeta` for each head.

        Raises:
            ValueError: nothing was read.
        """
        if self.sums is None or self.counts is None:
            raise ValueError("EffectiveBeta: nothing was read; expected at least one update.")
        every = zip(
            self.sums.tolist(),
            self.counts.tolist(),
            torch.stack(self.slopes, -1).tolist(),
            torch.stack(self.matched, -1).tolist(),
            strict=True,
        )
        return [_head(*one, self.noise) for one in every]

    def _count(self, p_HRM: Tensor, seen_RM: Tensor) -> None:
        negative = p_HRM < -1e-6 * p_HRM.amax(-1, keepdim=True).clamp(min=0)
        found = [seen_RM.sum().expand(len(p_HRM)), (p_HRM > 0).sum((-1, -2)), negative.sum((-1, -2))]
        counts = torch.stack(found, -1).double().cpu()
        self.counts = counts if self.counts is None else self.counts + counts

    def _regress(self, p_HRM: Tensor, g_RM: Tensor, seen_RM: Tensor, m: Tensor) -> None:
        valid = seen_RM & (p_HRM > 0)
        l = torch.where(valid, torch.where(valid, p_HRM, 1.0).log() - torch.where(m > 0, m, 1.0).log(), 0.0)
        g = torch.where(valid, g_RM, 0.0)
        number = valid.sum(-1, keepdim=True).clamp(min=1)
        g, l = (torch.where(valid, v - v.sum(-1, keepdim=True) / number, 0.0) for v in (g, l))
        sums = torch.stack([(a * b).sum((-1, -2)) for a, b in ((g, g), (g, l), (l, l))], -1).cpu()
        self.sums = sums if self.sums is None else self.sums + sums
        self.slopes.append(sums[:, 1] / sums[:, 0])


def effective_beta(
    weights: Tensor,
    x: Tensor,
    *,
    targets: Tensor | None = None,
    mass: Tensor | None = None,
    causal: bool = False,
    diagonal: bool = True,
) -> list[HeadBeta]:
    """The effective inverse temperature of every head for one input; arguments as for :meth:`EffectiveBeta.update`."""
    fit = EffectiveBeta(diagonal=diagonal)
    fit.update(weights, x, targets=targets, mass=mass, causal=causal)
    return fit.heads()


def _head(
    sums: list[float], counts: list[float], slopes: list[float], matched: list[float], noise: float
) -> HeadBeta:
    (gg, gl, ll), (seen, positive, negative), nan = sums, counts, float("nan")
    used = positive / seen if seen else nan
    inputs = len(slopes)
    if negative or not positive:
        reason = (
            f"{100 * negative / seen:.2g} % of the weights are negative: no exponential has them"
            if negative
            else "no weight is positive"
        )
        return HeadBeta(nan, nan, None, nan, None, inputs, used, reason)
    reasons = []
    slope, r2 = nan, nan
    if gg <= noise * positive:
        reasons.append("inner products do not vary over the positive weights of a row: no slope")
    elif ll <= noise * positive:
        slope, r2 = 0.0, 1.0  # uniform rows: SA at beta = 0, exactly
    else:
        slope, r2 = gl / gg, min(gl**2 / (gg * ll), 1.0)
    if any(math.isnan(b) for b in matched):
        reasons.append("no beta has the concentration of these rows: inner products do not vary in a row")
    elif any(math.isinf(b) for b in matched):
        reasons.append(
            "rows are more concentrated than those of SA at any beta, or than this precision can tell"
        )
    mean, deviation = _spread(matched)
    return HeadBeta(slope, r2, _spread(slopes)[1], mean, deviation, inputs, used, "; ".join(reasons) or None)


def _spread(values: list[float]) -> tuple[float, float | None]:
    mean = sum(values) / len(values)
    if len(values) < 2 or not math.isfinite(mean):
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _match(p_HRM: Tensor, g_RM: Tensor, m_RM: Tensor, precision: float) -> Tensor:
    """The beta >= 0 of equal concentration for every head, ``(H,)``; NaN where inner products do not vary."""
    rows = (m_RM > 0).sum(-1) > 1  # others are Boolean whatever beta is
    p_HRM, g_RM, m_RM = p_HRM[:, rows], g_RM[rows], m_RM[rows]
    nan = p_HRM.new_full(p_HRM.shape[:1], torch.nan)
    if not len(g_RM):
        return nan
    u_RM = m_RM / m_RM.sum(-1, keepdim=True)
    p_HRM = p_HRM / p_HRM.sum(-1, keepdim=True).clamp(min=1e-300)
    wanted_H = _concentration(p_HRM, u_RM)
    top = torch.where(m_RM > 0, g_RM, -torch.inf).amax(-1, keepdim=True)
    away_RM = torch.where(m_RM > 0, g_RM - top, 0.0)
    if float(_variance(u_RM, away_RM)) <= precision**2:
        return torch.where(wanted_H <= precision**2, 0.0, nan)
    return wanted_H.new_tensor([_solve(one, u_RM, away_RM, precision) for one in wanted_H.tolist()])


def _solve(wanted: float, u_RM: Tensor, away_RM: Tensor, precision: float) -> float:
    """Newton's method in ``s = beta^2``, in which the concentration starts as a line of slope Var(g)/2."""
    if wanted <= precision**2:
        return 0.0
    most = -(u_RM * (away_RM == 0)).sum(-1).log().mean()  # of Boolean rows
    if wanted >= float(most) * (1 - 1e-12):
        return math.inf

    def at(s: float) -> tuple[float, float]:
        q = u_RM * torch.exp(math.sqrt(s) * away_RM)
        q = q / q.sum(-1, keepdim=True)
        return float(_concentration(q, u_RM)) - wanted, float(_variance(q, away_RM)) / 2

    low, high = 0.0, 2 * wanted / float(_variance(u_RM, away_RM))
    off, slope = at(high)
    while off < 0:
        if high > LARGEST**2:
            return math.inf
        low, high = high, 4 * high
        off, slope = at(high)
    s = high
    for _ in range(STEPS):
        following = s - off / slope if slope > 0 else -math.inf
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - s) <= 1e-15 * s:
            break
        s = following
        off, slope = at(s)
        low, high = (low, s) if off > 0 else (s, high)
    return math.sqrt(s)


def _variance(q_RM: Tensor, away_RM: Tensor) -> Tensor:
    """Variance of the inner products under the weights of a row, mean over rows."""
    mean = (q_RM * away_RM).sum(-1, keepdim=True)
    return (q_RM * (away_RM - mean).square()).sum(-1).mean()


def _concentration(p: Tensor, u_RM: Tensor) -> Tensor:
    """``KL(p || u)``, mean over rows. Every term is positive and of second order, so near 0 no digit is lost."""
    ratio = p / torch.where(u_RM > 0, u_RM, 1.0) - 1
    term = torch.where(ratio > -1, (1 + ratio) * torch.log1p(ratio.clamp(min=-1 + 1e-16)) - ratio, 1.0)
    return (u_RM * term).sum(-1).mean(-1)
