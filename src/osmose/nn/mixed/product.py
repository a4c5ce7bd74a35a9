"""The mixed product as a layer: ``y = b + sum_k A_k x Theta_k``.

Shapes: ``(..., m, P)`` to ``(..., n, Q)``; on a grid of D axes ``(..., m_1, ..., m_D, P)`` to ``(..., n_1, ..., n_D, Q)``.
"""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ... import laws
from ...laws import Law
from ...structure.families import Family, Union
from ...tokens import Tokens
from .values import Values


class Structure(nn.Module):
    """What makes the operators of a layer; a kind implements ``forward(x, ...)`` to a family of ``count`` operators.

    ``forward`` takes the values' points and, by name, what else the structure is made of: a graph, the targets of cross
    attention, masks. ``axes`` is the number of token axes of x that are a grid.
    """

    count: int
    axes: int = 1

    def takes(self) -> tuple[str, ...]:
        """Names of what ``forward`` takes besides x."""
        parameters = list(signature(self.forward).parameters.values())[1:]
        return tuple(p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of targets for sources on a grid ``size``."""
        return size


class Together(Structure):
    """The operators of several structures, one after the other; each takes what it knows by name."""

    def __init__(self, *parts: Structure):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.count = sum(part.count for part in parts)

    def takes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.takes()))  # type: ignore[operator]

    def forward(self, x: Tensor, **given: Any) -> Family:
        return Union(
            *(part(x, **{k: v for k, v in given.items() if k in part.takes()}) for part in self.parts)  # type: ignore[operator]
        )


class MixedProduct(nn.Module):
    """``y = b + sum_k A_k x Theta_k``: one layer for convolution, graph propagation and attention.

    A structure gives the operators ``A_k (n, m)``, given (shifts, a graph) or computed from tokens; the values give
    ``Theta_k (P, Q)``. The constructors of this folder put known layers together; any other pair of parts is a new layer.

    Args:
        structure: K operators.
        values: K matrices.
        bias: whether b is added.
        law: a law for every operator, by name (``row``, ``sym``, ``mean``, ``flow``, ``sinkhorn``) or as an object; None
            leaves them as they are, and masses of sources then weigh what is carried.

    Raises:
        ValueError: a structure and values of different counts; a law over column sums on a causal structure.

    Cost: that of the family's products and ``(n + m) K P Q`` at most; a convolution is one call of torch's.

    Source: J.-M. Andreoli, Convolution, attention and structure embedding, 1905.01289; our operators are that paper's
    transposed (rows = targets), our offsets have the opposite sign.
    """

    def __init__(
        self,
        structure: Structure,
        values: Values,
        *,
        bias: bool = True,
        law: str | Law | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if structure.count != values.count:
            raise ValueError(
                f"MixedProduct: the structure has {structure.count} operators and the values {values.count} matrices; "
                "expected one matrix for each operator."
            )
        self.structure, self.values = structure, values
        self.law = laws.LAWS.get(law, law) if isinstance(law, str) else law
        if isinstance(self.law, str):
            raise ValueError(f"MixedProduct: law is {law!r}; expected one of {', '.join(laws.LAWS)}.")
        if bias and values.out_channels is None:
            raise ValueError(
                f"MixedProduct: a bias with values {type(values).__name__}, which take any channels; pass bias=False."
            )
        zeros = torch.zeros(values.out_channels or 0, device=device, dtype=dtype)
        self.bias = nn.Parameter(zeros) if bias else None

    def forward(
        self, x: Tensor, *, sources: Tokens | None = None, targets: Tokens | None = None, **given: Any
    ) -> Tensor:
        """Mix ``x (..., m, P)``, or points on the structure's grid, into ``(..., n, Q)``.

        Args:
            x: values of the sources.
            sources, targets: masses and sets of the two sides; None means 1 and one set.
            given: what the structure is made of besides x, by name.
        """
        size = x.shape[-1 - self.structure.axes : -1]
        family = self.family(x, sources=sources, targets=targets, **given)
        y = self.values(family, x.flatten(-1 - self.structure.axes, -2))
        y = y if self.bias is None else y + self.bias
        return y if self.structure.axes == 1 else y.unflatten(-2, self.structure.grid(tuple(size)))

    def family(
        self, x: Tensor, *, sources: Tokens | None = None, targets: Tokens | None = None, **given: Any
    ) -> Family:
        """The operators that x is mixed by, under the layer's law; the arguments of :meth:`forward`."""
        known = self.structure.takes()
        sides = {"sources": sources, "targets": targets}
        own = {name: tokens for name, tokens in sides.items() if name in known}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise TypeError(
                f"MixedProduct: {type(self.structure).__name__} takes no {unknown[0]!r}; it takes "
                f"{', '.join(known) or 'x only'}."
            )
        channels = self.values.in_channels
        if x.shape[-1] != (channels or x.shape[-1]) or x.ndim < self.structure.axes + 1:
            axes = (
                "m"
                if self.structure.axes == 1
                else ", ".join(f"m_{i + 1}" for i in range(self.structure.axes))
            )
            raise ValueError(
                f"MixedProduct: x has shape {tuple(x.shape)}; expected (..., {axes}, {channels or 'channels'})."
            )
        family = self.structure(x, **own, **given)
        if own or (self.law is None and sources is None and targets is None):
            return family
        return family.under(self.law or laws.none, sources=sources, targets=targets)

    def extra_repr(self) -> str:
        return "" if self.law is None else f"law={self.law!r}"
