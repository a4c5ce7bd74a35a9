"""What is measured on each kind of data: what validation chooses by, what the test part reports, and how it is written."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One figure of a part of the data; the record of a split holds it as `PART_KEY`."""

    key: str
    title: str
    unit: str
    scale: float = 1.0
    """from what is stored to the unit"""
    digits: int = 1
    higher: bool = True
    """higher is better"""

    def text(self, value: float) -> str:
        """A single value without its unit."""
        return f"{self.scale * value:.{self.digits}f}"

    def of(self, entry: dict[str, Any]) -> str:
        """`81.5 ± 0.6` from a summary."""
        mean = self.text(entry["mean"])
        return mean if entry["sd"] is None else f"{mean} ± {self.text(entry['sd'])}"


ACCURACY = Measure("accuracy", "accuracy", "%", 100.0)
MACRO_F1 = Measure("macro_f1", "macro F1", "%", 100.0)
CROSS_ENTROPY = Measure("loss", "cross-entropy", "nats", digits=3, higher=False)
ERROR = Measure("loss", "action error", "mean square", digits=4, higher=False)
RETURN = Measure("return", "return", "reward", digits=0)
SCORE = Measure("score", "D4RL score", "(0 random, 100 expert)", 100.0)


@dataclass(frozen=True)
class Report:
    """`valid` chooses epochs and settings, `test` is the headline (None: there is no test), `more` of the test part is told
    beside it."""

    valid: Measure
    test: Measure | None
    more: tuple[Measure, ...] = ()

    def named(self) -> dict[str, Measure]:
        """Every measure of a result under the name it has there, the headline first."""
        found = {} if self.test is None else {f"test_{self.test.key}": self.test}
        return found | {f"valid_{self.valid.key}": self.valid} | {f"test_{one.key}": one for one in self.more}


_CLASSES = Report(ACCURACY, ACCURACY, (MACRO_F1,))

REPORTS: dict[str, Report] = {
    "nodes": _CLASSES,
    "sequences": _CLASSES,
    "images": _CLASSES,
    "text": Report(CROSS_ENTROPY, CROSS_ENTROPY, (ACCURACY,)),
    "control": Report(RETURN, RETURN, (SCORE,)),
    "returns": Report(RETURN, RETURN),
    "actions": Report(ERROR, None),
}
"""The report of each kind of data; `returns` are episodes of an environment that D4RL gives no score, `actions` are
episodes without one."""


def report_of(data: Any) -> Report:
    """The report of some data."""
    return REPORTS[kind_of(data)]


def kind_of(data: Any) -> str:
    """The name of the report of some data."""
    if data.kind != "control":
        return data.kind
    if data.env is None:
        return "actions"
    from osmose.tasks.rollout import normalised_score

    return "returns" if normalised_score(data.env, 0.0) is None else "control"


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (ddof = 1; None for a single value)."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "ddof": 1, "n": len(values)}
