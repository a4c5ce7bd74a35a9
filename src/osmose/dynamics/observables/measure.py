"""The state as a measure: its mean, its distance to a point mass, the rank of its Gram matrix.

Shapes: ``x (..., n, d)``, ``mass (..., n)``, results ``(...)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._points import mean, total, weighted


def order_parameter(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """``|sum_i m_i x_i| / M``: 1 at consensus on the sphere, near 0 for a uniform state. Time n d."""
    x, m = weighted("order_parameter", x, mass)
    return torch.linalg.vector_norm(mean(x, m), dim=-1)


def distance_to_dirac(x: Tensor, mass: Tensor | None = None, *, on: str = "sphere") -> Tensor:
    """The Wasserstein-2 distance (of the distance in R^d) from the state to the nearest Dirac measure.

    The coupling with a Dirac is unique, so it is ``(sum_i m_i |x_i - y|^2 / M)^{1/2}`` at the best y: ``mean/|mean|`` on the
    sphere (then equal to ``sqrt(2 (1 - |mean|))``), the mean in the whole space. Taken from differences, without a floor.

    Args:
        on: ``sphere``, where y is a unit vector, or ``space``.

    Time n d.
    """
    if on not in ("sphere", "space"):
        raise ValueError(f"distance_to_dirac: on is {on!r}; expected 'sphere' or 'space'.")
    x, m = weighted("distance_to_dirac", x, mass)
    y = mean(x, m)
    if on == "sphere":
        length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        some = torch.zeros_like(y)
        some[..., 0] = 1.0  # at mean 0 every point is as near
        y = torch.where(length > 0, y / torch.where(length > 0, length, 1.0), some)
    return mean((x - y.unsqueeze(-2)).square().sum(-1), m).sqrt()


def gram_spectrum(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """Eigenvalues of the Gram matrix ``sqrt(m_i m_j) <x_i, x_j>`` over their sum, largest first, ``(..., min(n, d))``.

    Two tokens at one place count as one of their mass. Cost: singular values of ``(n, d)``.
    """
    x, m = weighted("gram_spectrum", x, mass)
    values = torch.linalg.svdvals(m.sqrt().unsqueeze(-1) * x).square()
    return values / total(values).unsqueeze(-1)


def effective_rank(x: Tensor, mass: Tensor | None = None, *, kind: str = "entropy") -> Tensor:
    """How many directions the tokens span, from the eigenvalues p of :func:`gram_spectrum`.

    Args:
        kind: ``entropy``, ``exp(-sum p log p)`` (Roy and Vetterli 2007); or ``stable``, ``1 / max p``, the stable rank of the
            matrix of tokens.

    1 at consensus, at most ``min(n, d)``; 0 for a state of zeros.
    """
    if kind not in ("entropy", "stable"):
        raise ValueError(f"effective_rank: kind is {kind!r}; expected 'entropy' or 'stable'.")
    p = gram_spectrum(x, mass)
    top = p.amax(-1)
    if kind == "stable":
        return torch.where(top > 0, 1 / torch.where(top > 0, top, 1.0), 0.0)
    return torch.where(top > 0, torch.exp(-torch.xlogy(p, p).sum(-1)), 0.0)
