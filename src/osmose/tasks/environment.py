"""Where a run was made: versions, commit, device, threads, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "accelerate",
    "scikit-learn",
    "scipy",
    "optuna",
    "torch-geometric",
)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Installed versions; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit of the source checkout this code runs from, `+` appended when it was changed; None elsewhere."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", "src")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def describe(device: str, processes: int = 1) -> dict[str, Any]:
    """JSON-ready description of machine, software and command."""
    import torch

    from osmose.__about__ import __version__

    return {
        "osmose": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "processes": processes,
        "command": sys.argv,
    }


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
