r"""The tokens of a network as particles: what the observables say of its states, layer by layer.

A state holds tokens x_i; what is read are their directions :math:`x_i / |x_i|`, points on the sphere, as LayerNorm and the
particle model have them. LayerNorm with a bias, or a norm of sums over many layers, leaves a mean that all tokens
share; ``centre`` takes it off first (the mean over the tokens of an input).

One ruler serves all layers, so that a curve over depth shows how tokens move: beta for the energy, a distance for clusters.

Shapes: ``...`` inputs, n tokens, d coordinates, which may change from layer to layer.

Source: 2312.10794v5, for the histogram of inner products through the layers of a model (there ALBERT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .observables import (
    clusters,
    effective_rank,
    energy,
    mean_product,
    nearest,
    normalised_energy,
    order_parameter,
    product_histogram,
)
from .observables._points import weighted

STATISTICS = (
    "mean_product",
    "order_parameter",
    "effective_rank",
    "clusters",
    "largest_cluster",
    "normalised_energy",
    "energy",
    "mean_norm",
)
"""What is told of a layer; see :class:`ParticleReport`."""

AT_ONCE = 2**22  # numbers of the states that are turned into float64 at once


@dataclass(frozen=True)
class Spread:
    """Mean over inputs, and their deviation: None for a single one."""

    mean: float
    sd: float | None
    inputs: int


def directions(x: Tensor, mass: Tensor | None = None, *, centre: bool = False) -> tuple[Tensor, Tensor]:
    """``x_i / |x_i|`` and the masses ``(..., n)``; a token of zeros has no direction and gets mass 0.

    Args:
        x: ``(..., n, d)``.
        mass: ``(..., n)``; None is 1 for each.
        centre: subtract the mean of the present tokens first.
    """
    x, m = weighted("directions", x, mass)
    if centre:
        total = m.sum(-1, keepdim=True).clamp(min=torch.finfo(m.dtype).tiny)
        away = x - ((m.unsqueeze(-1) * x).sum(-2) / total).unsqueeze(-2)
        # what is left of equal tokens is rounding
        floor = torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        x = torch.where(torch.linalg.vector_norm(away, dim=-1, keepdim=True) > 8 * floor, away, 0.0)
    length = torch.linalg.vector_norm(x, dim=-1)
    m = torch.where(length > 0, m, 0.0)
    unit = torch.where((m > 0).unsqueeze(-1), x / torch.where(length > 0, length, 1.0).unsqueeze(-1), 0.0)
    return unit, m


def linking_scale(x: Tensor, mass: Tensor | None = None) -> float:
    """A distance at which half the tokens of a state ``(..., n, d)`` have a neighbour: the median distance to the nearest one.

    Of directions; equal tokens are passed over. Where there are no others it is 1e-3. Time ``n^2 d``.
    """
    x, m = directions(x, mass)
    near = nearest(x, (m > 0).to(x.dtype)).flatten()
    near = near[torch.isfinite(near) & (near > 1e-3)]
    return float(near.median()) if near.numel() else 1e-3


class ParticleReport:
    """Observables of the directions of tokens by layer, streamed over inputs: no state and no pairs are kept.

    For every layer, over inputs, mean and deviation of

    * ``mean_product``: mean inner product of pairs of different tokens;
    * ``order_parameter``: length of the mean direction;
    * ``effective_rank``: exp of the entropy of the Gram spectrum;
    * ``clusters``, ``largest_cluster``: number by single linkage at the scale, and the share of mass in the largest;
    * ``normalised_energy``: :math:`2 \\beta e^{-\\beta} E_\\beta`, 1 at consensus; ``energy``: :math:`E_\\beta` itself;
    * ``mean_norm``: of the tokens as they are, before any centring;

    and the mean over inputs of the histogram of inner products.

    Args:
        beta: of the energy.
        scale: distance of the linkage, between directions.
        centre: as for :func:`directions`.
        bins, diagonal: of the histogram from -1 to 1; with the diagonal a pair of a token with itself counts, as in the figure
            of ALBERT.

    Cost, for each input and layer: time ``n^2 d``, memory O(n d).
    """

    def __init__(
        self, beta: float, scale: float, *, centre: bool = False, bins: int = 80, diagonal: bool = False
    ):
        if not math.isfinite(beta):
            raise ValueError(f"ParticleReport: beta is {beta}; expected a finite inverse temperature.")
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"ParticleReport: scale is {scale}; expected a positive distance.")
        self.beta, self.scale, self.centre = beta, scale, centre
        self.bins, self.diagonal = bins, diagonal
        self.values: list[dict[str, list[float]]] = []
        self.tokens: list[list[float]] = []
        self.shares: list[Tensor] = []
        self.edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)

    @torch.no_grad()
    def update(
        self, states: Sequence[Tensor] | Tensor, masses: Sequence[Tensor | None] | Tensor | None = None
    ) -> None:
        """Take the states of some inputs.

        Args:
            states: for every layer ``(..., n, d)``; a tensor ``(layers, ..., n, d)`` will do.
            masses: for every layer ``(..., n)`` or None; or one for all layers. Tokens of mass 0 do not exist, and an input
                without any is passed over.

        Raises:
            ValueError: another number of layers than before, layers without tokens, states that are not finite.
        """
        masses = [masses] * len(states) if masses is None or isinstance(masses, Tensor) else masses
        if not self.values:
            self.values = [{name: [] for name in STATISTICS} for _ in states]
            self.tokens = [[] for _ in states]
            self.shares = [torch.zeros(self.bins, dtype=torch.float64) for _ in states]
        if not len(states) == len(masses) == len(self.values):
            raise ValueError(
                f"ParticleReport: {len(states)} layers with {len(masses)} masses; expected {len(self.values)} of both."
            )
        for layer, (x, mass) in enumerate(zip(states, masses, strict=True)):
            if x.ndim < 2:
                raise ValueError(
                    f"ParticleReport: layer {layer} has shape {tuple(x.shape)}; expected (..., n, d). A single state goes in a list."
                )
            present = x if mass is None else x[(mass > 0).expand(x.shape[:-1])]
            if not bool(torch.isfinite(present).all()):
                raise ValueError(
                    f"ParticleReport: the states of layer {layer} hold NaN or infinite values; expected finite ones."
                )
            x = x.reshape(-1, *x.shape[-2:])
            m = None if mass is None else mass.expand(*x.shape[:-1]).reshape(x.shape[:-1])
            step = max(1, AT_ONCE // max(x[:1].numel(), 1))
            for start in range(0, len(x), step):
                part = slice(start, start + step)
                self._take(layer, x[part], None if m is None else m[part])

    def _take(self, layer: int, x: Tensor, mass: Tensor | None) -> None:
        x, m = weighted("ParticleReport", x, mass)
        some = (m > 0).any(-1)
        x, m = x[some].double(), m[some].double()
        if not len(x):
            return
        length = torch.linalg.vector_norm(x, dim=-1)
        unit, m_unit = directions(x, m, centre=self.centre)
        histogram = product_histogram(unit, self.bins, mass=m_unit, diagonal=self.diagonal)
        linked = clusters(unit, self.scale, m_unit)
        of_clusters = linked.masses(m_unit)
        largest = of_clusters.amax(-1) if of_clusters.shape[-1] else of_clusters.sum(-1)
        found = {
            "mean_product": torch.where(m_unit.sum(-1) > 1, mean_product(unit, m_unit), torch.nan),
            "order_parameter": order_parameter(unit, m_unit),
            "effective_rank": effective_rank(unit, m_unit),
            "clusters": linked.count,
            "largest_cluster": largest / m_unit.sum(-1),
            "normalised_energy": normalised_energy(unit, self.beta, m_unit),
            "energy": energy(unit, self.beta, m_unit),
            "mean_norm": (m * length).sum(-1) / m.sum(-1),
        }
        for name, value in found.items():
            self.values[layer][name] += value.double().tolist()
        self.tokens[layer] += m_unit.sum(-1).tolist()
        self.shares[layer] += histogram.share.sum(0).cpu()

    def layers(self) -> list[LayerReading]:
        """What was found, a :class:`LayerReading` for each layer.

        Raises:
            ValueError: no input was read.
        """
        if not self.values or not self.tokens[0]:
            raise ValueError("ParticleReport: no input was read; expected at least one update with tokens.")
        return [
            LayerReading(
                {name: _spread(found) for name, found in values.items()},
                _spread(tokens),
                share / len(tokens),
                self.edges,
            )
            for values, tokens, share in zip(self.values, self.tokens, self.shares, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class LayerReading:
    """One layer of a :class:`ParticleReport`.

    Attributes:
        statistics: a :class:`Spread` for each of :data:`STATISTICS`, also by ``reading[name]``.
        tokens: how many have a direction.
        share: of pairs in each bin of the histogram, ``(bins,)``.
        edges: ``(bins + 1,)``.
    """

    statistics: dict[str, Spread]
    tokens: Spread
    share: Tensor
    edges: Tensor

    def __getitem__(self, name: str) -> Spread:
        return self.statistics[name]


def particle_report(
    states: Sequence[Tensor] | Tensor,
    masses: Sequence[Tensor | None] | Tensor | None = None,
    *,
    beta: float,
    scale: float | None = None,
    centre: bool = False,
    bins: int = 80,
    diagonal: bool = False,
) -> list[LayerReading]:
    """:class:`ParticleReport` of states that are at hand.

    Args:
        states, masses: as for :meth:`ParticleReport.update`.
        beta, centre, bins, diagonal: as for :class:`ParticleReport`.
        scale: None takes :func:`~osmose.dynamics.observables.cluster_scale` of beta.

    >>> import torch
    >>> at_start, at_consensus = torch.eye(3), torch.ones(3, 3)
    >>> readings = particle_report([at_start, at_consensus], beta=4.0)
    >>> [reading["clusters"].mean for reading in readings]
    [3.0, 1.0]
    """
    from .observables import cluster_scale

    scale = cluster_scale(beta) if scale is None else scale
    report = ParticleReport(beta, scale, centre=centre, bins=bins, diagonal=diagonal)
    report.update(states, masses)
    return report.layers()


def projected(
    states: Sequence[Tensor], masses: Sequence[Tensor | None], *, centre: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The directions of one input seen in one plane at all layers: coordinates ``(n, 2)`` and masses ``(n,)`` of each.

    The axes are the two principal ones of the last layer's directions about their mean. All lie in the unit disc. In d = 2 it
    is the circle itself. A layer of another width than the last has the axes of the last layer of its width.
    """
    found = [directions(x, m, centre=centre) for x, m in zip(states, masses, strict=True)]
    frames: dict[int, Tensor] = {}
    for unit, m in found:  # later layers replace earlier ones
        frames[unit.shape[-1]] = _axes(unit, m)
    return [unit @ frames[unit.shape[-1]] for unit, _ in found], [m for _, m in found]


def _axes(unit: Tensor, m: Tensor) -> Tensor:
    d = unit.shape[-1]
    if d <= 2:
        return torch.eye(d, 2, dtype=unit.dtype, device=unit.device)
    away = unit - (m.unsqueeze(-1) * unit).sum(-2) / m.sum().clamp(min=torch.finfo(m.dtype).tiny)
    _, vectors = torch.linalg.eigh(away.mT @ (m.unsqueeze(-1) * away))
    axes = vectors[:, [-1, -2]]
    top = axes.abs().argmax(0, keepdim=True)
    return axes * axes.gather(0, top).sign()  # a sign that does not depend on the solver


def _spread(values: list[float]) -> Spread:
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return Spread(math.nan, None, 0)
    mean = math.fsum(known) / len(known)
    sd = None
    if len(known) > 1:
        sd = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))
    return Spread(mean, sd, len(known))
