"""What was asked, as plain JSON: enough to tell two sweeps apart, and to say in what they differ.

Numbers, names and containers stand as they are; tensors by shape and digest; partial functions by function and arguments;
functions by name, code and what they close over; everything else by type and attributes, so fields, laws and steppers.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONSTANTS = (bool, int, float, str, list, tuple, dict, set, frozenset, Tensor, np.ndarray, partial)
LIBRARIES = ("osmose", "torch", "numpy", "scipy", "functools", "math")
DEEP = 12  # levels, past which a description ends


def described(value: Any, level: int = 0) -> Any:
    """A value in JSON, equal for equal settings."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if level > DEEP:
        return type(value).__qualname__
    level += 1
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        return f"{array.dtype} {list(array.shape)} {_digest(array.tobytes())}"
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): described(v, level) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [described(v, level) for v in (value if isinstance(value, (list, tuple)) else sorted(value))]
    if isinstance(value, partial):
        parts = {"of": value.func, "arguments": value.args, "keywords": value.keywords}
        return {k: described(v, level) for k, v in parts.items() if v}
    if isinstance(value, types.MethodType):
        return {"of": described(value.__func__, level), "self": described(value.__self__, level)}
    if isinstance(value, types.FunctionType):
        return _function(value, level)
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{getattr(value, '__qualname__', kind.__qualname__)}"
    held = {} if isinstance(value, (type, types.BuiltinFunctionType)) else _attributes(value)
    return {"type": name, **{k: described(v, level) for k, v in held.items()}} if held else name


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    return {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}


def _slots(kind: type) -> tuple[str, ...]:
    given = kind.__dict__.get("__slots__", ())
    return (
        (given,)
        if isinstance(given, str)
        else tuple(s for s in given if s not in ("__dict__", "__weakref__"))
    )


def _function(f: types.FunctionType, level: int) -> Any:
    name = f"{f.__module__}.{f.__qualname__}"
    if f.__module__.startswith("osmose.") and not f.__closure__:
        return name  # a function of the library means what its name says
    code = f.__code__
    used = {k: f.__globals__[k] for k in sorted(_names(code)) if k in f.__globals__}
    constants = {k: v for k, v in used.items() if isinstance(v, CONSTANTS) or _own(v)}
    cells = dict(zip(code.co_freevars, (c.cell_contents for c in f.__closure__ or ()), strict=True))
    held = {"defaults": f.__defaults__, "keywords": f.__kwdefaults__, "closure": cells, "globals": constants}
    out = {k: described(v, level) for k, v in held.items() if v}
    return {"function": name, "code": _code(code), **out}


def _names(code: types.CodeType) -> set[str]:
    """Names that a function, and those defined inside it, may look up outside."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return {*code.co_names, *(name for c in inner for name in _names(c))}


def _own(value: Any) -> bool:
    """Whether a name stands for a function of the user, whose code counts as that of its caller does."""
    return isinstance(value, types.FunctionType) and value.__module__.split(".")[0] not in LIBRARIES


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return _digest(repr((code.co_code, code.co_names, constants)).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint(settings: Any) -> str:
    """A digest of described settings."""
    return _digest(json.dumps(settings, sort_keys=True).encode())


def differences(kept: Any, asked: Any, path: str = "") -> list[str]:
    """Where two descriptions part: ``beta[1] was 2.0, now 3.0``."""
    if isinstance(kept, dict) and isinstance(asked, dict):
        out = []
        for k in [*kept, *(k for k in asked if k not in kept)]:
            here = f"{path}.{k}" if path else k
            if k in kept and k in asked:
                out += differences(kept[k], asked[k], here)
            else:
                out.append(f"{here} is {'gone' if k in kept else 'new'}")
        return out
    if isinstance(kept, list) and isinstance(asked, list):
        if len(kept) != len(asked):
            return [f"{path} had {len(kept)} entries, now {len(asked)}"]
        return [
            d
            for i, (a, b) in enumerate(zip(kept, asked, strict=True))
            for d in differences(a, b, f"{path}[{i}]")
        ]
    return [] if kept == asked else [f"{path} was {kept!r}, now {asked!r}"]
