"""The energy of a state, the step that descends it, and the largest step for which that is a theorem."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import Graph, Operator
from ..tokens import Tokens, check_pair
from .weights import PairWeight, pair_weight


class Energy:
    r"""``E(z; z') = sum_i m_i |z_i - z'_i|^2 + V(z)`` with the potential

    .. math:: V(z) = \lambda \sum_{ij} m_i m_j \delta(|z_i - z_j|^2)
              + \lambda_g \sum_{ij} m_i m_j A_{ij} |z_i - z_j|^2 + \mu \sum_i m_i |z_i - x_i|^2.

    The step is the row law of the kernel ``K = lambda Omega + lambda_g A``, ``Omega = delta'``, pulled to the source:

    .. math:: z_i \leftarrow (1 - \tau) z_i + \tau \frac{\sum_j K_{ij} m_j z_j + (\mu/2) x_i}{c_i},
              \qquad c_i = \sum_j K_{ij} m_j + \mu/2.

    It is gradient descent on a quadratic majorant of V, preconditioned by c. Every
    ``tau <= 4 c_min / (4 c_min + 1)`` gives ``E(z_next; z) <= V(z)``, so neither V nor E ever rises, while the state
    is inside the domain of delta. (With g_i the gradient of the majorant over 4 m_i and D - W <= 2 D, one step changes
    it by at most ``sum_i m_i |g_i|^2 / c_i (tau^2 / c_i - 4 tau + 4 tau^2)``.)

    Args:
        weight: ``simple``, ``sigmoid``, ``gaussian`` or a :class:`PairWeight`.
        strength: lambda, all pairs; one number, or one for each set, ``(...)`` or packed ``(S,)``.
        graph, graph_strength: A and lambda_g. Only the symmetric part of A enters; weights must be non-negative.
        source, source_strength: the points x ``(..., n, d)`` and mu.
        tokens: masses and sets; None is one set of mass 1.

    Cost: that of one product with the kernel, so O(n d^2) for ``simple``. Source: DIFFormer (2301.09474), theorem 1 and
    the graph and source terms of 2409.09111, there with existence of a step only.
    """

    def __init__(
        self,
        weight: str | PairWeight = "simple",
        *,
        strength: float | Tensor = 1.0,
        graph: Graph | None = None,
        graph_strength: float = 1.0,
        source: Tensor | None = None,
        source_strength: float = 1.0,
        tokens: Tokens | None = None,
    ):
        strengths = {
            "strength": strength,
            "graph_strength": graph_strength,
            "source_strength": source_strength,
        }
        for name, value in strengths.items():
            value = torch.as_tensor(value)
            if not bool((torch.isfinite(value) & (value >= 0)).all()):
                raise ValueError(f"Energy: {name} is {value.tolist()}; expected finite numbers >= 0.")
        if graph is not None and bool((graph.weight < 0).any()):
            raise ValueError("Energy: graph has negative weights; expected weights >= 0.")
        self.weight, self.strength, self.tokens = pair_weight(weight), strength, tokens
        self.graph = None if graph is None else 0.5 * (graph + graph.mT)
        self.graph_strength = 0.0 if graph is None else graph_strength
        self.source, self.source_strength = source, 0.0 if source is None else source_strength

    def __call__(self, z: Tensor, previous: Tensor) -> Tensor:
        """``E(z; previous)`` of each set, ``(...)``, packed ``(S,)``."""
        return self._tokens(z).sum((z - previous).square().sum(-1, keepdim=True)).squeeze(
            -1
        ) + self.potential(z)

    def potential(self, z: Tensor) -> Tensor:
        """``V(z)`` of each set, ``(...)``, packed ``(S,)``."""
        tokens = self._tokens(z)
        value = self.strength * self.weight.total(z, tokens)
        if self.graph is not None:
            # sum_ij m_i m_j A_ij |z_i - z_j|^2 = 2 sum_i m_i z_i . (d_i z_i - (A m z)_i)
            pull = self.graph @ tokens.weigh(torch.cat([z, torch.ones_like(z[..., :1])], -1))
            tension = (z * (pull[..., -1:] * z - pull[..., :-1])).sum(-1, keepdim=True)
            value = value + 2 * self.graph_strength * tokens.sum(tension).squeeze(-1)
        if self.source is not None:
            off = (z - self.source).square().sum(-1, keepdim=True)
            value = value + self.source_strength * tokens.sum(off).squeeze(-1)
        return value

    def kernel(self, z: Tensor) -> Operator:
        """``K = lambda Omega(z) + lambda_g A``, before the row law."""
        op, strength = self.weight.operator(z, self.tokens), torch.as_tensor(self.strength)
        if strength.ndim:
            left = self._tokens(z).spread(strength.unsqueeze(-1)).squeeze(-1)
            op = op.scale(left=left.expand(*left.shape[:-1], z.shape[-2]))
        else:
            op = strength.item() * op
        return op if self.graph is None else op + self.graph_strength * self.graph

    def step(self, z: Tensor, tau: float | Tensor | None = None) -> Tensor:
        """The next state for a step ``tau``; None takes the largest admissible one, set by set."""
        mixed, degree = self.pull(z)
        tau = self._bound(degree, self._tokens(z)) if tau is None else torch.as_tensor(tau, dtype=z.dtype)
        tau = self._tokens(z).spread(tau.unsqueeze(-1)) if tau.ndim else tau
        move = torch.where(degree > 0, mixed / torch.where(degree > 0, degree, 1.0) - z, 0.0)
        return z + tau * move

    def max_step(self, z: Tensor) -> Tensor:
        """``4 c_min / (4 c_min + 1)`` of each set: up to here the energy provably does not rise."""
        return self._bound(self.pull(z)[1], self._tokens(z))

    def inside_domain(self, z: Tensor) -> bool:
        """Whether all squared distances inside a set are in the domain of delta.

        Decided by the distances to the set's mean where these suffice, O(n d), else exactly in O(n^2 d).
        """
        domain, tokens = self.weight.domain, self._tokens(z)
        with torch.no_grad():
            present = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device)
            present = present if tokens.mass is None else (tokens.mass > 0).expand(z.shape[:-1])
            radius = (z - tokens.spread(tokens.mean(z))).square().sum(-1)[present]
            slack = 1 + 1e-6  # rounding must not push unit vectors out
            if not radius.numel() or 4 * float(radius.max()) <= domain * slack:
                return True
            zp = z * 1.0 if not tokens.packed else None
            sets = [zp] if zp is not None else tokens.sort(z).split(tokens.sizes.tolist(), -2)
            keep = [present] if zp is not None else tokens.sort(present, -1).split(tokens.sizes.tolist(), -1)
            return all(_diameter2(s, k) <= domain * slack for s, k in zip(sets, keep, strict=True))

    def pull(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_j K_ij m_j z_j + (mu/2) x_i``, ``(..., n, d)``, and ``c_i``, ``(..., n, 1)``, from one product."""
        tokens = self._tokens(z)
        pull = self.kernel(z) @ tokens.weigh(torch.cat([z, torch.ones_like(z[..., :1])], -1))
        mixed, degree = pull[..., :-1], pull[..., -1:]
        if self.source is not None:
            mixed, degree = mixed + self.source_strength / 2 * self.source, degree + self.source_strength / 2
        return mixed, degree

    def _bound(self, degree: Tensor, tokens: Tokens) -> Tensor:
        degree = degree.detach().squeeze(-1)
        still = degree <= 0  # nothing pulls at these: they do not move
        if tokens.mass is not None:
            still = still | (tokens.mass <= 0)
        degree = degree.masked_fill(still, torch.inf)
        if tokens.batch is None:
            least = degree.amin(-1) if tokens.n else degree.new_full(degree.shape[:-1], torch.inf)
        else:
            least = degree.new_full((*degree.shape[:-1], tokens.num_sets), torch.inf)
            least = least.scatter_reduce(-1, tokens.batch.expand_as(degree), degree, "amin")
        below = 1 - 4 * torch.finfo(least.dtype).eps  # so that rounding cannot carry a step over the bound
        return torch.where(torch.isfinite(least), below * 4 * least / (4 * least + 1), 1.0)

    def _tokens(self, z: Tensor) -> Tokens:
        check_pair("Energy", self.tokens, self.tokens, z.shape[-2], z.shape[-2])
        return self.tokens or Tokens(z.shape[-2])


def _diameter2(z: Tensor, present: Tensor, rows: int = 1024) -> float:
    """Largest squared distance between present points of each leading index."""
    largest = 0.0
    for part, keep in zip(z.split(rows, -2), present.split(rows, -1), strict=True):
        u = torch.cdist(part, z).square().masked_fill(~(keep.unsqueeze(-1) & present.unsqueeze(-2)), 0.0)
        largest = max(largest, float(u.max()) if u.numel() else 0.0)
    return largest
