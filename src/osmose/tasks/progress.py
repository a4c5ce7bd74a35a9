"""What a person sees while training runs: a rich progress bar on a terminal, a line per split elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Reports to stderr; with `quiet` it says nothing. Use as a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task: Any = None
        self._shown = 0.0
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
                console=Console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, title: str, epochs: int, done: int = 0) -> None:
        """A split begins, or goes on after `done` epochs."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=epochs, completed=done, state="")

    def epoch(self, record: dict[str, Any]) -> None:
        """An evaluated epoch; the bar is redrawn at most ten times a second."""
        now = time.monotonic()
        if self._bar is None or self._task is None or now - self._shown < 0.1:
            return
        self._shown = now
        state = f"loss {record['train_loss']:.3f}  valid {record['valid_loss']:.3f}"
        if "valid_accuracy" in record:
            state += f" ({100 * record['valid_accuracy']:.1f} %)"
        self._bar.update(self._task, completed=record["epoch"], state=state)

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)
