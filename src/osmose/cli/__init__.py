"""The command line: one file per verb, imported when the verb is called. Help needs no torch."""

from __future__ import annotations

import importlib
import sys

from osmose.cli.errors import reporting

VERBS = {
    "list": "data sets, protocols and models that can be named",
    "train": "train a model on a data set or on your own data",
    "eval": "measure the saved model of a run again",
    "predict": "classes and probabilities for new rows, nodes or sequences",
    "generate": "go on with a text by a language model",
    "compare": "several models on one data set, under equal conditions",
    "verify": "our layers against those of torch, PyG and the papers, with errors",
    "identify": "which shifts a linear module consists of, found by probes",
    "rank": "parameters, true degrees of freedom and ranks of a model's layers",
    "heads": "what the attention heads of a run do: fixed, shift or content, and whether they can be replaced",
    "adaptivity": "how much of a run's attention depends on the input, layer by layer",
    "particles": "the tokens of a run or of a Hugging Face model as particles, layer by layer; beta of the heads",
    "positions": "position encodings and shifts on two toy tasks, in length and longer",
    "simulate": "tokens as interacting particles: a named system, its figure, movie and data",
    "reproduce": "named systems of particles against theory and papers: target, measured, tolerance",
    "doctor": "check the installation",
}


def main(arguments: list[str] | None = None) -> int:
    """Run `osmose VERB ...`; returns the exit code (0 fine, 2 the user can mend it, 130 interrupted)."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else 2
    if given[0] == "--version":
        from osmose.__about__ import __version__

        print(f"osmose {__version__}")
        return 0
    with reporting(debug="--debug" in given, json="--json" in given) as outcome:
        _verb(given[0], [entry for entry in given[1:] if entry != "--debug"])
    return outcome.code


def _verb(name: str, arguments: list[str]) -> None:
    from osmose.tasks.recipes import check_name

    check_name(name, VERBS, "verb")
    module = importlib.import_module(f"osmose.cli.{'list_' if name == 'list' else name}")
    module.main(arguments)


def _help() -> str:
    lines = [
        "usage: osmose VERB [OPTIONS]",
        "",
        "Mixing operators for PyTorch: train, compare and apply them.",
        "",
    ]
    width = max(map(len, VERBS))
    lines += [f"  {name:<{width}} {text}" for name, text in VERBS.items()]
    lines += [
        "",
        '`osmose VERB --help` lists the options of a verb; every verb has --json (one JSON object on stdout; {"error": ...} where it fails)',
        "and --debug (a traceback where there is an error).",
    ]
    return "\n".join(lines)
