"""From what the user typed to the loader that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .catalog import CATALOG, choose_protocol
from .episodes import EpisodeData
from .errors import DataError, DataNotFoundError, nearest
from .images import ImageData
from .kind import kind
from .node import NodeData
from .sequence import SequenceData
from .text import TextData

Data = NodeData | SequenceData | ImageData | TextData | EpisodeData
TABLES = (".csv", ".tsv", ".txt")
_SIZED = ("listops", "imdb", "cifar-pixels", "cifar-images")
"""Sets of which a part may be taken."""


def named(source: str | Path) -> str | None:
    """The public data set that `source` names, in any case; None for a path."""
    return source.lower() if isinstance(source, str) and source.lower() in CATALOG else None


def existing_source(source: str | Path) -> Path:
    """The path `source`, or an error that lists the known names."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    text = str(source)
    if "/" in text or "\\" in text or path.suffix:
        raise DataNotFoundError(f"{text!r} does not exist (working folder: {Path.cwd()}); check the path")
    raise DataNotFoundError(
        f"{text!r} is neither a known data set nor a path{nearest(text, CATALOG)}; known: {', '.join(CATALOG)}. "
        "Your own data: the path of a .csv, an .npz, a .ts, a folder of arrays, or one with a folder of images for each class"
    )


def load_source(
    source: str | Path,
    *,
    task: str | None = None,
    protocol: str | None,
    splits: int | None,
    edges: str | Path | None,
    root: str | Path | None,
    label: str | None,
    id: str | None,
    ignore: tuple[str, ...],
    directed: bool,
    **drawing: Any,
) -> Data:
    """`osmose.data.load`; `drawing` is seed, labels_per_class, knn, size, length and env."""
    taking = {key: drawing.pop(key, None) for key in ("size", "length", "env")}
    if splits is not None and splits < 1:
        raise DataError(f"splits is {splits}; expected at least 1")
    table = {"label": label, "id": id, "ignore": (ignore,) if isinstance(ignore, str) else tuple(ignore)}
    table_only = table | {"ignore": ignore or None}
    where, name = f"load({str(source)!r})", named(source)
    found = kind(source, task)
    if name is not None and task is not None:
        raise DataError(f"{where}: task is {task!r}, but this is a named data set; leave task out")
    if name not in _SIZED:
        reject(where, {"size": taking["size"]}, ", ".join(_SIZED))
    if name != "imdb" and found != "text":
        reject(where, {"length": taking["length"]}, "imdb and texts")
    if found != "control":
        reject(where, {"env": taking["env"]}, "recorded episodes")
    if found != "nodes":
        given = table_only | {"edges": edges, "directed": directed or None, "knn": drawing["knn"]}
        reject(where, given, f"tables and graphs, not for {found}")
        if name is None:
            reject(where, {"root": root}, "public data sets")
    if found in ("text", "control"):
        reject(where, {"labels_per_class": drawing["labels_per_class"]}, "data with labels")
    if found == "control":
        from . import load_episodes

        how = {"protocol": protocol, "splits": splits, "seed": drawing["seed"], "root": root}
        return load_episodes(source, env=taking["env"], **how)
    data: NodeData | SequenceData | ImageData | TextData
    if found == "text":
        data = _load_text(source, name, protocol, root, taking["length"])
    elif found in ("sequences", "images"):
        if name is not None:
            labels = drawing["labels_per_class"]
            reject(where, {"labels_per_class": labels}, "protocols that draw splits by label")
        load = _load_sequences if found == "sequences" else _load_images
        data = load(source, name, protocol, splits, root, drawing | taking)
    elif name is not None:
        reject(where, table_only | {"edges": edges, "directed": directed or None}, "the user's own data")
        raw = None if root is None else Path(root)
        data = _load_named(name, choose_protocol(name, protocol), splits, raw, drawing)
    else:
        reject(where, {"root": root}, "public data sets")
        path = existing_source(source)
        if path.is_dir() or path.suffix.lower() == ".npz":
            reject(where, table_only, "CSV tables")
        edge_path = None if edges is None else Path(edges).expanduser()
        own = {"protocol": protocol, "splits": splits, "edges": edge_path, "directed": directed, **drawing}
        data = _load_own(path, table, own)
    if splits is not None and len(data.splits) < splits:
        data.notes.append(f"{splits} splits asked for; protocol {data.protocol!r} has {len(data.splits)}")
    return data


def _load_own(path: Path, table: dict[str, Any], own: dict[str, Any]) -> NodeData:
    from .own import load_arrays, load_table

    if path.is_dir() or path.suffix.lower() == ".npz":
        return load_arrays(path, **own)
    if path.suffix.lower() in TABLES:
        try:
            return load_table(path, **table, **own)
        except DataError as error:
            if path.suffix.lower() != ".txt":
                raise
            hint = f"If it is a text and no table: osmose train text --data {path.name}, or load(..., task='text')"
            raise DataError(f"{error}. {hint}") from error
    raise DataError(f"{path} is of an unknown kind; expected a .csv (.tsv, .txt), an .npz, a .ts or a folder")


def _load_text(
    source: str | Path,
    name: str | None,
    protocol: str | None,
    root: str | Path | None,
    length: int | None,
) -> TextData:
    from .text import load_text, load_tinyshakespeare

    if name is not None:
        raw = None if root is None else Path(root)
        return load_tinyshakespeare(protocol=choose_protocol(name, protocol), length=length, root=raw)
    return load_text(existing_source(source), protocol=protocol, length=length)


def _load_sequences(
    source: str | Path,
    name: str | None,
    protocol: str | None,
    splits: int | None,
    root: str | Path | None,
    drawing: dict[str, Any],
) -> SequenceData:
    labels, seed = drawing["labels_per_class"], drawing["seed"]
    if name is None:
        path = existing_source(source)
        how = {"protocol": protocol, "splits": splits, "seed": seed, "labels_per_class": labels}
        if path.suffix.lower() == ".npz" and not path.is_dir():
            from .sequence_arrays import load_sequence_arrays

            return load_sequence_arrays(path, **how)
        from .uea import load_ts

        return load_ts(path, **how)
    protocol = choose_protocol(name, protocol)
    number = CATALOG[name].splits if splits is None else splits
    common: dict[str, Any] = {"splits": number, "seed": seed}
    raw, size = None if root is None else Path(root), drawing["size"]
    if name == "listops":
        from .listops import load_listops

        return load_listops(size=size)
    if name == "imdb":
        from .imdb import load_imdb

        return load_imdb(protocol, **common, size=size, length=drawing["length"], root=raw)
    if name == "digits-pixels":
        from .pixels import load_digits_pixels

        return load_digits_pixels(**common)
    if name == "cifar-pixels":
        from .pixels import load_cifar_pixels

        return load_cifar_pixels(**common, size=size, root=raw)
    from .uea import load_uea

    return load_uea(name, protocol, **common, root=raw)


def _load_images(
    source: str | Path,
    name: str | None,
    protocol: str | None,
    splits: int | None,
    root: str | Path | None,
    drawing: dict[str, Any],
) -> ImageData:
    labels, seed = drawing["labels_per_class"], drawing["seed"]
    if name is None:
        from .own_images import load_images

        path = existing_source(source)
        return load_images(path, protocol=protocol, splits=splits, seed=seed, labels_per_class=labels)
    choose_protocol(name, protocol)
    common: dict[str, Any] = {"splits": CATALOG[name].splits if splits is None else splits, "seed": seed}
    if name == "digits-images":
        from .pixels import load_digits_images

        return load_digits_images(**common)
    from .pixels import load_cifar_images

    raw = None if root is None else Path(root)
    return load_cifar_images(**common, size=drawing["size"], root=raw)


def reject(where: str, arguments: dict[str, Any], belongs: str) -> None:
    """Raise `DataError` where an argument was given that belongs to other data."""
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise DataError(f"{where}: {', '.join(given)} is for {belongs}; leave it out")


def _load_named(
    name: str, protocol: str, splits: int | None, root: Path | None, drawing: dict[str, Any]
) -> NodeData:
    entry = CATALOG[name]
    number = entry.splits if splits is None else splits
    labels, knn, seed = drawing["labels_per_class"], drawing["knn"], drawing["seed"]
    if protocol in ("fixed", "public"):
        reject(
            f"load({name!r}), protocol {protocol!r}",
            {"labels_per_class": labels},
            "protocols that draw splits",
        )
    per_class = entry.labels_per_class if labels is None else labels
    if name in ("cora", "citeseer", "chameleon"):
        reject(f"load({name!r})", {"knn": knn}, "data without edges")
    if name == "chameleon":
        from .chameleon import load_chameleon

        data = load_chameleon(splits=number, root=root)
    else:
        assert per_class is not None
        common = {"splits": number, "seed": seed, "labels_per_class": per_class}
        neighbours = 5 if knn is None else knn
        if name == "digits":
            from .digits import load_digits

            data = load_digits(**common, knn=neighbours)
        elif name == "20news":
            from .newsgroups import load_newsgroups

            data = load_newsgroups(**common, knn=neighbours, root=root)
        else:
            from .planetoid import load_planetoid

            data = load_planetoid(name, protocol, **common, root=root)
    data.preprocessing["classes"] = data.classes
    return data
