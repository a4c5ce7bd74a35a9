"""`osmose rank RUN`: how much of a model's layers is there."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from osmose.tasks.ranks import LayerRanks


@dataclass(frozen=True)
class RankCommand:
    """Parameters, true degrees of freedom and ranks of every attention, convolution and linear layer of a model.

    Values are Theta_k: value times output projection of a head, or a tap of a convolution. Scores are Lambda_k: key times
    query projection. Degrees of freedom leave out what changes nothing, such as a change of basis inside a head;
    biases aside. The family rank says how many of the K members are independent. Trained weights are of full rank
    to the last digit: --tolerance 0.01 tells how many directions have at least a hundredth of the largest.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN-or-MODULE")]
    """the folder of a run, or a module of torch.nn with literal arguments: "nn.MultiheadAttention(64, 8)" """
    module: str | None = None
    """only this part of the run's model"""
    tolerance: float | None = None
    """singular values below this share of the largest count as 0; without it the precision of the parameters"""
    seed: int = 0
    """of fresh weights"""
    out: Path | None = None
    """file of the figure; without it among the run's figures, or in runs/"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(RankCommand, "rank", arguments)
    if command.tolerance is not None and not 0 <= command.tolerance < 1:
        raise ValueError(f"--tolerance is {command.tolerance}; expected a share in [0, 1)")
    from osmose.cli.modules import figure_path, named_module
    from osmose.tasks.ranks import model_ranks
    from osmose.tasks.structure_figures import rank_spectra

    module = named_module(command.source, command.module, command.seed, "rank")
    layers = model_ranks(module, command.tolerance)
    if not layers:
        raise ValueError(f"rank: {command.source} holds no attention, convolution or linear layer")
    name = f"{command.source} {command.module or ''}".strip()
    path = figure_path(command.out, command.source, "rank", command.module)
    rank_spectra(layers, path, f"singular values of {name}")
    families = [family for layer in layers for family in layer.families]
    totals = {
        "parameters": sum(f.parameters for f in families),
        "degrees_of_freedom": sum(f.degrees_of_freedom for f in families),
    }
    if command.output.json:
        content = [layer.content() for layer in layers]
        print_json({"source": command.source, "layers": content, **totals, "figure": str(path)})
        return
    _print(layers, totals, name, path)


def _print(layers: list[LayerRanks], totals: dict[str, int], name: str, path: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
    for title in ("layer", "kind", "of"):
        table.add_column(title)
    for title in ("K x P x Q", "parameters", "true DOF", "rank", "stable rank", "family rank"):
        table.add_column(title, justify="right", no_wrap=True)
    for layer in layers:
        for family in layer.families:
            low, high = min(family.stable_ranks), max(family.stable_ranks)
            table.add_row(
                layer.name or "(itself)",
                layer.kind,
                family.role,
                " x ".join(map(str, family.shape)),
                f"{family.parameters:,}",
                f"{family.degrees_of_freedom:,}",
                f"{_span(family.ranks)} of {family.spectra.shape[-1]}",
                f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}-{high:.1f}",
                f"{family.family_rank} of {len(family.family_spectrum)}",
            )
    table.add_section()
    table.add_row(
        "all", "", "", "", f"{totals['parameters']:,}", f"{totals['degrees_of_freedom']:,}", "", "", ""
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table, markup=False)
    console.print("biases aside; K members (heads, taps) of P channels in and Q out")
    console.print(f"figure: {path}", soft_wrap=True, markup=False)


def _span(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"
