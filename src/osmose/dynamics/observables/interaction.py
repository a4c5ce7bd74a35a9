r"""The interaction energy of a state, what it gains by the flow, and whether the two agree.

.. math:: E_\beta = \frac{1}{2 \beta M^2} \sum_{ij} m_i m_j e^{\beta \langle x_i, x_j \rangle}, \qquad M = \sum_i m_i.

Everything is streamed: time ``n^2 d``, memory O(n). Sums are shifted by row maxima, so that a large beta overflows only
where the energy itself has no place in the type: take ``log_scale=beta``, :func:`normalised_energy` or
:func:`log_interaction` there.

Shapes: ``x (..., n, d)``, ``mass (..., n)``, beta a number or ``(...)``, results ``(...)``.

Source: 2312.10794v5, section 3, also for the metric of SA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...operators import Pairwise
from ...operators.streaming import row_max
from ._points import inverse_temperature, mean, total, weighted


def log_interaction(
    x: Tensor, beta: float | Tensor, mass: Tensor | None = None, *, bilinear: Tensor | None = None
) -> Tensor:
    """``log( sum_ij m_i m_j e^{beta <B x_i, x_j>} / M^2 )``, which no beta overflows; -inf for a state of no mass."""
    x, m = weighted("log_interaction", x, mass)
    b = inverse_temperature("log_interaction", beta, x)
    log_z = _log_normalisers(x, m, b, bilinear)
    return torch.logsumexp(_log(m) + log_z, -1) - 2 * total(m).log()


def energy(
    x: Tensor,
    beta: float | Tensor,
    mass: Tensor | None = None,
    *,
    bilinear: Tensor | None = None,
    log_scale: float | Tensor = 0.0,
) -> Tensor:
    """``e^{-log_scale} E_beta``.

    Args:
        x: tokens; the formula holds off the sphere too.
        beta: of either sign. At 0 the constant 1/(2 beta) is left out: the limit is ``<mean, B mean> / 2``.
        mass: None is 1 for each token.
        bilinear: B ``(d, d)``: the energy ``e^{beta <B x, y>}`` of a symmetric ``Q^T K = V``; None is the identity.
        log_scale: the energy times ``e^{-log_scale}``, for values past the range of floats.
    """
    log_pairs = log_interaction(x, beta, mass, bilinear=bilinear)
    x, m = weighted("energy", x, mass)
    b = inverse_temperature("energy", beta, x)
    centre = mean(x, m)
    turned = centre if bilinear is None else centre @ bilinear.to(x.dtype).mT
    scale = torch.as_tensor(log_scale, dtype=x.dtype, device=x.device)
    limit = (centre * turned).sum(-1) / 2 * torch.exp(-scale)
    zero = b == 0
    return torch.where(zero, limit, torch.exp(log_pairs - scale) / (2 * torch.where(zero, 1.0, b)))


def normalised_energy(x: Tensor, beta: float | Tensor, mass: Tensor | None = None) -> Tensor:
    """``2 beta e^{-beta} E = sum_ij m_i m_j e^{beta(<x_i, x_j> - 1)} / M^2``: 1 at consensus, ``sum_k (m_k/M)^2`` for far
    clusters, the staircase of metastability. For beta > 0 in (0, 1] on the sphere."""
    log_pairs = log_interaction(x, beta, mass)
    return torch.exp(log_pairs - torch.as_tensor(beta, dtype=log_pairs.dtype, device=log_pairs.device))


def energy_rate(
    x: Tensor,
    velocity: Tensor,
    beta: float | Tensor,
    mass: Tensor | None = None,
    *,
    bilinear: Tensor | None = None,
    log_scale: float | Tensor = 0.0,
) -> Tensor:
    """``e^{-log_scale} dE/dt`` along any velocity ``(..., n, d)``, by the chain rule:

    ``(1/M^2) sum_i m_i <x_i', sum_j m_j e^{beta <B x_i, x_j>} B x_j>``. Time ``n^2 d``, memory O(n).

    Raises:
        ValueError: a B that is not symmetric.
    """
    x, m = weighted("energy_rate", x, mass)
    b = inverse_temperature("energy_rate", beta, x)
    velocity = _velocity("energy_rate", velocity, x, m)
    if bilinear is not None and not torch.allclose(
        bilinear, bilinear.mT, atol=1e-6 * float(bilinear.abs().max())
    ):
        raise ValueError(
            "energy_rate: bilinear is not symmetric; the energy has this gradient for symmetric B alone."
        )
    turned = x if bilinear is None else x @ bilinear.to(x.dtype)
    q, top = _scores(x, m, b, bilinear)
    pulled = Pairwise(q, x, "exp", shift=top) @ (m.unsqueeze(-1) * turned)
    scale = torch.as_tensor(log_scale, dtype=x.dtype, device=x.device).unsqueeze(-1)
    gain = (velocity * pulled).sum(-1) * torch.exp(top - scale)
    return (m * gain).sum(-1) / total(m) ** 2


def dissipation(
    x: Tensor,
    velocity: Tensor,
    beta: float | Tensor,
    mass: Tensor | None = None,
    *,
    model: str = "SA",
    scaled: bool = False,
    bilinear: Tensor | None = None,
    log_scale: float | Tensor = 0.0,
) -> Tensor:
    """``e^{-log_scale}`` times the squared length of the velocity in the metric of the gradient flow:

    ``(1/M) sum m_i |x_i'|^2`` (USA), ``(1/M^2) sum m_i Z_i |x_i'|^2`` with ``Z_i = sum_j m_j e^{beta <x_i, x_j>}`` (SA). It
    equals ``dE/dt`` where the velocity is that flow, and the difference from :func:`energy_rate` tells how far from it
    a field is (masks, MLPs, general Q, K, V are no gradient flows).

    Args:
        velocity: ``dx/dt``, ``(..., n, d)``.
        model: ``SA`` or ``USA``.
        scaled: USA on the clock ``e^beta t``: velocity and result are per unit of that clock.
        bilinear, log_scale: as in :func:`energy`. For USA bilinear has no effect on the formula.
    """
    if model not in ("SA", "USA"):
        raise ValueError(f"dissipation: model is {model!r}; expected 'SA' (row law) or 'USA' (mean law).")
    x, m = weighted("dissipation", x, mass)
    b = inverse_temperature("dissipation", beta, x)
    speed2 = _velocity("dissipation", velocity, x, m).square().sum(-1)
    scale = torch.as_tensor(log_scale, dtype=x.dtype, device=x.device)
    if model == "USA":
        return mean(speed2, m) * torch.exp((b if scaled else torch.zeros_like(b)) - scale)
    weight = torch.exp(_log_normalisers(x, m, b, bilinear) - scale.unsqueeze(-1))
    return (m * weight * speed2).sum(-1) / total(m) ** 2


def _scores(x: Tensor, m: Tensor, beta: Tensor, bilinear: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries whose products with x are the exponents, and the largest exponent of each row."""
    q = x if bilinear is None else x @ bilinear.to(x.dtype).mT
    q = beta.unsqueeze(-1).unsqueeze(-1) * q
    top = row_max(q, x, present=m > 0)
    return q, torch.where(torch.isfinite(top), top, 0.0)


def _log_normalisers(x: Tensor, m: Tensor, beta: Tensor, bilinear: Tensor | None) -> Tensor:
    q, top = _scores(x, m, beta, bilinear)
    return top + (Pairwise(q, x, "exp", shift=top) @ m.unsqueeze(-1)).squeeze(-1).log()


def _log(m: Tensor) -> Tensor:
    return torch.where(m > 0, torch.where(m > 0, m, 1.0).log(), -torch.inf)


def _velocity(what: str, velocity: Tensor, x: Tensor, m: Tensor) -> Tensor:
    if velocity.shape != x.shape:
        raise ValueError(
            f"{what}: velocity has shape {tuple(velocity.shape)}; expected {tuple(x.shape)}, that of x."
        )
    return torch.where((m > 0).unsqueeze(-1), velocity.to(x.dtype), 0.0)
