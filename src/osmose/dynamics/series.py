r"""What a trajectory shows over time: energy, inner products, the exact curve of equal inner products, attention.

In flat spaces "inner products" are cosines, of the tokens as directions from 0, so that everything angular means the same
wherever tokens live.

Shapes: states ``(F, n, d)`` of a :class:`Trajectory`, results ``(F,)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .fields import Field, FieldEnergy, Schedule
from .normalised import Normalised
from .observables import (
    Histogram,
    energy,
    mean_product,
    normalised_energy,
    product_histogram,
)
from .spaces import Rescaled
from .terms import Attention, Mixed
from .trajectory import Trajectory

EQUAL = 1e-9  # inner products that differ by less are equal (in float32 by 64 of its spacings)
OVERFLOW = 300.0  # beta from which energies are given times e^{-beta}


def directions(trajectory: Trajectory, states: Tensor | None = None) -> Tensor:
    """Unit vectors ``(F, n, d)``; a token at 0 of a flat space stays there."""
    x = trajectory.points(states)
    if trajectory.spherical:
        return x
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def weighs_pairs(trajectory: Trajectory) -> bool:
    """Whether masses are weights, not counts of tokens: then a token is a pair with itself."""
    m = trajectory.mass
    return m is not None and bool(((m > 0) & (m < 1)).any())


def products(trajectory: Trajectory, states: Tensor | None = None, bins: int = 100) -> Histogram:
    """Shares of pairs by inner product in ``bins`` equal bins of [-1, 1]."""
    mass, diagonal = trajectory.mass, weighs_pairs(trajectory)
    return product_histogram(directions(trajectory, states), bins, mass=mass, diagonal=diagonal)


def mean_products(trajectory: Trajectory, states: Tensor | None = None) -> Tensor:
    """The mean inner product of pairs of tokens ``(F,)``."""
    mass, diagonal = trajectory.mass, weighs_pairs(trajectory)
    return mean_product(directions(trajectory, states), mass, diagonal=diagonal)


@dataclass(frozen=True, eq=False)
class EnergySeries:
    """Energy over time.

    Attributes:
        values: ``e^{-log_scale} E`` ``(F,)``, None where there is none to speak of.
        normalised: ``2 beta e^{-beta} E`` ``(F,)``, the staircase; None where beta <= 0 or off the sphere.
        log_scale: 0, or beta where ``e^beta`` is too large.
        model: ``SA`` or ``USA`` where the field is a gradient flow of it, else None.
        note: why a part is missing, or why it is no gradient flow.
    """

    values: Tensor | None
    normalised: Tensor | None
    log_scale: float
    model: str | None
    note: str


def energies(trajectory: Trajectory, states: Tensor | None = None) -> EnergySeries:
    """The energy that the field climbs; of other exponential kernels that of ``e^{beta <x, y>}``, which then may fall."""
    x, mass, beta = trajectory.points(states), trajectory.mass, trajectory.beta
    if isinstance(trajectory.space, Rescaled):
        return EnergySeries(None, None, 0.0, None, "the energy is of x = e^{tV} z, which grows without bound")
    log_scale = beta if beta is not None and beta > OVERFLOW else 0.0
    normalised = None
    if beta is not None and beta > 0 and trajectory.spherical:
        normalised = normalised_energy(x, beta, mass)
    try:
        found: FieldEnergy | None = trajectory.field.energy
        note = ""
    except ValueError as error:
        found, note = None, str(error).removeprefix("Field.energy: ")
    if found is not None:
        return EnergySeries(found(x, mass, log_scale), normalised, log_scale, found.model, note)
    if beta is None:
        return EnergySeries(None, None, 0.0, None, note)
    return EnergySeries(energy(x, beta, mass, log_scale=log_scale), normalised, log_scale, None, note)


@dataclass(frozen=True, eq=False)
class ExactCurve:
    """The inner product of equiangular tokens over time.

    Attributes:
        values: ``g(t)`` ``(F,)``, None where there is no such curve.
        start: ``g(t_0)``.
        exact: whether the start is equiangular, so that the tokens themselves follow it; else it is what independent uniform
            starts come to as d grows.
        note: what it is, or why there is none.
    """

    values: np.ndarray | None
    start: float | None
    exact: bool
    note: str


def exact_curve(trajectory: Trajectory, times: Tensor, start: float | None = None) -> ExactCurve:
    """The equiangular curve of the field (2312.10794v5, theorem 6.8), over the times of a run.

    Args:
        start: ``g(t_0)``. None is that of the start where all its inner products are equal, else 0, that of orthogonal tokens.
    """
    from . import theory

    why = _no_curve(trajectory)
    if why:
        return ExactCurve(None, None, False, why)
    term, n, beta = trajectory.field.terms[0], trajectory.tokens, trajectory.beta
    assert isinstance(term, Attention)
    assert beta is not None
    x = directions(trajectory, trajectory.states[:1])[0]
    off = (x @ x.mT)[~torch.eye(n, dtype=torch.bool, device=x.device)]
    equal = float(off.max() - off.min()) < max(EQUAL, 64 * torch.finfo(x.dtype).eps)
    rho = float(off.mean()) if start is None and equal else (start or 0.0)
    t = (times - trajectory.times[0]).clamp(min=0).cpu().numpy()
    note = f"equiangular tokens from inner product {rho:.4g}" + ("" if equal else ", the limit of large d")
    if not -1 / (n - 1) + 1e-12 < rho < 1 - 1e-12:  # the simplex, and consensus: at rest
        return ExactCurve(np.full(len(t), rho), rho, equal, note)
    if isinstance(trajectory.space, Normalised):
        values = _normalised_curve(trajectory.space, trajectory, beta, t, rho)
    elif term.law_name == "row":
        values = theory.equiangular_cosine(t, beta, n, start=rho, model="SA")
    else:
        clock = t * math.exp(-beta) if term.scaled else t
        values = theory.equiangular_cosine(clock, beta, n, start=rho, model="USA")
    return ExactCurve(np.asarray(values), rho, equal and start is None, note)


def _no_curve(trajectory: Trajectory) -> str:
    """Why there is no equiangular curve; empty where there is one."""
    field, space = trajectory.field, trajectory.space
    term = field.terms[0] if len(field.terms) == 1 else None
    if not trajectory.spherical:
        return "tokens off the sphere"
    if isinstance(field, Schedule) or field.drift is not None or not isinstance(term, Attention):
        return "a field other than one Attention"
    plain = term.query is None and term.key is None and not isinstance(term.value, Tensor)
    if not plain or term.value not in (None, 1, 1.0) or term.kernel != "exp" or term.causal:
        return "weights, kernel or mask other than Q = K = V = I, exp, none"
    if term.law_name not in ("row", "mean"):
        return f"law {term.law_name}; known for row and mean"
    if trajectory.mass is not None and bool((trajectory.mass != 1).any()):
        return "masses other than 1"
    if trajectory.tokens < 2:
        return "a single token"
    if trajectory.solution.run.stepper.random:
        return "noise"
    if isinstance(space, Normalised):
        r = trajectory.radii(trajectory.states[:1])
        assert r is not None
        if term.law_name != "row" or float(r.max() - r.min()) > EQUAL * float(r.max()):
            return "lengths that differ, or law mean, under a normalisation scheme"
        if float(trajectory.times[0]) != 0 and space.scheme in ("sqrt-ln", "mix-ln"):
            return "a scheme that depends on time, from another time than 0"
    return ""


def _normalised_curve(
    space: Normalised, trajectory: Trajectory, beta: float, t: np.ndarray, rho: float
) -> np.ndarray:
    from .theory import normalised_equiangular

    r = trajectory.radii(trajectory.states[:1])
    assert r is not None
    order = np.argsort(t)
    gap, _ = normalised_equiangular(
        t[order],
        space.scheme,
        beta,
        trajectory.tokens,
        start=rho,
        radius=float(r.mean()),
        alpha=space.alpha,
        switch=space.switch or 0.0,
    )
    out = np.empty_like(gap)
    out[order] = 1 - gap
    return out


def attention(field: Field, x: Tensor, mass: Tensor | None = None, t: float = 0.0) -> Tensor:
    """P of every head at one state ``(n, d)`` of points, dense ``(heads, n, n)``.

    Raises:
        ValueError: a term that is no attention.
    """
    from ..tokens import Tokens

    n = x.shape[-2]
    tokens = None if mass is None else Tokens(n, mass)
    one = torch.eye(n, dtype=x.dtype, device=x.device)
    heads = []
    for term in field.at(t).terms:
        if isinstance(term, Attention):
            heads.append(term.carry(x, one, tokens))
        elif isinstance(term, Mixed):
            heads.append((term.operator(x, tokens) @ one.unsqueeze(-3)).squeeze(-3))
        else:
            raise ValueError(
                f"attention: {term!r} is neither Attention nor Mixed; expected a term with weights of pairs."
            )
    if not heads:
        raise ValueError("attention: the field is a drift alone; expected at least one term.")
    return torch.stack(heads)
