"""Toeplitz operators: entries that depend on the offset source - target alone; sums of shifts.

Shapes: ``(..., n, m)``; ``K`` offsets; ``N`` slots of packed sets that lie in one line with gaps between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Tokens, check_pair, same_sets
from .band import band_product, slices_product
from .base import Cost, Operator, refuse_past_limit

Method = Literal["auto", "band", "slices", "dense", "fft"]

BAND = 512  # offsets from the lowest to the highest of what counts as a band
FEW = 32  # offsets that are worth a slice each
DENSE = 2**20  # entries up to which a wide operator is formed


class Toeplitz(Operator):
    """``sum_d c_d S_d`` with the shifts ``S_d[i, j] = [j - i = d]``, ``(S_d x)_i = x_{i + d}``: d = -1 is "previous".

    Entries outside of the sequence do not exist: near a border a row has fewer of them (use the law ``row`` to
    renormalise).

    Args:
        coefficients: ``(..., K)``, one for each offset; leading dimensions are those of the operator (heads, channels).
        offsets: K distinct integers source - target, in any order. Those outside of the length have no entries.
        n, m: number of targets and of sources; the second defaults to the first.
        targets, sources: packed sets: an offset counts inside the set, in the order of appearance, and no shift leaves it.
        method: how it multiplies. ``band``, O(n (high - low) c) time and O(n c) memory for offsets that lie close;
            ``slices``, O(n K c) for few offsets anywhere; ``dense``, n m time and memory; ``fft``, O(n log n c), in
            float64 whatever the type, as its error goes with the largest coefficient and not with that of the row.
            ``auto`` takes the first that fits: never more than 2^20 entries are formed.

    Raises:
        ValueError: offsets that are no distinct integers, or of another number than the coefficients.
        DenseLimitError: the method dense past :func:`~osmose.operators.dense_limit`, in a product.
    """

    _hadamard_order = 6

    def __init__(
        self,
        coefficients: Tensor,
        offsets: Sequence[int] | range,
        n: int,
        m: int | None = None,
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
        method: Method = "auto",
    ):
        offsets = tuple(offsets)
        whole = all(int(d) == d for d in offsets)
        if (
            not whole
            or not offsets
            or len(set(offsets)) < len(offsets)
            or coefficients.shape[-1:] != (len(offsets),)
        ):
            raise ValueError(
                f"Toeplitz: coefficients of shape {tuple(coefficients.shape)} for the offsets {offsets[:9]}; expected "
                "distinct integers source - target, and a coefficient for each."
            )
        offsets = tuple(int(d) for d in offsets)
        if method not in get_args(Method):
            raise ValueError(
                f"Toeplitz: method is {method!r}; expected one of {', '.join(get_args(Method))}."
            )
        m = n if m is None else m
        self._causal = max(offsets) <= 0 and min(offsets) < 0
        check_pair("Toeplitz", targets, sources, n, m)
        self.targets, self.sources, self.slots = targets, sources, None
        self.coefficients, self.offsets = _inside(coefficients, offsets, n, m)
        if targets is not None and sources is not None and targets.packed:
            self.slots = Slots(targets, sources)
            longest = self.slots.longest
            self.coefficients, self.offsets = _inside(self.coefficients, self.offsets, longest, longest)
            self.slots.spread(max(map(abs, self.offsets)))
        self.low, self.high = min(self.offsets), max(self.offsets)
        self.shape = torch.Size((*coefficients.shape[:-1], n, m))
        self._like = torch.empty(0, dtype=coefficients.dtype, device=coefficients.device)
        self.method: Method = self._method() if method == "auto" else method

    def _method(self) -> Method:
        if self.is_band:
            return "band"
        if len(self.offsets) <= FEW:
            return "slices"
        return "dense" if self.shape.numel() <= DENSE else "fft"

    @property
    def is_band(self) -> bool:
        """Whether its offsets lie close."""
        return self.high - self.low < BAND

    @property
    def is_causal(self) -> bool:
        return self._causal

    @property
    def _sees_no_later(self) -> bool:
        return self.high <= 0

    @property
    def mT(self) -> Toeplitz:  # noqa: N802
        offsets = tuple(-d for d in self.offsets)
        return Toeplitz(
            self.coefficients, offsets, self.shape[-1], self.shape[-2],
            targets=self.sources, sources=self.targets, method=self.method,
        )  # fmt: skip

    def line(self) -> Tensor:
        """Coefficients of all offsets from the lowest to the highest, ``(..., high - low + 1)``, 0 where none is given."""
        if self.offsets == tuple(range(self.low, self.high + 1)):
            return self.coefficients
        place = torch.tensor(self.offsets, device=self.device) - self.low
        line = self.coefficients.new_zeros(*self.coefficients.shape[:-1], self.high - self.low + 1)
        return line.index_copy(-1, place, self.coefficients)

    def _matmul(self, v: Tensor) -> Tensor:
        if self.method == "dense":
            refuse_past_limit(self.shape.numel(), f"{self!r} @ v", "Take method='fft'.")
            if self.slots is None:
                return dense_toeplitz(self.line().to(v.dtype), self.low, *self.shape[-2:]) @ v
            i, j = (torch.arange(size, device=self.device) for size in self.shape[-2:])
            return self._block(i, j).to(v.dtype) @ v
        if self.slots is None:
            return self._product(v, self.shape[-2])
        return self.slots.take(self._product(self.slots.put(v), self.slots.count))

    def _product(self, v: Tensor, n: int) -> Tensor:
        if self.method == "band":
            return band_product(v, self.line().to(v.dtype), self.low, n)
        if self.method == "slices":
            return slices_product(v, self.coefficients.to(v.dtype), self.offsets, n)
        return _fft_product(v, self.line(), self.low, n)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self.mT._matmul(u)

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        line = F.pad(self.line().to(self._wide), (1, 1))
        if self.slots is None:
            return line[..., (j - i - self.low + 1).clamp(0, line.shape[-1] - 1)]
        i, j = self.slots.targets[i], self.slots.sources[j]
        return line[..., (j - i - self.low + 1).clamp(0, line.shape[-1] - 1)]

    def _hadamard(self, other: Operator) -> Operator | None:
        from .local import Local
        from .low_rank import LowRank

        if not isinstance(other, LowRank) or not self.is_band:
            return None
        if not (same_sets(self.targets, other.targets) and same_sets(self.sources, other.sources)):
            return None
        # offsets of tokens that are packed on one side alone are not those of a window
        return Local(other, self) if self.slots is not None or not other._packed else None

    def cost(self) -> Cost:
        n, m = self.shape[-2:]
        lead = self.shape[:-2].numel()
        if self.method == "dense":
            return Cost(self.shape.numel(), self.shape.numel(), (self._name(),))
        size = n + m if self.slots is None else 2 * self.slots.count
        if self.method == "fft":
            return Cost(lead * 10 * size * max(size, 2).bit_length(), 4 * lead * size)
        taps = len(self.offsets) if self.method == "slices" else self.high - self.low + 1
        return Cost(lead * size * taps, lead * size)

    def _name(self) -> str:
        return f"Toeplitz[{self.low}..{self.high}]"


def _inside(coefficients: Tensor, offsets: tuple[int, ...], n: int, m: int) -> tuple[Tensor, tuple[int, ...]]:
    """The offsets that have entries, with their coefficients; a 0 on the diagonal where there are none."""
    keep = [k for k, d in enumerate(offsets) if -n < d < m]
    if len(keep) == len(offsets):
        return coefficients, offsets
    if not keep:
        return 0 * coefficients[..., :1], (0,)
    return coefficients[..., keep], tuple(offsets[k] for k in keep)


class Slots:
    """Packed sets in one line, with gaps that no offset crosses: shifts of the line are shifts inside each set.

    ``targets (n,)`` and ``sources (m,)`` are the slots of the tokens, ``count`` their number with the gaps.
    """

    def __init__(self, targets: Tokens, sources: Tokens):
        self._sides = targets, sources
        self._sizes = torch.maximum(targets.sizes, sources.sizes)
        self.longest = int(self._sizes.max()) if len(self._sizes) else 0
        self.spread(0)

    def spread(self, reach: int) -> None:
        """Lay out the sets for offsets up to ``reach`` either way."""
        ends = (self._sizes + reach).cumsum(0)
        self.count = int(ends[-1]) if len(ends) else 0
        starts = F.pad(ends, (1, 0))[:-1]
        self.targets, self.sources = (starts[t.batch] + t.positions for t in self._sides)

    def put(self, x: Tensor, targets: bool = False) -> Tensor:
        """Rows of sources, or of targets, ``(..., m, c)`` at their slots, ``(..., N, c)``, with zeros between."""
        out = x.new_zeros(*x.shape[:-2], self.count, x.shape[-1])
        return out.index_copy(-2, self.targets if targets else self.sources, x)

    def take(self, x: Tensor, targets: bool = True) -> Tensor:
        """The inverse of :meth:`put`."""
        return x.index_select(-2, self.targets if targets else self.sources)


def dense_toeplitz(line: Tensor, low: int, n: int, m: int) -> Tensor:
    """All entries ``(..., n, m)`` of coefficients ``(..., K)`` of the offsets from ``low`` on; 0 for other offsets."""
    if not n or not m:
        return line[..., :1, None].expand(*line.shape[:-1], n, m)
    place = torch.arange(1 - n, m, device=line.device) - low
    every = F.pad(line, (1, 1)).index_select(-1, (place + 1).clamp(0, line.shape[-1] + 1))
    return every.unfold(-1, m, 1).flip(-2)


def _fft_product(v: Tensor, line: Tensor, low: int, n: int) -> Tensor:
    """The product as a circular one, in float64: the error is one of the largest term, not of the row's own."""
    m = v.shape[-2]
    first, last = max(low, 1 - n), min(low + line.shape[-1], m)  # offsets that have entries
    if first >= last:
        return band_product(v, line[..., :1].to(v.dtype), n + m, n)
    line = line[..., first - low : last - low]
    size = n + m + last - first
    spectrum = torch.fft.rfft(line.double().flip(-1), size).unsqueeze(-1) * torch.fft.rfft(
        v.double(), size, dim=-2
    )
    # (flipped line * v)[t] = sum_j line[last - 1 - first - (t - j)] v_j: target i is t = i + last - 1
    full = torch.fft.irfft(spectrum, size, dim=-2)
    start = last - 1
    index = (torch.arange(n, device=v.device) + start) % size
    return full.index_select(-2, index).to(v.dtype)
