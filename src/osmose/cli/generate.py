"""`osmose generate RUN --prompt TEXT`: go on with a text."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from osmose.cli.options import FlatOutput, Output, parse, print_json


@dataclass(frozen=True)
class GenerateCommand:
    """Let the language model of a run go on with a prompt; the text appears symbol by symbol."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    prompt: str | None = None
    """the text to go on with; without it a line break, or the first symbol that the model knows"""
    length: int = 500
    """symbols to add"""
    temperature: float = 0.8
    """divides the logits: lower is safer, 0 takes the likeliest symbol"""
    top_k: int | None = None
    """only the likeliest symbols, so many"""
    top_p: float | None = None
    """only the likeliest symbols that together have at least this probability"""
    seed: int = 0
    """of the random choice"""
    output: FlatOutput = field(default_factory=Output)


def main(arguments: list[str]) -> None:
    """Run the verb."""
    command = parse(GenerateCommand, "generate", arguments)
    from osmose.tasks.generate import generate
    from osmose.tasks.run_folder import RunFolder

    prompt, symbols = generate(
        RunFolder(command.run),
        command.prompt,
        command.length,
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        seed=command.seed,
    )
    if command.output.json:
        print_json({"prompt": prompt, "text": "".join(symbols)})
        return
    sys.stdout.write(prompt)
    for symbol in symbols:
        sys.stdout.write(symbol)
        sys.stdout.flush()
    print()
