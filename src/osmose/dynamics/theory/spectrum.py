r"""Growth rates about the uniform measure: which pattern of clusters attention amplifies first.

A density ``1 + eps Y_l`` with a spherical harmonic of degree l on S^{d-1} grows like ``e^{g_l t}``,

.. math:: g_l = l (l+d-2) \frac{a_l}{\beta} \;\text{(USA)}, \qquad g_l = l (l+d-2) \frac{a_l}{\beta a_0} \;\text{(SA)},
   \qquad a_l = \Gamma(d/2)(2/\beta)^{d/2-1} I_{l+d/2-1}(\beta).

On the circle (d = 2) the SA rate is ``k^2 I_k / (beta I_0)``, with its maximum near ``k = sqrt(2 beta)`` and height
tending to 2/e: this many clusters show first.

Source: derived here; the picture is that of 2410.06833 and of Bruno, Pasqualotto and Agazzi (2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Model, Numbers, check_count, check_model, floats, plain
from ._bessel import log_eigenvalue


def growth_rate(
    degree: ArrayLike, beta: ArrayLike, d: int, *, model: Model = "SA", scaled: bool = False
) -> Numbers:
    """The growth rate of harmonics of degree l >= 0.

    Args:
        degree: l, integers; broadcasts with beta.
        beta: inverse temperature of either sign. At 0 only l = 1 grows, at rate (d-1)/d.
        d: dimension of the space, at least 2.
        model: ``SA`` or ``USA``.
        scaled: USA on the clock ``e^beta t`` (kernel ``e^{beta(<x,y>-1)}``), which does not overflow. SA has one clock.
    """
    _check("growth_rate", degree, d, model)
    l, b = np.broadcast_arrays(floats(degree), floats(beta))
    size = np.abs(b)
    logs = log_eigenvalue(l, size, d)
    if model == "SA":
        logs = logs - log_eigenvalue(np.zeros_like(l), size, d)
    elif scaled:
        logs = logs - b
    sign = np.where((b < 0) & (l % 2 == 0), -1.0, 1.0)  # a_l / beta, with a_l(-b) = (-1)^l a_l(b)
    with np.errstate(over="ignore"):
        ratio = np.where(size > 0, np.exp(logs) / np.where(size > 0, size, 1.0), np.where(l == 1, 1 / d, 0.0))
    return plain(l * (l + d - 2) * np.where(l > 0, sign, 1.0) * ratio)


def fastest_degree(beta: float, d: int, *, model: Model = "SA") -> int:
    """The degree that grows fastest; near ``sqrt(2 beta)`` for large beta on the circle."""
    _check("fastest_degree", 1, d, model)
    # g_l grows up to l of order sqrt(beta d) and then falls: beyond this bound it is past the maximum
    bound = int(4 * np.sqrt(abs(beta) * max(d, 2)) + 20)
    l = np.arange(1, bound + 1)
    return int(l[np.argmax(growth_rate(l, beta, d, model=model, scaled=True))])


def _check(what: str, degree: ArrayLike, d: int, model: str) -> None:
    check_model(what, model)
    check_count(what, "d", d, 2)
    l = floats(degree)
    if not bool(((l >= 0) & (l == np.round(l))).all()):
        raise ValueError(f"{what}: degree is {degree!r}; expected integers l >= 0.")
