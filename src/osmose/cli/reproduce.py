"""`osmose reproduce NAME`: a named system of particles measured against what theory and papers say."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.dynamics.registry import Report


@dataclass(frozen=True)
class ReproduceCommand:
    """Run named systems of particles, draw their figures with the exact curves, and put every measurement beside its target
    and tolerance. The exit code is 1 where a target is missed. `osmose simulate --list` names the systems.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME ...")] = ()
    """systems; the beginning of a name stands for all that begin so (codes: codes/tetrahedron, ...)"""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """every system"""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """in small: seconds each, with tolerances that go with it"""
    out: Path = Path("runs") / "reproduce"
    """folder: NAME/figure.png, NAME/data.npz, NAME/report.json, and the table of this call as reproduce.md and .json"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(ReproduceCommand, "reproduce", arguments)
    if bool(command.names) == command.all:
        raise ValueError(
            "reproduce: name one or more systems, or give --all for every one (`osmose simulate --list` names them)"
        )
    from osmose.dynamics.registry import SYSTEMS, reproduce
    from osmose.tasks.environment import describe

    names = list(SYSTEMS) if command.all else _chosen(command.names, list(SYSTEMS))
    about = describe("cpu")
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names, 1):

        def told(words: str, name: str = name, number: int = number) -> None:
            if not command.output.json and sys.stderr.isatty():
                print(
                    f"\r\x1b[K{number} of {len(names)}  {name}: {words}", end="", file=sys.stderr, flush=True
                )

        told("starting")
        try:
            report = reproduce(name, quick=command.quick, folder=command.out / name, told=told, about=about)
        except (ValueError, RuntimeError, ArithmeticError) as error:
            if len(names) == 1:
                raise
            rows.append({"name": name, "holds": False, "error": str(error), "checks": [], "seconds": 0.0})
        else:
            rows.append({**report.to_json(), "figure": str(command.out / name / "figure.png")})
            if not command.output.json and len(names) == 1:
                _print_measured(report)
    if not command.output.json and sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    _save(rows, command)
    if command.output.json:
        print_json({"quick": command.quick, "holds": all(row["holds"] for row in rows), "systems": rows})
    else:
        _print(rows, command)
    if not all(row["holds"] for row in rows):
        raise SystemExit(1)


def _chosen(given: tuple[str, ...], known: list[str]) -> list[str]:
    from osmose.dynamics.registry import named

    chosen: list[str] = []
    for name in given:
        family = [entry for entry in known if entry == name or entry.startswith(name.rstrip("/") + "/")]
        if not family:
            named(name)  # says what was meant
        chosen += family
    return list(dict.fromkeys(chosen))


HEAD = ("system", "quantity", "target", "measured", "tolerance", "s")


def cells(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """A system's lines of the table, as texts."""
    lines = []
    seconds = f"{row['seconds']:.1f}"
    for check in row["checks"]:
        sign = {"equal": "", "at most": "≤ ", "at least": "≥ "}[check["sense"]]
        target, measured = sign + number(check["value"]), number(check["measured"])
        mark = "" if check["holds"] else "  missed"
        lines.append(
            (row["name"], check["name"], target, measured + mark, number(check["tolerance"]), seconds)
        )
    if not lines:
        said = f"failed: {row['error']}" if "error" in row else "no target"
        lines.append((row["name"], said, "", "", "", seconds))
    first, *rest = lines
    return [first, *(("", *line[1:-1], "") for line in rest)]


def number(value: float | None) -> str:
    """Six significant digits."""
    return "not finite" if value is None else f"{value:.6g}"


def _save(rows: list[dict[str, Any]], command: ReproduceCommand) -> None:
    import json

    from osmose.files import whole

    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|---|---|---|---|"]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for row in rows
        for line in cells(row)
    ]
    command.out.mkdir(parents=True, exist_ok=True)
    texts = {"reproduce.md": "\n".join(lines) + "\n", "reproduce.json": json.dumps(rows, indent=2) + "\n"}
    for name, text in texts.items():
        with whole(command.out / name) as part:
            part.write_text(text, encoding="utf-8")


def _print(rows: list[dict[str, Any]], command: ReproduceCommand) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEAD:
        table.add_column(
            name, justify="left" if name in HEAD[:2] else "right", no_wrap=name not in ("quantity",)
        )
    for row in rows:
        for line, check in zip(cells(row), row["checks"] or [{"holds": row["holds"]}], strict=True):
            table.add_row(*line, style=None if check["holds"] else "bold red")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    console.print(table)
    checks = [check["holds"] for row in rows for check in row["checks"]]
    failed = [row["name"] for row in rows if "error" in row]
    seconds = sum(row["seconds"] for row in rows)
    console.print(
        f"{sum(checks)} of {len(checks)} targets of {len(rows)} systems hold{' in small' if command.quick else ''}, "
        f"{seconds:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    for row in rows:
        for said in row.get("warnings", ()):
            console.print(f"{row['name']}: {said}", style="yellow", soft_wrap=True)
    where = rows[0].get("figure") if len(rows) == 1 else command.out / "NAME" / "figure.png"
    console.print(f"figures: {where}; table: {command.out / 'reproduce.md'}", soft_wrap=True)


def _print_measured(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    console.print(f"{report.name}: {report.system.title}", style="bold")
    console.print(f"source: {report.system.source}")
    console.print("parameters: " + ", ".join(f"{k}={v}" for k, v in report.system.parameters.items()))
    targets = {check.target.name for check in report.checks}
    for name, value in report.findings.measured.items():
        if name not in targets:
            console.print(f"  {name}: {number(value)}")
    for check in report.checks:
        console.print(f"  {check.target.name}: {check.target.source}", style="dim")
