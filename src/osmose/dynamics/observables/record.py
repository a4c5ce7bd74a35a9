"""Recording: observables that follow a run and keep their results, not the trajectory.

A simulation calls ``recorder(t, x, velocity, mass)`` at the times it wants seen. What is kept is a value of each observable
for each time (``series``) or a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .interaction import dissipation, energy, normalised_energy
from .linkage import cluster_count
from .measure import distance_to_dirac, effective_rank, order_parameter

Reduce = Literal["series", "last", "max", "min", "mean", "integral"]
REDUCTIONS = ("series", "last", "max", "min", "mean", "integral")


class Observer(Protocol):
    """What a :class:`Recorder` drives: sees states in the order of time, and has a result."""

    name: str

    def update(self, t: float, x: Tensor, velocity: Tensor | None, mass: Tensor | None) -> None: ...

    def result(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Watched(Protocol):
    """What a :class:`Recorder` takes: a name, and a fresh :class:`Observer` for each run."""

    @property
    def name(self) -> str: ...

    def observer(self) -> Observer: ...


@dataclass(frozen=True)
class Observable:
    """A function of the state, and what to keep of it over time.

    Attributes:
        name: of the result.
        function: ``function(x, mass=...)`` to a tensor whose shape does not change; with ``velocity`` set
            ``function(x, velocity, mass=...)``. Bind the rest: ``partial(energy, beta=4.0)``.
        reduce: ``series`` stacks the values, ``(k, ...)``; ``last``; ``max`` and ``min`` over time; ``integral`` over time by
            the trapezoid rule, ``mean`` that over the time passed (of a single time, its value).
        velocity: whether the function needs the velocity.

    >>> Observable("order", order_parameter).reduce
    'series'
    """

    name: str
    function: Callable[..., Tensor]
    reduce: Reduce = "series"
    velocity: bool = False

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise ValueError(
                f"Observable {self.name!r}: reduce is {self.reduce!r}; expected one of {', '.join(REDUCTIONS)}."
            )

    def observer(self) -> Observer:
        return _Follower(self)


class _Follower:
    def __init__(self, spec: Observable):
        self.spec, self.name = spec, spec.name
        self.start: float | None = None
        self.time: float = 0.0
        self.value: Tensor | None = None  # the last one
        self.kept: list[Tensor] | Tensor | None = None

    def update(self, t: float, x: Tensor, velocity: Tensor | None, mass: Tensor | None) -> None:
        if self.spec.velocity:
            if velocity is None:
                raise ValueError(
                    f"Observable {self.name!r} needs the velocity; pass recorder(t, x, velocity)."
                )
            value = self.spec.function(x, velocity, mass=mass)
        else:
            value = self.spec.function(x, mass=mass)
        value = value.detach().clone()  # a view would hold on to the state
        self._take(t, value)
        self.start = t if self.start is None else self.start
        self.time, self.value = t, value

    def _take(self, t: float, value: Tensor) -> None:
        reduce, kept = self.spec.reduce, self.kept
        if reduce == "series":
            self.kept = [*kept, value] if isinstance(kept, list) else [value]
        elif reduce in ("integral", "mean"):
            before = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
            if isinstance(kept, Tensor) and self.value is not None:
                before = kept + (t - self.time) * (self.value + value) / 2
            self.kept = before
        elif reduce == "last" or not isinstance(kept, Tensor):
            self.kept = value
        else:
            self.kept = torch.maximum(kept, value) if reduce == "max" else torch.minimum(kept, value)

    def result(self) -> Tensor | None:
        if isinstance(self.kept, list):
            return torch.stack(self.kept)
        if self.spec.reduce == "mean" and self.kept is not None and self.start is not None:
            passed = self.time - self.start
            return self.kept / passed if passed > 0 else self.value
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        kept = torch.stack(self.kept) if isinstance(self.kept, list) else self.kept
        return {"start": self.start, "time": self.time, "value": self.value, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.time, self.value = state["start"], state["time"], state["value"]
        kept = state["kept"]
        self.kept = list(kept) if self.spec.reduce == "series" and kept is not None else kept


@dataclass(frozen=True)
class EnergyBalance:
    """The accuracy meter of a gradient flow: energy gained against dissipation integrated over time.

    Its result holds ``time (k,)``, ``energy (k, ...)``, ``dissipation (k, ...)`` and ``residual (k, ...)``,

        ``E(t_k) - E(t_0) - int dissipation dt``,

    which is 0 for the exact flow (2312.10794v5, section 3), and for a run shows the error of its stepper. The
    integral is Simpson's rule on whatever times are recorded: record every step. Energies are ``e^{-log_scale} E``.

    Attributes:
        beta: inverse temperature.
        model: ``SA`` or ``USA``; it is no gradient flow for masks, MLPs, or Q, K, V that are not symmetric.
        scaled: USA on the clock ``e^beta t``.
        log_scale: None takes ``max(beta, 0)``, which overflows for no beta.
        name: of the result.
    """

    beta: float
    model: Literal["SA", "USA"] = "SA"
    scaled: bool = False
    log_scale: float | None = None
    name: str = "energy_balance"

    def observer(self) -> Observer:
        return _Balance(self)


class _Balance:
    def __init__(self, spec: EnergyBalance):
        self.name = spec.name
        scale = max(spec.beta, 0.0) if spec.log_scale is None else spec.log_scale
        self.energy = partial(energy, beta=spec.beta, log_scale=scale)
        self.dissipation = partial(
            dissipation, beta=spec.beta, model=spec.model, scaled=spec.scaled, log_scale=scale
        )
        self.rows: list[tuple[float, Tensor, Tensor]] = []

    def update(self, t: float, x: Tensor, velocity: Tensor | None, mass: Tensor | None) -> None:
        if velocity is None:
            raise ValueError(
                f"EnergyBalance {self.name!r} needs the velocity; pass recorder(t, x, velocity)."
            )
        lost = self.dissipation(x, velocity, mass=mass)
        self.rows.append((t, self.energy(x, mass=mass).detach(), lost.detach()))

    def result(self) -> dict[str, Tensor] | None:
        if not self.rows:
            return None
        time = torch.tensor([t for t, _, _ in self.rows], dtype=torch.float64)
        gained, lost = torch.stack([e for _, e, _ in self.rows]), torch.stack([d for _, _, d in self.rows])
        return {
            "time": time,
            "energy": gained,
            "dissipation": lost,
            "residual": gained - gained[0] - cumulative_integral(lost, time),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


def cumulative_integral(values: Tensor, time: Tensor) -> Tensor:
    """``int_{t_0}^{t_k} values dt`` for ``values (k, ...)`` at rising times ``(k,)``: Simpson's rule, trapezoids for two times."""
    from scipy.integrate import cumulative_simpson, cumulative_trapezoid

    if len(time) < 2:
        return torch.zeros_like(values)
    if bool((time.diff() <= 0).any()):
        raise ValueError(
            "cumulative_integral: time does not rise; expected states recorded in the order of time."
        )
    rule = cumulative_simpson if len(time) > 2 else cumulative_trapezoid
    out = rule(values.double().cpu().numpy(), x=time.double().cpu().numpy(), axis=0, initial=0.0)
    return torch.from_numpy(out).to(values)


class Recorder:
    """Streams states past observables: nothing of a state is kept but the values.

    Args:
        observables: :class:`Observable`, :class:`EnergyBalance`, or anything with a name and an ``observer()``.

    Attributes:
        velocity: whether any of them needs the velocity, which a simulation computes only then. An observable without an
            attribute of this name is taken to need it.

    >>> recorder = Recorder([Observable("order", order_parameter)])
    >>> recorder(0.0, torch.eye(2))
    >>> recorder.results()["order"].shape
    torch.Size([1])

    Memory: that of the results. Time: that of the functions, at the times it is called.
    """

    def __init__(self, observables: Sequence[Watched]):
        names = [o.name for o in observables]
        repeated = sorted({name for name in names if names.count(name) > 1} | ({"time"} & set(names)))
        if repeated:
            raise ValueError(
                f"Recorder: the names {', '.join(repeated)} are taken twice ('time' is kept by the recorder); expected distinct "
                "names."
            )
        self.velocity = any(getattr(o, "velocity", True) for o in observables)
        self.observers = [o.observer() for o in observables]
        self.times: list[float] = []

    def __call__(
        self, t: float, x: Tensor, velocity: Tensor | None = None, mass: Tensor | None = None
    ) -> None:
        """Let every observable see the state at time t.

        Raises:
            ValueError: a time not after the last one; a velocity that an observable needs and is not given.
        """
        if self.times and not t > self.times[-1]:
            raise ValueError(f"Recorder: time {t} after {self.times[-1]}; expected rising times.")
        with torch.no_grad():
            for observer in self.observers:
                observer.update(t, x, velocity, mass)
        self.times.append(t)

    def results(self) -> dict[str, Any]:
        """``time (k,)`` and every observable's result by name; None for one that has seen nothing."""
        out: dict[str, Any] = {"time": torch.tensor(self.times, dtype=torch.float64)}
        return out | {observer.name: observer.result() for observer in self.observers}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on recording."""
        return {"times": list(self.times), **{o.name: o.state_dict() for o in self.observers}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a recorder of the same observables."""
        wanted = {"times", *(o.name for o in self.observers)}
        if set(state) != wanted:
            raise ValueError(
                f"Recorder: the state holds {', '.join(sorted(state))}; expected {', '.join(sorted(wanted))}."
            )
        self.times = list(state["times"])
        for observer in self.observers:
            observer.load_state_dict(state[observer.name])


def standard_observables(beta: float, *, scale: float | None = None) -> list[Observable]:
    """The usual ones: normalised energy, order parameter, distance to a Dirac, effective rank, and clusters at a scale."""
    out = [
        Observable("normalised_energy", partial(normalised_energy, beta=beta)),
        Observable("order_parameter", order_parameter),
        Observable("distance_to_dirac", distance_to_dirac),
        Observable("effective_rank", effective_rank),
    ]
    if scale is not None:
        out.append(Observable("clusters", partial(cluster_count, scale=scale)))
    return out
