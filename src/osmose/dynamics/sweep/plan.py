r"""The plan of a sweep: its values checked, spaces chosen, memory asked for, chunks laid out, and how one of them runs.

Shapes: ``P`` systems of a chunk, ``B`` betas, ``S`` seeds, ``K`` times; starts ``(P, n, d)``, inner products ``(P, n, n)``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...__about__ import __version__
from ..adaptive import Adaptive
from ..fields import Field
from ..gram import Gram, gram_matrix
from ..memory import gib, held_by
from ..observables import Observable, Recorder
from ..simulate import simulate
from ..spaces import Sphere
from ..starts import uniform
from ..steppers import Stepper
from .files import Values
from .ranks import chosen_device
from .settings import described

CACHED = 2**16  # numbers in the states of a chunk: with what a step makes of them they stay in a core's cache
ON_GPU = 2**24
STATES = 20  # tensors of the size of the state that a step holds at most

Space = Literal["auto", "sphere", "gram"]
Start = Callable[..., Tensor]
Observed = Sequence[Observable] | Callable[[Tensor], Sequence[Observable]]


@dataclass(frozen=True)
class Chunk:
    """Systems ``first`` to ``stop`` of a pair (n, d), counted with beta running faster than the seed."""

    number: int
    pair: int
    first: int
    stop: int


@dataclass(eq=False)
class Plan:
    """A sweep that can run: its values checked, its spaces chosen, the shapes of its observables known."""

    field: Callable[[Tensor], Field]
    beta: Tensor
    n: tuple[int, ...]
    d: tuple[int, ...]
    seeds: tuple[int, ...]
    times: Tensor
    observe: Callable[[Tensor], Sequence[Observable]]
    start: Start
    stepper: Stepper
    device: torch.device
    dtype: torch.dtype
    spaces: list[str]
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    series: set[str]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(product(self.n, self.d))

    @property
    def systems(self) -> int:
        """Of a pair."""
        return len(self.beta) * len(self.seeds)

    def state(self, pair: int) -> int:
        """Numbers in a state."""
        n, d = self.pairs[pair]
        return n * (n if self.spaces[pair] == "gram" else d)

    def sizes(self, chunk: int | None) -> list[int]:
        """Systems in a chunk of each pair."""
        if chunk is not None:
            (chunk,) = _whole("chunk", chunk, 1)
            return [min(chunk, self.systems)] * len(self.pairs)
        room = CACHED if self.device.type == "cpu" else ON_GPU
        return [max(1, min(self.systems, room // self.state(k))) for k in range(len(self.pairs))]

    def chunks(self, sizes: list[int]) -> list[Chunk]:
        out: list[Chunk] = []
        for pair, size in enumerate(sizes):
            for first in range(0, self.systems, size):
                out.append(Chunk(len(out), pair, first, min(first + size, self.systems)))
        return out

    def refuse_memory(self, sizes: list[int], world: int) -> None:
        """Raise where the values, or the states of a chunk, are more than there is memory."""
        one = sum(_count(shape) for shape in self.shapes.values()) * 8
        copies = 2 if world == 1 else 3
        need, holds = copies * one * self.systems * len(self.pairs), held_by(torch.device("cpu"))
        if need > holds:
            raise ValueError(
                f"sweep: the values of {self.systems * len(self.pairs)} runs take {gib(need)} to put together, and the machine "
                f"holds {gib(holds)}; take fewer times or seeds, or an Observable with reduce='last' or 'mean'."
            )
        for pair, size in enumerate(sizes):
            self.refuse_states(pair, size)

    def refuse_states(self, pair: int, size: int) -> None:
        """Raise where a step of ``size`` systems is more than there is memory."""
        need = STATES * size * self.state(pair) * torch.finfo(self.dtype).bits // 8
        holds, (n, d) = held_by(self.device), self.pairs[pair]
        if need > holds:
            raise ValueError(
                f"sweep: {size} systems of n = {n}, d = {d} in {self.spaces[pair]} space take {gib(need)} in a step, and the "
                f"{self.device.type} holds {gib(holds)}; take a smaller chunk, or fewer tokens."
            )

    def run(
        self, pair: int, index: Tensor, times: Tensor
    ) -> tuple[Values, list[str], list[warnings.WarningMessage]]:
        """The values of some systems of a pair, what is to be noted, and the warnings given."""
        n, d = self.pairs[pair]
        beta = self.beta[index % len(self.beta)].to(self.device)
        gram = self.spaces[pair] == "gram"
        observables = self.observe(beta)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            x0 = self.starts(n, d, index // len(self.beta)).to(self.device)
            x0 = (gram_matrix(x0) if gram else x0).to(self.dtype)
            solution = simulate(
                self.field(beta),
                x0,
                times,
                space=Gram() if gram else Sphere(),
                stepper=self.stepper,
                observe=Recorder(observables),
                save=False,
            )
        values = {"status": solution.status.cpu()}
        for o in observables:
            v = solution.results[o.name].cpu().double()
            v = v.movedim(0, 1) if o.reduce == "series" and v.ndim > 1 else v
            if not v.ndim or len(v) != len(index):
                raise ValueError(
                    f"sweep: {o.name!r} of {len(index)} systems gives values of shape {tuple(v.shape)}; expected (systems, ...)."
                )
            values[f"values/{o.name}"] = v
        return values, list(solution.notes), given

    def starts(self, n: int, d: int, seeds: Tensor) -> Tensor:
        """The starts of seeds by index, ``(P, n, d)``."""
        distinct, where = seeds.unique(return_inverse=True)
        return torch.stack([_drawn(self.start, self.seeds[k], n, d) for k in distinct.tolist()])[where]

    def put_together(self, chunks: list[Chunk], parts: dict[int, Values]) -> tuple[Values, Tensor]:
        """Values ``(n, d, beta, seed, ...)`` of every observable, and the status."""
        grid = (len(self.n), len(self.d), len(self.seeds), len(self.beta))

        def whole(key: str) -> Tensor:
            x = torch.cat([parts[c.number][key] for c in chunks])
            return x.view(*grid, *x.shape[1:]).transpose(2, 3).contiguous()

        return {name: whole(f"values/{name}") for name in self.shapes}, whole("status")


def plan_of(
    field: Callable[[Tensor], Field], beta: float | Sequence[float] | Tensor, n: int | Sequence[int], d: int | Sequence[int],
    seeds: int | Sequence[int], times: Sequence[float] | Tensor, observe: Observed, start: Start | None,
    stepper: Stepper | None, space: str, device: str | torch.device, dtype: torch.dtype,
) -> Plan:  # fmt: skip
    """The plan of what :func:`sweep` was asked, and a look at the start of one system of each pair."""
    betas = torch.as_tensor(beta, dtype=torch.float64).reshape(-1).cpu()
    if not bool(torch.isfinite(betas).all()):
        raise ValueError(f"sweep: beta is {betas.tolist()}; expected finite numbers.")
    tokens, dimensions = _whole("n", n, 1), _whole("d", d, 1)
    which = _whole("seeds", range(seeds) if isinstance(seeds, int) else seeds, 0)
    for name, given in (("beta", betas.tolist()), ("n", tokens), ("d", dimensions), ("seeds", which)):
        if not len(given) or len(set(given)) < len(given):
            raise ValueError(f"sweep: {name} is {list(given)}; expected at least one value, and each once.")
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"sweep: dtype is {dtype}; expected torch.float64, or torch.float32.")
    if space not in ("auto", "sphere", "gram"):
        raise ValueError(f"sweep: space is {space!r}; expected 'auto', 'sphere' or 'gram'.")
    stepper = stepper or Adaptive(1e-6 if dtype == torch.float64 else 1e-5)
    if stepper.random:
        raise ValueError(
            f"sweep: {stepper!r} draws one noise for all systems of a chunk, and values would depend on chunks; expected a "
            "stepper without noise. Call simulate for each seed."
        )
    at = torch.as_tensor(times, dtype=torch.float64).reshape(-1).cpu()
    if not len(at) or not bool(torch.isfinite(at).all()) or bool((at.diff() <= 0).any()):
        raise ValueError(f"sweep: times are {at.tolist()}; expected finite times that rise.")
    everything = field(betas)
    if not isinstance(everything, Field):
        raise ValueError(
            f"sweep: field(beta) is {type(everything).__name__}; expected a Field, e.g. Field(Attention(beta))."
        )
    watched = observe if callable(observe) else (lambda _: observe)
    plan = Plan(
        field,
        betas,
        tokens,
        dimensions,
        which,
        at,
        watched,
        start or uniform,
        stepper,
        chosen_device(device),
        dtype,
        [],
        {},
        {},
        set(),
    )
    plan.spaces = [_space(everything, space, *pair) for pair in plan.pairs]
    plan.settings = {
        "osmose": __version__, "beta": betas.tolist(), "n": list(plan.n), "d": list(plan.d), "seeds": list(which), "times": at.tolist(),
        "spaces": plan.spaces, "dtype": str(dtype), "field": described(everything), "start": described(plan.start),
        "stepper": described(stepper), "observe": [described(o) for o in _observables(plan)],
    }  # fmt: skip
    _look(plan)
    return plan


def _look(plan: Plan) -> None:
    """The shapes of the observables, from the start of one system: what cannot run fails here, before anything is spent."""
    strongest = plan.beta.abs().argmax().reshape(1)
    for k, (n, d) in enumerate(plan.pairs):
        plan.refuse_states(k, 1)
        values, _, _ = plan.run(k, strongest, plan.times[:1])
        for o in _observables(plan):
            shape = values[f"values/{o.name}"].shape
            rest = shape[2:] if o.reduce == "series" else shape[1:]
            whole = (len(plan.times), *rest) if o.reduce == "series" else tuple(rest)
            if plan.shapes.setdefault(o.name, whole) != whole:
                raise ValueError(
                    f"sweep: {o.name!r} has the shape {tuple(rest)} at n = {n}, d = {d} and another at n = {plan.n[0]}, "
                    f"d = {plan.d[0]}; expected one shape, or a sweep for each."
                )
            if o.reduce == "series":
                plan.series.add(o.name)


def _observables(plan: Plan) -> Sequence[Observable]:
    out = plan.observe(plan.beta)
    out = [out] if isinstance(out, Observable) else out
    wrong = [o for o in out if not isinstance(o, Observable)]
    if wrong or not out:
        came = f"holds {type(wrong[0]).__name__}" if wrong else "is empty"
        raise ValueError(
            f"sweep: observe {came}; expected Observables, e.g. [Observable('order', order_parameter)]."
        )
    return out


def _space(field: Field, asked: str, n: int, d: int) -> str:
    if asked == "sphere" or (asked == "auto" and d <= n):
        return "sphere"
    try:
        Gram().admit(field)
    except ValueError:
        if asked == "gram":
            raise
        return "sphere"
    return "gram"


def _whole(name: str, given: int | Sequence[int], least: int) -> tuple[int, ...]:
    out = list(given) if isinstance(given, Iterable) else [given]
    if any(not math.isfinite(v) or int(v) != v or v < least for v in out):
        raise ValueError(f"sweep: {name} is {given}; expected whole numbers from {least} on.")
    return tuple(int(v) for v in out)


def _drawn(start: Start, seed: int, n: int, d: int) -> Tensor:
    words = np.random.SeedSequence((seed, n, d)).generate_state(1, np.uint64)
    x = start(n, d, generator=torch.Generator().manual_seed(int(words[0] >> np.uint64(1))))
    if not isinstance(x, Tensor) or x.shape != (n, d) or not x.is_floating_point():
        came = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"sweep: start({n}, {d}) gives {came}; expected floats of shape ({n}, {d}).")
    return Sphere().check(x.double())


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
