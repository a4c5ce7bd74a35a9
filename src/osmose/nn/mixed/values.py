"""What a mixed product carries: the ways to write ``Theta (K, P, Q)``, one matrix for each operator.

Shapes: K operators, P channels in, Q out, D channels inside a head, m sources, n targets, e sources that a head adds.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...structure.families import Family, Given, block_diagonal


class Values(nn.Module):
    """``sum_k A_k x Theta_k`` for a family of operators; a kind says how Theta is written."""

    count: int
    in_channels: int | None = None  # None: any
    out_channels: int | None = None

    @abstractmethod
    def forward(self, family: Family, x: Tensor) -> Tensor:
        """``(..., m, P)`` to ``(..., n, Q)``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Theta in full, ``(K, P, Q)``."""

    def carried(self, x: Tensor) -> Tensor:
        """What each operator moves, in full: ``x Theta_k + 1 eta_k``, ``(..., m, P)`` to ``(..., K, m, Q)``."""
        return x.unsqueeze(-3) @ self.dense()

    def extra_repr(self) -> str:
        channels = "" if self.in_channels is None else f" x ({self.in_channels}, {self.out_channels})"
        return f"{self.count}{channels}"


def _uniform(shape: tuple[int, ...], fan_in: int, made: dict) -> nn.Parameter:
    bound = 1 / math.sqrt(max(fan_in, 1))
    return nn.Parameter(torch.empty(shape, **made).uniform_(-bound, bound))


class Full(Values):
    """A free matrix for each operator, block-diagonal with ``groups`` blocks: convolution, depthwise at P blocks.

    Parameters: ``weight (K, P / groups, Q)``, and with ``in_bias`` ``(K, Q)``, carried with the values:
    ``sum_k A_k (x Theta_k + 1 eta_k)``.
    """

    def __init__(
        self,
        count: int,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        *,
        in_bias: bool = False,
        **made,
    ):
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups or (in_bias and groups > 1):
            raise ValueError(
                f"Full: groups is {groups} for {in_channels} channels in and {out_channels} out; expected a divisor of both, "
                "and 1 with in_bias."
            )
        self.count, self.in_channels, self.out_channels, self.groups = (
            count,
            in_channels,
            out_channels,
            groups,
        )
        per = in_channels // groups
        self.weight = _uniform((count, per, out_channels), count * per, made)
        self.in_bias = nn.Parameter(torch.zeros(count, out_channels, **made)) if in_bias else None

    def forward(self, family: Family, x: Tensor) -> Tensor:
        if self.in_bias is not None:  # one more channel, which is 1 everywhere
            return family.mixed(
                F.pad(x, (0, 1), value=1.0), torch.cat([self.weight, self.in_bias[:, None]], 1)
            )
        return family.mixed(x, self.weight, self.groups)

    def dense(self) -> Tensor:
        return self.weight if self.groups == 1 else block_diagonal(self.weight, self.groups)

    def carried(self, x: Tensor) -> Tensor:
        z = super().carried(x)
        return z if self.in_bias is None else z + self.in_bias[:, None]


class Carried(Values):
    """Theta = I for every operator: values are carried as they are, any number of channels. No parameters."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, family: Family, x: Tensor) -> Tensor:
        return family.spread(x).sum(-3)

    def dense(self) -> Tensor:
        """Theta of one channel: it is the same number, 1, on every diagonal."""
        return torch.ones(self.count, 1, 1)

    def carried(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-3).expand(*x.shape[:-2], self.count, *x.shape[-2:])


class Tied(Values):
    """One matrix for all operators: ``(sum_k A_k) x Theta``, as DIFFormer's graph term shares the values of its attention.

    Parameters: ``weight (P, Q)``.
    """

    def __init__(self, count: int, in_channels: int, out_channels: int, **made):
        super().__init__()
        self.count, self.in_channels, self.out_channels = count, in_channels, out_channels
        self.weight = _uniform((in_channels, out_channels), in_channels, made)

    def forward(self, family: Family, x: Tensor) -> Tensor:
        return family.spread(x @ self.weight).sum(-3)

    def dense(self) -> Tensor:
        return self.weight.expand(self.count, -1, -1)


class Bases(Values):
    """``Theta_k = sum_b c_kb V_b``: matrices shared between operators, as in R-GCN; itself a mixed product.

    Parameters: ``coefficients (K, B)`` and ``weight (B, P, Q)``.
    """

    def __init__(self, count: int, bases: int, in_channels: int, out_channels: int, **made):
        super().__init__()
        self.count, self.in_channels, self.out_channels = count, in_channels, out_channels
        self.coefficients = _uniform((count, bases), bases, made)
        self.weight = _uniform((bases, in_channels, out_channels), in_channels, made)

    def forward(self, family: Family, x: Tensor) -> Tensor:
        return family.mixed(x, self.dense())

    def dense(self) -> Tensor:
        return torch.einsum("kb,bpq->kpq", self.coefficients, self.weight)


class Concatenated(Values):
    """``[A_1 x W_1, ..., A_K x W_K]``: each operator fills channels of its own; Theta is block-sparse (GAT's heads).

    Parameters, in torch's layout: ``weight (Q, P)`` with Q = K D, and ``in_bias (Q,)``, carried with the values.
    """

    def __init__(self, count: int, in_channels: int, out_channels: int, bias: bool = False, **made):
        super().__init__()
        if out_channels % count:
            raise ValueError(f"Concatenated: {count} operators do not divide {out_channels} channels.")
        self.count, self.in_channels, self.out_channels = count, in_channels, out_channels
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(out_channels, in_channels, **made)))
        self.in_bias = nn.Parameter(torch.zeros(out_channels, **made)) if bias else None

    def forward(self, family: Family, x: Tensor) -> Tensor:
        z = F.linear(x, self.weight, self.in_bias).unflatten(-1, (self.count, -1)).transpose(-3, -2)
        return family.carry(z).transpose(-3, -2).flatten(-2)

    def dense(self) -> Tensor:
        return torch.where(self._own[:, None], self.weight.mT, 0.0)

    @property
    def _own(self) -> Tensor:
        """Which outputs an operator fills, ``(K, Q)``."""
        wide, device = len(self.weight), self.weight.device
        owner = torch.arange(wide, device=device) // (wide // self.count)
        return owner == torch.arange(self.count, device=device)[:, None]

    def carried(self, x: Tensor) -> Tensor:
        z = super().carried(x)
        return z if self.in_bias is None else z + torch.where(self._own, self.in_bias, 0.0)[:, None]


class Joined(Values):
    """The first operators carry by one kind of values, the next by another, and the results add up."""

    def __init__(self, *parts: Values):
        super().__init__()
        sizes = {(part.in_channels, part.out_channels) for part in parts}
        if len(sizes) != 1:
            raise ValueError(
                f"Joined: the parts go from and to {sorted(sizes)} channels; expected the same for all."
            )
        self.parts = nn.ModuleList(parts)
        self.count = sum(part.count for part in parts)
        self.in_channels, self.out_channels = sizes.pop()

    def forward(self, family: Family, x: Tensor) -> Tensor:
        start, out = 0, None
        for part in self.parts:
            assert isinstance(part, Values)
            mixed = part(Given([family[k] for k in range(start, start + part.count)]), x)
            out, start = mixed if out is None else out + mixed, start + part.count
        assert out is not None
        return out

    def dense(self) -> Tensor:
        return torch.cat([part.dense() for part in self.parts])  # type: ignore[operator]

    def carried(self, x: Tensor) -> Tensor:
        return torch.cat([part.carried(x) for part in self.parts], -3)  # type: ignore[operator]


class LowRank(Values):
    """``Theta_k = W_k W'_k`` of rank D: the heads of attention, ``sum_k A_k (x W_k + 1 eta_k) W'_k``.

    Parameters, in torch's layout: ``in_weight (G D, P)``, ``in_bias (G D,)``, ``out_weight (Q, K D)``; with G < K groups
    of K / G heads share W. A head may see ``extra (e, G D)`` more sources whose values are learned or 0.

    Args:
        count: K.
        in_channels, out_channels: P and Q.
        rank: D; None means Q / K.
        bias: eta.
        shared: G; None means K.
        extra: which sources are added, in order: ``learned`` or ``zero``.
    """

    def __init__(
        self,
        count: int,
        in_channels: int,
        out_channels: int,
        rank: int | None = None,
        *,
        bias: bool = True,
        shared: int | None = None,
        extra: tuple[str, ...] = (),
        **made,
    ):
        super().__init__()
        if rank is None and out_channels % count:
            raise ValueError(
                f"LowRank: {count} heads do not divide {out_channels} channels; pass rank=, the channels inside a head."
            )
        rank, shared = rank or out_channels // count, shared or count
        if count % shared:
            raise ValueError(f"LowRank: {shared} value heads do not divide {count} heads.")
        self.count, self.in_channels, self.out_channels = count, in_channels, out_channels
        self.rank, self.shared, self.extra = rank, shared, extra
        self.in_weight = nn.Parameter(torch.empty(shared * rank, in_channels, **made))
        self.in_bias = nn.Parameter(torch.zeros(shared * rank, **made)) if bias else None
        self.out_weight = _uniform((out_channels, count * rank), count * rank, made)
        nn.init.xavier_uniform_(self.in_weight)
        learned = sum(kind == "learned" for kind in extra)
        self.extra_values = (
            nn.Parameter(nn.init.xavier_normal_(torch.empty(learned, shared * rank, **made)))
            if learned
            else None
        )

    def forward(self, family: Family, x: Tensor) -> Tensor:
        return F.linear(family.carry(self._inner(x)).transpose(-3, -2).flatten(-2), self.out_weight)

    def _inner(self, x: Tensor) -> Tensor:
        """The values inside the heads, ``(..., m, P)`` to ``(..., K, m + e, D)``."""
        z = F.linear(x, self.in_weight, self.in_bias)
        if self.extra:
            z = torch.cat([z, self._extra(z)], -2)
        z = z.unflatten(-1, (self.shared, self.rank)).transpose(-3, -2)
        return z if self.shared == self.count else z.repeat_interleave(self.count // self.shared, -3)

    def carried(self, x: Tensor) -> Tensor:
        outer = self.out_weight.unflatten(-1, (self.count, self.rank))
        return torch.einsum("...kmd,qkd->...kmq", self._inner(x), outer)

    def _extra(self, z: Tensor) -> Tensor:
        learned = iter(self.extra_values if self.extra_values is not None else ())
        rows = [
            next(learned).to(z.dtype) if kind == "learned" else z.new_zeros(z.shape[-1])
            for kind in self.extra
        ]
        return torch.stack(rows).expand(*z.shape[:-2], -1, -1)

    def dense(self) -> Tensor:
        inner = self.in_weight.unflatten(0, (self.shared, self.rank))
        inner = inner.repeat_interleave(self.count // self.shared, 0)
        return torch.einsum("kdp,qkd->kpq", inner, self.out_weight.unflatten(-1, (self.count, self.rank)))
