"""A model read as the particle system of its tokens: states by layer, and the inverse temperature of every head.

Shapes: B inputs, H heads, n tokens, r of them read, d channels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..dynamics.effective_beta import EffectiveBeta, HeadBeta
from ..dynamics.hidden import LayerReading, ParticleReport, directions, linking_scale
from ..dynamics.observables import cluster_scale
from ..tokens import Tokens
from .calls import AttentionCall, Calls, attention_calls
from .hidden import HiddenStates, Stream, Streams, evaluating, residual_stream

READ = 512  # targets of an input whose rows are read, at most
ENTRIES = 2**22  # weights that are read at once


@dataclass(frozen=True, eq=False)
class AttentionReading:
    """One attention of a :class:`ParticleStudy`.

    Attributes:
        name: of the module.
        layer: place, among the states, of the one that its block makes; it reads the one before.
        heads: one for each; none where it could not be read.
        causal: whether target i takes from sources j <= i only.
        reason: why it could not be read; else None.
    """

    name: str
    layer: int
    heads: list[HeadBeta]
    causal: bool
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class ParticleStudy:
    """What :func:`particle_study` found.

    Attributes:
        names: of the states, as in :class:`~osmose.inspection.HiddenStates`.
        layers: observables of each state.
        attentions: in the order in which they first ran.
        beta, beta_from: the ruler of the energy, and where it is from.
        scale, scale_from: the distance of the clusters, and where it is from.
        centre: whether the mean over tokens was taken off.
        first: states of the first input, ``(n, d)`` each.
        unseen: why there is no attention, where none can be seen from outside.
    """

    names: tuple[str, ...]
    layers: list[LayerReading]
    attentions: list[AttentionReading]
    beta: float
    beta_from: str
    scale: float
    scale_from: str
    centre: bool
    first: HiddenStates
    unseen: str | None = None

    def heads(self, layer: int) -> list[HeadBeta]:
        """Of all attentions that made a state."""
        return [head for one in self.attentions if one.layer == layer for head in one.heads]


@torch.no_grad()
def particle_study(
    model: nn.Module,
    inputs: Iterable[tuple[Any, ...]],
    *,
    beta: float | None = None,
    scale: float | None = None,
    centre: bool = False,
    diagonal: bool = True,
    bins: int = 80,
    read: int = READ,
    calls: Calls = attention_calls,
    streams: Streams = residual_stream,
    run: Callable[..., Any] | None = None,
) -> ParticleStudy:
    """The observables of a model's residual stream, and the effective beta of its heads, over some inputs.

    The points that the weights of an attention are held against are the directions of the states that enter its block, those that
    the observables see. Queries and keys are made of them, after LayerNorm where a block begins with one.

    Args:
        model: with blocks that ``streams`` finds. Without attentions that ``calls`` finds there is no effective beta.
        inputs: argument tuples; ``model(*arguments)`` is called twice with each, so they are kept.
        beta: of the energy. None: the median over heads of the matched beta (:mod:`osmose.dynamics.effective_beta`), but at
            least 1: below it the energy tells no more than the mean inner product does.
        scale: of the clusters. None: ``1 / sqrt(beta)``, where beta is given or that median is 1 or more; else the median
            distance of a token of the first inputs to its nearest one, in the first state.
        centre: take the mean over the tokens of an input off first, everywhere.
        diagonal: whether pairs of a token with itself count, in the effective beta and in the histogram.
        bins: of the histogram.
        read: so many targets of an input are read at most, evenly spaced; fewer where there are many heads and sources.
        calls, streams, run: an adapter brings its own; see :func:`~osmose.inspection.study`.

    Raises:
        ValueError: no input, no block, a beta or a scale out of range.
        DenseLimitError: the weights of one batch are too many; run fewer inputs at once.

    Cost: two runs of the model; for each input and layer time ``n^2 d``, memory O(n d); for each attention r rows of its
    matrices.
    """
    inputs, apply = list(inputs), run or model
    if not inputs:
        raise ValueError("particle_study: there is no input; expected at least one.")
    readers: dict[tuple[str, int], _Reader] = {}
    unseen = None
    with evaluating(model), streams(model) as stream:

        def answer(name: str, call: AttentionCall) -> None:
            key = name, len(stream.states)  # a module may serve several layers
            if key not in readers:
                readers[key] = _Reader(diagonal, call.causal)
            readers[key].take(call, stream, centre, read)

        first = None
        with ExitStack() as stack:
            try:
                stack.enter_context(calls(model, answer))
            except ValueError as error:
                unseen = str(error)
            for arguments in inputs:
                apply(*arguments)
                first = stream.collected() if first is None else first
        assert first is not None
        attentions = [reader.reading(*key) for key, reader in readers.items()]
        beta, beta_from, tied = _ruler(beta, attentions)
        scale, scale_from = _linkage(scale, beta if tied else None, first, centre)
        report = ParticleReport(beta, scale, centre=centre, bins=bins, diagonal=diagonal)
        for arguments in inputs:
            apply(*arguments)
            found = stream.collected()
            report.update(found.states, found.masses)
    return ParticleStudy(
        first.names,
        report.layers(),
        attentions,
        beta,
        beta_from,
        scale,
        scale_from,
        centre,
        _one(first),
        unseen,
    )


class _Reader:
    """Fits one attention of one layer."""

    def __init__(self, diagonal: bool, causal: bool):
        self.fit, self.causal = EffectiveBeta(diagonal=diagonal), causal
        self.reason: str | None = None

    def take(self, call: AttentionCall, stream: Stream, centre: bool, read: int) -> None:
        lead, (heads, n, m) = call.structure.shape[:-3], call.structure.shape[-3:]
        if not stream.states:
            self.reason = "it ran before the first block"
            return
        x = stream.states[-1]
        if n != m or x.shape[:-1] != (*lead, n):
            self.reason = (
                f"its matrices {tuple(call.structure.shape)} are not those of the tokens {tuple(x.shape)} that entered the "
                "block on themselves"
            )
            return
        tokens = stream.tokens[-1] if stream.tokens[-1] is not None else call.sources
        most = min(read, max(64, ENTRIES // (heads * n)))
        whole = call.structure.to_dense() if call.structure.shape.numel() <= ENTRIES else None
        for place, index in _sets(tokens, lead, n, x.device):
            if not len(index):
                continue
            spaced = torch.linspace(0, len(index) - 1, min(most, len(index)), device=x.device).round().long()
            weights = call.structure.rows(index[spaced]) if whole is None else whole[..., index[spaced], :]
            points = x
            if place is not None:
                weights, points = weights[place], x[place]
            unit, mass = directions(points[index].double(), centre=centre)
            self.fit.update(weights[..., index], unit, targets=spaced, mass=mass, causal=self.causal)

    def reading(self, name: str, layer: int) -> AttentionReading:
        heads = self.fit.heads() if self.fit.sums is not None else []
        return AttentionReading(name, layer, heads, self.causal, None if heads else self.reason)


def _sets(
    tokens: Tokens | None, lead: torch.Size, n: int, device: torch.device
) -> Iterator[tuple[int | None, Tensor]]:
    """The place in the batch of every input of a call, and where its tokens stand."""
    everywhere = torch.arange(n, device=device)
    if tokens is not None and tokens.batch is not None:
        here = tokens.batch.new_ones(n) if tokens.mass is None else tokens.mass
        for s in range(tokens.num_sets):
            yield None, ((tokens.batch == s) & (here > 0)).nonzero()[:, 0].to(device)
        return
    mass = None if tokens is None else tokens.mass
    if mass is not None and mass.ndim > len(lead) + 1:  # the dimension of heads
        mass = mass.squeeze(-2)
    for place in range(lead[0]) if lead else (None,):
        if mass is None:
            yield place, everywhere
        else:
            own = mass if place is None or mass.ndim == 1 else mass[place % len(mass)]
            yield place, (own > 0).nonzero()[:, 0].to(device)


def _ruler(beta: float | None, attentions: list[AttentionReading]) -> tuple[float, str, bool]:
    """Beta, where it is from, and whether clusters may be tied to it."""
    if beta is not None:
        return beta, "given", beta > 0
    matched = [head.matched for one in attentions for head in one.heads if math.isfinite(head.matched)]
    if not matched:
        return 1.0, "no head has an effective beta, so 1", False
    median = statistics.median(matched)
    if median < 1:
        return 1.0, f"the median of the heads' matched beta is {median:.3g}, below 1, so 1", False
    return median, "median of the heads' matched beta", True


def _linkage(scale: float | None, beta: float | None, first: HiddenStates, centre: bool) -> tuple[float, str]:
    if scale is not None:
        return scale, "given"
    if beta is not None:
        return cluster_scale(beta), "1 / sqrt(beta)"
    unit, mass = directions(first.states[0], first.masses[0], centre=centre)
    return linking_scale(unit, mass), "median distance to the nearest token in the first state"


def _one(found: HiddenStates) -> HiddenStates:
    """The first input, unless it is alone."""
    states = [x[0] if x.ndim > 2 else x for x in found.states]
    masses = [None if m is None else m[0] if m.ndim > 1 else m for m in found.masses]
    return HiddenStates(found.names, tuple(states), tuple(masses))
