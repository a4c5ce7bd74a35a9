"""Ctrl-C and SIGTERM as a wish to stop at the next complete state, not in the middle of an update."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):  # noqa: N818 - not an error
    """Training stopped because the user or the system asked for it; the state is saved."""


class StopRequest:
    """Within `with StopRequest() as stop:` the first SIGINT or SIGTERM sets `stop.asked`; a second one acts at once.

    Outside the main thread, where Python allows no signal handlers, `asked` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
