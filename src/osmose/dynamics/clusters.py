r"""The merge model: a cluster is one token with mass; on contact masses add, and the motion goes on.

Between contacts k clusters of masses m follow the field itself,

.. math:: x_k' = \frac{1}{Z_k} \sum_{l \ne k} m_l e^{\beta (\langle x_k, x_l \rangle - 1)} \operatorname{proj} x_l, \qquad
   Z_k = \sum_l m_l e^{\beta (\langle x_k, x_l \rangle - 1)}\ \text{(SA)}, \quad \sum_l m_l\ \text{(USA on the clock } e^\beta t).

A cluster does not act on itself, so a velocity of 1e-17 is as exact as one of 1: metastable states live as long as they
should, where particles are held by rounding. What is left out is the width of a cluster, which shrinks like ``e^{-t}``.

Between two merges the clock is that of the closest pair, ``d tau = e^{beta (rho - 1)} dt`` with its inner product rho: its
approach takes some units of tau, whatever beta, and ends in as many steps as it began. In t the last of it would be shorter
than the spacing of floats beside the wait before it.

Shapes: angles ``(n,)`` of the circle or points ``(n, d)`` of the sphere, masses ``(n,)``; k clusters.

Source: 2410.06833 for the picture; the model derived here, and compared with all tokens in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stage:
    """Some clusters from one merge to the next.

    Attributes:
        times: of the solver's steps ``(s,)``, from the start of the stage to the merge which closes it, or to the end of the run.
        clock: ``tau (s,)`` there, since the start of the stage.
        path: the clusters there, angles ``(s, k)`` or points ``(s, k, d)``.
        mass: ``(k,)``.
        members: the tokens of each cluster.
    """

    times: Tensor
    clock: Tensor
    path: Tensor
    mass: Tensor
    members: tuple[tuple[int, ...], ...]

    @property
    def start(self) -> float:
        """The first time."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """The last time."""
        return float(self.times[-1])

    @property
    def points(self) -> Tensor:
        """The clusters at ``start``, angles ``(k,)`` or points ``(k, d)``."""
        return self.path[0]

    @property
    def last(self) -> Tensor:
        """The same at ``end``."""
        return self.path[-1]

    @property
    def energy(self) -> float:
        """``sum_k (m_k / M)^2``, the plateau of the normalised energy where clusters are far apart."""
        share = self.mass / self.mass.sum()
        return float((share**2).sum())


@dataclass(frozen=True, eq=False)
class MergeHistory:
    """Stages in the order of time. ``times`` are those of the merges, in the model's clock."""

    stages: tuple[Stage, ...]

    @property
    def times(self) -> list[float]:
        """When clusters met: one less than there are stages."""
        return [stage.start for stage in self.stages[1:]]

    def at(self, t: float) -> Stage:
        """The stage of time t.

        Raises:
            ValueError: a time outside the run.
        """
        for stage in self.stages:
            if stage.start <= t <= stage.end:
                return stage
        raise ValueError(
            f"MergeHistory.at: t is {t:g}; expected a time from {self.stages[0].start:g} to {self.stages[-1].end:g}."
        )

    def count(self, t: float) -> int:
        """How many clusters there are at time t."""
        return len(self.at(t).mass)


def merge_model(
    x: Tensor,
    beta: float,
    *,
    until: float = 1e12,
    mass: Tensor | None = None,
    model: Literal["SA", "USA"] = "SA",
    contact: float | None = None,
    rtol: float = 1e-9,
) -> MergeHistory:
    """Tokens to clusters to consensus, over times that no particle simulation spans.

    Args:
        x: angles ``(n,)`` of the circle, or points ``(n, d)`` of the sphere.
        beta: inverse temperature, at least 0.
        until: last time, up to 1e300; for USA on the clock ``e^beta t``.
        mass: ``(n,)``, positive; None is 1 for each.
        model: ``SA`` or ``USA``.
        contact: angle at which two clusters become one; None is ``1e-4 / sqrt(1 + beta)``, far inside the reach of the kernel.
        rtol: of the solver (LSODA); errors are angles, and shares of a stage's duration.

    Returns:
        The stages, down to one cluster or to ``until``. Tokens closer than ``contact`` at the start are one from time 0.

    Raises:
        ValueError: shapes, masses, negative beta or times without meaning.
        RuntimeError: the solver gave up.

    Cost: a stiff solve in k angles (k d coordinates) for each of at most n - 1 merges, of some hundred steps of time ``k^2``.

    >>> history = merge_model(torch.tensor([0.0, 0.1, 1.5]), 9.0)
    >>> [len(stage.mass) for stage in history.stages]
    [3, 2, 1]
    """
    points, m, contact = _checked(x, beta, until, mass, model, contact)
    motion = _Clusters(beta, model, contact)
    members: list[tuple[int, ...]] = [(i,) for i in range(len(points))]
    stages: list[Stage] = []
    t = 0.0
    points, m, members = motion.joined(points, m, members)
    while True:
        if len(m) == 1:
            times, clock, path = [t, until], [0.0, until - t], [points, points]
        else:
            times, clock, path = _stretch(motion, points, m, t, until, rtol)
        stages.append(Stage(_tensor(times), _tensor(clock), _tensor(path), _tensor(m), tuple(members)))
        t = times[-1]
        if t >= until:
            return MergeHistory(tuple(stages))
        points, m, members = motion.joined(path[-1], m, members)


class _Clusters:
    """Velocities and distances of weighted clusters; angles ``(k,)`` or points ``(k, d)``."""

    def __init__(self, beta: float, model: str, contact: float):
        self.beta, self.model, self.contact = beta, model, contact

    def velocity(self, x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, float]:
        """``dx / d tau`` and ``log (dt / d tau) = beta (1 - rho)``, rho of the closest pair."""
        if x.ndim == 1:
            apart = x[None, :] - x[:, None]
            towards, off = np.sin(apart), -2 * np.sin(apart / 2) ** 2  # cos - 1 without cancellation
        else:
            x = x / np.linalg.norm(x, axis=-1, keepdims=True)
            step = x[None, :] - x[:, None]
            off = -(step**2).sum(-1) / 2
            towards = step - off[..., None] * x[:, None]  # proj x_l = x_l - x_k - (<x_k, x_l> - 1) x_k
        closest = off[~np.eye(len(m), dtype=bool)].max()
        # shifted by the closest pair, no weight overflows; far ones may vanish, as they should
        w = np.exp(np.minimum(self.beta * (off - closest), 0.0)) * m
        w = w / ((m * np.exp(self.beta * off)).sum(-1, keepdims=True) if self.model == "SA" else m.sum())
        v = (w * towards).sum(-1) if x.ndim == 1 else (w[..., None] * towards).sum(1)
        return v, -self.beta * float(closest)

    def gaps(self, x: np.ndarray) -> np.ndarray:
        """Angles between clusters, ``(k, k)``, inf on the diagonal."""
        if x.ndim == 1:
            out = np.abs((x[None, :] - x[:, None] + np.pi) % (2 * np.pi) - np.pi)
        else:
            x = x / np.linalg.norm(x, axis=-1, keepdims=True)
            out = 2 * np.arcsin(np.minimum(np.linalg.norm(x[None] - x[:, None], axis=-1) / 2, 1.0))
        np.fill_diagonal(out, np.inf)
        return out

    def joined(
        self, x: np.ndarray, m: np.ndarray, members: list[tuple[int, ...]]
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
        """Clusters in contact made one, the closest first, at their centre of mass."""
        while len(m) > 1:
            gaps = self.gaps(x)
            i, j = sorted(int(k) for k in np.unravel_index(gaps.argmin(), gaps.shape))
            if gaps[i, j] > self.contact * (1 + 1e-6):
                break
            share = m[j] / (m[i] + m[j])
            if x.ndim == 1:
                centre = x[i] + share * ((x[j] - x[i] + np.pi) % (2 * np.pi) - np.pi)
            else:
                centre = x[i] + share * (x[j] - x[i])
                centre = centre / np.linalg.norm(centre)
            x, m = x.copy(), m.copy()
            x[i], m[i] = centre, m[i] + m[j]
            x, m = np.delete(x, j, 0), np.delete(m, j)
            members = [
                tuple(sorted((*a, *members[j]))) if k == i else a for k, a in enumerate(members) if k != j
            ]
        return x, m, members


def _stretch(
    motion: _Clusters, x: np.ndarray, m: np.ndarray, t: float, until: float, rtol: float
) -> tuple[list[float], list[float], list[np.ndarray]]:
    """From t to the next contact, or to ``until``: times, tau and clusters at the solver's steps."""
    from scipy.integrate import LSODA
    from scipy.optimize import brentq

    # time since t in units of dt / d tau at the start, which is about the largest: q = O(tau)
    unit = motion.velocity(x, m)[1]
    span = math.exp(min(math.log(until - t) - unit, 700.0))

    def slope(_: float, y: np.ndarray) -> np.ndarray:
        v, log_pace = motion.velocity(y[:-1].reshape(x.shape), m)
        return np.append(v.ravel(), math.exp(min(log_pace - unit, 700.0)))

    def apart(y: np.ndarray) -> float:  # positive until clusters touch
        return math.log(max(motion.gaps(y[:-1].reshape(x.shape)).min(), 1e-300) / motion.contact)

    def left(y: np.ndarray) -> float:  # positive until they do, or the time is over
        return min(apart(y), 1 - y[-1] / span)

    def at(y: np.ndarray) -> tuple[float, np.ndarray]:
        points = y[:-1].reshape(x.shape)
        if x.ndim == 2:
            points = points / np.linalg.norm(points, axis=-1, keepdims=True)
        return t + math.exp(min(unit + math.log(y[-1]), 709.0)) if y[-1] > 0 else t, points

    solver = LSODA(
        slope,
        0.0,
        np.append(x.ravel(), 0.0),
        1e6 + 10 * span,  # never reached: the pair meets in O(M / m) of tau, or q rises as fast as tau
        rtol=rtol,
        atol=1e-3 * rtol * min(1.0, motion.contact / 1e-6),
    )
    times, clock, path, over = [t], [0.0], [x], False
    while not over:
        message = solver.step()
        if solver.status != "running":
            raise RuntimeError(
                f"merge_model: the solver gave up at t = {times[-1]:g} with {len(m)} clusters ({message}); take a larger "
                "rtol or contact."
            )
        tau, y, over = solver.t, solver.y, left(solver.y) <= 0
        if over:
            inside, before = solver.dense_output(), solver.t_old
            # the interpolant differs from the steps by rounding: an end of the step may be the root
            if left(inside(before)) <= 0:
                tau = before
            elif left(inside(tau)) <= 0:
                tau = brentq(lambda s, inside=inside: left(inside(s)), before, tau, xtol=1e-14, rtol=1e-14)
            y = inside(tau)
        time, points = at(y)
        times.append(max(time, times[-1]))  # what the solver errs by is more than the last steps take
        clock.append(tau)
        path.append(points)
    if apart(y) > 1e-7:  # not contact, whose root is far more exact: the time is over
        times[-1] = until
    return times, clock, path


def _tensor(x: np.ndarray | list[np.ndarray] | list[float]) -> Tensor:
    return torch.from_numpy(np.array(x))


def _checked(
    x: Tensor, beta: float, until: float, mass: Tensor | None, model: str, contact: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    if model not in ("SA", "USA"):
        raise ValueError(f"merge_model: model is {model!r}; expected 'SA' (row law) or 'USA' (mean law).")
    points = torch.as_tensor(x).detach().double().cpu().numpy()
    if points.ndim not in (1, 2) or not len(points) or (points.ndim == 2 and points.shape[1] < 2):
        raise ValueError(f"merge_model: x has shape {points.shape}; expected angles (n,) or points (n, d).")
    if not np.isfinite(points).all():
        raise ValueError("merge_model: x holds NaN or infinite values; expected finite ones.")
    if points.ndim == 2:
        length = np.linalg.norm(points, axis=-1, keepdims=True)
        if np.abs(length - 1).max() > 1e-6:
            raise ValueError(
                f"merge_model: points have lengths down to {length.min():.3g}, up to {length.max():.3g}; expected 1."
            )
        points = points / length
    m = np.ones(len(points)) if mass is None else torch.as_tensor(mass).double().cpu().numpy()
    if m.shape != (len(points),) or not ((m > 0) & np.isfinite(m)).all():
        raise ValueError(
            f"merge_model: mass has shape {m.shape}; expected ({len(points)},), positive and finite."
        )
    if not (beta >= 0 and math.isfinite(beta)) or not (until > 0 and math.isfinite(until)):
        raise ValueError(
            f"merge_model: beta is {beta} and until {until}; expected beta >= 0 and until > 0, both finite."
        )
    contact = 1e-4 / math.sqrt(1 + beta) if contact is None else contact
    if not 0 < contact < 1:
        raise ValueError(f"merge_model: contact is {contact}; expected an angle between 0 and 1.")
    return points, m.copy(), contact
