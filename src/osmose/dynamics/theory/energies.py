r"""Energies of measures that are known: the interaction energy that attention ascends.

.. math:: E_\beta(\mu) = \frac{1}{2\beta} \iint e^{\beta \langle x, y\rangle}\,d\mu(x)\,d\mu(y)

for a probability measure mu. It is largest at a Dirac measure and, for beta > 0, least at the uniform one. USA is its
Wasserstein gradient ascent, SA the ascent in a metric weighted by the normalisers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Model, Numbers, check_count, check_model, floats, plain
from ._bessel import log_eigenvalue


def dirac_energy(beta: ArrayLike, *, log: bool = False) -> Numbers:
    """``e^beta / (2 beta)``, the maximum of the energy; for ``log``, beta > 0.

    Source: 2312.10794v5, section 3 (the maximisers are Dirac measures).
    """
    b = _nonzero("dirac_energy", beta)
    return _value(b, b, log, "dirac_energy")


def uniform_energy(beta: ArrayLike, d: int, *, log: bool = False) -> Numbers:
    r"""The energy of the uniform measure on S^{d-1}, for beta > 0 the minimum:

    .. math:: \frac{1}{2\beta}\Gamma(d/2)(2/\beta)^{d/2-1} I_{d/2-1}(\beta).

    Source: minimiser in 2312.10794v5, section 3; the value is derived here (Funk-Hecke, degree 0).
    """
    check_count("uniform_energy", "d", d, 1)
    b = _nonzero("uniform_energy", beta)
    if d == 1:  # two points: I_{-1/2} is the hyperbolic cosine
        return _value(b, np.logaddexp(b, -b) - np.log(2), log, "uniform_energy")
    return _value(b, log_eigenvalue(np.zeros_like(b), b, d), log, "uniform_energy")


def equiangular_energy(rho: ArrayLike, beta: float, n: int, *, log: bool = False) -> Numbers:
    """``(e^beta + (n-1) e^{beta rho}) / (2 beta n)``: n tokens with all inner products rho. Derived."""
    check_count("equiangular_energy", "n", n, 2)
    b = _nonzero("equiangular_energy", beta)
    r = floats(rho)
    return _value(b, np.logaddexp(b, np.log(n - 1) + b * r) - np.log(n), log, "equiangular_energy")


def monotone_step_bound(beta: float, *, stepper: str = "layer", model: Model = "SA") -> float:
    """The largest step h of a token for which the energy provably never falls, Q = K = V = I, beta >= 0, any tokens.

    ``layer``, ``normalise(x + h A)``: inf, for any h and another for every token. ``tangent``, ``normalise(x + h proj A)``:
    safe while ``h <A_i, x_i> <= 2``, that is 2 (SA) and ``2 e^{-beta}`` (USA).

    Why: the kernel is positive definite, so E is convex in mu; the potential ``K * mu`` is convex on R^d with its
    gradient along A_i, and the step turns x_i towards A_i. Derived here; the continuous statement is 2312.10794v5,
    section 3.
    """
    check_model("monotone_step_bound", model)
    if beta < 0 or stepper not in ("layer", "tangent"):
        raise ValueError(
            f"monotone_step_bound: beta is {beta} and stepper {stepper!r}; expected beta >= 0 and 'layer' or 'tangent'."
        )
    if stepper == "layer":
        return float("inf")
    return 2.0 if model == "SA" else 2.0 * float(np.exp(-beta))


def _nonzero(what: str, beta: ArrayLike) -> np.ndarray:
    b = floats(beta)
    if bool((b == 0).any()):
        raise ValueError(
            f"{what}: beta is 0, where e^0/(2 beta) is infinite; only differences of energies have a limit, "
            "that of |mean|^2 / 2."
        )
    return b


def _value(beta: np.ndarray, log_integral: np.ndarray, log: bool, what: str) -> Numbers:
    if not log:
        with np.errstate(over="ignore"):
            return plain(np.exp(log_integral) / (2 * beta))
    if bool((beta < 0).any()):
        raise ValueError(f"{what}: log with a negative beta; the energy is negative there, leave log out.")
    return plain(log_integral - np.log(2 * beta))
