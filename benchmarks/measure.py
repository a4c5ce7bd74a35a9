"""Alternating times in one process; peak memory in a fresh one.

Time: contenders take turns, A B A B, so that a machine that slows down slows all of them; medians are over rounds,
and a ratio is the median of the ratios inside a round.

Memory: a fresh process makes the inputs, runs some attention on a small size so that code and libraries are loaded,
resets the kernel's high-water mark of its resident memory (``/proc/self/clear_refs``), runs the contender
once, and reads the mark (``VmHWM``). Extra memory is the mark less the resident memory just before. It counts what
the allocator really took, outputs and gradients included, rounded to pages.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .registry import Case, Inputs

ROUNDS = 9
SECONDS = 20.0  # of one mode of one case, after which rounds end at the third
SYSTEM_RESERVE = 2.0  # GiB left to everything else
MEMORY_UP_TO = 2 << 30  # bytes of inputs; beyond, memory is what smaller sizes say, it grows linearly


def available_gib() -> float:
    """Memory that the kernel says is free to take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/meminfo has no MemAvailable; benchmarks need Linux 3.14 or newer.")


def unfit(case: Case, name: str, mode: str, inputs: Inputs) -> str | None:
    """Why a contender cannot run here, or None."""
    factor = case.contenders[name].memory.get(mode, 0)
    need = factor * inputs[0].numel() * inputs[0].element_size() / 2**30
    free = available_gib() - SYSTEM_RESERVE
    return f"needs {need:.0f} GiB more, {free:.0f} are free" if need > free else None


def times(case: Case, mode: str, inputs: Inputs, rounds: int = ROUNDS) -> dict[str, dict]:
    """Seconds of every contender that fits, and the reason of those that do not."""
    result: dict[str, dict] = {}
    runs: dict[str, list[float]] = {}
    for name in case.contenders:
        reason = unfit(case, name, mode, inputs)
        if reason:
            result[name] = {"skipped": reason}
        else:
            runs[name] = []
    begin = time.perf_counter()
    for i in range(rounds + 1):
        for name, seconds in runs.items():
            start = time.perf_counter()
            case.contenders[name].run(inputs, mode)
            if i:  # the first round warms up
                seconds.append(time.perf_counter() - start)
        if i >= 3 and time.perf_counter() - begin > SECONDS:
            break
    for name, seconds in runs.items():
        result[name] = {
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "rounds": len(seconds),
        }
    ours, *others = case.contenders
    for name in others:
        if name in runs and ours in runs:
            pairs = zip(runs[ours], runs[name], strict=True)
            result[name]["ours_to_this"] = statistics.median(a / b for a, b in pairs)
    return result


def extra_memory(entry: str, index: int, name: str, mode: str, quick: bool) -> int:
    """Bytes above the inputs at the peak of one run, measured in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", entry, str(index), name, mode, str(int(quick))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmarks.memory failed for {entry}, {name}, {mode}:\n{done.stderr}")
    return json.loads(done.stdout)["extra"]
