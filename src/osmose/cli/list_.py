"""`osmose list`: what can be named on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from osmose.cli.options import FlatOutput, Output, parse, print_json
from osmose.tasks.recipes import MODELS

_MODELS = {
    "difformer-s": "diffusion over all pairs, simple kernel, linear cost",
    "difformer-a": "diffusion over all pairs, sigmoid kernel, quadratic time, linear memory",
    "difformer-exact": "difformer-s with tied layers and an admissible step: every layer lowers the energy",
    "mean": "baseline: DIFFormer with the mean over all tokens instead of attention",
    "gcn": "baseline: graph convolution (needs edges)",
    "mlp": "baseline: every row by itself",
    "flowformer": "sequences, images, text, control: Flow-Attention, linear cost",
    "transformer": "the same with softmax attention, quadratic cost",
    "linear-transformer": "the same with linear attention (elu + 1)",
}


@dataclass(frozen=True)
class ListCommand:
    """Data sets with their protocols, and models."""

    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(ListCommand, "list", arguments)
    from osmose.data import PROTOCOLS, names

    tasks = {name: {"about": line, "protocols": PROTOCOLS[name]} for name, line in names().items()}
    models = {name: _MODELS[name] for name in MODELS}
    if command.output.json:
        print_json({"tasks": tasks, "models": models})
        return
    print(
        "Data sets (a path to your own folder, .npz, CSV or .ts file works everywhere a name does; what it holds can be told:"
    )
    print("osmose train text --data FILE, or nodes, series, images, control):")
    for name, line in names().items():
        print(f"  {name:<18} {line}")
        for place, (protocol, text) in enumerate(PROTOCOLS[name].items()):
            print(f"  {'':<18} --protocol {protocol}: {text}{' (default)' if place == 0 else ''}")
    print("Models:")
    for name, line in models.items():
        print(f"  {name:<18} {line}")
