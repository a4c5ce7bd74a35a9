"""The matrices of every attention of a model, for the inputs that run through it.

Shapes: H heads, n targets, m sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..diagnostics import PairClasses, StructureAnova
from .calls import AttentionCall, Calls, Structure, attention_calls

Receive = Callable[[str, Structure], None]
Classes = Callable[[str, int, int, bool], PairClasses]


@contextmanager
def capture(
    model: nn.Module, receive: Receive | None = None, *, calls: Calls = attention_calls
) -> Iterator[dict[str, list[Structure]]]:
    """While it lasts, the structure of every attention of a model is kept, for each input; outputs stay as they are.

    Args:
        model: with MultiheadMixers, ``nn.MultiheadAttention`` or layers of DIFFormer; see :func:`attention_calls`.
        receive: ``receive(name, structure)`` in place of keeping: memory then does not grow with the inputs.
        calls: how calls are seen; an adapter brings its own.

    Yields:
        for each name of an attention the structures ``(H, n, m)`` of the inputs, one for each, in their order, without
        padding; those of evaluation, without dropout.

    Raises:
        ValueError: there is no attention, or padding stands in the middle of an input.
        DenseLimitError: the matrices of one batch are too large; it names the size and the way by rows.

    Memory: ``B H n m`` for each attention while it runs.
    """
    kept: dict[str, list[Structure]] = {}

    def keep(name: str, call: AttentionCall) -> None:
        for structure in call.matrices():
            if receive is None:
                kept[name].append(structure)
            else:
                receive(name, structure)

    with calls(model, keep) as names:
        kept.update({name: [] for name in names})
        yield kept


@torch.no_grad()
def study(
    model: nn.Module,
    inputs: Iterable[tuple[Any, ...]],
    *,
    classes: Classes | None = None,
    calls: Calls = attention_calls,
    run: Callable[..., Any] | None = None,
) -> dict[str, StructureAnova]:
    """Structure ANOVA of every attention of a model over a data set, in one pass and in evaluation mode.

    Args:
        model: as for :func:`capture`.
        inputs: argument tuples, ``model(*arguments)`` is called with each.
        classes: ``classes(name, n, m, causal)``, the pairs of an attention; None: offsets of a sequence.
        calls: how calls are seen; an adapter brings its own.
        run: called in place of the model, with the same arguments.

    Returns:
        for each name of an attention that ran its :class:`~osmose.diagnostics.StructureAnova`.

    Raises:
        ValueError: none ran; or one was causal for one input and not for another.
    """
    found: dict[str, StructureAnova] = {}
    order: dict[str, bool] = {}
    of_pairs = by_offset if classes is None else classes

    def receive(name: str, structure: Structure) -> None:
        causal = order.setdefault(name, structure.causal)
        if causal != structure.causal and structure.matrix.shape[-1] > 1:
            raise ValueError(
                f"study: {name} was in causal order for one input and not for another; study them apart."
            )
        if name not in found:
            found[name] = StructureAnova(lambda n, m: of_pairs(name, n, m, causal))
        if structure.matrix.numel():
            found[name].update(structure.matrix)

    training = model.training
    model.eval()
    try:
        with capture(model, receive, calls=calls):
            for arguments in inputs:
                (run or model)(*arguments)
    finally:
        model.train(training)
    if not found:
        raise ValueError(
            f"study: no attention of {type(model).__name__} was called; expected at least one input that runs through one."
        )
    return found


def by_offset(name: str, n: int, m: int, causal: bool) -> PairClasses:
    """Offsets of a sequence."""
    return PairClasses.sequence(n, m, causal=causal)


def in_grids(grid: Callable[[str], tuple[int, int]]) -> Classes:
    """Offsets in two dimensions: ``grid(name)`` is the height and width of the tokens of an attention."""

    def classes(name: str, n: int, m: int, causal: bool) -> PairClasses:
        height, width = grid(name)
        if height * width != n or n != m or causal:
            raise ValueError(
                f"in_grids: {name} has {n} targets and {m} sources, but its grid is {height} x {width}; expected "
                f"{height * width} of both (no class token), in no causal order."
            )
        return PairClasses.grid(height, width)

    return classes


def stage_grids(model: nn.Module, height: int, width: int) -> Classes:
    """Offsets of the tokens of a :class:`~osmose.models.VisionClassifier` for images of ``height x width`` pixels."""
    grids: dict[str, tuple[int, int]] = {}
    for i, stage in enumerate(model.stages):  # type: ignore[arg-type]
        height, width = -(-height // stage.patch), -(-width // stage.patch)
        grids[f"stages.{i}."] = height, width
    return in_grids(lambda name: next(grid for prefix, grid in grids.items() if name.startswith(prefix)))
