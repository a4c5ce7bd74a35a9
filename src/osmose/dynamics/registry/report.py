"""A named system measured: its targets beside what came out, its figure, its data, and where all that was made."""

from __future__ import annotations

import json
import math
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...__about__ import __version__
from ...files import whole
from ..pictures import style
from .base import Findings, System, Target, Told, silent


@dataclass(frozen=True)
class Check:
    """A target and its measurement."""

    target: Target
    measured: float

    @property
    def holds(self) -> bool:
        """Whether they agree within the tolerance."""
        return self.target.holds(self.measured)


@dataclass(frozen=True, eq=False)
class Report:
    """What :func:`reproduce` returns.

    Attributes:
        name, system: what was measured.
        quick: whether in small.
        checks: every target with its measurement.
        findings: all that was measured.
        seconds: how long it took.
        warnings: what the runs warned of.
        folder: where the files are.
    """

    name: str
    system: System
    quick: bool
    checks: tuple[Check, ...]
    findings: Findings
    seconds: float
    warnings: tuple[str, ...]
    folder: Path | None = None

    @property
    def holds(self) -> bool:
        """Whether every target was met."""
        return all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """All but the arrays, as plain types; numbers that are not finite are null."""
        checks = [{**asdict(c.target), "measured": c.measured, "holds": c.holds} for c in self.checks]
        return plain(
            {
                "name": self.name,
                "title": self.system.title,
                "source": self.system.source,
                "quick": self.quick,
                "parameters": self.system.parameters,
                "checks": checks,
                "measured": dict(self.findings.measured),
                "holds": self.holds,
                "seconds": round(self.seconds, 3),
                "warnings": list(self.warnings),
            }
        )


def reproduce(
    name: str,
    *,
    quick: bool = False,
    folder: Path | str | None = None,
    told: Told = silent,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Measure a named system, draw its figure, and compare with its targets.

    Args:
        name: of :data:`~osmose.dynamics.registry.SYSTEMS`.
        quick: in small: the same kind of run, fewer draws or smaller numbers, and tolerances that go with them.
        folder: gets ``figure.png``, ``data.npz`` and ``report.json``, each whole or not at all; None: no files.
        told: hears how far it is.
        about: added to the report on disk, e.g. the machine.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a system that left one of its targets unmeasured.
    """
    from . import named

    system = named(name)
    system = system.quick() if quick else system
    path = None if folder is None else Path(folder)
    if path is not None:
        path.mkdir(
            parents=True, exist_ok=True
        )  # before it is measured: what cannot be written is known at once
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        findings = system.measure(told)
    seconds = time.perf_counter() - started
    targets = system.targets()
    missing = [t.name for t in targets if t.name not in findings.measured]
    if missing:
        raise RuntimeError(f"reproduce: {name} has targets that it does not measure: {', '.join(missing)}.")
    checks = tuple(Check(t, float(findings.measured[t.name])) for t in targets)
    said = tuple(dict.fromkeys(str(w.message) for w in caught))
    report = Report(name, system, quick, checks, findings, seconds, said, path)
    if path is not None:
        _write(report, path, about or {})
    return report


def _write(report: Report, folder: Path, about: Mapping[str, Any]) -> None:
    arrays = {key: _array(value) for key, value in report.findings.data.items()}
    with whole(folder / "data.npz") as part:
        np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
    made = {
        "osmose": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        **about,
    }
    text = json.dumps({**report.to_json(), "made": made}, indent=2) + "\n"
    with whole(folder / "report.json") as part:
        part.write_text(text, encoding="utf-8")
    # last: what was measured is safe by now
    with style(), whole(folder / "figure.png") as part:
        report.system.draw(report.findings).savefig(part, dpi=150)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def plain(value: Any) -> Any:
    """JSON types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
