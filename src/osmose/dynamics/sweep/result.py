r"""What a sweep leaves: the value of every seed, and means with intervals over seeds.

Shapes: ``A`` the axes that are left of (n, d, beta), ``S`` seeds, ``K`` times, ``...`` of the observable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..status import Status
from .files import read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class Statistic:
    """An observable over seeds. All are ``(A, K, ...)``, without K where the observable has one value of a run.

    Attributes:
        mean: over the seeds whose runs reached the end; NaN for none.
        deviation: sample deviation; NaN for fewer than two.
        low, high: the interval of Student's t for the mean.
        count: seeds in the mean, ``(A)``.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    count: Tensor


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Values of a sweep. ``result["name"]`` is the :class:`Statistic` of an observable.

    Attributes:
        axes: values of n, d, beta, in this order; what :meth:`select` fixed is gone.
        fixed: what :meth:`select` fixed.
        seeds: of the starts. The same seed has the same start at every beta, so values of two betas are paired.
        times: ``(K,)``.
        values: of every observable and seed, ``(A, S, K, ...)``, float64, without K for those not in ``series``.
        series: observables with a value for each time.
        status: :class:`~osmose.dynamics.Status` of every run, ``(A, S)``.
        level: of the intervals.
        settings: what was asked, in JSON; ``spaces`` says for each (n, d) where it ran.
        notes: what was special in starts and steps.
    """

    axes: dict[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    times: Tensor
    values: dict[str, Tensor]
    series: frozenset[str]
    status: Tensor
    level: float = 0.95
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fixed: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Statistic:
        if name not in self.values:
            raise KeyError(f"SweepResult: no observable {name!r}; there are {', '.join(self.values)}.")
        x, good = self.values[name], ~self.failed
        seeds = len(self.axes)
        kept = good.view(*good.shape, *(1,) * (x.ndim - good.ndim))
        count = kept.sum(seeds)
        mean = torch.where(kept, x, 0.0).sum(seeds) / count
        apart = torch.where(kept, x - mean.unsqueeze(seeds), 0.0).square().sum(seeds)
        deviation = (apart / (count - 1).clamp(min=0)).sqrt()
        half = _quantile(count - 1, self.level).to(x) * deviation / count.sqrt()
        return Statistic(mean, deviation, mean - half, mean + half, good.sum(seeds))

    @property
    def failed(self) -> Tensor:
        """Runs that did not reach the last time, ``(A, S)``: they are in ``values``, and in no mean."""
        return self.status > int(Status.PINNED)

    @property
    def failures(self) -> dict[str, int]:
        """How many runs ended otherwise than at the last time, or pinned there, by the name of their status."""
        counts = {s.name: int((self.status == s).sum()) for s in Status if s > Status.EVENT}
        return {name: count for name, count in counts.items() if count}

    def select(self, **chosen: float | Sequence[float]) -> SweepResult:
        """The part of some values of n, d, beta: a number fixes its axis, which is gone then, a sequence shortens it.

        Raises:
            ValueError: an axis or a value that is not there.
        """
        out = self
        for name, wanted in chosen.items():
            if name not in out.axes:
                raise ValueError(
                    f"SweepResult.select: no axis {name!r}; there are {', '.join(out.axes) or 'none left'}."
                )
            out = out._chosen(name, wanted)
        return out

    def _chosen(self, name: str, wanted: float | Sequence[float]) -> SweepResult:
        there, axis = self.axes[name], list(self.axes).index(name)
        some = [float(v) for v in (wanted if isinstance(wanted, (Iterable, Tensor)) else [wanted])]
        index = []
        for value in some:
            near = [i for i, v in enumerate(there) if abs(v - value) <= 1e-9 * max(abs(v), abs(value))]
            if not near:
                shown = ", ".join(f"{v:g}" for v in (there if len(there) < 9 else (*there[:4], *there[-4:])))
                raise ValueError(
                    f"SweepResult.select: {name} = {value:g} is not of the sweep; there are {shown}."
                )
            index.append(near[0])
        fix = not isinstance(wanted, (Iterable, Tensor))

        def part(x: Tensor) -> Tensor:
            return x.select(axis, index[0]) if fix else x.index_select(axis, torch.tensor(index))

        values = {k: part(v) for k, v in self.values.items()}
        axes = {k: v for k, v in self.axes.items() if k != name or not fix}
        if fix:
            fixed = self.fixed | {name: there[index[0]]}
            return replace(self, axes=axes, values=values, status=part(self.status), fixed=fixed)
        axes[name] = tuple(there[i] for i in index)
        return replace(self, axes=axes, values=values, status=part(self.status))

    def table(self, time: float | None = None) -> str:
        """Means and intervals at the output time nearest to ``time`` (None: the last), a row for each of ``A``.

        Observables with more than one number are left out.
        """
        k = -1 if time is None else int((self.times - time).abs().argmin())
        plain = [n for n, v in self.values.items() if v.ndim == self.status.ndim + (n in self.series)]
        rows = [[*self.axes, *(f"{n} [{self.level:.0%}]" for n in plain), "seeds"]]
        shown = []
        for name in plain:
            s = self[name]
            parts = (s.mean, s.low, s.high)
            shown.append([p[..., k].reshape(-1) if name in self.series else p.reshape(-1) for p in parts])
        counts = (~self.failed).sum(-1).reshape(-1).tolist()
        where = product(*self.axes.values())
        for i, place in enumerate(where):
            cells = [f"{m[i]:.4g} [{a[i]:.4g}, {b[i]:.4g}]" for m, a, b in shown]
            rows.append([*(f"{v:g}" for v in place), *cells, str(counts[i])])
        wide = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, wide, strict=True)) for row in rows]
        head = ", ".join([*(f"{k} = {v:g}" for k, v in self.fixed.items()), f"t = {float(self.times[k]):g}"])
        failed = "".join(f"\n{count} runs: {Status[name].meaning}" for name, count in self.failures.items())
        return "\n".join([head, *lines]) + failed

    def __repr__(self) -> str:
        axes = ", ".join(f"{k}: {len(v)}" for k, v in self.axes.items())
        bad = "".join(f", {k.lower()}: {v}" for k, v in self.failures.items())
        return f"SweepResult({axes}, seeds: {len(self.seeds)}, times: {len(self.times)}; {', '.join(self.values)}{bad})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, with all but the tensors as JSON in its header; written as a whole."""
        about = {
            "axes": self.axes,
            "seeds": self.seeds,
            "series": sorted(self.series),
            "level": self.level,
            "settings": self.settings,
            "notes": self.notes,
            "fixed": self.fixed,
        }
        values = {f"values/{k}": v for k, v in self.values.items()}
        write_tensors(Path(path), values | {"times": self.times, "status": self.status}, {"result": about})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepResult:
        """What :meth:`save` wrote.

        Raises:
            ValueError: a file that is no sweep's, or is damaged.
        """
        from safetensors import SafetensorError

        try:
            tensors, meta = read_tensors(Path(path))
            about = meta["result"]
        except (SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"SweepResult.load: {path} is no saved sweep, or damaged: {error}.") from None
        return cls(
            axes={k: tuple(v) for k, v in about["axes"].items()},
            seeds=tuple(about["seeds"]),
            times=tensors["times"],
            values={k.removeprefix("values/"): v for k, v in tensors.items() if k.startswith("values/")},
            series=frozenset(about["series"]),
            status=tensors["status"],
            level=about["level"],
            settings=about["settings"],
            notes=tuple(about["notes"]),
            fixed=about["fixed"],
        )


def _quantile(freedom: Tensor, level: float) -> Tensor:
    """Student's t at which the central interval has ``level``; NaN without a degree of freedom."""
    from scipy.special import stdtrit

    f = np.atleast_1d(freedom.double().numpy())
    t = torch.from_numpy(stdtrit(f.clip(min=1), (1 + level) / 2)).view(freedom.shape)
    return t.where(freedom > 0, torch.nan)
