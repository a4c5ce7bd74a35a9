"""Every accuracy table of docs/results.md from scratch: ``python -m benchmarks.reproduce`` (hours on a CPU).

Each set is compared in several ways (`MODES`): with every model's recipe; with the same number of trials for every
model (but difformer-a, whose search takes a day); DIFFormer-s with the paper's row norm, tuned alike; and 20News, where
one epoch of difformer-a's recipe takes minutes, smaller and in mini-batches, by recipe and tuned. What is finished is kept in the
folder of runs, so that an interrupted reproduction goes on. The page is written from the results that are there and,
for comparisons that were not made again, from those in results.json; ``--page`` only writes it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmose.tasks.config import DataConfig
from osmose.tasks.recipes import check_name

ROOT = Path(__file__).resolve().parents[1]
ALL = ("difformer-s", "difformer-a", "mean", "gcn", "mlp")
LINEAR = ("difformer-s", "mean", "gcn", "mlp")


@dataclass(frozen=True)
class Mode:
    """One way to compare: which models, whether searched, and settings that replace those of the recipes."""

    title: str
    models: tuple[str, ...]
    searched: bool
    overrides: tuple[tuple[str, Any], ...] = ()


_SMALL = {"hidden": 64, "layers": 1, "batch_size": 2000, "epochs": 100, "eval_every": 5}

MODES = {
    "recipe": Mode("Recipe", ALL, searched=False),
    "tuned": Mode("Tuned", LINEAR, searched=True),
    "row": Mode("Tuned, row norm", ("difformer-s",), searched=True, overrides=(("normalization", "row"),)),
    "batches": Mode(
        "Recipe, but one layer of width 64 and mini-batches of 2000 nodes",
        ("difformer-s", "difformer-a", "mean"),
        searched=False,
        overrides=tuple(_SMALL.items()),
    ),
    "batches-tuned": Mode(
        "Tuned, mini-batches of 2000 nodes, at most 100 epochs",
        ALL,
        searched=True,
        overrides=tuple(_SMALL.items()),
    ),
}


@dataclass(frozen=True)
class Entry:
    """One data set with its protocol, and what was published for it (accuracy in %, by model)."""

    title: str
    data: DataConfig
    splits: int = 5
    published: tuple[tuple[str, str], ...] = ()
    published_note: str = ""
    models: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """models of a mode, where they are not the mode's own"""
    modes: tuple[str, ...] = ("recipe", "tuned", "row")
    overrides: tuple[tuple[str, Any], ...] = ()
    """settings that replace those of the recipes"""


_OWN_SPLITS = (
    "Published: DIFFormer paper (ICLR 2023); its five runs share one random split, so its deviation is training noise "
    "only, and its GCN row stands beside the random-split row of DIFFormer without being of the same protocol."
)
_PLATEAU = (
    " With the recipe's penalty of 1 some runs of difformer-s and of mean never leave equal probabilities for all classes "
    "(loss ln 6): that is their deviation."
)
_NEWS: dict[str, Any] = {
    "published_note": "Published: DIFFormer paper (ICLR 2023); gcn is its GCN-kNN row.",
    "models": (("recipe", ("gcn", "mlp")),),
    "modes": ("recipe", "batches", "batches-tuned"),
}
_SERIES: dict[str, Any] = {
    "models": (("recipe", ("flowformer", "transformer", "linear-transformer")),),
    "modes": ("recipe",),
}
_UEA = (
    "Published: Flowformer paper (ICML 2022): one run of 6.3 million parameters, and the best epoch on the test set, which "
    "is what the protocol best-on-test repeats; compare its table, not the one by validation."
)

SETS: dict[str, Entry] = {
    "digits": Entry("Digits, 10 labels a class", DataConfig("digits")),
    "cora": Entry(
        "Cora, random splits",
        DataConfig("cora", protocol="random"),
        published=(
            ("difformer-s", "85.9 ± 0.4"),
            ("difformer-a", "84.1 ± 0.6"),
            ("gcn", "81.5 ± 1.3"),
            ("mlp", "56.1 ± 1.6"),
        ),
        published_note=_OWN_SPLITS,
    ),
    "cora-public": Entry("Cora, public split, five seeds", DataConfig("cora", protocol="public")),
    "citeseer": Entry(
        "CiteSeer, random splits",
        DataConfig("citeseer", protocol="random"),
        published=(
            ("difformer-s", "73.5 ± 0.3"),
            ("difformer-a", "75.7 ± 0.3"),
            ("gcn", "71.9 ± 1.9"),
            ("mlp", "56.7 ± 1.7"),
        ),
        published_note=_OWN_SPLITS + _PLATEAU,
    ),
    "citeseer-public": Entry("CiteSeer, public split, five seeds", DataConfig("citeseer", protocol="public")),
    "chameleon": Entry(
        "Chameleon (filtered), the ten splits of the file", DataConfig("chameleon"), splits=10
    ),
    "20news-100": Entry(
        "20News, 100 labels a class",
        DataConfig("20news", labels_per_class=100),
        published=(("difformer-s", "57.7"), ("difformer-a", "57.9"), ("gcn", "56.1"), ("mlp", "54.1")),
        **_NEWS,
    ),
    "20news-200": Entry(
        "20News, 200 labels a class",
        DataConfig("20news", labels_per_class=200),
        published=(("difformer-s", "61.2"), ("difformer-a", "61.3"), ("gcn", "60.6"), ("mlp", "57.8")),
        **_NEWS,
    ),
    "20news-400": Entry(
        "20News, 400 labels a class",
        DataConfig("20news", labels_per_class=400),
        published=(("difformer-s", "65.9"), ("difformer-a", "64.8"), ("gcn", "64.3"), ("mlp", "62.4")),
        **_NEWS,
    ),
    "japanese-vowels": Entry("JapaneseVowels", DataConfig("japanese-vowels"), **_SERIES),
    "japanese-vowels-best": Entry(
        "JapaneseVowels, best epoch on the test set",
        DataConfig("japanese-vowels", protocol="best-on-test"),
        published=(("flowformer", "98.9"), ("transformer", "98.7")),
        published_note=_UEA,
        **_SERIES,
    ),
    "scp1": Entry("SelfRegulationSCP1", DataConfig("scp1"), **_SERIES),
    "scp1-best": Entry(
        "SelfRegulationSCP1, best epoch on the test set",
        DataConfig("scp1", protocol="best-on-test"),
        published=(("flowformer", "92.5"), ("transformer", "92.2")),
        published_note=_UEA,
        **_SERIES,
    ),
    "basic-motions": Entry("BasicMotions", DataConfig("basic-motions"), **_SERIES),
    "tinyshakespeare": Entry(
        "tinyshakespeare, next character, windows of 128, sinusoids added to the tokens",
        DataConfig("tinyshakespeare", length=128),
        splits=1,
        overrides=(("position", "none"),),
        **_SERIES,
    ),
    "tinyshakespeare-shift": Entry(
        "tinyshakespeare, the same with shifts in every mixer in place of the sinusoids",
        DataConfig("tinyshakespeare", length=128),
        splits=1,
        **_SERIES,
    ),
    "digits-images": Entry("Digits as images", DataConfig("digits-images"), **_SERIES),
    "cifar-images": Entry(
        "CIFAR-10 in colour (JPEG), 6,750 training images",
        DataConfig("cifar-images", size=9_000),
        splits=1,
        **_SERIES,
    ),
    "hopper": Entry("Hopper-v4, two expert episodes", DataConfig("hopper"), splits=3, **_SERIES),
    "imdb": Entry(
        "IMDB as bytes, a fifth of the reviews", DataConfig("imdb", size=10_000), splits=1, **_SERIES
    ),
    "listops": Entry(
        "ListOps, 5,000 expressions, four symbols to a token, three epochs",
        DataConfig("listops", size=5_000),
        splits=1,
        overrides=(("patch", 4), ("epochs", 3)),
        **_SERIES,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, then write the page from everything that is finished."""
    options = _parser().parse_args(arguments)
    for name in options.sets:
        check_name(name, SETS, "set")
    jobs = [(name, mode) for mode in options.modes for name in options.sets if mode in SETS[name].modes]
    if not options.page and (code := _run(jobs, options)):
        return code
    write_page(options.runs, options.docs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="instead of those of the mode")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument(
        "--trials", type=int, default=6, help="trials per model where settings are searched (default 6)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reproduce", help="folder of runs")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs", help="folder of results.md and results.json"
    )
    parser.add_argument(
        "--page", action="store_true", help="train nothing, write the page from what is finished"
    )
    return parser


def _run(jobs: list[tuple[str, str]], options: argparse.Namespace) -> int:
    from osmose.tasks.compare import Comparison, compare, table
    from osmose.tasks.progress import Reporter
    from osmose.tasks.signals import Interrupted, StopRequest

    with StopRequest() as stop, Reporter() as reporter:
        for name, key in jobs:
            entry, mode = SETS[name], MODES[key]
            comparison = Comparison(
                data=entry.data,
                models=tuple(options.models or dict(entry.models).get(key, mode.models)),
                splits=entry.splits,
                trials=options.trials if mode.searched else 0,
                overrides=(
                    ("threads", options.threads),
                    *entry.overrides,
                    *mode.overrides,
                ),
            )
            try:
                result = compare(comparison, options.runs / f"{name}-{key}", reporter=reporter, stop=stop)
            except Interrupted as interrupted:
                print(f"{name}, {key}: {interrupted}. The same command goes on from here", file=sys.stderr)
                return 130
            reporter.line(table(result))
    return 0


def write_page(runs: Path, docs: Path) -> None:
    """docs/results.md, docs/results.json and figures: every finished comparison in `runs`, the others as they were."""
    from osmose.tasks.compare import is_finished

    kept = docs / "results.json"
    results: dict[str, dict[str, Any]] = (
        json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    )
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for key in [f"{name}-{mode}" for name in SETS for mode in MODES]:
        path = runs / key
        if is_finished(path):
            result = json.loads((path / "result.json").read_text(encoding="utf-8"))
            made_with = json.loads((path / "environment.json").read_text(encoding="utf-8"))
            made_with.pop("command", None)  # with folders of that machine
            made_with["commit"] = _commits(path, made_with["commit"])
            results[key] = result | {"environment": made_with}
            shutil.copyfile(path / "figures" / "comparison.png", docs / "figures" / f"{key}.png")
    parts = [_INTRODUCTION]
    for name, entry in SETS.items():
        sections = [
            _section(entry, name, mode, results[f"{name}-{mode}"])
            for mode in MODES
            if f"{name}-{mode}" in results
        ]
        if sections:
            parts += [f"## {entry.title}", *sections]
            if entry.published_note:
                parts.append(entry.published_note)
    (docs / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{len(results)} comparisons written to {docs / 'results.md'} and {kept}")


def _commits(path: Path, first: str | None) -> str | None:
    """The commit of a comparison, and those of models that were trained when it went on at another one."""
    others: dict[str, list[str]] = {}
    for environment in sorted(path.glob("*/environment.json")):
        commit = json.loads(environment.read_text(encoding="utf-8"))["commit"]
        if commit and commit != first:
            others.setdefault(commit, []).append(environment.parent.name)
    named = "; ".join(f"{', '.join(models)}: {commit}" for commit, models in others.items())
    return f"{first} ({named})" if named else first


_INTRODUCTION = """# Results

Written by `python -m benchmarks.reproduce`; the figures are those of `results.json`, nothing is entered by hand except
the published values. Each table names the commit that it is of. Mean ± sample standard deviation (ddof 1) over splits.
The epoch is chosen by validation, and the test part is looked at once per split. Seconds are those of a machine that had
other work as well: docs/benchmarks.md compares speed.

- *Recipe*: the published settings of each model; for DIFFormer those of the released code, its normalisation included
  (Frobenius for s, none for a).
- *Tuned*: the same number of Optuna trials over the same space for every model, the recipe first, judged by validation
  on the first split. Sequences and texts: one recipe for all models, which differ in the mixer alone.
- *Row norm*: DIFFormer-s as the paper writes it, with unit rows, tuned alike.

`mean` is DIFFormer with the attention replaced by the mean over all tokens: what the kernel adds is the distance to
that row."""


def _section(entry: Entry, name: str, mode: str, result: dict[str, Any]) -> str:
    from osmose.tasks.compare import cells, columns, how

    published = dict(entry.published)
    header = [*columns(result), *(["published"] if published else [])]
    rows = [list(row) + ([published.get(row[0], "")] if published else []) for row in cells(result)]
    lines = [
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    made_with = result["environment"]
    machine = f"{made_with['cpus']} CPUs ({made_with['device']}), torch {made_with['packages']['torch']}"
    about = f"{how(result)} Commit {made_with['commit'] or 'unknown'}, {machine}."
    return "\n".join(
        [
            f"### {MODES[mode].title}",
            "",
            about,
            "",
            *lines,
            "",
            f"![{name}, {mode}](figures/{name}-{mode}.png)",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
