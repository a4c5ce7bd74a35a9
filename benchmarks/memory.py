"""The process that :func:`.measure.extra_memory` starts: ``python -m benchmarks.memory ENTRY CASE CONTENDER MODE QUICK``."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from . import dynamics, entries, flow, mixed, models, positions  # noqa: F401  (they fill the registry)
from .registry import ENTRIES, Inputs

WARM = 64  # tokens of the run that loads code


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}; memory is measured on Linux only.")


def main() -> None:
    entry, index, name, mode, quick = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = list(ENTRIES[entry].cases(bool(int(quick))))[int(index)]
    run = case.contenders[name].run
    small: Inputs = tuple(torch.randn(WARM, 1, 64).requires_grad_(i < 3) for i in range(4))
    for warm in ENTRIES["diffusion_s"].cases(True):
        for contender in warm.contenders.values():
            contender.run(small, mode)
        break
    inputs = case.inputs()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = run(inputs, mode)
    peak = status("VmHWM")
    del result
    print(json.dumps({"extra": max(0, peak - before)}))


if __name__ == "__main__":
    main()
