r"""The circle: Kuramoto's model at beta = 0, its invariants, and rings of clusters.

USA on the circle is ``theta_i' = -(1/n) sum_j e^{beta cos(theta_i - theta_j)} sin(theta_i - theta_j)``; at beta = 0 it is
Kuramoto's model with coupling 1 and equal frequencies. At beta = 0, in every dimension, the flow moves all tokens by one
Moebius map of the sphere, so cross-ratios of distances stay (Watanabe and Strogatz 1994 for the circle).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._arrays import Model, check_count, check_model


def cross_ratios(x: Tensor, quadruples: Tensor | None = None) -> Tensor:
    """``|x_i - x_j| |x_k - x_l| / (|x_i - x_k| |x_j - x_l|)``: conserved at beta = 0, for SA and USA, in every dimension.

    Args:
        x: ``(..., n, d)`` points of the sphere.
        quadruples: ``(q, 4)`` int64, the indices i, j, k, l; None takes every four tokens in a row.

    Returns:
        ``(..., q)``; inf or NaN where tokens of a denominator coincide.

    Source: 2312.10794v5, section 7 (the circle); the statement for all d from Moebius invariance, measured to 1e-12.
    """
    n = x.shape[-2]
    if quadruples is None:
        quadruples = torch.arange(max(n - 3, 0))[:, None] + torch.arange(4)
    if n < 4 or quadruples.ndim != 2 or quadruples.shape[-1] != 4:
        raise ValueError(
            f"cross_ratios: {n} tokens and quadruples of shape {tuple(quadruples.shape)}; expected at least 4 tokens and "
            "(q, 4) indices."
        )
    i, j, k, l = (x[..., c, :] for c in quadruples.to(x.device).unbind(-1))

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a - b, dim=-1)

    return distance(i, j) * distance(k, l) / (distance(i, k) * distance(j, l))


def ring_spectrum(clusters: int, beta: float, *, model: Model = "SA", scaled: bool = False) -> np.ndarray:
    r"""Eigenvalues of the flow at k equal clusters, equally spaced on the circle; largest first, the rotation (0) left out.

    With ``f(phi) = e^{beta cos phi} sin phi`` and ``phi_m = 2 pi m / k``, clusters move against each other at
    ``-(1/k) sum_m f'(phi_m) (1 - cos(q phi_m))``, q = 1..k-1, and a cluster spreads at ``-(1/k) sum_m f'(phi_m)``, the
    last entry before sorting. SA divides by the common normaliser. All negative: the ring is stable, and starts near it
    do not form one cluster. Three clusters are stable iff beta < -2/3: ``-f'(120 deg) = e^{-beta/2}(1/2 + 3 beta/4)``.

    ``scaled``: USA on the clock ``e^beta t``. Source: derived here; the open range of beta is 2507.22857's.
    """
    check_model("ring_spectrum", model)
    check_count("ring_spectrum", "clusters", clusters, 1)
    phi = 2 * np.pi * np.arange(clusters) / clusters
    shift = abs(beta) if model == "SA" else beta * scaled  # SA: any shift cancels in the normaliser
    weight = np.exp(beta * np.cos(phi) - shift)
    slope = weight * (np.cos(phi) - beta * np.sin(phi) ** 2) / (weight.sum() if model == "SA" else clusters)
    between = [float(-(slope * (1 - np.cos(q * phi))).sum()) for q in range(1, clusters)]
    return np.sort(np.array([*between, float(-slope.sum())]))[::-1]
