r"""The layer map of equiangular tokens: what one residual layer of step h does, exactly.

``x_i <- normalise(x_i + h A_i)`` keeps equal inner products equal. With the weights ``p`` (self) and ``q`` (each other)
of attention, ``a = <A_i, x_i> = p + (n-1) q rho`` and ``|A_i|^2 = p a + (n-1) q c``, ``c = p rho + q + (n-2) q rho``,

.. math:: 1 - \rho \leftarrow (1-\rho) \frac{(1 + h (p - q))^2}{1 + 2 h a + h^2 |A|^2},

written in the gap ``1 - rho``, so that no digit is lost near consensus. At h = 1 it is a layer; as h falls it is Euler's
method, first order and late, for the equation of :mod:`~osmose.dynamics.theory.equiangular`.

Source: derived here from 2312.10794v5, section 2 (a layer is an Euler step) and theorem 6.8.
"""

from __future__ import annotations

import numpy as np

from ._arrays import Model, Numbers, check_count, check_model, check_range, floats, plain


def layer_gap(gap: Numbers, beta: float, n: int, h: float, *, model: Model = "SA") -> Numbers:
    """``1 - rho`` after one layer, from ``1 - rho`` before it. ``h = inf`` is attention without a residual branch.

    Raises:
        ValueError: a gap outside ``[0, n/(n-1)]``, a negative h.
    """
    _check("layer_gap", n, h, model)
    check_range("layer_gap", "gap", gap, 0.0, n / (n - 1))
    return plain(_layer(floats(gap), beta, n, h, model))


def layer_times(
    rho: float, beta: float, n: int, h: float, *, start: float = 0.0, model: Model = "SA"
) -> float:
    """``h k`` for the first number of layers k with inner product at least rho.

    Raises:
        ValueError: arguments out of range, or more than ten million layers.
    """
    _check("layer_times", n, h, model)
    check_range("layer_times", "rho", rho, start, 1 - 1e-300)
    gap, layers = np.asarray(1.0 - start), 0
    while gap > (1 - rho) * (1 + 1e-14):
        gap, layers = _layer(gap, beta, n, h, model), layers + 1
        if layers == 10_000_000:
            raise ValueError(
                f"layer_times: rho = {rho} is not reached in ten million layers at beta = {beta}, h = {h}; take a larger h, "
                "or equiangular_time(..., log=True)."
            )
    return h * layers


def layer_phase_curve(layers: int, n: int, h: float, delta: float = 1e-3, *, model: Model = "SA") -> float:
    """The largest beta (SA; smallest for USA) at which ``layers`` layers bring orthogonal tokens to ``1 - delta``.

    What a simulation with :func:`layer_gap`'s step shows at t = h layers in place of
    :func:`~osmose.dynamics.theory.phase_curve`. NaN where no beta from 0 to 700 has that time.
    """
    from scipy.optimize import brentq

    _check("layer_phase_curve", n, h, model)
    check_count("layer_phase_curve", "layers", layers, 1)

    def off(beta: float) -> float:
        gap = np.asarray(1.0)
        for _ in range(layers):
            gap = _layer(gap, beta, n, h, model)
        return float(np.log(gap / delta))

    return float(brentq(off, 0.0, 700.0, xtol=1e-10)) if off(0.0) * off(700.0) < 0 else float("nan")


def attention_weights(gap: np.ndarray, beta: float, n: float, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a token on itself and on each other one."""
    if model == "SA":
        normaliser = np.logaddexp(beta * gap, np.log(float(n) - 1))
        return np.exp(beta * gap - normaliser), np.exp(-normaliser)
    with np.errstate(over="ignore"):
        return np.exp(beta) / n * np.ones_like(gap), np.exp(beta * (1 - gap)) / n


def _layer(gap: np.ndarray, beta: float, n: float, h: float, model: Model) -> np.ndarray:
    own, other = attention_weights(gap, beta, n, model)
    more = -own * np.expm1(-beta * gap)  # own - other, to relative precision as the gap falls
    n, rho = float(n), 1 - gap  # a context may be longer than an int64
    along = own + (n - 1) * other * rho
    across = own * rho + other + (n - 2) * other * rho
    length2 = own * along + (n - 1) * other * across
    if np.isinf(h):
        return gap * more**2 / length2
    return gap * (1 + h * more) ** 2 / (1 + 2 * h * along + h**2 * length2)


def _check(what: str, n: int, h: float, model: str) -> None:
    check_model(what, model)
    check_count(what, "n", n, 2)
    if not h > 0:
        raise ValueError(f"{what}: h is {h}; expected a step above 0.")
