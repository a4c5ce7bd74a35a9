r"""Fields: what drives tokens as particles, and the energy that they climb where there is one.

``A_i(x, t) = sum_h sum_j P^h_ij V_h x_j + drift(x_i, t)``; a space turns A into a velocity (its tangent part on the sphere).

Shapes: ``x (..., n, d)``, masses ``(..., n)``, beta a number or ``(...)``.

Source: 2312.10794v5, sections 2 and 3; for ``Q^T K = V`` the survey 2512.01868.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..tokens import Tokens
from .observables import dissipation, energy
from .terms import Attention, Term

Drift = Callable[[Tensor, "float | Tensor"], Tensor]


class Field:
    """The sum of terms (heads) and a drift.

    Args:
        terms: :class:`~osmose.dynamics.Attention`, :class:`~osmose.dynamics.Mixed`; several are heads.
        drift: ``drift(x, t)`` to ``(..., n, d)``, token by token, e.g. :func:`perceptron`. t is a number, or ``(P, 1, 1)``
            where every system of a batch has its own.

    >>> field = Field(Attention(4.0))
    >>> field(torch.eye(3)).shape
    torch.Size([3, 3])
    """

    breaks: tuple[float, ...] = ()

    def __init__(self, *terms: Term, drift: Drift | None = None):
        if not terms and drift is None:
            raise ValueError(
                "Field: no terms and no drift; expected at least one, e.g. Field(Attention(1.0))."
            )
        self.terms, self.drift = terms, drift

    def __call__(self, x: Tensor, tokens: Tokens | None = None, t: float | Tensor = 0.0) -> Tensor:
        """A, ``(..., n, d)``."""
        if self.drift is None and len(self.terms) == 1:
            return self.terms[0](x, tokens)
        out = None if self.drift is None else self.drift(x, t)
        for term in self.terms:
            a = term(x, tokens)
            out = a if out is None else out + a
        assert out is not None
        return out

    def at(self, t: float) -> Field:
        """The field in force from time t on: itself, if nothing is switched."""
        return self

    def take(self, index: Tensor, lead: torch.Size) -> Field:
        """The field of systems ``index`` of a batch whose merged leading dimensions are ``lead``."""
        terms = [term.take(index, lead) for term in self.terms]
        same = all(a is b for a, b in zip(terms, self.terms, strict=True))
        return self if same else Field(*terms, drift=self.drift)

    @property
    def energy(self) -> FieldEnergy:
        """The energy of which the field, made tangent to the sphere, is the gradient flow.

        Raises:
            ValueError: there is none known; the message says why.
        """
        return FieldEnergy.of(self)

    @property
    def is_gradient(self) -> bool:
        """Whether :attr:`energy` is known."""
        try:
            return self.energy is not None
        except ValueError:
            return False

    def __repr__(self) -> str:
        parts = [repr(t) for t in self.terms] + ([] if self.drift is None else ["drift"])
        return f"Field({', '.join(parts)})"


class Schedule(Field):
    """Fields that take turns: ``[(0.0, first), (1.0, second), ...]``, each in force from its time on.

    The weights of a deep model, layer by layer. Steps of a simulation end where a field does.

    Raises:
        ValueError: no pieces, or times that do not rise.
    """

    def __init__(self, pieces: Sequence[tuple[float, Field]]):
        times = [t for t, _ in pieces]
        if not pieces or any(b <= a for a, b in pairwise(times)):
            raise ValueError(
                f"Schedule: times are {times}; expected at least one piece, and times that rise."
            )
        self.pieces = list(pieces)
        self.breaks = tuple(times)
        self.terms, self.drift = pieces[0][1].terms, pieces[0][1].drift

    def at(self, t: float) -> Field:
        return self.pieces[max(bisect_right(self.breaks, t) - 1, 0)][1]

    def __call__(self, x: Tensor, tokens: Tokens | None = None, t: float | Tensor = 0.0) -> Tensor:
        if isinstance(t, Tensor):
            if t.numel() and bool((t != t.flatten()[0]).any()):
                raise ValueError(
                    "Schedule: systems at different times; take .at(t) for the stretch between two switches."
                )
            return self.at(float(t.flatten()[0]))(x, tokens, t)
        return self.at(t)(x, tokens, t)

    def take(self, index: Tensor, lead: torch.Size) -> Field:
        return Schedule([(t, f.take(index, lead)) for t, f in self.pieces])

    @property
    def energy(self) -> FieldEnergy:
        raise ValueError(
            "Schedule.energy: the weights depend on time, and no energy is climbed throughout; take .at(t).energy."
        )

    def __repr__(self) -> str:
        return f"Schedule({', '.join(f'{t:g}: {f!r}' for t, f in self.pieces)})"


def perceptron(
    w: Tensor, u: Tensor, a: Tensor | None = None, activation: Callable[[Tensor], Tensor] = torch.relu
) -> Drift:
    """The drift ``W sigma(U x_i + a)`` of a feed-forward layer: W ``(d, r)``, U ``(r, d)``, a ``(r,)``."""
    if w.ndim != 2 or u.shape != w.shape[::-1]:
        raise ValueError(
            f"perceptron: w has shape {tuple(w.shape)} and u {tuple(u.shape)}; expected (d, r) and (r, d)."
        )

    def drift(x: Tensor, t: float | Tensor) -> Tensor:
        hidden = x @ u.to(x.dtype).mT
        return activation(hidden if a is None else hidden + a.to(x.dtype)) @ w.to(x.dtype).mT

    return drift


@dataclass(frozen=True, eq=False)
class Part:
    """``coefficient * E_{beta, B}`` with ``B = Q^T K``; None is the identity."""

    coefficient: float
    beta: float | Tensor
    bilinear: Tensor | None


@dataclass(frozen=True, eq=False)
class FieldEnergy:
    r"""``sum_h c_h E_{beta_h, B_h}`` with ``E = (1 / 2 beta M^2) sum_ij m_i m_j e^{beta <B x_i, x_j>}``, which the field climbs.

    ``V_h = c_h B_h``: for V = -I the energy is ``-E_beta``. In the metric ``m_i / M`` for the law mean (a Wasserstein gradient
    flow), ``m_i Z_i / M^2`` for the law row.

    Attributes:
        model: ``USA`` (law mean) or ``SA`` (law row).
        parts: the heads.
        scaled: whether time is ``e^beta t``.
    """

    model: str
    parts: tuple[Part, ...]
    scaled: bool = False

    @classmethod
    def of(cls, field: Field) -> FieldEnergy:
        """See :attr:`Field.energy`."""
        if field.drift is not None:
            raise _no_energy("it has a drift (an MLP), which is no gradient of an interaction")
        models, parts, scaled = set(), [], []
        for term in field.terms:
            if not isinstance(term, Attention) or term.kernel != "exp":
                raise _no_energy("a kernel other than exp: its energy is not among those known here")
            if term.causal:
                raise _no_energy("causal order: what j does to i, i does not do to j")
            if term.law_name not in ("row", "mean"):
                raise _no_energy(f"law {term.law_name}; known for row (SA) and mean (USA)")
            models.add(term.law_name)
            parts.append(_part(term))
            scaled.append(term.scaled)
        if len(parts) > 1 and (models != {"mean"} or any(scaled)):
            raise _no_energy(
                "several heads under law row, or on clocks of their own; heads add under law mean, unscaled"
            )
        return cls("SA" if models == {"row"} else "USA", tuple(parts), scaled[0])

    def __call__(self, x: Tensor, mass: Tensor | None = None, log_scale: float | Tensor = 0.0) -> Tensor:
        """``e^{-log_scale}`` times the energy, ``(...)``."""
        values = [
            p.coefficient * energy(x, p.beta, mass, bilinear=p.bilinear, log_scale=log_scale)
            for p in self.parts
        ]
        return torch.stack(values).sum(0)

    def rate(
        self, x: Tensor, velocity: Tensor, mass: Tensor | None = None, log_scale: float | Tensor = 0.0
    ) -> Tensor:
        """What the energy gains per unit of time along the field: its dissipation, ``(...)``, never negative."""
        p = self.parts[0]
        return dissipation(
            x,
            velocity,
            p.beta,
            mass,
            model=self.model,
            scaled=self.scaled,
            bilinear=p.bilinear,
            log_scale=log_scale,
        )


def _no_energy(why: str) -> ValueError:
    return ValueError(f"Field.energy: not a known gradient flow: {why}.")


def _part(term: Attention) -> Part:
    """``V = c B`` for a symmetric ``B = Q^T K``, or the reason why not."""
    if term.query is None and term.key is None:
        b = None
    elif term.query is None or term.key is None:
        b = term.key if term.query is None else term.query.mT
    else:
        b = term.query.mT @ term.key
    if b is not None and (
        b.shape[0] != b.shape[1] or not torch.allclose(b, b.mT, atol=1e-12 * float(b.abs().max()))
    ):
        raise _no_energy("Q^T K is not symmetric")
    b = None if b is None else b.detach()
    v = term.value.detach() if isinstance(term.value, Tensor) else term.value
    if not isinstance(v, Tensor):
        if b is not None:
            v = (1.0 if v is None else v) * torch.eye(len(b), dtype=b.dtype)
        else:
            return Part(1.0 if v is None else float(v), term.beta, None)
    b_full = torch.eye(len(v), dtype=v.dtype) if b is None else b.to(v.dtype)
    size = float((b_full * b_full).sum())
    c = float((v * b_full).sum()) / size if size else 0.0
    if not torch.allclose(v, c * b_full, atol=1e-9 * max(float(v.abs().max()), 1e-300)):
        raise _no_energy("V is not a multiple of Q^T K (for Q^T K = I, V is not a multiple of the identity)")
    return Part(c, term.beta, b)
