r"""Running a sweep: what is missing of its plan, chunk by chunk, in as many processes as there are."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..fields import Field
from ..status import Status
from ..steppers import Stepper
from .files import Folder, Values
from .plan import Chunk, Observed, Plan, Space, Start, plan_of
from .ranks import Ranks, ranks
from .result import SweepResult
from .settings import fingerprint

Told = Callable[[int, int], None]


def sweep(
    field: Callable[[Tensor], Field],
    *,
    beta: float | Sequence[float] | Tensor,
    n: int | Sequence[int],
    d: int | Sequence[int],
    seeds: int | Sequence[int],
    times: Sequence[float] | Tensor,
    observe: Observed,
    start: Start | None = None,
    stepper: Stepper | None = None,
    space: Space = "auto",
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float64,
    folder: str | os.PathLike[str] | None = None,
    chunk: int | None = None,
    level: float = 0.95,
    told: Told | None = None,
) -> SweepResult:
    """A field over all (n, d, beta) and seeds: means of observables, with intervals.

    A start depends on (seed, n, d) alone and is drawn on the CPU in float64, so it is the same at every beta (differences
    between betas are paired), in every chunk and process and on every device.

    Args:
        field: ``field(beta)`` to the field of some systems, beta ``(P,)``: ``lambda beta: Field(Attention(beta))``.
        beta, n, d: values, each once.
        seeds: how many (from 0), or which.
        times: rising; observables see the states there, from the first on, which is that of the start.
        observe: :class:`~osmose.dynamics.observables.Observable` s, or ``observe(beta)`` to them where they need beta:
            ``lambda beta: [Observable("energy", partial(energy, beta=beta))]``.
        start: ``start(n, d, generator=...)`` to tokens ``(n, d)``; None is uniform on the sphere.
        stepper: None is :class:`Adaptive` to 1e-6 (float32: 1e-5), far below what seeds differ by.
        space: ``gram`` steps inner products, which take ``n^3`` in place of ``n^2 d`` a step; ``sphere`` the tokens; ``auto``
            inner products where ``d > n`` and the field has no more than them to go by. On the sphere a step in normal
            coordinates takes about as long at d = n (n = 4 to 256), 2 times at 2 n, 3 to 4 times at 4 n.
        device: ``auto`` is the GPU if there is one.
        dtype: of the states.
        folder: keeps finished chunks. A sweep that was stopped goes on with what is missing, and ends with the same bits;
            what is there must be of the same settings. Device and level may change.
        chunk: systems that run together. None takes as many as the cache holds (2^16 numbers in their states, on a GPU 2^24), or
            those of the folder. A sweep of few chunks leaves processes idle: take smaller ones there.
        level: of the intervals, Student's t over seeds.
        told: hears how many chunks of this process, of how many, are done.

    In processes of ``torch.distributed``, or started by ``torchrun``, each computes its share of the chunks, and all return the
    whole. Runs that fail are counted in ``status`` and a warning, and are in no mean.

    Raises:
        ValueError: empty or repeated values, a field that ``space="gram"`` cannot run, a random stepper, a result or a chunk that
            memory does not hold, a folder of another sweep.

    >>> from osmose.dynamics import Attention
    >>> from osmose.dynamics.observables import Observable, order_parameter
    >>> found = sweep(lambda beta: Field(Attention(beta)), beta=[0.0, 4.0], n=4, d=3, seeds=5, times=[0.0, 1.0],
    ...               observe=[Observable("order", order_parameter)])
    >>> found["order"].mean.shape
    torch.Size([1, 1, 2, 2])

    Memory: the values of all seeds, and a chunk.
    """
    plan = plan_of(field, beta, n, d, seeds, times, observe, start, stepper, space, device, dtype)
    if not 0 < level < 1:
        raise ValueError(f"sweep: level is {level}; expected a number between 0 and 1.")
    with ranks() as among:
        kept = None if folder is None else Folder(folder)
        sizes = plan.sizes(chunk)
        if kept is not None:
            found = kept.kept()
            if found is not None and chunk is None:
                sizes = found["chunks"]
            kept.open(plan.settings, sizes, fingerprint([plan.settings, sizes]))
        plan.refuse_memory(sizes, among.world)
        chunks = plan.chunks(sizes)
        parts = among.all(_compute(plan, chunks, kept, among, told))
    values, status = plan.put_together(chunks, {k: v for k, (v, _) in parts.items()})
    notes = tuple(sorted({note for _, notes in parts.values() for note in notes}))
    axes = {"n": plan.n, "d": plan.d, "beta": tuple(plan.beta.tolist())}
    result = SweepResult(
        axes, plan.seeds, plan.times, values, frozenset(plan.series), status, level, plan.settings, notes
    )
    for name, count in result.failures.items():
        warnings.warn(
            f"sweep: {count} of {status.numel()} runs: {Status[name].meaning}.", RuntimeWarning, stacklevel=2
        )
    return result


def _compute(
    plan: Plan, chunks: list[Chunk], kept: Folder | None, among: Ranks, told: Told | None
) -> dict[int, tuple[Values, list[str]]]:
    """The chunks of this process, from the folder where they are there."""
    mine = [c for c in chunks if among.owns(c.number)]
    out: dict[int, tuple[Values, list[str]]] = {}
    said: set[str] = set()
    for c in mine:
        found = None if kept is None else kept.read(c.number)
        if found is None:
            values, notes, given = plan.run(c.pair, torch.arange(c.first, c.stop), plan.times)
            for w in given:
                if not issubclass(w.category, RuntimeWarning):  # failures are counted at the end
                    _say_once(w, said)
            found = values, notes
            if kept is not None:
                kept.write(c.number, *found)
        out[c.number] = found
        if told is not None:
            told(len(out), len(mine))
    return out


def _say_once(w: warnings.WarningMessage, said: set[str]) -> None:
    text = str(w.message)
    kind = re.sub(r"[-+\d.e]+", "", text)  # numbers differ from chunk to chunk
    if kind not in said:
        said.add(kind)
        warnings.warn(text.replace("simulate:", "sweep:", 1), w.category, stacklevel=4)
