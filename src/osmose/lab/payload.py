"""A run as one JSON object, for pages that show it: positions, energy, clusters, inner products, attention, leaders.

Fields are listed in ``schema.py``. Shapes: ``F`` frames, ``n`` tokens, ``d`` coordinates, ``B`` bins.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..dynamics.fields import Field
from ..dynamics.gram import Gram
from ..dynamics.observables import distance_to_dirac, order_parameter
from ..dynamics.series import attention, directions, energies, exact_curve, mean_products, products
from ..dynamics.simulate import Solution
from ..dynamics.spaces import Circle
from ..dynamics.status import Status
from ..dynamics.terms import Attention
from ..dynamics.trajectory import Trajectory
from ..files import whole
from .schema import SCHEMA, VERSION, check_payload

PAIRS = 256  # tokens up to which weights of all pairs are given
LIMIT = 5_000_000  # bytes
BY_FRAME = ("positions", "angles", "radii", "order", "dirac")  # parts with an entry for each frame


def payload(
    solution: Solution,
    field: Field | None = None,
    *,
    times: Sequence[float] | Tensor | None = None,
    system: int | tuple[int, ...] = 0,
    name: str = "run",
    title: str = "",
    source: str = "",
    parameters: Mapping[str, Any] | None = None,
    beta: float | None = None,
    scale: float | None = None,
    attention_at: int | Sequence[float] | Tensor = 3,
    bins: int = 50,
    decimals: int = 4,
    limit: int = LIMIT,
) -> dict[str, Any]:
    """The payload of one system of a run, of plain JSON types.

    Args:
        solution: a run with its states kept.
        field: what drove it; None is that of the run. Energy, exact curve and attention are computed with it.
        times: of the frames; between saved times tokens are put on geodesics, and a note says so. None takes those saved.
        system: of a batch, an index of the leading dimensions or a number that counts through them.
        name, title, source: of the system, for the page.
        parameters: more of it: numbers, texts, lists of these.
        beta: to be shown; None is that of the field.
        scale: distance at which tokens are in one cluster; see ``Trajectory.scale``.
        attention_at: how many moments, even over the frames, or their times, have their attention matrices (in Gram space also
            their inner products) given.
        bins: of the histogram of inner products.
        decimals: to which positions, angles, lengths, inner products and weights are rounded.
        limit: bytes that the file may take.

    Returns:
        The object that ``check_payload`` describes. Over the limit attention that takes more than half of it is left out, then
        frames are thinned evenly, the first and last kept; ``left_out`` and ``thinned`` say so. Up to 256 tokens have
        attention and leaders.

    Raises:
        ValueError: times outside the run, no such system, parameters that JSON does not have, a limit that not even two frames
            fit.

    Cost: ``F n^2 d`` time for histograms, leaders and clusters; memory that of the object, some ten times the file.
    """
    if decimals < 0 or bins < 1 or limit < 1:
        raise ValueError(
            f"payload: decimals is {decimals}, bins {bins} and limit {limit}; expected decimals >= 0, the others at least 1."
        )
    trajectory = Trajectory.of(solution, system, field)
    frames = trajectory.times if times is None else torch.as_tensor(times, dtype=torch.float64).flatten()
    if not len(frames) or bool((frames.diff() <= 0).any()):
        raise ValueError(f"payload: times are {frames.tolist()}; expected at least one, and times that rise.")
    states = trajectory.at(frames, log=trajectory.log_time)
    keep, thinned = _keep(trajectory, len(frames), bins, decimals, limit)
    out = _Maker(trajectory, scale, bins, decimals).make(frames[keep], states[keep], attention_at)
    out["system"] |= {
        "name": name,
        "title": title or name,
        "source": source,
        "parameters": _plain(dict(parameters or {}), "parameters"),
    }
    if beta is not None:
        out["system"]["beta"] = _finite(beta)
    if thinned:
        out["thinned"]["frames"] = thinned
    systems = math.prod(out["system"]["shape"])
    if systems > 1:
        out["notes"].append(f"system {trajectory.index} of a batch of {systems}")
    between = int((~torch.isin(frames[keep], trajectory.times)).sum())
    if between:
        out["notes"].append(
            f"{between} of {len(keep)} frames lie between saved times: tokens are put on geodesics"
        )
    return _fitted(out, len(frames), limit)


def write_payload(path: str | os.PathLike[str], content: Mapping[str, Any], *, limit: int = LIMIT) -> Path:
    """Check a payload and write it, whole or not at all; returns the path.

    Raises:
        ValueError: it is no payload (the path of the field is named), it takes more than ``limit`` bytes, the folder does not
            exist.
    """
    target = Path(path)
    check_payload(content)
    text = _dump(content)
    if len(text) > limit:
        raise ValueError(
            f"write_payload: the payload takes {len(text):,} bytes; expected at most {limit:,}. Make it with payload(limit=...)."
        )
    if not target.parent.is_dir():
        raise ValueError(f"write_payload: the folder {target.parent} does not exist; make it first.")
    with whole(target) as part:
        part.write_bytes(text)
    return target


class _Maker:
    """The parts of a payload, for given frames of a trajectory."""

    def __init__(self, trajectory: Trajectory, scale: float | None, bins: int, decimals: int):
        self.trajectory, self.bins, self.decimals = trajectory, bins, decimals
        self.scale = trajectory.scale(scale)

    def make(
        self, times: Tensor, states: Tensor, attention_at: int | Sequence[float] | Tensor
    ) -> dict[str, Any]:
        run, left_out = self.trajectory, {}
        points = run.points(states)
        curve = exact_curve(run, times)
        gram = isinstance(run.space, Gram)
        if gram:
            left_out["positions"] = "the state is inner products, which have no places"
        at, shots = self._shots(times, attention_at)
        weights, why = self._attention(at, shots)
        leaders = None if why else self._leaders(times, points)
        if why:
            left_out |= {"attention": why, "leaders": why}
        if gram and run.tokens > PAIRS:
            left_out["gram"] = f"{run.tokens} tokens; given up to {PAIRS}"
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "system": self._system(),
            "times": [float(t) for t in times],
            "log_time": run.log_time,
            "positions": None if gram else self._rounded(points),
            "angles": self._rounded(states.squeeze(-1)) if isinstance(run.space, Circle) else None,
            "radii": self._rounded(run.radii(states)),
            "masses": None if run.mass is None else _numbers(run.mass),
            "energy": self._energy(states),
            "clusters": self._clusters(states),
            "products": self._products(states),
            "order": _numbers(order_parameter(directions(run, states), run.mass)),
            "dirac": _numbers(distance_to_dirac(points, run.mass, on="sphere" if run.spherical else "space")),
            "exact": {
                "values": None if curve.values is None else _numbers(torch.as_tensor(curve.values)),
                "start": _finite(curve.start),
                "exact": curve.exact,
                "note": curve.note,
            },
            "attention": weights,
            "gram": self._gram(at, shots) if gram and run.tokens <= PAIRS else None,
            "leaders": leaders,
            "events": {k: _finite(v.flatten()[run.index]) for k, v in run.solution.events.items()},
            "status": self._status(),
            "notes": list(run.solution.notes),
            "left_out": left_out,
            "thinned": {},
            "decimals": self.decimals,
        }

    def _rounded(self, x: Tensor | None) -> Any:
        return None if x is None else _numbers(x, self.decimals)

    def _system(self) -> dict[str, Any]:
        run = self.trajectory
        terms = run.field.terms
        laws = {getattr(term, "law_name", None) for term in terms}
        kernels = {getattr(term, "kernel", None) or getattr(term, "mixer", None) for term in terms}
        betas = {
            float(term.beta) for term in terms if isinstance(term, Attention) and term.kernel != "hardmax"
        }
        kernel = kernels.pop() if len(kernels) == 1 else None
        return {
            "n": run.tokens,
            "d": run.tokens if isinstance(run.space, Gram) else run.points(run.states[:1]).shape[-1],
            "beta": _finite(betas.pop()) if len(betas) == 1 else None,
            "law": laws.pop() if len(laws) == 1 else None,
            "kernel": kernel
            if kernel is None or isinstance(kernel, str)
            else getattr(kernel, "name", repr(kernel)),
            "field": _short(repr(run.field)),
            "space": repr(run.space),
            "stepper": repr(run.solution.run.stepper),
            "shape": list(run.solution.states.shape[1:-2]),
            "index": run.index,
        }

    def _energy(self, states: Tensor) -> dict[str, Any]:
        found = energies(self.trajectory, states)
        return {
            "values": None if found.values is None else _numbers(found.values),
            "normalised": None if found.normalised is None else _numbers(found.normalised),
            "log_scale": float(found.log_scale),
            "model": found.model,
            "note": found.note,
        }

    def _clusters(self, states: Tensor) -> dict[str, Any]:
        found = self.trajectory.clusters(states, self.scale)
        return {"scale": self.scale, "labels": found.labels.tolist(), "counts": found.count.tolist()}

    def _products(self, states: Tensor) -> dict[str, Any]:
        run = self.trajectory
        found = products(run, states, self.bins)
        return {
            "of": "inner products" if run.spherical else "cosines",
            "edges": found.edges.tolist(),
            "counts": _numbers(found.share * found.pairs.unsqueeze(-1), 3),
            "mean": _numbers(mean_products(run, states)),
        }

    def _shots(self, times: Tensor, at: int | Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
        """Times at which pairs are given, and the states there."""
        if isinstance(at, int):
            count = min(max(at, 0), len(times))
            chosen = times[torch.linspace(0, len(times) - 1, count).round().long()]
        else:
            chosen = torch.as_tensor(at, dtype=torch.float64).flatten()
        return chosen, self.trajectory.at(chosen, log=self.trajectory.log_time)

    def _attention(self, times: Tensor, states: Tensor) -> tuple[dict[str, Any] | None, str]:
        """Weights at some times; None, and why."""
        run = self.trajectory
        if run.tokens > PAIRS:
            return None, f"{run.tokens} tokens; weights of all pairs are given up to {PAIRS}"
        try:
            weights = [self._weights(t, x) for t, x in zip(times.tolist(), run.points(states), strict=True)]
            if not weights:  # leaders need to know whether there are any
                self._weights(float(run.times[0]), run.points(run.states[:1])[0])
        except ValueError as error:
            return None, str(error)
        return {"times": _numbers(times), "weights": [self._rounded(w) for w in weights]}, ""

    def _weights(self, t: float, x: Tensor) -> Tensor:
        """``(heads, n, n)`` at one state of points; what is rescaled attends as it was before."""
        run = self.trajectory
        unscale = getattr(run.space, "unscale", None)
        return attention(run.field, x if unscale is None else unscale(x, t), run.mass, t)

    def _leaders(self, times: Tensor, points: Tensor) -> dict[str, Any]:
        """By the mean of the heads: whom each token listens to most among the others, and whether it prefers itself."""
        follows, itself = [], []
        for t, x in zip(times.tolist(), points, strict=True):
            p = self._weights(t, x).mean(0)
            own = p.diagonal().clone()
            p.fill_diagonal_(-math.inf)
            best, who = p.max(-1)
            nobody = ~(best > 0)
            follows.append(torch.where(nobody, -1, who).tolist())
            itself.append(((own >= best) & (own > 0)).long().tolist())
        return {"follows": follows, "itself": itself}

    def _gram(self, times: Tensor, states: Tensor) -> dict[str, Any]:
        return {"times": _numbers(times), "values": self._rounded(states)}

    def _status(self) -> dict[str, Any]:
        solution, index = self.trajectory.solution, self.trajectory.index
        status = Status(int(solution.status.flatten()[index]))
        return {
            "name": status.name.lower(),
            "meaning": status.meaning,
            "steps": int(solution.steps.flatten()[index]),
        }


# ---- size -----------------------------------------------------------------------------------------


def _keep(trajectory: Trajectory, frames: int, bins: int, decimals: int, limit: int) -> tuple[Tensor, str]:
    """Which frames to compute: what cannot fit is not made. The exact size is looked at afterwards."""
    n, d = trajectory.states.shape[-2:]
    if isinstance(trajectory.space, Gram):
        d = 0
    least = n * (d * 2 + 4) + bins * 2  # bytes that a frame takes at least: a digit and a comma a number
    return _even(frames, min(frames, max(2, limit // least)), limit)


def _even(frames: int, count: int, limit: int) -> tuple[Tensor, str]:
    keep = torch.linspace(0, frames - 1, count, dtype=torch.float64).round().long().unique()
    said = f"{len(keep)} of {frames} frames, to stay under {limit:,} bytes" if len(keep) < frames else ""
    return keep, said


def _fitted(out: dict[str, Any], frames: int, limit: int) -> dict[str, Any]:
    """The payload under its limit: frames thinned evenly, then attention left out, else refused."""
    size = len(_dump(out))
    if size <= limit:
        return out
    pairs = sum(len(_dump(out[name])) for name in ("attention", "gram") if out[name] is not None)
    if pairs > limit // 2:
        for name in ("attention", "gram"):
            if out[name] is not None:
                out[name] = None
                out["left_out"][name] = f"{pairs:,} bytes of weights, beside a limit of {limit:,}"
        size = len(_dump(out))
    while size > limit and (have := len(out["times"])) > 2:
        count = max(2, min(have - 1, int(have * limit / size)))
        keep, _ = _even(have, count, limit)
        _thin(out, keep.tolist())
        out["thinned"]["frames"] = f"{len(keep)} of {frames} frames, to stay under {limit:,} bytes"
        size = len(_dump(out))
    if size > limit:
        n = out["system"]["n"]
        raise ValueError(
            f"payload: {len(out['times'])} frames of {n} tokens take {size:,} bytes; expected at most {limit:,}. Raise limit, or "
            "take fewer tokens, bins or decimals."
        )
    return out


def _thin(out: dict[str, Any], keep: list[int]) -> None:
    """Keep some frames, in place."""

    def some(values: Any) -> Any:
        return None if values is None else [values[k] for k in keep]

    out["times"] = some(out["times"])
    for name in BY_FRAME:
        out[name] = some(out[name])
    nested = {
        "energy": ("values", "normalised"),
        "clusters": ("labels", "counts"),
        "products": ("counts", "mean"),
        "exact": ("values",),
        "leaders": ("follows", "itself"),
    }
    for name, fields in nested.items():
        if out[name] is not None:
            for key in fields:
                out[name][key] = some(out[name][key])


# ---- numbers --------------------------------------------------------------------------------------


def _dump(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def _numbers(x: Tensor, decimals: int | None = None) -> Any:
    """Lists of numbers; null where they are not finite. Without decimals to nine digits."""
    values = x.detach().double().cpu().numpy()
    if decimals is not None:
        values = np.round(values, decimals) + 0.0  # no -0.0
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = 10.0 ** (8 - np.floor(np.log10(np.abs(values))))
            fine = np.isfinite(scale) & (scale > 0)
            values = np.where(
                fine, np.round(values * np.where(fine, scale, 1.0)) / np.where(fine, scale, 1.0), values
            )
    if bool(np.isfinite(values).all()):
        return values.tolist()
    return _nulls(values.tolist())


def _nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_nulls(entry) for entry in value]
    return value if math.isfinite(value) else None


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _plain(value: Any, path: str) -> Any:
    """Tensors, arrays, tuples and numbers as JSON has them."""
    if isinstance(value, Tensor):
        return _plain(value.detach().cpu().tolist(), path)
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist(), path)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{path}[{k}]") for k, v in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise ValueError(
        f"payload: {path} is {type(value).__name__}; expected numbers, texts, lists and mappings of these."
    )


def _short(text: str, most: int = 2000) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
