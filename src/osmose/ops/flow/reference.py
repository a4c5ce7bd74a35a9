"""Flow-Attention written down from its formulas: dense, in any float type, for tests and small inputs.

Wu et al., ICML 2022 (2202.06258), equations 4 to 8, with masses. Sinks i receive, sources j give:
``C_ij = phi(q_i) . phi(k_j)``; incoming flow ``I_i = sum_j nu_j C_ij``, outgoing flow ``O_j = sum_i mu_i C_ij``;
conserved flows ``s_i = sum_j nu_j C_ij / O_j`` and ``c_j = sum_i mu_i C_ij / I_i``; competition
``w = S softmax(c)``, allocation ``alpha = sigmoid(s)``; ``x_i = alpha_i / I_i sum_j nu_j C_ij w_j v_j``.

The causal form takes every sum over j <= i (sources, for a target) and over i <= j (targets, for a source), and divides by
the mass seen so far; the weight of a source is frozen when it comes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...tokens import Tokens
from .features import FEATURES
from .settings import Feature, FlowSettings, settings_of


def flow_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    preset: str | FlowSettings = "osmose",
    feature: Feature | None = None,
    causal: bool = False,
    sources: Tokens | None = None,
    targets: Tokens | None = None,
) -> Tensor:
    """:func:`.attention.flow_attention` by the dense formula. Time and memory ``n m``.

    Args:
        q, k, v: ``(..., H, n, d)``, ``(..., H, m, d)``, ``(..., H, m, c)``.
        sources, targets: masses that broadcast to ``(..., H, n)``; packed tokens in any order.
    """
    settings = settings_of(preset, feature)
    n, m = q.shape[-2], k.shape[-2]
    targets, sources = targets or Tokens(n), sources or Tokens(m)
    mu, nu = (
        x.new_ones(x.shape[:-1])
        if t.mass is None
        else torch.where(t.mass > 0, t.mass, 0.0).expand(x.shape[:-1]).to(x)
        for x, t in ((q, targets), (k, sources))
    )
    q, k, v = (torch.where(w.unsqueeze(-1) > 0, x, 0.0) for x, w in ((q, mu), (k, nu), (v, nu)))
    phi = FEATURES[settings.feature].value if isinstance(settings.feature, str) else settings.feature
    q, k = phi(q), phi(k)
    meet, rivals, fellows = (
        _same(*pair) for pair in ((targets, sources), (sources, sources), (targets, targets))
    )
    if causal:
        meet, rivals = meet.tril(), rivals.tril()
    came = _same(targets, sources).triu() if causal else meet  # the targets that count for a source
    of_sources, of_targets, of_rivals = (
        nu.unsqueeze(-2) * meet,
        mu.unsqueeze(-1) * came,
        nu.unsqueeze(-2) * rivals,
    )
    S_i, L_j, S_j = of_sources.sum(-1), of_targets.sum(-2), of_rivals.sum(-1)
    L_i = (mu.unsqueeze(-2) * fellows).sum(-1)
    eps, both = settings.eps, settings.eps_at == "factors"

    def dot(x: Tensor, sums: Tensor) -> Tensor:
        """``x_i . sums_i`` with the eps of the variant."""
        if both:
            return ((x + eps) * (sums + eps)).sum(-1)
        return (x * sums).sum(-1) + eps

    count_i, count_j = (S_i, S_j) if causal else (torch.ones_like(S_i), torch.ones_like(S_j))
    a = _inverse(dot(q, of_sources @ k)) * count_i * (mu > 0)
    b = _inverse(dot(k, of_targets.mT @ q)) * count_j * (nu > 0)
    s = dot(q, of_sources @ (k * b.unsqueeze(-1))) * _inverse(count_i)
    c = dot(k, of_targets.mT @ (q * a.unsqueeze(-1))) * _inverse(count_j)
    if not causal:
        s = s * L_i * _inverse(S_i) if settings.sink_correction else s
        c = c * S_j * _inverse(L_j) if settings.source_correction else c
    if settings.clamp is not None:
        c = c.clamp(-settings.clamp, settings.clamp)
    if settings.competition == "heads":
        weight = c.softmax(-2) * S_j
    else:
        log_mass = torch.where(of_rivals > 0, of_rivals, 1.0).log().masked_fill(of_rivals == 0, -1e30)
        totals = torch.logsumexp(c.unsqueeze(-2) + log_mass, -1)
        some = totals > -1e29
        share = torch.where(some, (c - torch.where(some, totals, 0.0)).exp(), 0.0)
        weight = share * S_j if settings.mean_weight else share
    alpha = torch.sigmoid(s)
    flow = of_sources * (q @ k.mT)
    x = flow @ (weight.unsqueeze(-1) * v)
    return (alpha * a * _inverse(count_i) * (mu > 0)).unsqueeze(-1) * x


def _same(targets: Tokens, sources: Tokens) -> Tensor:
    same = targets.same_set(sources)
    return torch.ones(targets.n, sources.n, dtype=torch.bool) if same is None else same


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0 / torch.where(x > 0, x, 1.0), 0.0)
