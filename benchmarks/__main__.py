"""``python -m benchmarks [--only NAME ...] [--quick] [--no-memory]``: run, print, and store as JSON."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

from . import dynamics, entries, flow, mixed, models, positions  # noqa: F401  (they fill the registry)
from .measure import MEMORY_UP_TO, ROUNDS, extra_memory, times
from .registry import ENTRIES, Entry

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """Where and with what the figures were taken."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in info if x.startswith("model name")), platform.processor())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "load": round(
            os.getloadavg()[1], 1
        ),  # of the last five minutes; above the threads, times are inflated
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def run(entry: Entry, quick: bool, memory: bool) -> None:
    """All cases of an entry, printed and stored as they come."""
    rows: list[dict] = []
    for index, case in enumerate(entry.cases(quick)):
        torch.manual_seed(0)
        inputs = case.inputs()
        element, count = inputs[0].numel() * inputs[0].element_size(), len(inputs)
        measured = {mode: times(case, mode, inputs, 3 if quick else ROUNDS) for mode in case.modes}
        del inputs
        gc.collect()
        for mode, results in measured.items():
            for name, result in results.items():
                fits = "skipped" not in result and count * element <= MEMORY_UP_TO
                if memory and fits and name != case.limit:
                    result["extra_bytes"] = extra_memory(entry.name, index, name, mode, quick)
                    result["extra_in_inputs"] = result["extra_bytes"] / element
                print(line(entry.name, case.label, mode, name, result), flush=True)
        rows.append({"size": case.size, "limit": case.limit, "modes": measured})
        if not quick:
            RESULTS.mkdir(exist_ok=True)
            stored = {"entry": entry.name, "title": entry.title, "machine": machine(), "cases": rows}
            (RESULTS / f"{entry.name}.json").write_text(json.dumps(stored, indent=1) + "\n")


def line(entry: str, label: str, mode: str, name: str, result: dict) -> str:
    head = f"{entry:12} {label:34} {mode:17} {name:27}"
    if "skipped" in result:
        return f"{head} does not fit: {result['skipped']}"
    text = f"{head} {1e3 * result['seconds']:10.1f} ms"
    if "ours_to_this" in result:
        text += f"   osmose takes {result['ours_to_this']:.2f} of it"
    if "extra_bytes" in result:
        text += f"   +{result['extra_bytes'] / 2**20:.0f} MiB ({result['extra_in_inputs']:.2f} inputs)"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed and memory, one thread.")
    parser.add_argument("--only", nargs="+", choices=sorted(ENTRIES), help="run these alone")
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds; not stored")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only or ENTRIES:
        run(ENTRIES[name], args.quick, not args.no_memory)


if __name__ == "__main__":
    main()
