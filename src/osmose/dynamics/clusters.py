r"""The merge model: a cluster is one token with mass; on contact masses add, and the motion goes on.

Between contacts k clusters of masses m follow the field itself,

.. math:: x_k' = \frac{1}{Z_k} \sum_{l \ne k} m_l e^{\beta (\langle x_k, x_l \rangle - 1)} \operatorname{proj} x_l, \qquad
   Z_k = \sum_l m_l e^{\beta (\langle x_k, x_l \rangle - 1)}\ \text{(SA)}, \quad \sum_l m_l\ \text{(USA on the clock } e^\beta t).

A cluster does not act on itself, so a velocity of 1e-17 is as exact as one of 1: metastable states live as long as they
should, where particles are held by rounding. What is left out is the width of a cluster, which shrinks like ``e^{-t}``.

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
        start, end: times; end is that of the merge which closes the stage, or of the run.
        points: of the clusters at ``start``, angles ``(k,)`` or points ``(k, d)``.
        last: the same at ``end``.
        mass: ``(k,)``.
        members: the tokens of each cluster.
    """

    start: float
    end: float
    points: Tensor
    last: Tensor
    mass: Tensor
    members: tuple[tuple[int, ...], ...]

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
        until: last time; for USA on the clock ``e^beta t``.
        mass: ``(n,)``, positive; None is 1 for each.
        model: ``SA`` or ``USA``.
        contact: angle at which two clusters become one; None is ``1e-4 / sqrt(1 + beta)``, far inside the reach of the kernel.
        rtol: of the solver (LSODA); errors are angles.

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
        end, last = (until, points) if len(m) == 1 else _stretch(motion, points, m, t, until, rtol)
        stages.append(Stage(t, end, _tensor(points), _tensor(last), _tensor(m), tuple(members)))
        if end >= until:
            return MergeHistory(tuple(stages))
        t = end
        points, m, members = motion.joined(last, m, members)


class _Clusters:
    """Velocities and distances of weighted clusters; angles ``(k,)`` or points ``(k, d)``."""

    def __init__(self, beta: float, model: str, contact: float):
        self.beta, self.model, self.contact = beta, model, contact

    def velocity(self, x: np.ndarray, m: np.ndarray) -> np.ndarray:
        if x.ndim == 1:
            apart = x[None, :] - x[:, None]
            towards, off = np.sin(apart), -2 * np.sin(apart / 2) ** 2  # cos - 1 without cancellation
        else:
            x = x / np.linalg.norm(x, axis=-1, keepdims=True)
            step = x[None, :] - x[:, None]
            off = -(step**2).sum(-1) / 2
            towards = step - off[..., None] * x[:, None]  # proj x_l = x_l - x_k - (<x_k, x_l> - 1) x_k
        w = m * np.exp(self.beta * off)
        w = w / (w.sum(-1, keepdims=True) if self.model == "SA" else m.sum())
        return (w * towards).sum(-1) if x.ndim == 1 else (w[..., None] * towards).sum(1)

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
) -> tuple[float, np.ndarray]:
    """From t to the next contact, or to ``until``: the time and the clusters there."""
    from scipy.integrate import solve_ivp

    def slope(_: float, y: np.ndarray) -> np.ndarray:
        return motion.velocity(y.reshape(x.shape), m).ravel()

    def touch(_: float, y: np.ndarray) -> float:
        return float(np.log(motion.gaps(y.reshape(x.shape)).min() / motion.contact))

    touch.terminal = True  # type: ignore[attr-defined]
    # time starts anew at every merge: t + h would lose what is short beside t
    out = solve_ivp(
        slope,
        (0.0, until - t),
        x.ravel(),
        method="LSODA",
        events=touch,
        rtol=rtol,
        atol=1e-3 * rtol * min(1.0, motion.contact / 1e-6),
    )
    if out.status < 0:
        raise RuntimeError(
            f"merge_model: the solver gave up at t = {t + out.t[-1]:g} with {len(m)} clusters ({out.message}); take a larger "
            "rtol or contact."
        )
    last = out.y[:, -1].reshape(x.shape)
    if x.ndim == 2:
        last = last / np.linalg.norm(last, axis=-1, keepdims=True)
    end = until if out.status == 0 else t + float(out.t[-1])
    return end, last


def _tensor(x: np.ndarray) -> Tensor:
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
