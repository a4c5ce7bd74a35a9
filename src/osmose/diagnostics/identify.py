"""What a linear module does, found from its answers alone: which shifts, which values, and what is no shift.

Shapes: B probes, N targets, M sources (products of the sizes of 1 to 3 axes), P channels in, Q channels out, D offsets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..operators.base import refuse_past_limit
from ..structure import numerical_rank, spectrum
from ..structure.shift_fit import ShiftAxis, fit_axis

Layout = Literal["channels_first", "channels_last"]
Coupling = Literal["scalar", "diagonal", "grouped", "full"]
_CHANNELS_FIRST = ("Conv", "Pool", "BatchNorm", "InstanceNorm", "Pad", "Upsample", "Upsampling", "Shuffle")
_PROBES = 2**22  # numbers that a batch of probes may hold


class NotLinearError(ValueError):
    """The module is not linear (affine) in its input; ``distance`` says how far off."""

    def __init__(self, message: str, distance: float):
        super().__init__(message)
        self.distance = distance


@dataclass(frozen=True, eq=False)
class Identification:
    """A linear map ``y_n = bias + sum_d x_(n + d) Theta_d`` as it was found.

    Attributes:
        offsets: ``d = source - target``, in ascending order: integers, on several axes tuples.
        theta: their values ``(D, P, Q)``.
        bias: ``(Q,)``; ``(*N, Q)`` where it depends on the target; None where it is 0.
        axes: stride and border of every axis, see :class:`~osmose.structure.ShiftAxis`.
        residual: share of ``|Phi|`` that no shift explains; at most ``tolerance`` for a shift-invariant module.
        rank: mixed-product rank of ``Phi``: the fewest terms ``A_k x Theta_k`` that make it up.
        spectrum: singular values behind it, largest first.
        coupling: which channels meet: ``scalar`` (every theta a multiple of the identity), ``diagonal`` (each channel
            alone), ``grouped`` or ``full``.
        groups: number of sets of channels that do not meet.
        superposition: how far ``f(a x + b y)`` was from what linearity says, as a share of it.
        phi: ``(*N, *M, P, Q)``, the whole map.
        tolerance: what counted as 0.
    """

    offsets: tuple[int, ...] | tuple[tuple[int, ...], ...]
    theta: Tensor
    bias: Tensor | None
    axes: tuple[ShiftAxis, ...]
    residual: float
    rank: int
    spectrum: Tensor
    coupling: Coupling
    groups: int
    superposition: float
    tolerance: float
    phi: Tensor = field(repr=False)

    @property
    def shift_invariant(self) -> bool:
        """Whether shifts, with a stride and a border, make up the whole map."""
        return self.residual <= self.tolerance

    @property
    def norms(self) -> Tensor:
        """``|Theta_d|_F``, ``(D,)``."""
        return torch.linalg.vector_norm(self.theta, dim=(-2, -1))

    @property
    def ranks(self) -> list[int]:
        """Rank of every ``Theta_d``."""
        values = torch.linalg.svdvals(self.theta)
        return [numerical_rank(s, self.tolerance) for s in values]


@torch.no_grad()
def identify(
    module: nn.Module | Callable[[Tensor], Tensor],
    length: int | Sequence[int],
    channels: int | None = None,
    *,
    layout: Layout | None = None,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    seed: int = 0,
) -> Identification:
    """Take a linear module apart by unit inputs: ``Phi[n, m, p, q]`` is what output (n, q) says to input (m, p).

    Args:
        module: called with one tensor, an attention layer with query = key = value; of several results the first
            counts. A module is copied, in evaluation mode and ``dtype``; itself it is left as it is.
        length: tokens M of the probes, or the sizes of 1 to 3 axes; one number for a ``...2d`` or ``...3d`` module of
            torch is the size of every axis.
        channels: P; None takes it from the module (``in_channels``, ``in_features``, ``num_features``, ``embed_dim``).
        layout: ``channels_first``, ``(B, P, M)``, as convolutions and pooling have it, or ``channels_last``; None
            takes what the module's class is known for, else channels_last.
        dtype: of the probes.
        tolerance: shares below it are 0; None takes ``eps^0.6`` of the module's results: 4e-10 in float64, 7e-5 in
            float32.
        seed: of the random inputs that test linearity.

    Raises:
        NotLinearError: superposition does not hold, or the answer changes from call to call.
        ValueError: an input that the module does not take, channels that cannot be known.
        DenseLimitError: ``N Q M P`` is more than :func:`~osmose.operators.dense_limit`.

    Cost: M P probes; memory N Q M P.

    A nonlinearity that none of the random inputs (of sizes 0.01, 1 and 100) meets is not seen.
    """
    sizes = (length,) * _axes(module) if isinstance(length, int) else tuple(length)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ValueError(
            f"identify: length is {length}; expected a positive integer, or one for each of 1 to 3 axes."
        )
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"identify: tolerance is {tolerance}; expected a share in [0, 1).")
    probe = _Probe(module, sizes, _channels(module, channels), layout or _layout(module), dtype)
    superposition = _superposition(probe, seed, tolerance)
    tolerance = probe.tolerance if tolerance is None else tolerance
    at_zero = probe(probe.zeros(1))[0]  # (*N, Q)
    phi = _unit_answers(probe, at_zero)  # (*N, *M, P, Q)
    axes, offsets, theta, residual = _shifts(phi, tolerance)
    fits = residual <= tolerance
    values = _spectrum_of_shifts(axes, theta, phi) if fits else spectrum(_paired(phi))
    flat = theta.reshape(-1, *theta.shape[-2:])
    weight = torch.linalg.vector_norm(flat, dim=(-2, -1))
    kept = weight > tolerance * weight.max() if len(weight) else weight > 0
    coupling, groups = _coupling(phi, flat, fits, tolerance)
    found = [offset for offset, keep in zip(offsets, kept.tolist(), strict=True) if keep]
    return Identification(
        offsets=tuple(found) if len(sizes) > 1 else tuple(d for (d,) in found),
        theta=flat[kept],
        bias=_bias(at_zero, phi, tolerance),
        axes=axes,
        residual=residual,
        rank=numerical_rank(values, tolerance),
        spectrum=values,
        coupling=coupling,
        groups=groups,
        superposition=superposition,
        tolerance=tolerance,
        phi=phi,
    )


# ---- asking the module ----------------------------------------------------------------------------


class _Probe:
    """The module as a function ``(B, *M, P)`` to ``(B, *N, Q)``, whatever its layout."""

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        sizes: tuple[int, ...],
        channels: int,
        layout: Layout,
        dtype: torch.dtype,
    ):
        self.name = (
            repr(module) if isinstance(module, nn.Module) else getattr(module, "__name__", repr(module))
        )
        self.name = " ".join(self.name.split())
        self.name = self.name if len(self.name) < 80 else f"{type(module).__name__}(...)"
        self.device = torch.device("cpu")
        if isinstance(module, nn.Module):
            module = copy.deepcopy(module).to(dtype).eval()
            if hasattr(module, "num_heads") and hasattr(module, "batch_first"):
                module = _SelfAttention(module)
            first = next(iter([*module.parameters(), *module.buffers()]), None)
            self.device = self.device if first is None else first.device
        self.call, self.sizes, self.channels, self.layout, self.dtype = module, sizes, channels, layout, dtype
        self.tolerance = torch.finfo(dtype).eps ** 0.6

    def zeros(self, batch: int) -> Tensor:
        return torch.zeros(batch, *self.sizes, self.channels, dtype=self.dtype, device=self.device)

    def __call__(self, x: Tensor) -> Tensor:
        first = self.layout == "channels_first"
        x = x.movedim(-1, 1) if first else x
        try:
            y = self.call(x)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"identify: {self.name} does not take an input of shape {tuple(x.shape)} and {self.dtype} "
                f"(layout {self.layout}): {said}"
            ) from error
        y = y[0] if isinstance(y, (tuple, list)) else y
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim < 2 or len(y) != len(x):
            came = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"identify: {self.name} answers an input of shape {tuple(x.shape)} with {came}; expected a float tensor "
                "(B, ...)."
            )
        self.tolerance = max(self.tolerance, torch.finfo(y.dtype).eps ** 0.6)
        if y.ndim == 2:  # axes are gone: one target
            y = y.reshape(len(y), *([1] * len(self.sizes)), -1)
        elif y.ndim != len(self.sizes) + 2:
            raise ValueError(
                f"identify: {self.name} answers an input of shape {tuple(x.shape)} with {tuple(y.shape)}; expected "
                f"{len(self.sizes) + 2} dimensions, or 2."
            )
        elif first:
            y = y.movedim(1, -1)
        return y.to(self.dtype)


class _SelfAttention(nn.Module):
    """An attention layer, called with query, key and value, as a function of one input."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        layer.batch_first = True  # type: ignore[assignment]
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


def _superposition(probe: _Probe, seed: int, tolerance: float | None) -> float:
    """The largest relative distance of ``f(a x + b y)`` from ``a f(x) + b f(y)``, at three sizes of input."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, *probe.sizes, probe.channels)
    worst = 0.0
    for size in (0.01, 1.0, 100.0):
        x, y = (size * torch.randn(shape, dtype=probe.dtype, generator=generator)).to(probe.device)
        a, b = 0.7, -1.3
        at_x, at_y, together, at_zero = probe(torch.stack([x, y, a * x + b * y, torch.zeros_like(x)]))
        scale = _norm(at_x - at_zero) + _norm(at_y - at_zero) + _norm(at_zero)
        alone = _norm(probe(x.unsqueeze(0))[0] - at_x)
        if not math.isfinite(scale):
            raise NotLinearError(
                f"identify: {probe.name} gives NaN or infinity; a linear module does not.", math.inf
            )
        if alone > (probe.tolerance if tolerance is None else tolerance) * scale:
            raise NotLinearError(
                f"identify: {probe.name} gives another answer in another batch, or when asked again (distance "
                f"{alone / scale:.2g} of it), so it is no function of one input.",
                alone / scale,
            )
        expected = a * (at_x - at_zero) + b * (at_y - at_zero)
        distance = _norm(together - at_zero - expected)
        worst = max(worst, distance / scale if scale > 0 else 0.0)
    if worst > (probe.tolerance if tolerance is None else tolerance):
        raise NotLinearError(
            f"identify: {probe.name} is not linear: f(a x + b y) is {worst:.2g} of |f| away from a f(x) + b f(y). Only a "
            "linear module is a sum of structures times values; attention is linear in its values alone.",
            worst,
        )
    return worst


def _unit_answers(probe: _Probe, at_zero: Tensor) -> Tensor:
    """``Phi (*N, *M, P, Q)`` from one probe for each source and channel."""
    count, entries = probe.zeros(1).numel(), at_zero.numel()
    refuse_past_limit(
        count * entries, f"identify: the map of {probe.name}", "Probe a shorter length or fewer channels."
    )
    step = max(1, _PROBES // max(count, entries))
    answers = at_zero.new_empty(count, entries)
    for places in torch.arange(count).split(step):
        x = probe.zeros(len(places))
        x.view(len(places), -1)[torch.arange(len(places)), places] = 1.0
        answers[places] = (probe(x) - at_zero).flatten(1)
    phi = answers.view(*probe.sizes, probe.channels, *at_zero.shape)  # (*M, P, *N, Q)
    axes = len(probe.sizes)
    order = [*range(axes + 1, 2 * axes + 1), *range(axes), axes, 2 * axes + 1]
    return phi.permute(order).contiguous()


def _bias(at_zero: Tensor, phi: Tensor, tolerance: float) -> Tensor | None:
    scale = max(_norm(phi), _norm(at_zero))
    if _norm(at_zero) <= tolerance * scale:
        return None
    flat = at_zero.flatten(0, -2)
    return flat[0] if _norm(flat - flat[0]) <= tolerance * scale else at_zero


# ---- reading the answers --------------------------------------------------------------------------


def _shifts(
    phi: Tensor, tolerance: float
) -> tuple[tuple[ShiftAxis, ...], list[tuple[int, ...]], Tensor, float]:
    """Axis by axis: the axes, all combinations of their offsets, theta ``(D_1, ..., P, Q)``, and what is left."""
    count = (phi.ndim - 2) // 2
    axes, families, theta = [], [], phi
    for i in range(count):
        # axes before i are offsets already: (D_1 .. D_i-1, N_i .., M_i .., P, Q)
        turned = theta.movedim((i, count), (0, 1))
        axis, members, found = fit_axis(turned.flatten(2), tolerance)
        theta = found.unflatten(1, turned.shape[2:]).movedim(0, i)
        axes.append(axis)
        families.append(members)
    rebuilt = theta
    for i, members in reversed(list(enumerate(families))):
        parts = torch.tensordot(
            members, rebuilt.movedim(i, 0), ([0], [0])
        )  # (N_i, M_i, D_.., N_.., M_.., P, Q)
        rebuilt = parts.movedim((0, 1), (i, count))
    offsets: list[tuple[int, ...]] = [()]
    for axis in axes:
        offsets = [(*before, d) for before in offsets for d in axis.offsets]
    norm = _norm(phi)
    return tuple(axes), offsets, theta, _norm(phi - rebuilt) / norm if norm > 0 else 0.0


def _paired(phi: Tensor) -> Tensor:
    """``(*N, *M, P, Q)`` as ``(N, M, P, Q)``."""
    count = (phi.ndim - 2) // 2
    return phi.flatten(count, -3).flatten(0, count - 1)


def _spectrum_of_shifts(axes: tuple[ShiftAxis, ...], theta: Tensor, phi: Tensor) -> Tensor:
    """Singular values of Phi from its shifts: their triangular factors times the values, small whatever N and M."""
    count = len(axes)
    for i, axis in enumerate(axes):
        members = axis.members(phi.shape[i], phi.shape[count + i], phi)
        triangle = torch.linalg.qr(members.flatten(1).mT)[1]  # members^T = Q triangle
        theta = torch.tensordot(triangle, theta, ([1], [i])).movedim(0, i)
    return torch.linalg.svdvals(theta.reshape(-1, theta.shape[-2] * theta.shape[-1]))


def _coupling(phi: Tensor, theta: Tensor, fits: bool, tolerance: float) -> tuple[Coupling, int]:
    weight = torch.linalg.vector_norm(phi.flatten(0, -3), dim=0)  # (P, Q)
    meets = weight > tolerance * weight.max() if float(weight.max()) > 0 else weight > 0
    P, Q = meets.shape
    if P == Q and not bool((meets & ~torch.eye(P, dtype=torch.bool, device=meets.device)).any()):
        first = phi[..., :1, :1]
        same = _norm(phi - first * torch.eye(P, dtype=phi.dtype, device=phi.device)) <= tolerance * _norm(phi)
        return "scalar" if same else "diagonal", P
    groups = _components(meets.cpu())
    return "grouped" if groups > 1 else "full", groups


def _components(meets: Tensor) -> int:
    """Sets of channels that do not meet, of the bipartite graph ``(P, Q)``; channels that meet none are no set."""
    left = set(meets.any(1).nonzero().flatten().tolist())
    groups = 0
    while left:
        groups += 1
        rows = torch.zeros(len(meets), dtype=torch.bool)
        rows[left.pop()] = True
        while True:
            grown = meets[:, meets[rows].any(0)].any(1)
            if bool((grown == rows).all()):
                break
            rows = grown
        left -= set(rows.nonzero().flatten().tolist())
    return groups


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _channels(module: object, channels: int | None) -> int:
    if channels is not None:
        if channels < 1:
            raise ValueError(f"identify: channels is {channels}; expected 1 or more.")
        return channels
    for name in ("in_channels", "in_features", "num_features", "embed_dim"):
        if isinstance(value := getattr(module, name, None), int):
            return value
    if isinstance(module, nn.Sequential) and len(module):
        return _channels(module[0], None)
    raise ValueError(
        f"identify: {type(module).__name__} does not tell its channels; say how many: channels=3 (on the command line "
        "--channels 3)."
    )


def _axes(module: object) -> int:
    if isinstance(module, nn.Sequential) and len(module):
        return _axes(module[0])
    name = type(module).__name__
    return next((axes for axes in (2, 3) if f"{axes}d" in name), 1)


def _layout(module: object) -> Layout:
    if isinstance(module, nn.Sequential) and len(module):
        return _layout(module[0])
    known = any(word in type(module).__name__ for word in _CHANNELS_FIRST)
    return "channels_first" if known else "channels_last"
