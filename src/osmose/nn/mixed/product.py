"""The mixed product as a layer: ``y = b + sum_k A_k x Theta_k``.

Shapes: ``(..., m, P)`` to ``(..., n, Q)``; on a grid of D axes ``(..., m_1, ..., m_D, P)`` to ``(..., n_1, ..., n_D, Q)``.
"""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from ... import laws
from ...laws import Law
from ...structure.families import Blends, Family, Union
from ...structure.mixed import KroneckerSum
from ...tokens import Tokens
from .values import Values


class Structure(nn.Module):
    """What makes the operators of a layer; a kind implements ``forward(x, ...)`` to a family of ``count`` operators.

    ``forward`` takes the values' points and, by name, what else the structure is made of: a graph, the targets of cross
    attention, masks; also ``sources`` and ``targets`` where sets matter to it.

    Attributes:
        count: K.
        axes: number of token axes of x that are a grid.
        own_law: whether masses and a law are part of the structure, as in attention; else the layer applies them.
        across: whether a target may read other places than its own.
    """

    count: int
    axes: int = 1
    own_law: bool = False
    across: bool = True

    def takes(self) -> dict[str, bool]:
        """What ``forward`` takes besides x, by name, and whether it cannot do without."""
        return {
            name: parameter.default is Parameter.empty
            for name, parameter in list(signature(self.forward).parameters.items())[1:]
        }

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of targets for sources on a grid ``size``."""
        return size

    def family(
        self,
        x: Tensor,
        law: Law | None,
        sources: Tokens | None,
        targets: Tokens | None,
        given: dict[str, Any],
    ) -> Family:
        """The operators under a law and the masses; with ``law`` None masses of sources weigh what is carried."""
        sides = {"sources": sources, "targets": targets}
        own = {name: tokens for name, tokens in sides.items() if name in self.takes()}
        if self.across and "sources" not in own and any(t is not None and t.packed for t in sides.values()):
            raise ValueError(
                f"MixedProduct: packed tokens with {type(self).__name__}, which reads across their sets; pad the batch, or take "
                "Shifts, which stay inside a set."
            )
        family = self(x, **own, **given)
        if self.own_law or (law is None and all(t is None or t.mass is None for t in sides.values())):
            return family
        return family.under(law or laws.none, sources=sources, targets=targets)


class Together(Structure):
    """The operators of several structures on a line, one after the other; each takes what it knows by name."""

    def __init__(self, *parts: Structure):
        super().__init__()
        if any(part.axes > 1 for part in parts):
            raise ValueError("Together: a structure on a grid among others; they share tokens on a line.")
        self.parts = nn.ModuleList(parts)
        self.count = sum(part.count for part in parts)
        self.own_law = any(part.own_law for part in parts)

    @property
    def _parts(self) -> tuple[Structure, ...]:
        return cast(tuple[Structure, ...], tuple(self.parts))

    def takes(self) -> dict[str, bool]:
        out: dict[str, bool] = {}
        for part in self._parts:
            for name, needed in part.takes().items():
                out[name] = out.get(name, False) or needed
        return out

    def family(
        self,
        x: Tensor,
        law: Law | None,
        sources: Tokens | None,
        targets: Tokens | None,
        given: dict[str, Any],
    ) -> Family:
        return Union(
            *(
                part.family(x, law, sources, targets, {k: v for k, v in given.items() if k in part.takes()})
                for part in self._parts
            )
        )


class Mixtures(Structure):
    """Learned mixtures ``sum_k c_bk A_k`` of the operators of another structure, b = 1 .. B.

    Over shifts it is a learned Toeplitz operator, over rings a learned function of distance. The layer's law is that of
    the mixtures. Parameters: ``coefficients (B, K)``, with ``convex`` through a softmax, so that a mixture of means is
    a mean.
    """

    def __init__(self, inner: Structure, count: int, *, convex: bool = False, **made: Any):
        super().__init__()
        self.inner, self.count, self.convex = inner, count, convex
        self.axes, self.own_law = inner.axes, inner.own_law
        start = torch.zeros(count, inner.count, **made)
        self.coefficients = nn.Parameter(start if convex else start.uniform_(-1, 1) / inner.count)

    def takes(self) -> dict[str, bool]:
        return self.inner.takes()

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return self.inner.grid(size)

    def family(
        self,
        x: Tensor,
        law: Law | None,
        sources: Tokens | None,
        targets: Tokens | None,
        given: dict[str, Any],
    ) -> Family:
        share = self.coefficients.softmax(-1) if self.convex else self.coefficients
        if self.own_law:
            return Blends(self.inner.family(x, None, sources, targets, given), share)
        of_x, of_y = (None if t is None else t.with_mass(None) for t in (sources, targets))
        blends = Blends(self.inner.family(x, None, of_x, of_y, given), share)
        if law is None and all(t is None or t.mass is None for t in (sources, targets)):
            return blends
        return blends.under(law or laws.none, sources=sources, targets=targets)


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
        ValueError: a structure and values of different counts, a law on a structure that has one.

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
        if isinstance(law, str):
            if law not in laws.LAWS:
                raise ValueError(f"MixedProduct: law is {law!r}; expected one of {', '.join(laws.LAWS)}.")
            law = laws.LAWS[law]
        self.law = law
        if self.law is not None and structure.own_law:
            raise ValueError(
                f"MixedProduct: law {self.law.name} on {type(structure).__name__}, whose operators have a law already; leave it "
                "out, or give the structure another mixer."
            )
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
        known = {
            name: need for name, need in self.structure.takes().items() if name not in ("sources", "targets")
        }
        wrong = [f"takes no {name!r}" for name in given if name not in known]
        wrong += [f"needs {name!r}" for name, needed in known.items() if needed and given.get(name) is None]
        if wrong:
            raise TypeError(
                f"MixedProduct: {type(self.structure).__name__} {wrong[0]}; it takes {', '.join(known) or 'x only'}."
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
        return self.structure.family(x, self.law, sources, targets, given)

    def operator(self, x: Tensor, **given: Any) -> KroneckerSum:
        """``Phi(x) = sum_k A_k(x) kron Theta_k^T``, never formed: ``vec(y) = Phi vec(x) + constant`` row by row.

        With ``given`` as for :meth:`forward`. A computed structure makes it depend on x; the Jacobian also has what a
        change of A does. The sources that attention adds (``add_bias_kv``) come last.
        """
        family = self.family(x, **given)
        theta = self.values.dense()
        if self.values.in_channels is None:  # Theta = I of any size
            theta = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(len(family), -1, -1)
        return KroneckerSum(list(family), theta)

    def extra_repr(self) -> str:
        return "" if self.law is None else f"law={self.law!r}"
