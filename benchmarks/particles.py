"""The particle systems on the page: the table of targets, and the figures that the page shows.

``osmose reproduce --all`` measures everything and leaves ``runs/reproduce``; ``python -m benchmarks.particles [--runs FOLDER]`` takes
the table and figures from there into ``docs/``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from osmose.cli.reproduce import number
from osmose.dynamics.registry import SYSTEMS

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {
    "phase/sa/d=128": "particles_phase.png",
    "metastable/staircase": "particles_staircase.png",
    "movie/sphere": "particles_sphere.png",
    "normalisation/schemes": "particles_normalisation.png",
    "unprojected/polytope": "particles_polytope.png",
}
COLOURS = 128  # of a figure on the page


def main(arguments: list[str] | None = None) -> None:
    """Write ``docs/particles.md`` and the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.particles", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "reproduce", help="of osmose reproduce --all"
    )
    options = parser.parse_args(arguments)
    reports = {name: options.runs / name / "report.json" for name in SYSTEMS}
    missing = [name for name, path in reports.items() if not path.is_file()]
    if missing:
        raise SystemExit(
            f"{options.runs} has no {', '.join(missing)}; run `osmose reproduce --all --out {options.runs}`"
        )
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in reports.values()]
    page = ROOT / "docs" / "particles.md"
    page.write_text(_page(rows), encoding="utf-8")
    for name, file in SHOWN.items():
        with Image.open(options.runs / name / "figure.png") as image:
            image.convert("RGB").quantize(COLOURS).save(ROOT / "docs" / "figures" / file, optimize=True)
    print(f"written: {page}, {len(SHOWN)} figures")


def _page(rows: list[dict[str, Any]]) -> str:
    made, commits = rows[0]["made"], {str(row["made"].get("commit")): None for row in rows}
    checks = [check["holds"] for row in rows for check in row["checks"]]
    small = " in small (`--quick`)" if rows[0]["quick"] else ""
    lines = [
        "# Particle systems, measured",
        "",
        f"`osmose reproduce --all`{small}: {sum(checks)} of {len(checks)} targets of {len(rows)} systems hold, "
        f"{sum(row['seconds'] for row in rows):.0f} s in all on {made['threads']} thread(s). osmose {made['osmose']}, commit "
        f"{' and '.join(commits)}, torch {made['torch']}.",
        "",
    ]
    for row in rows:
        lines += [
            f"## {row['name']}",
            "",
            f"{row['title'][0].upper()}{row['title'][1:]}. *{row['source']}*",
            "",
        ]
        if row["checks"]:
            lines += ["| quantity | target | measured | tolerance | |", "|---|---|---|---|---|"]
        for check in row["checks"]:
            sign = {"equal": "", "at most": "≤ ", "at least": "≥ "}[check["sense"]]
            cells = (
                check["name"], sign + number(check["value"]), number(check["measured"]), number(check["tolerance"]),
                "" if check["holds"] else "missed",
            )  # fmt: skip
            lines.append(
                "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
