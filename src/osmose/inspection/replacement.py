"""Heads replaced by matrices that depend on no input, and what that costs the task.

Shapes: H heads, n targets, m sources, c columns of values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diagnostics import REPLACEMENTS, StructureAnova
from .calls import AttentionCall, Calls, attention_calls

Matrix = Callable[[int, int], Tensor]
Heads = Sequence[tuple[str, int]]


@contextmanager
def replacing(
    model: nn.Module,
    matrices: Mapping[str, Mapping[int, Matrix | Tensor]],
    *,
    calls: Calls = attention_calls,
) -> Iterator[None]:
    """While it lasts, some heads of a model carry their values by given matrices: ``out_h = M_h v_h``.

    Args:
        model: as for :func:`~osmose.inspection.attention_calls`; it is left as it was, also after an error.
        matrices: for the name of an attention and the number of a head a matrix ``(n, m)``, or a function
            ``(n, m) -> matrix`` for the lengths that come. Padding is left out: a shorter input has a smaller matrix.
        calls: how calls are seen; an adapter brings its own.

    Raises:
        ValueError: a name or a head that the model does not have, or a matrix of another length than the input.
    """

    def answer(name: str, call: AttentionCall) -> Tensor | None:
        chosen = matrices.get(name)
        if not chosen:
            return None
        heads, (n, m) = call.structure.shape[-3], call.structure.shape[-2:]
        wrong = [head for head in chosen if not 0 <= head < heads]
        if wrong:
            raise ValueError(
                f"replacing: head {wrong[0]} of {name}, which has {heads}; expected 0 to {heads - 1}."
            )
        rest = [head for head in range(heads) if head not in chosen]
        values, lead = call.values, call.structure.shape[:-3]
        values = values.expand(*lead, heads, *values.shape[-2:])
        out = (
            values.new_zeros(*lead, heads, n, values.shape[-1])
            if not rest
            else (call.structure @ values).clone()
        )
        out[..., list(chosen), :, :] = 0.0
        made: dict[tuple[int, int], Tensor] = {}
        for place, rows, columns in call.spans():
            size = _length(rows, n), _length(columns, m)
            if size not in made:
                made[size] = torch.stack([_of(name, head, chosen[head], size) for head in chosen]).to(values)
            at = () if place is None else (place,)
            for i, head in enumerate(chosen):
                out[(*at, head)][rows] = made[size][i] @ values[(*at, head)][columns]
        return out

    with calls(model, answer) as names:
        unknown = [name for name in matrices if name not in names]
        if unknown:
            raise ValueError(
                f"replacing: {unknown[0]!r} is no attention of the model; expected one of {', '.join(map(repr, names))}."
            )
        yield


def _length(index: Tensor | slice, size: int) -> int:
    return len(range(size)[index]) if isinstance(index, slice) else len(index)


def _of(name: str, head: int, matrix: Matrix | Tensor, size: tuple[int, int]) -> Tensor:
    made = matrix if isinstance(matrix, Tensor) else matrix(*size)
    if tuple(made.shape) != size:
        raise ValueError(
            f"replacing: the matrix of {name}, head {head}, is {tuple(made.shape)}, but an input has {size[0]} targets and "
            f"{size[1]} sources; expected the same lengths. Pass a function (n, m) -> matrix for inputs of several lengths."
        )
    return made


@dataclass(frozen=True)
class Replaced:
    """One replacement and what it did.

    Attributes:
        heads: the heads that were replaced, as (name of the attention, number).
        kind: ``mean``, ``toeplitz`` or ``shift``.
        score: of the model with the replacement.
        change: ``score`` less that of the model as it is.
    """

    heads: tuple[tuple[str, int], ...]
    kind: str
    score: float
    change: float


@torch.no_grad()
def replacement_test(
    model: nn.Module,
    found: Mapping[str, StructureAnova],
    score: Callable[[nn.Module], float],
    *,
    kinds: Sequence[str] = REPLACEMENTS,
    groups: Iterable[Heads] | None = None,
    calls: Calls = attention_calls,
    told: Callable[[Replaced], None] | None = None,
) -> tuple[float, list[Replaced]]:
    """Whether heads need their input: each is replaced by its mean, its Toeplitz projection or a hard shift.

    A head whose replacement by ``S_d*`` costs nothing *is* a shift; one that only its mean can replace is fixed otherwise;
    one that nothing can replace computes.

    Args:
        model: in evaluation mode while it lasts.
        found: what :func:`~osmose.inspection.study` gave for it.
        score: the task's measure of a model, any number.
        kinds: of replacement, see :func:`~osmose.diagnostics.replacement`.
        groups: heads to replace together; None: every head alone.
        calls: how calls are seen; an adapter brings its own.
        told: called with each result as it comes.

    Returns:
        the score of the model as it is, and one :class:`Replaced` for each group and kind.

    Raises:
        ValueError: inputs of the score have lengths that were not studied, or where the offset does not fit.
    """
    alone: list[Heads] = [((name, head),) for name, anova in found.items() for head in range(_heads(anova))]
    chosen = alone if groups is None else [tuple(group) for group in groups]
    tops = {name: anova.heads().top_offset for name, anova in found.items()} if "shift" in kinds else {}
    for kind in kinds:
        if kind not in REPLACEMENTS:
            raise ValueError(f"replacement: kind is {kind!r}; expected one of {', '.join(REPLACEMENTS)}.")
    training = model.training
    model.eval()
    try:
        whole = score(model)
        results = []
        for kind in kinds:
            made: dict[tuple[str, int, int], Tensor] = {}
            for group in chosen:
                matrices: dict[str, dict[int, Matrix]] = {}
                for name, head in group:
                    matrices.setdefault(name, {})[head] = _maker(found, name, head, kind, tops, made)
                with replacing(model, matrices, calls=calls):
                    value = score(model)
                results.append(Replaced(tuple(group), kind, value, value - whole))
                if told is not None:
                    told(results[-1])
    finally:
        model.train(training)
    return whole, results


def _heads(anova: StructureAnova) -> int:
    return len(anova.heads().top_offset)


def _maker(
    found: Mapping[str, StructureAnova],
    name: str,
    head: int,
    kind: str,
    tops: Mapping[str, list],
    made: dict[tuple[str, int, int], Tensor],
) -> Matrix:
    """The matrices of one head, made once for a layer and a length."""

    def matrix(n: int, m: int) -> Tensor:
        if (name, n, m) not in made:
            made[name, n, m] = found[name].replacement(kind, n, m, top=tops.get(name)).float()
        return made[name, n, m][head]

    return matrix
