"""What a benchmark is: an op at some sizes, and the ways to compute it that run against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

MODES = ("forward", "forward+backward")

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Contender:
    """One way to compute the op.

    Args:
        run: called with the inputs and the mode; its result is kept until it returns, then dropped.
        memory: peak extra memory in multiples of one input, per mode, from which :mod:`.measure` decides that it
            does not fit; 0 runs always.
    """

    run: Callable[[Inputs, str], object]
    memory: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One size of an op. The first contender is ours, the second the one that ratios are taken to."""

    size: dict[str, int | str]
    inputs: Callable[[], Inputs]
    contenders: dict[str, Contender]
    modes: tuple[str, ...] = MODES
    limit: str | None = None  # a contender that is a lower bound, not a competitor

    @property
    def label(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.size.items())


@dataclass(frozen=True)
class Entry:
    """A named benchmark; ``cases(quick)`` makes its sizes."""

    name: str
    title: str
    cases: Callable[[bool], Iterator[Case]]


def differentiable(fn: Callable[..., Tensor], **memory: float) -> Contender:
    """A contender from a function of all inputs but the last, which is the gradient of its output.

    ``memory`` takes ``forward`` and ``both``, in multiples of the first input.
    """

    def run(inputs: Inputs, mode: str) -> object:
        *arguments, grad = inputs
        if mode == "forward":
            with torch.no_grad():
                return fn(*arguments)
        out = fn(*arguments)
        return out, torch.autograd.grad(out, [x for x in arguments if x.requires_grad], grad)

    return Contender(run, {"forward": memory.get("forward", 0), "forward+backward": memory.get("both", 0)})


ENTRIES: dict[str, Entry] = {}


def register(
    name: str, title: str
) -> Callable[[Callable[[bool], Iterator[Case]]], Callable[[bool], Iterator[Case]]]:
    """Register a function that yields the cases of a benchmark."""

    def add(cases: Callable[[bool], Iterator[Case]]) -> Callable[[bool], Iterator[Case]]:
        ENTRIES[name] = Entry(name, title, cases)
        return cases

    return add
