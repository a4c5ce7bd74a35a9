"""Which shifts a linear map consists of, axis by axis: stride, border and offsets found from its entries.

Shapes: N targets and M sources along one axis, D offsets, t all other indices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .basis import Basis

Border = Literal["zeros", "circular", "reflect", "replicate", "renormalise"]
_FOLDED: tuple[Border, ...] = ("reflect", "replicate", "renormalise")
_MOST_STRIDES = 64
_MOST_FOLDED = (
    65  # offsets for which borders other than zeros and circular are tried: a least-squares fit each
)


@dataclass(frozen=True)
class ShiftAxis:
    """The shifts of one axis: target n reads source ``stride n + d``, in steps of the finer of both grids.

    Attributes:
        offsets: d = source - target.
        stride: steps between neighbouring targets; with ``upsampling`` between neighbouring sources.
        upsampling: whether targets are the finer grid, ``d = stride m - n``, as in a transposed convolution.
        border: what stands beyond the border: ``zeros``; ``circular``, ``reflect``, ``replicate`` as torch pads; or
            ``renormalise``: zeros, and every target divided by the share of its offsets that exist.
    """

    offsets: tuple[int, ...]
    stride: int = 1
    upsampling: bool = False
    border: Border = "zeros"

    def members(self, targets: int, sources: int, like: Tensor) -> Tensor:
        """The matrices ``(D, N, M)`` of the offsets."""
        if self.upsampling:
            turned = ShiftAxis(tuple(-d for d in self.offsets), self.stride)
            return turned.members(sources, targets, like).mT
        n = torch.arange(targets, device=like.device)
        d = torch.tensor(self.offsets, dtype=torch.int64, device=like.device)
        place = self.stride * n + d[:, None]  # (D, N)
        last = sources - 1
        if self.border == "circular":
            place = place % sources
        elif self.border == "replicate":
            place = place.clamp(0, last)
        elif self.border == "reflect":
            place = torch.where(place < 0, -place, place)
            place = torch.where(place > last, 2 * last - place, place)
        inside = ((place >= 0) & (place <= last)).to(like.dtype)
        if self.border == "renormalise":
            inside = inside * (len(d) / inside.sum(0).clamp(min=1))
        out = like.new_zeros(len(d), targets, sources)
        return out.scatter_(2, place.clamp(0, last).unsqueeze(-1), inside.unsqueeze(-1))


def fit_axis(phi: Tensor, tolerance: float) -> tuple[ShiftAxis, Tensor, Tensor]:
    """The fewest shifts that make up a map along one axis.

    Args:
        phi: ``(N, M, t)``.
        tolerance: share of ``|phi|`` below which a rest, or a value, counts as 0.

    Returns:
        the axis, its members ``(D, N, M)`` and coefficients ``(D, t)``. Where no stride and border leaves a rest below
        the tolerance, the projection on shifts with zeros beyond the border at the stride M / N.

    Cost: ``N M t`` for each stride tried, and a least-squares fit of D members for reflect, replicate, renormalise.
    """
    N, M = phi.shape[:2]
    fits: list[tuple[int, ShiftAxis, Tensor]] = []
    for stride, upsampling in _strides(N, M):
        turned = phi.transpose(0, 1) if upsampling else phi
        plain, rest = _projection(turned, stride, circular=False, tolerance=tolerance)
        trials = [(plain, rest)]
        if not upsampling:  # a border may explain the same map by fewer offsets
            trials.append(_projection(turned, stride, circular=True, tolerance=tolerance))
            trials += [
                fit
                for border in _FOLDED
                if len(plain.offsets) <= _MOST_FOLDED
                and (fit := _least_squares(turned, plain, border, tolerance)) is not None
            ]
        for axis, left in trials:
            if left <= tolerance:
                if upsampling:
                    axis = ShiftAxis(tuple(sorted(-d for d in axis.offsets)), stride, True)
                fits.append((len(axis.offsets), axis, _coefficients(phi, axis)))
    if fits:
        _, axis, theta = min(fits, key=lambda fit: fit[0])
    else:
        stride, upsampling = max(1, round(M / N)), N >= 2 * M
        turned = phi.transpose(0, 1) if upsampling else phi
        stride = round(N / M) if upsampling else stride
        plain, _ = _projection(turned, stride, circular=False, tolerance=tolerance)
        offsets = tuple(sorted(-d if upsampling else d for d in plain.offsets))
        axis = ShiftAxis(offsets, stride, upsampling)
        theta = _coefficients(phi, axis)
    return axis, axis.members(N, M, phi), theta


def _strides(N: int, M: int) -> Iterator[tuple[int, bool]]:
    down = 1 if N == 1 else -(-M // (N - 1))
    up = 1 if M == 1 else -(-N // (M - 1))
    yield from ((s, False) for s in range(1, min(down, _MOST_STRIDES) + 1))
    yield from ((s, True) for s in range(2, min(up, _MOST_STRIDES) + 1))


def _projection(phi: Tensor, stride: int, *, circular: bool, tolerance: float) -> tuple[ShiftAxis, float]:
    """The mean over every offset, those that count, and the share of phi that is left: offsets are orthogonal."""
    N, M = phi.shape[:2]
    n, m = torch.arange(N, device=phi.device), torch.arange(M, device=phi.device)
    offset = m - stride * n[:, None]
    if circular:
        offset = (offset + M // 2) % M - M // 2
    low = int(offset.min())
    place = (offset - low).flatten()
    pairs = torch.bincount(place).to(phi.dtype)
    flat = phi.flatten(0, 1)
    means = flat.new_zeros(len(pairs), flat.shape[1]).index_add(0, place, flat)
    means = means / pairs.clamp(min=1).unsqueeze(-1)
    weight = torch.linalg.vector_norm(means, dim=-1)
    kept = weight > tolerance * weight.max()
    means = torch.where(kept.unsqueeze(-1), means, 0.0)
    left = _share(flat - means[place], flat)
    offsets = tuple(int(d) + low for d in kept.nonzero().flatten())
    return ShiftAxis(offsets, stride, border="circular" if circular else "zeros"), left


def _least_squares(
    phi: Tensor, plain: ShiftAxis, border: Border, tolerance: float
) -> tuple[ShiftAxis, float] | None:
    """The offsets of ``plain`` folded at the border; what folding put at other offsets drops out again."""
    N, M = phi.shape[:2]
    axis = ShiftAxis(plain.offsets, plain.stride, border=border)
    for _ in range(2):
        if not axis.offsets:
            return None
        theta = _coefficients(phi, axis)
        left = _share(phi - torch.tensordot(axis.members(N, M, phi), theta, ([0], [0])), phi)
        weight = torch.linalg.vector_norm(theta, dim=-1)
        kept = (weight > tolerance * weight.max()).tolist()
        if all(kept):
            break
        offsets = tuple(d for d, keep in zip(axis.offsets, kept, strict=True) if keep)
        axis = ShiftAxis(offsets, plain.stride, border=border)
    return axis, left


def _coefficients(phi: Tensor, axis: ShiftAxis) -> Tensor:
    if not axis.offsets:
        return phi.new_zeros(0, phi.shape[-1])
    members = axis.members(phi.shape[0], phi.shape[1], phi)
    if axis.border in ("zeros", "circular"):  # orthogonal: no solve
        flat = members.flatten(1)
        return (flat @ phi.flatten(0, 1)) / flat.square().sum(1, keepdim=True)
    return Basis(members).coefficients(phi, least_norm=True)


def _share(rest: Tensor, phi: Tensor) -> float:
    total = float(torch.linalg.vector_norm(phi))
    return float(torch.linalg.vector_norm(rest)) / total if total > 0 else 0.0
