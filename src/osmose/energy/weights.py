"""Pair weights: a concave function of the squared distance, and the kernel that is its derivative."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..operators import LowRank, Operator, Pairwise, ScoreKernel
from ..operators.pairwise import squared_distance_scores
from ..tokens import Tokens


class PairWeight(ABC):
    """``delta(u)`` of ``u = |x_i - x_j|^2``, non-decreasing and concave on ``[0, domain]``, with delta(0) = 0.

    Its derivative ``f = delta'`` is the weight with which two points attract: the energy picks the kernel.

    Attributes:
        name: ``simple``, ``sigmoid``, ``gaussian`` or the user's.
        domain: largest u for which f is non-negative and non-increasing.
    """

    name: str
    domain: float = math.inf

    @abstractmethod
    def delta(self, u: Tensor) -> Tensor: ...

    @abstractmethod
    def f(self, u: Tensor) -> Tensor: ...

    def operator(self, x: Tensor, tokens: Tokens | None = None) -> Operator:
        """``Omega_ij = f(|x_i - x_j|^2)`` for ``x (..., n, d)``, inside each set. Streamed, time n^2 d."""
        return self._pairwise(x, ScoreKernel.from_function(self.f, name=self.name), tokens)

    def total(self, x: Tensor, tokens: Tokens) -> Tensor:
        """``sum_ij m_i m_j delta(u_ij)`` of each set: ``(...)``, packed ``(S,)``. Streamed, time n^2 d."""
        x = _centred(x, tokens)
        op = self._pairwise(x, ScoreKernel.from_function(self.delta, name=f"delta[{self.name}]"), tokens)
        mass = tokens.weigh(torch.ones_like(x[..., :1]))
        return tokens.sum(op @ mass).squeeze(-1)

    def _pairwise(
        self, x: Tensor, kernel: ScoreKernel | str, tokens: Tokens | None, scale=1.0, offset=0.0
    ) -> Pairwise:
        q, k = squared_distance_scores(x, x, scale, offset)
        return Pairwise(q, k, kernel, targets=tokens, sources=tokens)

    def __repr__(self) -> str:
        return self.name


class Simple(PairWeight):
    """``f = 2 - u/2``, ``delta = 2u - u^2/4``: the weight of DIFFormer-s, 1 + cosine on unit vectors. Linear cost.

    Outside ``u <= 4`` the weight is negative and no descent is promised.
    """

    name = "simple"
    domain = 4.0

    def delta(self, u: Tensor) -> Tensor:
        return 2 * u - u.square() / 4

    def f(self, u: Tensor) -> Tensor:
        return 2 - u / 2

    def operator(self, x: Tensor, tokens: Tokens | None = None) -> Operator:
        return LowRank(*squared_distance_scores(x, x, -0.5, 2.0), targets=tokens, sources=tokens)

    def total(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Closed form from five moments, O(n d^2); distances do not see the mean, so it is taken off first."""
        x = _centred(x, tokens)
        a = x.square().sum(-1, keepdim=True)
        mass, first = tokens.total(x), tokens.sum(x)
        a1, a2 = tokens.sum(a).squeeze(-1), tokens.sum(a.square()).squeeze(-1)
        u1 = 2 * mass * a1 - 2 * first.square().sum(-1)
        second = _second_moment(x, tokens)
        u2 = (
            2 * mass * a2
            + 2 * a1.square()
            + 4 * second.square().sum((-2, -1))
            - 8 * (tokens.sum(a * x) * first).sum(-1)
        )
        return 2 * u1 - u2 / 4


class Sigmoid(PairWeight):
    """``f = 1 / (1 + exp(u/2 - 1))``, ``delta = u - 2 log(1 + exp(u/2 - 1))`` + const: the weight of DIFFormer-a."""

    name = "sigmoid"

    def delta(self, u: Tensor) -> Tensor:
        softplus = torch.nn.functional.softplus
        return u - 2 * softplus(u / 2 - 1) + 2 * math.log1p(math.exp(-1))

    def f(self, u: Tensor) -> Tensor:
        return torch.sigmoid(1 - u / 2)

    def operator(self, x: Tensor, tokens: Tokens | None = None) -> Operator:
        return self._pairwise(x, "sigmoid", tokens, -0.5, 1.0)


class Gaussian(PairWeight):
    """``f = exp(-beta u / 2)``, ``delta = (2/beta)(1 - exp(-beta u / 2))``: on the sphere, self-attention at
    inverse temperature beta up to a factor that the row law removes."""

    name = "gaussian"

    def __init__(self, beta: float = 1.0):
        if beta <= 0:
            raise ValueError(f"Gaussian: beta is {beta}; expected a positive inverse temperature.")
        self.beta = beta

    def delta(self, u: Tensor) -> Tensor:
        return -2 / self.beta * torch.expm1(-self.beta * u / 2)

    def f(self, u: Tensor) -> Tensor:
        return torch.exp(-self.beta * u / 2)

    def operator(self, x: Tensor, tokens: Tokens | None = None) -> Operator:
        return self._pairwise(x, "exp", tokens, -self.beta / 2)

    def __repr__(self) -> str:
        return f"gaussian(beta={self.beta:g})"


class Custom(PairWeight):
    """A user's own ``delta``, elementwise and differentiable in torch; ``f`` is taken by autograd unless given.

    Args:
        delta: the function of u, up to a constant.
        f: its derivative, where a closed form is at hand.
        domain: largest squared distance that will occur (on the unit sphere 4).
        name: for tables and messages.

    Raises:
        ValueError: on a grid over the domain f is negative somewhere (delta decreases), rises (delta is not
            concave), or is not the derivative of delta.
    """

    def __init__(
        self, delta: Callable[[Tensor], Tensor], f: Callable[[Tensor], Tensor] | None = None, domain: float = 4.0,
        name: str = "custom",
    ):  # fmt: skip
        self._delta, self._f, self.domain, self.name = delta, f, domain, name
        u = torch.linspace(0, min(domain, 1e4), 1025, dtype=torch.float64)
        values = self.f(u)
        slack = 1e-9 * float(values.abs().max())
        if not bool(torch.isfinite(values).all()) or float(values.min()) < -slack:
            at = float(u[values.nan_to_num(-torch.inf).argmin()])
            raise ValueError(
                f"{name}: delta decreases or is not finite at u = {at:.4g}; expected f = delta' >= 0 on [0, {domain:g}]."
            )
        if float(values.diff().max()) > slack:
            at = float(u[values.diff().argmax()])
            raise ValueError(
                f"{name}: f = delta' rises at u = {at:.4g}; expected a concave delta on [0, {domain:g}]."
            )
        if f is not None and not torch.allclose(values, _derivative(delta, u), rtol=1e-4, atol=1e-6):
            raise ValueError(
                f"{name}: f is not the derivative of delta; leave f out to have it taken by autograd."
            )

    def delta(self, u: Tensor) -> Tensor:
        return self._delta(u) - self._delta(torch.zeros_like(u))

    def f(self, u: Tensor) -> Tensor:
        return self._f(u) if self._f is not None else _derivative(self._delta, u)


def _derivative(delta: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    track = torch.is_grad_enabled() and u.requires_grad
    with torch.enable_grad():
        at = u if u.requires_grad else u.detach().requires_grad_()
        (out,) = torch.autograd.grad(delta(at).sum(), at, create_graph=track)
    return out if track else out.detach()


def _centred(x: Tensor, tokens: Tokens) -> Tensor:
    return x - tokens.spread(tokens.mean(x.detach())).to(x.dtype)


def _second_moment(x: Tensor, tokens: Tokens) -> Tensor:
    """``sum_i m_i x_i x_i^T`` of each set, ``(..., d, d)``, packed ``(S, d, d)``."""
    if not tokens.packed:
        return x.mT @ tokens.weigh(x)
    if not tokens.num_sets:
        return x.new_zeros(*x.shape[:-2], 0, x.shape[-1], x.shape[-1])
    parts = zip(
        tokens.sort(x).split(tokens.sizes.tolist(), -2), tokens.sort(tokens.weigh(x)).split(tokens.sizes.tolist(), -2),
        strict=True,
    )  # fmt: skip
    return torch.stack([a.mT @ b for a, b in parts], -3)


def pair_weight(weight: str | PairWeight) -> PairWeight:
    """A weight by name (``simple``, ``sigmoid``, ``gaussian``), or itself."""
    known: dict[str, Callable[[], PairWeight]] = {"simple": Simple, "sigmoid": Sigmoid, "gaussian": Gaussian}
    if isinstance(weight, PairWeight):
        return weight
    if weight not in known:
        raise ValueError(
            f"Energy: weight {weight!r} is not known; expected {', '.join(known)} or a PairWeight."
        )
    return known[weight]()
