r"""Running tokens: a field on a space, from a start through output times, with what is seen and what stops it.

Shapes: ``...`` leading dimensions (systems), merged to ``P``; states ``(..., n, d)``, angles ``(..., n, 1)``; ``K`` output times.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..tokens import Tokens
from .adaptive import Adaptive
from .events import Event
from .fields import Field
from .memory import gib, held_by
from .motion import Motion
from .observables import Recorder
from .spaces import Space, Sphere
from .status import Status
from .steppers import Redo, Stepper, stability_bound
from .terms import Attention

HALVINGS = 40


@dataclass(frozen=True, eq=False)
class Solution:
    """What a run leaves.

    Attributes:
        times: output times ``(K,)``, float64.
        states: ``(K, ..., n, d)``; with ``save=False`` the last alone, ``(1, ..., n, d)``.
        status: :class:`Status` of every system ``(...)``, int64.
        steps: accepted steps of every system ``(...)``, int64.
        events: for every event by name the time at which it first happened ``(...)``; NaN where it did not.
        results: of the recorder.
        notes: what was special: manifolds the start lies on, bounds exceeded.
    """

    times: Tensor
    states: Tensor
    status: Tensor
    steps: Tensor
    events: dict[str, Tensor]
    results: dict[str, Any]
    notes: tuple[str, ...]
    run: _Run

    @property
    def final(self) -> Tensor:
        """The last state ``(..., n, d)``."""
        return self.states[-1]

    def resume(self, times: Sequence[float] | Tensor) -> Solution:
        """Go on to later times: bit by bit what one run over all of them would have given.

        Steps, random numbers and records go on where they stood; a recorder is shared with this solution.

        Raises:
            ValueError: times that are not later than the last one, or do not rise.
        """
        later = _times(times)
        if not len(later) or later[0] <= self.times[-1]:
            raise ValueError(
                f"Solution.resume: times are {later.tolist()}; expected times after {float(self.times[-1]):g}."
            )
        run = self.run.copy()
        kept = run.go(later)
        states = torch.cat([self.states, kept]) if run.save else kept
        return run.solution(torch.cat([self.times, later]), states)

    def __repr__(self) -> str:
        counts = {s.name.lower(): int((self.status == s).sum()) for s in Status}
        shown = ", ".join(f"{k}: {v}" for k, v in counts.items() if v)
        return f"Solution(t = {float(self.times[0]):g} .. {float(self.times[-1]):g}, {tuple(self.states.shape)}, {shown})"


def simulate(
    field: Field,
    x0: Tensor,
    times: Sequence[float] | Tensor,
    *,
    space: Space | None = None,
    stepper: Stepper | None = None,
    tokens: Tokens | None = None,
    observe: Recorder | None = None,
    events: Sequence[Event] = (),
    save: bool = True,
    generator: torch.Generator | None = None,
    log_time: bool = False,
) -> Solution:
    """Tokens along a field.

    Args:
        field: what drives them.
        x0: start ``(..., n, d)``; leading dimensions are systems. On the circle angles ``(..., n, 1)``.
        times: rising; the first is that of the start, at all of them states are saved and observed.
        space: None is the sphere, where a start off it is normalised with a warning.
        stepper: None is :class:`Adaptive` to 1e-8.
        tokens: masses; mass 0 is absent.
        observe: sees ``(t, points, velocity, mass)`` at the output times.
        events: each found inside the step in which it happens; terminal ones stop their system.
        save: whether all states are kept, or the last alone.
        generator: of what is random (:class:`EulerMaruyama` needs one).
        log_time: steps are in ``log t``, so a step of h multiplies t by e^h; times must be positive.

    Returns:
        A :class:`Solution`; failures are told by its ``status`` and in a warning, they do not raise.

    Raises:
        ValueError: a start that is not on the space, times that do not rise, tokens that do not fit, events of one name,
            states to keep that no memory holds.

    Memory: the states asked for, and a few of their size. Time: that of the field.

    >>> solution = simulate(Field(Attention(1.0)), torch.eye(3, dtype=torch.float64), [0.0, 1.0])
    >>> solution.final.shape
    torch.Size([3, 3])
    """
    space, stepper = space or Sphere(), stepper or Adaptive()
    at = _times(times)
    if not len(at):
        raise ValueError("simulate: times is empty; expected at least the time of the start.")
    if log_time and at[0] <= 0:
        raise ValueError(f"simulate: log_time=True from t = {float(at[0]):g}; expected times above 0.")
    if stepper.random and generator is None:
        raise ValueError(
            f"simulate: {stepper!r} is random; pass generator=torch.Generator().manual_seed(...)."
        )
    names = [e.name for e in events]
    if len(set(names)) < len(names):
        raise ValueError(f"simulate: events are {', '.join(names)}; expected each once.")
    if x0.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"simulate: the start is {x0.dtype}; expected float64 (or float32), halves lose the motion."
        )
    space.admit(field)
    _refuse_memory(x0, len(at) if save else 1)
    mass = _mass(x0, tokens)
    x = space.check(x0, mass)
    notes = list(space.notes(_few(x)))
    if x.dtype == torch.float32:
        warnings.warn(
            "simulate: the state is float32; distances below 3e-4 and slow motion are rounding there. Take float64.",
            stacklevel=2,
        )
    lead = x.shape[:-2]
    systems = lead.numel()
    merged = None if mass is None else mass.expand(x.shape[:-1]).reshape(systems, x.shape[-2])
    index = torch.arange(systems, device=x.device)
    if lead != (systems,):
        field = field.take(index, lead)
    motion = Motion(field, space, merged, log_time)
    bound = stability_bound(stepper, motion)
    longest = min(stepper.h or 0.0, float(at.diff().max()) if len(at) > 1 else 0.0)
    if bound is not None and longest > bound * (1 + 1e-12):
        said = f"the step h = {stepper.h:g} exceeds {bound:.3g}, the stability bound of {type(stepper).__name__} for this field"
        notes.append(said)
        warnings.warn(f"simulate: {said}; take a shorter step.", stacklevel=2)
    run = _Run(
        motion,
        stepper,
        lead,
        x.reshape(systems, *x.shape[-2:]),
        float(at[0]),
        tuple(events),
        observe,
        save,
        generator,
    )
    run.notes = tuple(notes)
    kept = run.begin()
    states = [kept, run.go(at[1:])] if save or len(at) == 1 else [run.go(at[1:])]
    return run.solution(at, torch.cat(states))


class _Run:
    """A run in progress: all that :meth:`Solution.resume` needs."""

    def __init__(
        self, motion: Motion, stepper: Stepper, lead: torch.Size, x: Tensor, t: float, events: tuple[Event, ...],
        observe: Recorder | None, save: bool, generator: torch.Generator | None,
    ):  # fmt: skip
        self.motion, self.stepper, self.lead, self.x, self.t = motion, stepper, lead, x, t
        self.events, self.observe, self.save = events, observe, save
        self.generator = generator
        systems = len(x)
        self.active = torch.ones(systems, dtype=torch.bool, device=x.device)
        self.steps = torch.zeros(systems, dtype=torch.int64, device=x.device)
        self.happened = {
            e.name: torch.full((systems,), torch.nan, dtype=torch.float64, device=x.device) for e in events
        }
        self.memory: dict[str, Any] = {"status": torch.zeros(systems, dtype=torch.int64, device=x.device)}
        self.notes: tuple[str, ...] = ()
        self.warned: set[Status] = set()

    def copy(self) -> _Run:
        """Another run from here: what happens to it leaves this one as it is (the recorder is shared)."""
        new = _Run.__new__(_Run)
        new.__dict__.update(self.__dict__)
        new.active, new.steps = self.active.clone(), self.steps.clone()
        new.happened = {k: v.clone() for k, v in self.happened.items()}
        new.memory = {k: v.clone() for k, v in self.memory.items()}
        new.warned = set(self.warned)
        if self.generator is not None:
            new.generator = torch.Generator(self.generator.device)
            new.generator.set_state(self.generator_state)
        return new

    def solution(self, times: Tensor, states: Tensor) -> Solution:
        if self.generator is not None:
            self.generator_state = self.generator.get_state()
        lead = self.lead
        return Solution(
            times,
            states,
            self.memory["status"].view(lead).clone(),
            self.steps.view(lead).clone(),
            {k: v.view(lead).clone() for k, v in self.happened.items()},
            {} if self.observe is None else self.observe.results(),
            self.notes,
            self,
        )

    @torch.no_grad()
    def begin(self) -> Tensor:
        """The first output."""
        self.now = self._at(self.t)
        if self.events:
            every = torch.arange(len(self.x), device=self.x.device)
            s = torch.full((len(every),), self._s(self.t), dtype=torch.float64, device=self.x.device)
            for event in self.events:
                there = self._value(event, every, self.x, s) <= 0
                self.happened[event.name][there] = self.t
                if event.terminal:
                    self._stop(there)
        return self._output()

    @torch.no_grad()
    def go(self, times: Tensor) -> Tensor:
        """On to later times; the states there ``(K, ..., n, d)``, or the last alone."""
        kept = []
        for k, t in enumerate(times.tolist()):
            # from one output to the next, cut where field or space are switched
            switches = sorted({*self.motion.field.breaks, *self.motion.space.breaks})
            cuts = [self.t, *(b for b in switches if self.t < b < t), t]
            for a, b in pairwise(cuts):
                self.now = self._at(a)
                self.x = self.stepper.advance(
                    self.now,
                    self.x,
                    self._s(a),
                    self._s(b),
                    self.active,
                    self.memory,
                    self._watch,
                    self.generator,
                )
            self.t = t
            last = k == len(times) - 1
            out = self._output(last)
            if self.save or last:
                kept.append(out)
        self._report()
        return torch.cat(kept) if kept else self._state()[:0]

    def _s(self, t: float) -> float:
        return math.log(t) if self.motion.log_time else t

    def _at(self, t: float) -> Motion:
        return replace(self.motion, field=self.motion.field.at(t), space=self.motion.space.at(t))

    def _state(self) -> Tensor:
        return self.x.reshape(1, *self.lead, *self.x.shape[-2:])

    def _output(self, last: bool = False) -> Tensor:
        if not last and self.observe is None:
            return self._state()
        s, motion = self._s(self.t), self._at(self.t)
        moving = last or (self.observe is not None and self.observe.velocity)
        v = motion.rate(self.x, s) if moving else None
        if v is not None:
            self._pinned(v)
        if self.observe is not None:
            points, vectors = self._seen(motion, self.x, v if self.observe.velocity else None, s)
            shape = (*self.lead, self.x.shape[-2], points.shape[-1])
            mass = None if motion.mass is None else motion.mass.view(*self.lead, -1)
            velocity = vectors.reshape(shape) if self.observe.velocity else None
            self.observe(self.t, points.reshape(shape), velocity, mass)
        return self._state()

    def _pinned(self, v: Tensor) -> None:
        """Systems held by rounding: motion below the spacing of floats away from consensus, where velocities are noise."""
        if self.stepper.random or not _clusters(self.now.field):
            return
        x, mass, eps = self.x, self.motion.mass, torch.finfo(self.x.dtype).eps
        span = self.stepper.h if self.stepper.h is not None and not self.motion.log_time else math.inf
        size = x.abs().amax((-1, -2))
        move = v.abs().amax((-1, -2))
        still = (move < 4 * eps * size) | (move * span < eps / 2 * size)
        if not bool(still.any()):
            return
        x = self.motion.space.points(x)
        away = (x - x[:, :1]).norm(dim=-1)
        if mass is not None:
            first = x.gather(1, mass.argmax(-1)[:, None, None].expand(-1, 1, x.shape[-1]))
            away = torch.where(mass > 0, (x - first).norm(dim=-1), 0.0)
        still &= (away.amax(-1) > 1e-3 * x.abs().amax((-1, -2))) & self.active
        self.memory["status"][still] = int(Status.PINNED)
        freed = ~still & (self.memory["status"] == int(Status.PINNED))
        self.memory["status"][freed & self.active] = int(Status.DONE)

    def _report(self) -> None:
        for status in Status:
            count = int((self.memory["status"] == int(status)).sum())
            if status > Status.EVENT and count and status not in self.warned:
                self.warned.add(status)
                warnings.warn(
                    f"simulate: {count} of {len(self.x)} systems: {status.meaning}.",
                    RuntimeWarning,
                    stacklevel=4,
                )

    # ---- steps ------------------------------------------------------------------------------------

    def _watch(
        self, systems: Tensor, old: Tensor, s: Tensor, new: Tensor, h: Tensor, redo: Redo
    ) -> tuple[Tensor, Tensor]:
        self.steps[systems] += 1
        bad = ~torch.isfinite(new).all(-1).all(-1)
        if bool(bad.any()):
            new = torch.where(bad[:, None, None], old, new)
            self.memory["status"][systems[bad]] = int(Status.NOT_FINITE)
        stopped = bad
        hits = [hit for event in self.events if (hit := self._located(event, systems, ~bad, new, s, h, redo))]
        # of the terminal events of a step the first one counts, and nothing after it
        end = torch.full_like(s, math.inf)
        for event, some, when, at in hits:
            if event.terminal:
                first = when < end[some]
                end[some] = torch.minimum(end[some], when)
                new = new.index_copy(0, some[first], at[first])
        for event, some, when, _ in hits:
            some, when = some[when <= end[some]], when[when <= end[some]]
            self.happened[event.name][systems[some]] = when.exp() if self.motion.log_time else when
        by_event = torch.isfinite(end)
        self.memory["status"][systems[by_event]] = int(Status.EVENT)
        return new, stopped | by_event

    def _located(
        self, event: Event, systems: Tensor, among: Tensor, new: Tensor, s: Tensor, h: Tensor, redo: Redo
    ) -> tuple[Event, Tensor, Tensor, Tensor] | None:
        """The systems to which the event happens in a step, when, and their states then; None for no system."""
        some = (torch.isnan(self.happened[event.name][systems]) & among).nonzero().squeeze(-1)
        if len(some):
            some = some[self._value(event, systems[some], new[some], s[some] + h[some]) <= 0]
        if not len(some):
            return None
        low, high = torch.zeros_like(s[some]), torch.ones_like(s[some])
        at = new[some]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            there = redo(some, middle)
            past = self._value(event, systems[some], there, s[some] + middle * h[some]) <= 0
            high, low = torch.where(past, middle, high), torch.where(past, low, middle)
            at = torch.where(past[:, None, None], there, at)
        return event, some, s[some] + high * h[some], at

    def _stop(self, which: Tensor) -> None:
        self.memory["status"][which & self.active] = int(Status.EVENT)
        self.active &= ~which

    def _value(self, event: Event, systems: Tensor, x: Tensor, s: Tensor) -> Tensor:
        motion = self.now.take(systems, len(self.x))
        v = motion.rate(x, s) if event.needs_velocity else None
        points, vectors = self._seen(motion, x, v, s)
        t = motion.time(s)
        assert isinstance(t, Tensor)
        return event.value(t, points, vectors if event.needs_velocity else None, motion.mass)

    @staticmethod
    def _seen(motion: Motion, x: Tensor, v: Tensor | None, s: float | Tensor) -> tuple[Tensor, Tensor]:
        return motion.space.seen(motion.field, x, v, motion.tokens(x), motion.time_of_field(s))


def _few(x: Tensor) -> Tensor:
    """Some systems of a batch, which stand for it where symmetries of the start are looked for."""
    return x.reshape(-1, *x.shape[-2:])[:16] if x.numel() else x


def _refuse_memory(x: Tensor, count: int) -> None:
    """Raise where the states to be kept are more than the machine holds, before hours are spent on them."""
    need, holds = count * x.numel() * x.element_size(), held_by(x.device)
    if need > holds:
        raise ValueError(
            f"simulate: {count} states of shape {tuple(x.shape)} are {gib(need)}, and the {x.device.type} holds {gib(holds)}; "
            "keep fewer times, or save=False with observe=Recorder([...])."
        )


def _clusters(field: Field) -> bool:
    """Whether tokens attract by the exponential kernel: rest away from consensus is then a saddle, or rounding."""
    return bool(field.terms) and all(
        isinstance(t, Attention)
        and t.kernel == "exp"
        and (t.value is None or (isinstance(t.value, (int, float)) and t.value > 0))
        for t in field.terms
    )


def _times(times: Sequence[float] | Tensor) -> Tensor:
    t = torch.as_tensor(times, dtype=torch.float64).reshape(-1).cpu()
    if not bool(torch.isfinite(t).all()) or bool((t.diff() <= 0).any()):
        raise ValueError(f"simulate: times are {t.tolist()}; expected finite times that rise.")
    return t


def _mass(x: Tensor, tokens: Tokens | None) -> Tensor | None:
    if tokens is None:
        return None
    if tokens.packed:
        raise ValueError(
            "simulate: the tokens are packed; pass padded systems (..., n, d) (Tokens.pad does that)."
        )
    if tokens.n != x.shape[-2]:
        raise ValueError(
            f"simulate: tokens describe {tokens.n} tokens, the start has {x.shape[-2]}; expected the same number."
        )
    return None if tokens.mass is None else tokens.mass.to(x.dtype)
