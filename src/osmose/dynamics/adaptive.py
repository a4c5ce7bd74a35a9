r"""Steppers that choose their steps: an embedded pair with a step for every system of a batch, and SciPy's stiff solvers.

Shapes: ``P`` systems of a batch, states ``x (P, n, d)``, times ``(P,)``; ``k`` systems in motion.

Source: Dormand and Prince, 1980, in normal coordinates of the state at the start of each step; SciPy's ``solve_ivp``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .motion import Motion
from .status import Status
from .steppers import Stepper, Watch

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0


class Adaptive(Stepper):
    """Dormand-Prince 5(4); every system of a batch takes steps of its own.

    The error of a step is that of the worst token: an angle on the sphere and the circle, elsewhere relative to ``|x_i|``.
    Explicit, so its steps end at a few units of the fastest rate (about 3 for SA): for metastable states take
    :class:`Stiff`, or the merge model.

    Args:
        rtol: error allowed in a step.
        atol: added to it, for flat spaces.
        max_steps: of a system between two output times; past it the status is ``MAX_STEPS``.
    """

    def __init__(self, rtol: float = 1e-8, atol: float = 0.0, max_steps: int = 100_000):
        if not (0 < rtol < 1 and atol >= 0):
            raise ValueError(
                f"Adaptive: rtol is {rtol} and atol {atol}; expected 0 < rtol < 1 and atol >= 0."
            )
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps

    def __repr__(self) -> str:
        return f"Adaptive(rtol={self.rtol:g})"

    def advance(
        self,
        motion: Motion,
        x: Tensor,
        start: float,
        stop: float,
        active: Tensor,
        memory: dict[str, Any],
        watch: Watch,
        generator: torch.Generator | None,
    ) -> Tensor:
        systems = len(x)
        s = torch.full((systems,), start, dtype=torch.float64, device=x.device)
        steps = memory.setdefault(
            "h", torch.full((systems,), torch.nan, dtype=torch.float64, device=x.device)
        )
        going, x, tries = active.clone(), x.clone(), 0
        index, slope, here = going.nonzero().squeeze(-1), None, motion
        while len(index):
            if slope is None:
                here = motion.take(index, systems)
                slope = here.velocity(x[index], s[index])
            old, at = x[index], s[index]
            fresh = torch.isnan(steps[index])
            if bool(fresh.any()):
                steps[index] = torch.where(fresh, self._first(motion, old, slope, stop - at), steps[index])
            wanted = steps[index]
            h = torch.minimum(wanted, stop - at)
            new, error, last = self._try(here, old, at, h, slope)
            good = error <= 1
            # not a power, whose last bit depends on the place in the batch
            factor = (SAFETY * torch.exp(-0.2 * error.clamp(min=1e-12).log())).clamp(SHRINK, GROW)
            # a step cut short to land on an output time says little of the next one
            steps[index] = torch.where(
                good, torch.maximum(h * factor, torch.where(h < wanted, wanted, 0.0)), h * factor
            )
            tiny = ~good & (at + steps[index] <= at)
            tries += 1
            late = torch.full_like(good, tries >= self.max_steps)
            for bad, status in (
                (tiny, Status.STEP_TOO_SMALL),
                (late & ~tiny & ~(good & (h >= stop - at)), Status.MAX_STEPS),
            ):
                memory["status"][index[bad]] = int(status)
                going[index[bad]] = active[index[bad]] = False
            done = good & (h >= stop - at)
            chosen = good.nonzero().squeeze(-1)
            if len(chosen):
                moved, part = index[chosen], here.take(chosen, len(index))

                def redo(
                    some: Tensor, share: Tensor, part: Motion = part, old: Tensor = old[chosen], at: Tensor = at[chosen],
                    h: Tensor = h[chosen], slope: Tensor = slope[chosen],
                ) -> Tensor:  # fmt: skip
                    sub = part.take(some, len(old))
                    return self._try(sub, old[some], at[some], h[some] * share, slope[some])[0]

                after, stopped = watch(moved, old[chosen], at[chosen], new[chosen], h[chosen], redo)
                x[moved] = after
                s[moved] = torch.where(done[chosen], stop, at[chosen] + h[chosen])
                going[moved[stopped]] = active[moved[stopped]] = False
            going[index[done]] = False
            keep = going[index]
            # the last stage is the first of the next step, where the step was taken
            slope = torch.where(good[:, None, None], last, slope)[keep]
            if bool(keep.all()):
                continue
            index = index[keep]
            here = motion.take(index, systems)
        return x

    def _first(self, motion: Motion, x: Tensor, v: Tensor, span: Tensor) -> Tensor:
        speed = (v.norm(dim=-1) / torch.as_tensor(motion.space.size(x)).clamp(min=1e-300)).amax(-1).double()
        return torch.minimum(span, 0.1 * self.rtol**0.2 / speed.clamp(min=1e-300))

    def _try(
        self, motion: Motion, x: Tensor, s: Tensor, h: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state after h, its error over the tolerance ``(k,)``, and the velocity there."""
        space, step = motion.space, h[:, None, None].to(x.dtype)
        slopes = [first]
        y, u, v, far = x, torch.zeros_like(x), first, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for weights, node in zip(STAGES, NODES[1:], strict=True):
            u = step * _combined(weights, slopes)
            if space.reach < math.inf:
                far = far | ~(u.norm(dim=-1).amax(-1) < 0.9 * space.reach)
                u = torch.where(far[:, None, None], 0.0, u)
            y = space.exp(x, u)
            v = motion.velocity(y, s + node * h)
            slopes.append(space.pull(x, u, v))
        off = step * _combined(ERROR, slopes)
        error = (off.norm(dim=-1) / (self.atol + self.rtol * space.size(x) + 1e-300)).amax(-1).double()
        return y, torch.where(far | ~torch.isfinite(error), torch.inf, error), v


def _combined(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """``sum w k``, over the weights that are not 0."""
    some = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    out = some[0][0] * some[0][1]
    for w, k in some[1:]:
        out += w * k
    return out


class Stiff(Stepper):
    """SciPy's LSODA, BDF or Radau, one system after another, for motion on scales far apart.

    On the sphere the field is extended along rays and states are brought back to length 1. The Jacobian is by differences,
    ``n d`` velocities each: take :class:`Circle`, where it is n. Solvers start anew at every output time.

    Args:
        method: ``LSODA``, ``BDF`` or ``Radau``.
        rtol, atol: of the solver; atol is an angle on the sphere and the circle.
        max_steps: of a system between two output times.
    """

    def __init__(
        self,
        method: Literal["LSODA", "BDF", "Radau"] = "LSODA",
        rtol: float = 1e-8,
        atol: float = 1e-10,
        max_steps: int = 100_000,
    ):
        if method not in ("LSODA", "BDF", "Radau"):
            raise ValueError(f"Stiff: method is {method!r}; expected 'LSODA', 'BDF' or 'Radau'.")
        self.method, self.rtol, self.atol, self.max_steps = method, rtol, atol, max_steps

    def __repr__(self) -> str:
        return f"Stiff({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"

    def advance(
        self,
        motion: Motion,
        x: Tensor,
        start: float,
        stop: float,
        active: Tensor,
        memory: dict[str, Any],
        watch: Watch,
        generator: torch.Generator | None,
    ) -> Tensor:
        x = x.clone()
        for i in active.nonzero().squeeze(-1).tolist():
            one = torch.tensor([i], device=x.device)
            here = motion.take(one, len(x))
            x[one], goes, status = self._system(here, x[one], start, stop, one, watch)
            if status is not None:
                memory["status"][i] = int(status)
            active[i] = goes
        return x

    def _system(
        self, motion: Motion, x: Tensor, start: float, stop: float, index: Tensor, watch: Watch
    ) -> tuple[Tensor, bool, Status | None]:
        from scipy import integrate

        shape, home = x.shape, torch.zeros_like(x)

        def state(y: np.ndarray) -> Tensor:
            return motion.space.retract(torch.from_numpy(np.array(y)).to(x).reshape(shape), home)

        def slope(s: float, y: np.ndarray) -> np.ndarray:
            return motion.velocity(state(y), float(s)).double().cpu().numpy().ravel()

        solver = getattr(integrate, self.method)(
            slope, start, x.double().cpu().numpy().ravel(), stop, rtol=self.rtol, atol=self.atol
        )
        for _ in range(self.max_steps):
            message = solver.step()
            if solver.status == "failed":
                too_small = message is not None and "step size" in message
                return x, False, Status.STEP_TOO_SMALL if too_small else Status.FAILED
            before, h = float(solver.t_old), float(solver.t - solver.t_old)
            new, dense = state(solver.y), solver.dense_output()

            def redo(
                some: Tensor, share: Tensor, before: float = before, h: float = h, dense: Any = dense
            ) -> Tensor:
                return state(dense(before + h * float(share[0])))

            at = torch.tensor([before], dtype=torch.float64, device=x.device)
            x, stopped = watch(index, x, at, new, torch.full_like(at, h), redo)
            if bool(stopped):
                return x, False, None
            if solver.status == "finished":
                return x, True, None
        return x, False, Status.MAX_STEPS
