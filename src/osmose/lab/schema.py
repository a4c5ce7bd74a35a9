"""The payload of a run: its fields, and a check by plain code whose errors name the path of what is wrong.

    schema       "osmose.particles"
    version      1
    system       name, title, source, n, d, beta, law, kernel, field, space, stepper, parameters, shape, index
    times        F numbers that rise; log_time whether the run stepped in log t
    positions    F x n x d, points (unit vectors where tokens are on a sphere), or null: see left_out
    angles       F x n on the circle, else null: not wrapped
    radii        F x n where lengths are part of the state, else null
    masses       n numbers, or null where each is 1
    energy       values and normalised (F numbers, or null), log_scale, model, note
    clusters     scale, labels F x n (-1: absent), counts F
    products     of ("inner products" or "cosines"), edges B + 1, counts F x B (of ordered pairs), mean F
    order        F numbers: length of the mean (of directions in flat spaces)
    dirac        F numbers: distance to the nearest Dirac measure
    exact        values (F numbers or null), start, exact, note
    attention    times A, weights A x heads x n x n, or null
    gram         times A, values A x n x n, of a run without positions, or null
    leaders      follows F x n: to whom a token listens most among others (-1: nobody), itself F x n: whether to itself more
    events       name -> time, or null where it did not happen
    status       name, meaning, steps
    notes        texts
    left_out     field -> why it is null
    thinned      field -> what was thinned, as a text
    decimals     to how many decimals positions, angles, radii, weights and products are rounded

Numbers that are not finite are null. F frames, n tokens, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

SCHEMA = "osmose.particles"
VERSION = 1

Check = Callable[[Any, str], None]


def check_payload(payload: Any) -> None:
    """Raise where an object is no payload of this schema and version.

    Raises:
        ValueError: ``payload.clusters.labels[3]: ...``, the path, what came and what was expected.
    """
    if not isinstance(payload, dict):
        _fail("payload", payload, "an object")
    if payload.get("schema") != SCHEMA:
        _fail("payload.schema", payload.get("schema"), repr(SCHEMA))
    if payload.get("version") != VERSION:
        _fail(
            "payload.version", payload.get("version"), f"{VERSION}: make the payload anew with this release"
        )
    _system(payload.get("system"), "payload.system")
    n, d = payload["system"]["n"], payload["system"]["d"]
    _rising(payload.get("times"), "payload.times")
    frames, bins, shots, heads = len(payload["times"]), _bins(payload), _shots(payload), _heads(payload)
    many = _list(_maybe_number, frames)
    tokens = _list(_maybe_number, n)
    parts: dict[str, Check] = {
        "schema": _text,
        "version": _whole(1),
        "system": _system,
        "times": _rising,
        "log_time": _flag,
        "positions": _or_null(_list(_list(_list(_maybe_number, d), n), frames)),
        "angles": _or_null(_list(tokens, frames)),
        "radii": _or_null(_list(tokens, frames)),
        "masses": _or_null(_list(_number, n)),
        "energy": _object(
            values=_or_null(many),
            normalised=_or_null(many),
            log_scale=_number,
            model=_or_null(_text),
            note=_text,
        ),
        "clusters": _object(
            scale=_number,
            labels=_list(_list(_whole(-1, n - 1), n), frames),
            counts=_list(_whole(0, n), frames),
        ),
        "products": _object(
            of=_text,
            edges=_rising,
            counts=_list(_list(_number, bins), frames),
            mean=_list(_maybe_number, frames),
        ),
        "order": many,
        "dirac": many,
        "exact": _object(values=_or_null(many), start=_maybe_number, exact=_flag, note=_text),
        "attention": _or_null(
            _object(
                times=_list(_number, shots["attention"]),
                weights=_list(_list(_list(_list(_maybe_number, n), n), heads), shots["attention"]),
            )
        ),
        "gram": _or_null(
            _object(
                times=_list(_number, shots["gram"]), values=_list(_list(_list(_number, n), n), shots["gram"])
            )
        ),
        "leaders": _or_null(
            _object(
                follows=_list(_list(_whole(-1, n - 1), n), frames),
                itself=_list(_list(_whole(0, 1), n), frames),
            )
        ),
        "events": _map(_maybe_number),
        "status": _object(name=_text, meaning=_text, steps=_whole(0)),
        "notes": _list(_text),
        "left_out": _map(_text),
        "thinned": _map(_text),
        "decimals": _whole(0),
    }
    _object(**parts)(payload, "payload")
    for name in ("positions", "attention", "leaders"):
        if payload[name] is None and name not in payload["left_out"]:
            _fail(f"payload.left_out.{name}", None, f"the reason why {name} is null")


def _system(value: Any, path: str) -> None:
    _object(
        name=_text,
        title=_text,
        source=_text,
        n=_whole(1),
        d=_whole(1),
        beta=_maybe_number,
        law=_or_null(_text),
        kernel=_or_null(_text),
        field=_text,
        space=_text,
        stepper=_text,
        parameters=_plain,
        shape=_list(_whole(0)),
        index=_whole(0),
    )(value, path)


# ---- sizes that other parts state ------------------------------------------------------------------


def _bins(payload: dict[str, Any]) -> int | None:
    products = payload.get("products")
    edges = products.get("edges") if isinstance(products, dict) else None
    return len(edges) - 1 if isinstance(edges, list) else None


def _shots(payload: dict[str, Any]) -> dict[str, int | None]:
    def count(name: str) -> int | None:
        part = payload.get(name)
        times = part.get("times") if isinstance(part, dict) else None
        return len(times) if isinstance(times, list) else None

    return {name: count(name) for name in ("attention", "gram")}


def _heads(payload: dict[str, Any]) -> int | None:
    part = payload.get("attention")
    weights = part.get("weights") if isinstance(part, dict) else None
    first = weights[0] if isinstance(weights, list) and weights else None
    return len(first) if isinstance(first, list) else None


# ---- checks ---------------------------------------------------------------------------------------


def _fail(path: str, value: Any, expected: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise ValueError(f"{path}: is {shown}; expected {expected}.")


def _number(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _fail(path, value, "a finite number")


def _maybe_number(value: Any, path: str) -> None:
    if value is not None:
        _number(value, path)


def _text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        _fail(path, value, "a text")


def _flag(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        _fail(path, value, "true or false")


def _whole(low: int, high: int | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < low
            or (high is not None and value > high)
        ):
            _fail(path, value, f"a whole number from {low}" + ("" if high is None else f" to {high}"))

    return check


def _rising(value: Any, path: str) -> None:
    _list(_number)(value, path)
    if not value or any(b <= a for a, b in pairwise(value)):
        _fail(path, value, "numbers that rise")


def _or_null(inner: Check) -> Check:
    return lambda value, path: None if value is None else inner(value, path)


def _list(inner: Check, length: int | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            _fail(path, value, "a list")
        if length is not None and len(value) != length:
            raise ValueError(f"{path}: has {len(value)} entries; expected {length}.")
        for k, entry in enumerate(value):
            inner(entry, f"{path}[{k}]")

    return check


def _map(inner: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            _fail(path, value, "an object")
        for key, entry in value.items():
            inner(entry, f"{path}.{key}")

    return check


def _object(**parts: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            _fail(path, value, "an object")
        for key in parts:
            if key not in value:
                raise ValueError(f"{path}.{key}: is missing; expected {', '.join(parts)}.")
        for key in value:
            if key not in parts:
                raise ValueError(f"{path}.{key}: is not a field of the schema; expected {', '.join(parts)}.")
        for key, inner in parts.items():
            inner(value[key], f"{path}.{key}")

    return check


def _plain(value: Any, path: str) -> None:
    """Anything that JSON writes as it is."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _text(key, f"{path} (a key)")
            _plain(entry, f"{path}.{key}")
    elif isinstance(value, list):
        for k, entry in enumerate(value):
            _plain(entry, f"{path}[{k}]")
    elif not (value is None or isinstance(value, (str, bool))):
        _number(value, path)
