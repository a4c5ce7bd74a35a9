"""The convex hull of a state: its volume, and the hemisphere that holds it. On the CPU, state by state.

Shapes: ``x (..., n, d)``, ``mass (..., n)``; absent tokens are left out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._points import weighted

HULL_DIMENSIONS = 6


def hull_volume(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """Volume of the convex hull (length, area, ...), ``(...)`` float64; 0 for a flat one.

    Raises:
        ValueError: more than 6 dimensions, where hulls have too many facets.

    Cost: near ``n log n`` for d <= 3, growing like ``n^{d/2}``. A hull thinner than about 1e-12 of its width counts as flat.
    """
    from scipy.spatial import ConvexHull, QhullError

    d = x.shape[-1]
    if d > HULL_DIMENSIONS:
        raise ValueError(
            f"hull_volume: x has {d} dimensions; expected at most {HULL_DIMENSIONS}. Project first, or use effective_rank."
        )

    def volume(points: np.ndarray) -> float:
        if len(points) <= d:
            return 0.0
        if d == 1:
            return float(np.ptp(points))
        points = points - points.mean(0)
        # Qhull calls thin hulls flat by size: it is asked about a hull of size one
        width = float(np.abs(points).max())
        if width == 0:
            return 0.0
        try:
            return float(ConvexHull(points / width).volume) * width**d
        except QhullError:
            return 0.0

    return _by_state("hull_volume", x, mass, volume)


def hemisphere_margin(x: Tensor, mass: Tensor | None = None) -> Tensor:
    """``max_{|w| = 1} min_i <x_i, w>`` where it is positive, else 0: ``(...)`` float64.

    Positive exactly where all tokens lie in an open hemisphere, and then the distance from the origin to their hull; it
    never falls along SA and USA with V = I. Cost: non-negative least squares of size ``(d + 1, n)``, usually d^2 n.
    """

    def margin(points: np.ndarray) -> float:
        return 0.0 if not len(points) else _nearest(points)[0]

    return _by_state("hemisphere_margin", x, mass, margin)


def hemisphere_pole(x: Tensor) -> Tensor:
    """The unit vector w of :func:`hemisphere_margin` for one state ``(n, d)``, float64; zeros where there is none."""
    return torch.from_numpy(_nearest(x.detach().double().cpu().numpy())[1])


def _nearest(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Distance from the origin to the hull, and the direction of its nearest point.

    Least distance programming (Lawson and Hanson): with u >= 0 minimising ``|X^T u|^2 + (1 . u - 1)^2`` the residual r has
    ``|r|^2 = D^2 / (1 + D^2)``.
    """
    from scipy.optimize import nnls

    a = np.vstack([points.T, np.ones(len(points))])
    target = np.zeros(len(a))
    target[-1] = 1.0
    u, residual = nnls(a, target)
    near = points.T @ u
    if residual < 1e-12 or u.sum() == 0:
        return 0.0, np.zeros(points.shape[1])
    near = near / u.sum()
    distance = float(np.linalg.norm(near))
    return distance, near / distance


def _by_state(what: str, x: Tensor, mass: Tensor | None, of) -> Tensor:
    lead = x.shape[:-2]
    x, m = weighted(what, x.detach(), mass)
    points = x.double().cpu().numpy().reshape(-1, *x.shape[-2:])
    here = (m > 0).cpu().numpy().reshape(-1, x.shape[-2])
    values = [of(p[h]) for p, h in zip(points, here, strict=True)]
    return torch.tensor(values, dtype=torch.float64, device=x.device).view(lead)
