"""`osmose identify MODULE`: take a linear module apart by probes."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.diagnostics.identify import Identification

_ROWS = 40


@dataclass(frozen=True)
class IdentifyCommand:
    """Find out from its answers alone what a linear module does: which shifts, with which values, and what is no shift.

    osmose identify "nn.Conv1d(4, 6, 3, padding=1)" --length 16, or a part of a trained model: osmose identify runs/mine
    --module stages.0.embed. Offsets are source - target; a module that is not linear is told how far off it is.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE-or-RUN")]
    """a module of torch.nn with literal arguments (it is read, not run as Python), or the folder of a run"""
    module: str | None = None
    """which part of the run's model, such as stages.0.embed"""
    length: tuple[int, ...] = (16,)
    """tokens of the probes; of a 2-D or 3-D module the sizes of the axes, or one size for all"""
    channels: int | None = None
    """channels of the input, where the module does not tell (pooling)"""
    layout: Literal["channels-first", "channels-last"] | None = None
    """how the module has its input: (B, C, n) or (B, n, C); without it what its class is known for"""
    tolerance: float | None = None
    """shares below it count as 0; without it 4e-10"""
    seed: int = 0
    """of fresh weights, and of the inputs that test linearity"""
    out: Path | None = None
    """file of the figure; without it among the run's figures, or in runs/"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(IdentifyCommand, "identify", arguments)
    from osmose.cli.modules import figure_path, is_expression, named_module
    from osmose.diagnostics.identify import identify
    from osmose.tasks.structure_figures import identification

    if not is_expression(command.source) and command.module is None:
        raise ValueError(
            f"identify: which part of the model of {command.source}? Name it with --module, e.g. --module blocks.0.linear1 "
            "(`osmose rank` lists the layers)"
        )
    module = named_module(command.source, command.module, command.seed, "identify")
    length = command.length[0] if len(command.length) == 1 else command.length
    layout: Any = command.layout and command.layout.replace("-", "_")
    found = identify(
        module, length, command.channels, layout=layout, tolerance=command.tolerance, seed=command.seed
    )
    name = command.module or command.source
    path = figure_path(command.out, command.source, "identify", command.module)
    identification(found, path, name)
    if command.output.json:
        print_json(_content(found) | {"module": name, "figure": str(path)})
        return
    _print(found, name, path)


def _content(found: Identification) -> dict[str, Any]:
    return {
        "offsets": [list(d) if isinstance(d, tuple) else d for d in found.offsets],
        "norms": found.norms.tolist(),
        "ranks": found.ranks,
        "theta": found.theta.tolist(),
        "bias": None if found.bias is None else found.bias.tolist(),
        "axes": [asdict(axis) for axis in found.axes],
        "shift_invariant": found.shift_invariant,
        "residual": found.residual,
        "rank": found.rank,
        "spectrum": found.spectrum.tolist(),
        "coupling": found.coupling,
        "groups": found.groups,
        "superposition": found.superposition,
        "tolerance": found.tolerance,
    }


def _print(found: Identification, name: str, path: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    norms, ranks = found.norms.tolist(), found.ranks
    order = sorted(range(len(norms)), key=lambda i: -norms[i])[:_ROWS]
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
    for title in ("offset", "|Theta_d|", "rank"):
        table.add_column(title, justify="right")
    for i in sorted(order):
        table.add_row(str(found.offsets[i]), f"{norms[i]:.6g}", str(ranks[i]))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table, markup=False)
    if len(norms) > len(order):
        console.print(f"and {len(norms) - len(order)} smaller ones; --json has all")
    console.print(f"linear: f(a x + b y) is {found.superposition:.1e} of |f| away from a f(x) + b f(y)")
    axes = "; ".join(
        f"stride {axis.stride}{' (upsampling)' if axis.upsampling else ''}, border {axis.border}"
        for axis in found.axes
    )
    said = "shifts make up the map" if found.shift_invariant else "NOT shift-invariant"
    console.print(f"{said}: {found.residual:.1e} of |Phi| is no shift ({axes})")
    _, p, q = found.theta.shape
    groups = f" in {found.groups} groups" if found.coupling == "grouped" else ""
    console.print(
        f"mixed-product rank {found.rank} with {len(norms)} offsets; {p} channels to {q}: {found.coupling}{groups}"
    )
    if found.bias is None:
        console.print("bias: none")
    else:
        each = "for each channel" if found.bias.ndim == 1 else "for each target and channel"
        console.print(f"bias: {each}, norm {float(found.bias.norm()):.6g}")
    console.print(f"figure: {path}", soft_wrap=True, markup=False)
