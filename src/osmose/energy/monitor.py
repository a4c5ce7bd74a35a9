"""What the energy did from layer to layer, and whether a theorem covers it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .energy import Energy


@dataclass(frozen=True)
class LayerReport:
    """One layer's step.

    Attributes:
        layer: index from 0.
        energy: ``V(z)`` after the layer.
        change: ``E(z_next; z) - V(z)``, the worst set; the descent theorem says <= 0.
        step: the step size taken.
        max_step: the largest step the theorem covers at the state before the layer, the smallest over sets.
        inside_domain: whether the state before the layer is in the domain of delta.
        covered: step within the bound, state in the domain, and the layer is a step of this energy.
    """

    layer: int
    energy: float
    change: float
    step: float
    max_step: float
    inside_domain: bool
    covered: bool

    @property
    def descended(self) -> bool:
        return self.change <= 0


class DescentMonitor:
    """Collects a :class:`LayerReport` for each layer; pass it to a model's ``forward(..., monitor=...)``.

    Args:
        energy: what to report for layers that are not steps of an energy of their own; None is all pairs with
            the simple weight. Layers with their own queries, keys, values or a LayerNorm are such: their
            reports say ``covered=False`` whatever the numbers do.

    Cost a layer: two energies and one product with the kernel, in float64.
    """

    def __init__(self, energy: Energy | None = None):
        self.energy = energy or Energy()
        self.reports: list[LayerReport] = []

    @torch.no_grad()
    def __call__(
        self, before: Tensor, after: Tensor, step: float | Tensor, energy: Energy | None = None
    ) -> None:
        """Record one layer. ``energy``: the one that the layer is a step of, if there is one."""
        exact, energy = energy is not None, energy or self.energy
        before, after = before.double(), after.double()
        bound = energy.max_step(before)
        inside = energy.inside_domain(before)
        steps = torch.as_tensor(step, dtype=torch.float64).broadcast_to(bound.shape)
        within = bool((steps <= bound * (1 + 1e-9)).all())
        change = energy(after, before) - energy.potential(before)
        self.reports.append(
            LayerReport(
                layer=len(self.reports),
                energy=float(energy.potential(after).sum()),
                change=float(change.max()) if change.numel() else 0.0,
                step=float(steps.max()) if steps.numel() else 0.0,
                max_step=float(bound.min()) if bound.numel() else 1.0,
                inside_domain=inside,
                covered=exact and within and inside,
            )
        )

    def table(self) -> list[dict[str, float | int | bool]]:
        """The reports as plain rows."""
        return [asdict(report) for report in self.reports]
