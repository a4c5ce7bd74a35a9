"""``python -m benchmarks.report``: stored results to a table in docs/benchmarks.md and a figure in docs/figures."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .__main__ import RESULTS

DOCS = Path(__file__).parent.parent / "docs"

INTRO = """# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results`; `make bench` measures again.

One thread. Contenders run in turns in one process; times are medians over rounds, "ours / this" is the median of the ratios
inside a round, so below 1 osmose is faster. Extra memory is what one run adds to the resident memory of a fresh process
at its peak (`VmHWM`), outputs and gradients included, in multiples of one input tensor. "Matrix products" are the
products that the formula needs and nothing else: no implementation by products is faster.
"""


def size_of(case: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in case["size"].items())


def table(stored: dict) -> list[str]:
    """One row for each size, mode and contender."""
    rows = [
        "| size | pass | what | time, ms | ours / this | extra memory, inputs |",
        "|---|---|---|---|---|---|",
    ]
    for case in stored["cases"]:
        for mode, results in case["modes"].items():
            for name, r in results.items():
                if "skipped" in r:
                    rows.append(f"| {size_of(case)} | {mode} | {name} | does not fit: {r['skipped']} | | |")
                    continue
                ratio = f"{r['ours_to_this']:.2f}" if "ours_to_this" in r else ""
                memory = f"{r['extra_in_inputs']:.1f}" if "extra_in_inputs" in r else ""
                rows.append(
                    f"| {size_of(case)} | {mode} | {name} | {1e3 * r['seconds']:.1f} | {ratio} | {memory} |"
                )
    return rows


def losses(stored: dict) -> list[str]:
    """Where a competitor was faster, and by how much."""
    found = []
    for case in stored["cases"]:
        for mode, results in case["modes"].items():
            for name, r in results.items():
                if name != case["limit"] and not name.startswith("osmose") and r.get("ours_to_this", 0) > 1:
                    found.append(
                        f"* {size_of(case)}, {mode}: {name} is {r['ours_to_this']:.2f} times as fast."
                    )
    return found


def figure(stored: dict, path: Path) -> bool:
    """Time against n for each contender, if the entry runs over n; one panel for each pass and number of heads."""
    cases = stored["cases"]
    groups = sorted({case["size"].get("heads", 1) for case in cases})
    modes = list(cases[0]["modes"])
    if len({case["size"].get("n") for case in cases}) < 2 or "sets" in cases[0]["size"]:
        return False
    fig, axes = plt.subplots(
        len(groups),
        len(modes),
        figsize=(5 * len(modes), 3.6 * len(groups)),
        squeeze=False,
        layout="constrained",
    )
    for row, heads in zip(axes, groups, strict=True):
        for axis, mode in zip(row, modes, strict=True):
            own = [case for case in cases if case["size"].get("heads", 1) == heads]
            for name in own[0]["modes"][mode]:
                points = [
                    (c["size"]["n"], c["modes"][mode][name]["seconds"])
                    for c in own
                    if "seconds" in c["modes"][mode].get(name, {})
                ]
                style = "--" if name == own[0]["limit"] else "-"
                axis.loglog(*zip(*points, strict=True), style, marker="o", markersize=3, label=name)
            title = f"{mode}, {heads} head{'s' * (heads > 1)}" if "heads" in own[0]["size"] else mode
            axis.set(title=title, xlabel="n", ylabel="seconds")
    axes[0][0].legend(fontsize=8)
    fig.savefig(path, dpi=120)
    plt.close(fig)
    return True


def main() -> None:
    (DOCS / "figures").mkdir(parents=True, exist_ok=True)
    text = [INTRO]
    for path in sorted(RESULTS.glob("*.json")):
        stored = json.loads(path.read_text())
        machine = ", ".join(f"{key} {value}" for key, value in stored["machine"].items())
        text += [f"## {stored['title']}", "", f"Machine: {machine}.", ""]
        picture = DOCS / "figures" / f"benchmark_{stored['entry']}.png"
        if figure(stored, picture):
            text += [f"![{stored['title']}: time against n](figures/{picture.name})", ""]
        text += [*table(stored), ""]
        lost = losses(stored)
        if lost:
            text += ["Where osmose loses:", "", *lost, ""]
    (DOCS / "benchmarks.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
