"""Errors as a person wants to read them: one line on stderr, an exit code, no traceback unless --debug."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Outcome:
    """The exit code of a verb."""

    code: int = 0


@contextmanager
def reporting(*, debug: bool = False, json: bool = False) -> Iterator[Outcome]:
    """Turn what a verb raises into a line and an exit code.

    ValueError and OSError are the user's to mend (2); a missing package likewise, with the extra that brings it;
    an interruption is 130. Anything else is a defect and keeps its traceback. With `json` the line is also given as
    {"error": line} on stdout.
    """
    outcome = Outcome()
    try:
        yield outcome
    except KeyboardInterrupt:
        outcome.code = 130
        print("osmose: interrupted", file=sys.stderr)
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("osmose"):
            raise
        outcome.code = 2
        _say(f"the package {error.name} is not installed; pip install 'osmose[all]' brings it", json=json)
    except (ValueError, OSError) as error:
        if debug:
            raise
        outcome.code = 2
        _say(_text(error), json=json)


def main_process() -> bool:
    """False in all but the first of several processes that torchrun has started: only the first one speaks."""
    return os.environ.get("RANK", "0") == "0"


def _text(error: ValueError | OSError) -> str:
    text = (
        error.strerror
        if isinstance(error, OSError) and error.strerror and error.filename is None
        else str(error)
    )
    return " ".join(str(text).split())


def _say(text: str, *, json: bool) -> None:
    if not main_process():  # all processes have the same error
        return
    print(f"osmose: {text}", file=sys.stderr)
    if json:
        print(json_format.dumps({"error": text}))
