r"""What a named system is: canonical parameters, one run, a measurement, a figure, and what must come out of it.

A system is a frozen dataclass. Its fields are the canonical parameters; ``replace`` or ``named(name, beta=4.0)`` change them, and
targets that have a closed form follow.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from torch import Tensor

from ...tokens import Tokens
from ..adaptive import Adaptive
from ..events import Event
from ..fields import Field
from ..observables import Recorder
from ..simulate import Solution, simulate
from ..spaces import Space, Sphere
from ..starts import seeded
from ..steppers import Stepper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Told = Callable[[str], None]
"""Hears in a few words what a long measurement is at."""


POSITIVE = ("n", "d", "heads", "layers", "seeds", "times", "betas", "until", "interval", "h", "step")
"""Parameters that are positive in whatever system has them, where they are numbers."""


def silent(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that :func:`~osmose.dynamics.simulate` takes.

    Attributes:
        seed: of what is random in the motion (not in the start).
        beta: inverse temperature by which clusters and energies are read; None: there is none.
    """

    field: Field
    x0: Tensor
    times: Tensor
    space: Space = dataclasses.field(default_factory=Sphere)
    stepper: Stepper = dataclasses.field(default_factory=Adaptive)
    tokens: Tokens | None = None
    events: tuple[Event, ...] = ()
    seed: int = 0
    log_time: bool = False
    beta: float | None = None

    def simulate(self, *, observe: Recorder | None = None, save: bool = True) -> Solution:
        """The run."""
        return simulate(
            self.field,
            self.x0,
            self.times,
            space=self.space,
            stepper=self.stepper,
            tokens=self.tokens,
            events=self.events,
            observe=observe,
            save=save,
            generator=seeded(self.seed) if self.stepper.random else None,
            log_time=self.log_time,
        )


@dataclass(frozen=True)
class Target:
    """A number that must come out.

    Attributes:
        name: of what is measured.
        value: the number, from a closed form or a stored one.
        tolerance: how far from it the measurement may be; on one side where ``sense`` says so.
        source: where the number is from.
        sense: ``equal``; ``at most``, ``at least``: a bound.
    """

    name: str
    value: float
    tolerance: float
    source: str
    sense: Literal["equal", "at most", "at least"] = "equal"

    def holds(self, measured: float) -> bool:
        """Whether a measurement agrees; NaN never does."""
        off = measured - self.value
        if not math.isfinite(off):
            return bool(measured == self.value)
        if self.sense == "at most":
            return bool(off <= self.tolerance)
        return bool((-off if self.sense == "at least" else abs(off)) <= self.tolerance)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a measurement found.

    Attributes:
        measured: numbers by the names of the targets, and others worth telling.
        data: arrays that the figure is drawn from; saved with it.
        solution: a run to draw, where there is one.
    """

    measured: Mapping[str, float]
    data: Mapping[str, Any]
    solution: Solution | None = None


class System(ABC):
    """A named system.

    Attributes:
        title: what it shows, in a line.
        source: paper, version, label.
        time_scale: what times are measured in, and how long things take.
        invariants: what a run keeps or what never falls, for tests.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    time_scale: ClassVar[str] = "1 is a unit of the field's own clock"
    invariants: ClassVar[tuple[str, ...]] = ()

    def quick(self) -> Self:
        """A smaller one of the same kind: seconds where the whole takes minutes."""
        return self

    @abstractmethod
    def problem(self) -> Problem:
        """One run of it."""

    @abstractmethod
    def measure(self, told: Told = silent) -> Findings:
        """All that its figure and targets need."""

    @abstractmethod
    def targets(self) -> tuple[Target, ...]:
        """What must come out, for these parameters."""

    @abstractmethod
    def draw(self, findings: Findings) -> Figure:
        """The figure, with the exact curve where one is known."""

    def simulate(self, *, observe: Recorder | None = None) -> Solution:
        """One run of it, its states kept."""
        return self.problem().simulate(observe=observe)

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields and their values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def changed(self, **parameters: Any) -> Self:
        """The same system with other parameters.

        Raises:
            ValueError: a name it does not have, or a value of another kind.
        """
        kinds = get_type_hints(type(self))
        known = self.parameters
        for name, value in parameters.items():
            if name not in known:
                raise ValueError(
                    f"{type(self).__name__}: {name!r} is no parameter; expected one of {', '.join(known)}."
                )
            made = _made(type(self).__name__, name, value, kinds[name])
            if name in POSITIVE and isinstance(made, int | float) and not made > 0:
                raise ValueError(f"{type(self).__name__}: {name} is {made}; expected a positive number.")
            parameters[name] = made
        return replace(self, **parameters)  # type: ignore[type-var]


def _made(what: str, name: str, value: Any, kind: Any) -> Any:
    """A value of a field's type, from itself or from a text of the command line."""
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise ValueError(
            f"{what}: {name} is {value!r}; expected one of {', '.join(map(str, get_args(kind)))}."
        )
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        return tuple(_made(what, name, part, get_args(kind)[0]) for part in parts)
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        made = kind(value)
        if kind is int and isinstance(value, float) and made != value:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"{what}: {name} is {value!r}; expected {words.get(kind, 'a text')}.") from None
    if isinstance(made, float) and not math.isfinite(made):
        raise ValueError(f"{what}: {name} is {value!r}; expected a finite number.")
    return made
