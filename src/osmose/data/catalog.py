"""What can be named: the public data sets, one line each, and their protocols (default first). No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import DataError, nearest


@dataclass(frozen=True)
class Entry:
    """One public data set."""

    line: str
    protocols: dict[str, str]
    splits: int = 5
    labels_per_class: int | None = None
    valid: int = 0
    """size of the validation part where the protocol draws it"""
    test: int | None = None
    """size of the test part where the protocol draws it; None: all that is left"""
    kind: str = "nodes"
    """nodes or sequences"""


BEST_ON_TEST = "best-on-test"
"""The protocol that chooses the epoch by the test part. Its figures are optimistic."""

_RANDOM = "20 labels a class, 500 validation, 1000 test, a new random draw for every split (DIFFormer)"
_PUBLIC = "the fixed split of Planetoid: 20 labels a class, 500 validation, 1000 test"

_OPTIMISTIC = "validation is the test part, so its figures are optimistic: only to compare with tables published that way"
SERIES_PROTOCOLS: dict[str, str] = {
    "holdout": "20 % of the training file for validation, class by class, a new draw for every split; the test file",
    BEST_ON_TEST: _OPTIMISTIC,
}
"""Protocols of series that come with a training and a test file."""

CATALOG: dict[str, Entry] = {
    "digits": Entry(
        "1797 images of digits, 64 pixels, 10 classes; comes with scikit-learn, no download",
        {"few-label": "10 labels a class, 500 validation, the rest test; kNN graph, k = 5"},
        labels_per_class=10,
        valid=500,
    ),
    "cora": Entry(
        "citation graph, 2708 papers, 5278 links, 1433 words, 7 classes",
        {"random": _RANDOM, "public": _PUBLIC},
        labels_per_class=20,
        valid=500,
        test=1000,
    ),
    "citeseer": Entry(
        "citation graph, 3327 papers, 4552 links, 3703 words, 6 classes",
        {"random": _RANDOM, "public": _PUBLIC},
        labels_per_class=20,
        valid=500,
        test=1000,
    ),
    "chameleon": Entry(
        "Wikipedia pages without duplicates (chameleon_filtered), 890 pages, 8854 links, 5 classes, heterophilous",
        {"fixed": "the ten splits of the file (Platonov et al.)"},
        splits=10,
    ),
    "20news": Entry(
        "9607 newsgroup messages, 10 topics, TF-IDF of 236 words",
        {"few-label": "100 labels a class (or 200, 400), 1000 validation, the rest test; kNN graph, k = 5"},
        labels_per_class=100,
        valid=1000,
    ),
    "japanese-vowels": Entry(
        "640 spoken vowels as series of 7 to 29 steps, 12 channels, 9 speakers (UEA)",
        SERIES_PROTOCOLS,
        kind="sequences",
    ),
    "scp1": Entry(
        "SelfRegulationSCP1: 561 EEG recordings of 896 steps, 6 channels, 2 classes (UEA)",
        SERIES_PROTOCOLS,
        kind="sequences",
    ),
    "basic-motions": Entry(
        "BasicMotions: 80 recordings of a wrist sensor, 100 steps, 6 channels, 4 classes (UEA)",
        SERIES_PROTOCOLS,
        kind="sequences",
    ),
}

PROTOCOLS: dict[str, dict[str, str]] = {name: entry.protocols for name, entry in CATALOG.items()}
"""Data set -> protocol -> what it is; the first is the default."""

OWN_PROTOCOLS: dict[str, str] = {
    "given": "the masks or split files that come with the data",
    "stratified": "60 / 20 / 20 of the labelled rows, drawn class by class",
    "few-label": "`labels_per_class` labels a class for training, the rest halved into validation and test",
}
"""Protocols of the user's own data: `given` where there are masks, else `stratified`."""


def names() -> dict[str, str]:
    """Public data sets by name, one line each."""
    return {name: entry.line for name, entry in CATALOG.items()}


def default_protocol(name: str) -> str:
    """The protocol that `load(name)` uses when none is named."""
    return next(iter(CATALOG[name].protocols))


def choose_protocol(name: str, protocol: str | None) -> str:
    """`protocol`, checked, or the default of data set `name`."""
    known = CATALOG[name].protocols
    if protocol is None:
        return default_protocol(name)
    if protocol not in known:
        raise DataError(
            f"load({name!r}): protocol is {protocol!r}; expected one of {', '.join(map(repr, known))}"
            + nearest(protocol, known)
        )
    return protocol
