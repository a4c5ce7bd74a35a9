"""`osmose particles RUN-or-FOLDER`: the tokens of a trained network seen as particles, layer by layer."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from osmose.inspection import ParticleStudy


@dataclass(frozen=True)
class ParticlesCommand:
    """Take the states of a trained network before the first block and after every block, and read their directions as
    particles: inner products of pairs, clusters, energy, effective rank. And for every head the inverse temperature beta at which
    self-attention of the particle model would have its weights: matched, equally concentrated; slope, the regression of log
    weights on inner products, with R2, near 0 where the particle model does not explain what the head looks at.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN-or-FOLDER")]
    """folder of a run on nodes, text, sequences or images; or of a Hugging Face model and its tokenizer, with --text"""
    text: Path | None = None
    """text for a Hugging Face model"""
    sequences: int = 16
    """inputs to read; of nodes all are one input"""
    length: int | None = None
    """tokens of a window of text (without it the run's, or 128), or steps to which sequences are cut"""
    beta: float | None = None
    """of the energy; without it the median over heads of the matched beta, at least 1"""
    scale: float | None = None
    """distance of directions at which clusters are linked; without it 1 / sqrt(beta), or where heads hardly tell tokens
    apart the median distance to the nearest token in the first state"""
    centre: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """subtract the mean over the tokens first"""
    seed: int = 0
    """of the inputs"""
    out: Path | None = None
    """file of the figure; without it among the run's figures, or in runs/"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(ParticlesCommand, "particles", arguments)
    for name, value in (("--sequences", command.sequences), ("--length", command.length)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    if command.scale is not None and not command.scale > 0:
        raise ValueError(f"--scale is {command.scale}; expected a distance above 0")
    if command.out is not None and command.out.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--out is {command.out}; expected a file that ends in .png, .pdf or .svg")
    folder = Path(command.source)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected that of a run, or of a Hugging Face model")
    is_run = (folder / "config.toml").is_file()
    if not is_run and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is neither a run, it has no config.toml, nor a Hugging Face model, it has no config.json"
        )
    if is_run and command.text is not None:
        raise ValueError(
            f"--text is for Hugging Face models; the run {folder} is read on its own data. Leave it out"
        )
    study, about, model, labels, names = _of_run(folder, command) if is_run else _of_folder(folder, command)

    from osmose.tasks.particle_figure import particle_figure
    from osmose.tasks.particles import result_of

    result = result_of(study, about, model)
    path = (
        folder / "figures" / "particles.png"
        if is_run
        else Path("runs") / f"particles-{folder.resolve().name}.png"
    )
    path = command.out or path
    particle_figure(study, result, path, _title(result), labels=labels, names=names)
    result["figure"] = str(path)
    if command.output.json:
        print_json(result)
        return
    _print(result)


Found = tuple["ParticleStudy", dict[str, Any], "nn.Module", "Tensor | None", "list[str] | None"]


def _of_run(folder: Path, command: ParticlesCommand) -> Found:
    from osmose.inspection import particle_study
    from osmose.tasks.run_folder import RunFolder
    from osmose.tasks.subject import open_subject

    name = RunFolder(folder).config().model.name
    if name in ("gcn", "mlp"):
        raise ValueError(
            f"{folder} is a run of {name}, whose tokens do not attend to each other; expected difformer-s or another model with "
            "attention"
        )
    subject = open_subject(
        RunFolder(folder), sequences=command.sequences, length=command.length, seed=command.seed, nodes=True
    )
    study = particle_study(
        subject.model, subject.inputs, beta=command.beta, scale=command.scale, centre=command.centre
    )
    return study, subject.about, subject.model, subject.labels, subject.names


def _of_folder(folder: Path, command: ParticlesCommand) -> Found:
    if command.text is None:
        raise ValueError(f"{folder} is a Hugging Face model; name a text to read it on: --text FILE")
    try:
        text = command.text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {command.text} is no text in UTF-8 ({error.reason})") from error
    from osmose.adapters.hf import particle_study
    from osmose.adapters.hf_folder import open_folder, text_batches

    model, tokenizer = open_folder(folder)
    batches = text_batches(
        text, model, tokenizer, number=command.sequences, length=command.length, seed=command.seed
    )
    study = particle_study(model, batches, beta=command.beta, scale=command.scale, centre=command.centre)
    longest = max(batch["input_ids"].shape[-1] for batch in batches)
    about = {
        "folder": str(folder),
        "source": str(command.text),
        "model": type(model).__name__,
        "sequences": len(batches),
        "length": longest,
    }
    return study, about, model, None, None


def _title(result: dict[str, Any]) -> str:
    source = Path(result["source"]).name
    if "nodes" in result:
        read = f"{result['nodes']} nodes"
    else:
        one = result["sequences"] == 1
        read = f"{result['sequences']} input{'' if one else 's'}"
        read += f" of {result['length']}" if "length" in result else ""
    centred = ", mean over tokens taken off" if result["centred"] else ""
    return f"{result['model']} on {source} as particles: {read}{centred}"


def _print(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table(title=_title(result), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("state", no_wrap=True)
    columns = ["⟨x, y⟩", "order", "eff.\nrank", "clusters", "largest\n%", "energy", "|x|"]
    for name in [*columns, "heads", "beta\nmatched", "beta\nslope", "R²"]:
        table.add_column(name, justify="right", no_wrap=True)
    for label, row in zip(_labels([row["state"] for row in result["states"]]), result["states"], strict=True):
        cells = [
            _spread(row["mean_product"], 3),
            _mean(row["order_parameter"], 2),
            _spread(row["effective_rank"], 1),
            _spread(row["clusters"], 0 if row["clusters"]["sd"] is None else 1),
            _mean(row["largest_cluster"], 0, 100),
            _mean(row["normalised_energy"], 3),
            _mean(row["mean_norm"], 1),
        ]
        betas = [_figure(row[name]) for name in ("matched", "slope")]
        betas.append("-" if row["r2"] is None else f"{row['r2']:.2f}")
        heads = [str(row["heads"]), *betas] if row["heads"] else [""] * 4
        table.add_row(label, *cells, *heads)
    console.print(table)
    console.print(
        f"clusters: directions linked at distance {result['scale']:.3g} ({result['scale_from']}); largest: its share of the tokens; "
        f"energy: 2 beta e^-beta E at beta = {result['beta']:.3g} ({result['beta_from']}), 1 at consensus; beta and R²: "
        "medians over the heads of the attention that made the state; ± deviation over inputs",
        style="dim",
    )
    for line in dict.fromkeys(_reasons(result)):
        console.print(line)
    console.print(f"figure: {result['figure']}", soft_wrap=True)


def _labels(names: list[str]) -> list[str]:
    """Their numbers, and what they are called where the names of their modules are more than numbers."""
    from osmose.tasks.attention_figures import short

    own = [name for name in names[1:] if not name.startswith("into ")]
    columns = zip(*(name.split(".")[:-1] for name in own), strict=False)
    shared = list(itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    start = "".join(f"{column[0]}." for column in shared)
    tails = [name.replace(start, "", 1) for name in names]
    told = len(set(tails)) == len(tails)
    return [
        str(i) if i and (tail.isdigit() or not told) else f"{i} {short(name)}"
        for i, (tail, name) in enumerate(zip(tails, names, strict=True))
    ]


def _reasons(result: dict[str, Any]) -> list[str]:
    """Why numbers are missing."""
    lines = [] if result["no_attention"] is None else [f"no effective beta: {result['no_attention']}"]
    for one in result["attentions"]:
        if one["reason"] is not None:
            lines.append(f"{one['attention']}: no effective beta, {one['reason']}")
        for head, found in enumerate(one["heads"]):
            if found["reason"] is not None:
                lines.append(f"{one['attention']}, head {head}: {found['reason']}")
    shown = 6
    return lines if len(lines) <= shown else [*lines[:shown], f"... {len(lines) - shown} more with --json"]


def _spread(value: dict[str, float | None], digits: int) -> str:
    if value["mean"] is None:
        return "-"
    text = f"{value['mean']:.{digits}f}"
    return text if value["sd"] is None else f"{text} ± {value['sd']:.{digits}f}"


def _mean(value: dict[str, float | None], digits: int, factor: float = 1.0) -> str:
    return "-" if value["mean"] is None else f"{factor * value['mean']:.{digits}f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
