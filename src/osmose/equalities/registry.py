"""What an equality is: one of our layers and a layer that others wrote, with the same parameters on the same input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..nn.mixed import MixedProduct

Against = Literal["torch", "pyg", "published"]
AGAINST: tuple[Against, ...] = ("torch", "pyg", "published")


@dataclass(frozen=True)
class Trial:
    """Both sides of an equality, ready to run on ``x``.

    Attributes:
        layer: our mixed product.
        theirs: the other side, ``x`` to what ``layer`` gives.
        x: tokens, channels last; targets where ``values`` are other tokens.
        given: what else the layer's structure is made of.
        values: the sources' values of cross attention.
    """

    layer: MixedProduct
    theirs: Callable[[Tensor], Tensor]
    x: Tensor
    given: dict[str, Any] = field(default_factory=dict)
    values: Tensor | None = None

    def ours(self, x: Tensor) -> Tensor:
        """The layer, as it computes."""
        value, given = self._call(x)
        return self.layer(value, **given)

    def from_parts(self, x: Tensor) -> Tensor:
        """``sum_k A_k (x Theta_k)`` with every operator read as a dense matrix: the definition, not the fast path."""
        value, given = self._call(x)
        family, axes = self.layer.family(value, **given), self.layer.structure.axes
        carried = self.layer.values.carried(value.flatten(-1 - axes, -2))
        parts = [op.to_dense() @ z for op, z in zip(family, carried.unbind(-3), strict=True)]
        y = torch.stack(parts).sum(0)
        y = y if self.layer.bias is None else y + self.layer.bias
        return y if axes == 1 else y.unflatten(-2, self.layer.structure.grid(value.shape[-1 - axes : -1]))

    def _call(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return (x, self.given) if self.values is None else (self.values, {"y": x, **self.given})


@dataclass(frozen=True)
class Equality:
    """A named equality.

    Attributes:
        name: the layer and its settings.
        against: who wrote the other side: ``torch``, ``pyg``, or ``published`` formulas written out in plain torch.
        structure: the operators, in words.
        make: both sides in a dtype, drawn from torch's generator.
    """

    name: str
    against: Against
    structure: str
    make: Callable[[torch.dtype], Trial]

    def measure(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """Largest differences from the other side, relative to its largest number (or 1).

        ``error`` of the layer's output, ``gradient_error`` of its gradient into x, ``parts_error`` of the sum formed from
        the dense matrices of its operators.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trial = self.make(dtype)
            x, y = (trial.x.clone().requires_grad_() for _ in range(2))
            ours, theirs = trial.ours(x), trial.theirs(y)
            grad = torch.randn_like(theirs)
        if ours.shape != theirs.shape:
            raise ValueError(f"{self.name}: ours gives {tuple(ours.shape)}, theirs {tuple(theirs.shape)}.")
        back = torch.autograd.grad(ours, x, grad)[0], torch.autograd.grad(theirs, y, grad)[0]
        layer = trial.layer
        return {
            "name": self.name,
            "against": self.against,
            "structure": self.structure,
            "operators": layer.structure.count,
            "values": type(layer.values).__name__,
            "parameters": sum(p.numel() for p in layer.parameters()),
            "error": _relative(ours, theirs),
            "gradient_error": _relative(*back),
            "parts_error": _relative(trial.from_parts(trial.x), theirs),
        }


def _relative(ours: Tensor, theirs: Tensor) -> float:
    scale = max(1.0, float(theirs.detach().abs().max()))
    return float((ours - theirs).detach().abs().max()) / scale


def randomised(module: nn.Module, dtype: torch.dtype) -> Any:
    """The module in a dtype with all parameters drawn anew, those that start at 0 or 1 too."""
    module = module.to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    return module


def equalities(against: tuple[str, ...] = AGAINST) -> Iterator[Equality]:
    """All equalities with these others.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: ``pyg`` without torch_geometric.
    """
    for name in against:
        if name not in AGAINST:
            raise ValueError(f"against is {name!r}; expected one of {', '.join(AGAINST)}.")
    for name in against:
        yield from import_module(f".{name}_layers", __package__).EQUALITIES
