"""`osmose doctor`: is the installation sound?"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from osmose.cli.options import FlatOutput, Output, parse, print_json


@dataclass(frozen=True)
class DoctorCommand:
    """Check versions, devices, optional packages, data and a small computation. Exit code 1 if something is broken."""

    output: FlatOutput = field(default_factory=Output)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    state: str
    """ok, note (works without it) or broken"""
    text: str


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(DoctorCommand, "doctor", arguments)
    findings: list[Finding] = []
    for name, check in _CHECKS.items():
        try:
            findings.append(Finding(name, *check()))
        except Exception as error:  # a check that fails in any way is a finding, the others still run
            findings.append(Finding(name, "broken", f"{type(error).__name__}: {error}"))
    broken = any(finding.state == "broken" for finding in findings)
    if command.output.json:
        print_json({"healthy": not broken, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{finding.state:<7} {finding.check:<12} {finding.text}")
    if broken:
        raise SystemExit(1)


def _python() -> tuple[str, str]:
    good = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.platform()}"
    return ("ok", text) if good else ("broken", f"{text}; osmose needs 3.11 or newer")


def _packages() -> tuple[str, str]:
    from osmose.tasks.environment import versions

    found = versions()
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = [name for name, version in found.items() if version is None]
    return ("note", f"{text}; not installed: {', '.join(missing)} (osmose[all])") if missing else ("ok", text)


def _devices() -> tuple[str, str]:
    import torch

    threads = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return "ok", f"{names}; {threads}"
    if torch.accelerator.is_available():
        return "ok", f"{torch.accelerator.current_accelerator()}; {threads}"
    return "ok", f"no GPU, that is fine; {threads}"


def _data() -> tuple[str, str]:
    from osmose.data import NodeData, load

    digits = load("digits", splits=1)
    assert isinstance(digits, NodeData)
    folder = os.environ.get("OSMOSE_DATA")
    raw = (
        f"OSMOSE_DATA is {folder}"
        if folder
        else "OSMOSE_DATA is not set: public sets are fetched when first used"
    )
    if folder and not Path(folder).is_dir():
        return "broken", f"OSMOSE_DATA is {folder}, which is no folder"
    return "ok", f"digits: {digits.num_nodes} rows; {raw}"


def _computation() -> tuple[str, str]:
    import torch

    from osmose.models import build
    from osmose.models.config import ModelConfig, Shape

    torch.manual_seed(0)
    x, edges = torch.randn(32, 5), torch.randint(0, 32, (2, 64))
    order = torch.randperm(32)
    place = torch.argsort(order)
    model = build(ModelConfig(hidden=8), Shape("nodes", 5, 3)).eval()
    out = model(x, edges)
    moved = model(x[order], place[edges])
    out.sum().backward()
    error = (out[order] - moved).abs().max().item()
    finite = all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    text = f"a model forward and backward; rows permuted: same result within {error:.0e}"
    return ("ok", text) if error < 1e-4 and finite else ("broken", text)


def _disk() -> tuple[str, str]:
    here = Path.cwd()
    writable = os.access(here, os.W_OK)
    return (
        ("ok", f"{here} is writable")
        if writable
        else ("note", f"{here} is read-only: give --out when training")
    )


_CHECKS: dict[str, Callable[[], tuple[str, str]]] = {
    "python": _python,
    "packages": _packages,
    "devices": _devices,
    "data": _data,
    "computation": _computation,
    "runs": _disk,
}
