"""A module named on the command line: a run's model or a part of it, or an expression of torch.nn, which is never evaluated."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def named_module(text: str, part: str | None, seed: int, verb: str) -> nn.Module:
    """The module that ``text`` names: ``nn.Conv1d(4, 6, 3)`` with fresh weights, or the folder of a run, and of it ``part``.

    Raises:
        ValueError: neither of them, or a part that the model does not have.
    """
    if is_expression(text):
        if part is not None:
            raise ValueError(
                f"{verb}: --module {part} goes with the folder of a run; {text} is a module itself"
            )
        import torch

        torch.manual_seed(seed)
        return module_of_expression(text)
    from osmose.tasks.run_folder import RunFolder
    from osmose.tasks.saved import open_model

    model = open_model(RunFolder(Path(text))).model
    if part is None:
        return model
    names = [name for name, _ in model.named_modules() if name]
    if part not in names:
        near = difflib.get_close_matches(part, names, n=3, cutoff=0.3)
        raise ValueError(
            f"{verb}: the model of {text} has no module {part!r}; did you mean {', '.join(near or names[:5])}?"
        )
    return model.get_submodule(part)


def is_expression(text: str) -> bool:
    """Whether it is a call, not a path."""
    return "(" in text and not Path(text).exists()


def module_of_expression(text: str) -> nn.Module:
    """``nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU())``: calls of torch.nn's classes with literals or such calls.

    Nothing is evaluated: the text is parsed, names are looked up in torch.nn, arguments are literals.

    Raises:
        ValueError: anything else, or arguments that the class does not take.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(
            f"{text!r} is no expression: {error.msg}; expected e.g. 'nn.Conv1d(4, 6, 3)'"
        ) from None
    return _module(tree.body, text)


def _module(node: ast.expr, text: str) -> nn.Module:
    from torch import nn

    if not isinstance(node, ast.Call):
        raise ValueError(f"{text!r} is no call of a class of torch.nn; expected e.g. 'nn.Conv1d(4, 6, 3)'")
    path = ast.unparse(node.func)
    name = path.removeprefix("torch.").removeprefix("nn.")
    kind = getattr(nn, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        classes = [entry for entry in dir(nn) if isinstance(getattr(nn, entry), type)]
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean nn.{near[0]}?" if near else ""
        raise ValueError(f"{path} is no module of torch.nn{hint}")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"{text!r}: ** is not read; name every argument")
    arguments = [_value(one, text) for one in node.args]
    named = {str(one.arg): _value(one.value, text) for one in node.keywords}
    try:
        return kind(*arguments, **named)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{ast.unparse(node)} cannot be made: {said}") from error


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call):
        return _module(node, text)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            f"{text!r}: the argument {ast.unparse(node)} is no literal; expected numbers, strings, tuples, True, False, None "
            "or another nn.Class(...)"
        ) from None


def figure_path(out: Path | None, text: str, verb: str, part: str | None = None) -> Path:
    """``--out``, else a file among the run's figures, of an expression one in ``runs``."""
    if out is not None:
        return out
    if is_expression(text):
        return Path("runs") / f"{verb}-{text.split('(', 1)[0].rsplit('.', 1)[-1].strip()}.png"
    return Path(text) / "figures" / (f"{verb}.png" if part is None else f"{verb}-{part}.png")
