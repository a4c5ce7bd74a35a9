"""Passage times by quadrature, and their inverse, in a coordinate where the flow is regular.

Every scalar flow here is ``dT/dx = e^{pace(x)}`` in some coordinate x in which the pace is smooth and tends to
constants at both ends (a logit, a log-tangent). Times are sums of Gauss-Legendre panels, kept in logarithms, so that a
metastable passage of length e^beta neither overflows nor loses what follows it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


class Clock:
    """The passage time from ``start`` to x, for ``x >= start``.

    Args:
        log_pace: ``log dT/dx``, elementwise.
        start: where the clock reads 0.
        flat: beyond this x the pace is constant to rounding.
        width: panels no wider than this resolve the pace.
    """

    def __init__(self, log_pace: Callable[[np.ndarray], np.ndarray], start: float, flat: float, width: float):
        self.log_pace, self.start = log_pace, start
        self.flat = max(flat, start)
        count = max(1, int(np.ceil((self.flat - start) / width)))
        if count > 2_000_000:
            raise ValueError(
                f"the passage needs {count:,} panels of quadrature; expected |beta| up to about 1e5 here."
            )
        self.edges = np.linspace(start, self.flat, count + 1)
        x = self.edges[:-1, None] + np.diff(self.edges)[:, None] * _NODES
        logs = log_pace(x)
        # what is subtracted before exp: the slowest point, so that no sum overflows
        self.log_scale = float(logs.max()) if self.flat > start else float(log_pace(np.array(start)))
        panels = (np.exp(logs - self.log_scale) @ _WEIGHTS) * np.diff(self.edges)
        self.cumulative = np.concatenate([[0.0], np.cumsum(panels)])

    def log_time(self, x: np.ndarray) -> np.ndarray:
        """``log T(x)``; -inf at the start."""
        x = np.asarray(x, float)
        k = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, len(self.edges) - 2)
        inside = np.minimum(x, self.flat)
        beyond = np.maximum(x - self.flat, 0.0) * self._pace(np.array(self.flat))
        scaled = self.cumulative[k] + self._part(self.edges[k], inside) + beyond
        with np.errstate(divide="ignore"):
            return np.log(scaled) + self.log_scale

    def position(self, t: np.ndarray) -> np.ndarray:
        """The x with ``T(x) = t``, for ``t >= 0``."""
        with np.errstate(divide="ignore"):
            scaled = np.exp(np.log(np.asarray(t, float)) - self.log_scale)
        tiny = np.finfo(float).tiny  # of a pace that is 0 beside the slowest
        with np.errstate(over="ignore"):
            tail = np.maximum(self._pace(np.array(self.flat)), tiny)
            beyond = self.flat + (scaled - self.cumulative[-1]) / tail
        k = np.clip(np.searchsorted(self.cumulative, scaled, side="right") - 1, 0, len(self.cumulative) - 2)
        low, high = self.edges[k], self.edges[k + 1]
        target = scaled - self.cumulative[k]
        left, right, x = low, high, (low + high) / 2
        for _ in range(60):  # Newton inside a bracket: the time rises with x
            off = self._part(low, x) - target
            left, right = np.where(off < 0, x, left), np.where(off < 0, right, x)
            with np.errstate(over="ignore"):
                step = x - off / np.maximum(self._pace(x), tiny)
            new = np.where((step > left) & (step < right), step, (left + right) / 2)
            done = np.abs(new - x) <= 4e-16 * np.maximum(1.0, np.abs(x))
            x = new
            if bool(done.all()):
                break
        return np.where(scaled >= self.cumulative[-1], beyond, x)

    def _pace(self, x: np.ndarray) -> np.ndarray:
        return np.exp(self.log_pace(x) - self.log_scale)

    def _part(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        x = low[..., None] + (high - low)[..., None] * _NODES
        return (self._pace(x) @ _WEIGHTS) * (high - low)
