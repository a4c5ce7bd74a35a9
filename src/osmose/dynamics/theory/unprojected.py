"""Unprojected tokens in R^d, ``x_i' = sum_j P_ij V x_j``: where the rescaled ``z = e^{-tV} x`` can go.

Source: 2305.05465.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def polytope_gap(x: Tensor, vertices: Tensor, a: Tensor | None = None) -> Tensor:
    """``max_j <A x, A v_j> - |A x|^2``, which is 0 exactly at the possible limits inside a polytope with vertices v_j.

    For V = I and ``Q^T K = A^T A > 0`` hulls are nested, with limit a polytope K; every z_i goes to 0, or to a point of K
    with ``|A x|^2 = max_j <A x, A v_j>``, or to a vertex. On K the value is never negative.

    Args:
        x: ``(..., d)`` points of K.
        vertices: ``(v, d)``.
        a: ``(d, d)``, a square root of ``Q^T K``; None is the identity.

    Returns:
        ``(...)``. Source: 2305.05465, on polytopes (V = I).
    """
    ax, av = (x, vertices) if a is None else (x @ a.mT, vertices @ a.mT)
    return (ax @ av.mT).amax(-1) - ax.square().sum(-1)


def leading_functional(v: np.ndarray) -> tuple[float, np.ndarray]:
    """The leading eigenvalue of V and its left eigenvector phi (unit, largest entry positive).

    Where it is real, positive and simple ("good triple", with ``<Q phi_1, K phi_1> > 0``) the coordinates ``<phi, z_i>``
    take at most three values as t grows: tokens go to parallel hyperplanes. For symmetric V left and right agree.

    Raises:
        ValueError: the eigenvalue of largest size is complex, not positive, or not simple.

    Source: 2305.05465, on hyperplanes (good triples).
    """
    v = np.asarray(v, dtype=np.float64)
    if v.ndim != 2 or v.shape[0] != v.shape[1]:
        raise ValueError(f"leading_functional: v has shape {v.shape}; expected a square matrix.")
    values, vectors = np.linalg.eig(v.T)
    order = np.argsort(-np.abs(values))
    top = values[order[0]]
    simple = len(values) == 1 or abs(values[order[1]]) < abs(top) * (1 - 1e-9)
    if abs(top.imag) > 1e-9 * abs(top) or top.real <= 0 or not simple:
        raise ValueError(
            f"leading_functional: the eigenvalues are {np.array2string(values, precision=4)}; expected one real, positive, "
            "and larger in size than all others."
        )
    phi = vectors[:, order[0]].real
    phi = phi / np.linalg.norm(phi)
    return float(top.real), phi * np.sign(phi[np.argmax(np.abs(phi))])
