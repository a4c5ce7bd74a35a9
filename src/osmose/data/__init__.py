"""Data sets with splits, as nodes (with or without edges), sequences, images, text or recorded episodes: public ones by
name, the user's own by path.

`load("cora")`, `load("table.csv", label="species")`, `load("X_TRAIN.ts")`; `load_new` prepares new rows, sequences or
images for a trained model; `load_episodes("hopper")` gives episodes. Names and protocols are to be had without torch;
what is heavy is imported when used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .catalog import CONTROL_PROTOCOLS, OWN_PROTOCOLS, PROTOCOLS, names
from .errors import DataError, DataNotFoundError
from .kind import kind

if TYPE_CHECKING:
    from .episodes import EpisodeData, Spans, Windows
    from .images import ImageData
    from .node import NodeData, Split
    from .sequence import SequenceData
    from .text import TextData

__all__ = [
    "CONTROL_PROTOCOLS",
    "OWN_PROTOCOLS",
    "PROTOCOLS",
    "DataError",
    "DataNotFoundError",
    "EpisodeData",
    "ImageData",
    "NodeData",
    "SequenceData",
    "Spans",
    "Split",
    "TextData",
    "Windows",
    "kind",
    "load",
    "load_episodes",
    "load_new",
    "names",
]


def __getattr__(name: str) -> Any:
    if name in ("NodeData", "Split"):
        from . import node

        return getattr(node, name)
    if name in ("EpisodeData", "Spans", "Windows"):
        from . import episodes

        return getattr(episodes, name)
    if name == "ImageData":
        from .images import ImageData

        return ImageData
    if name == "SequenceData":
        from .sequence import SequenceData

        return SequenceData
    if name == "TextData":
        from .text import TextData

        return TextData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(
    source: str | Path,
    *,
    task: str | None = None,
    protocol: str | None = None,
    splits: int | None = None,
    seed: int = 123,
    label: str | None = None,
    edges: str | Path | None = None,
    root: str | Path | None = None,
    labels_per_class: int | None = None,
    knn: int | None = None,
    id: str | None = None,
    ignore: tuple[str, ...] = (),
    directed: bool = False,
    size: int | None = None,
    length: int | None = None,
    env: str | None = None,
) -> NodeData | SequenceData | ImageData | TextData | EpisodeData:
    """Data by the name of a public set or by the path of the user's own; `kind(source, task)` says of which kind.

    Args:
        source: one of `names()`; or a CSV table, an `.npz`, a folder of arrays, `.ts` files (formats: docs/data.md).
        task: what the user's own file holds, `nodes`, `series`, `images`, `text` or `control`; None: told from the file.
        protocol: how nodes or sequences are divided, one of `PROTOCOLS[name]` or `OWN_PROTOCOLS`; None: the default.
        splits: number of splits; None: 5 where they are drawn, all where they are given. At most as many as
            the data give. Split i of a seed does not depend on this number.
        seed: of the random splits.
        label: label column of a CSV table; None: the one called label, class, target or y.
        edges: edge list of a table or of arrays without edges: CSV lines `source,target[,weight]`, or `.npy`.
        root: folder of raw public data; None: `OSMOSE_DATA`, else what the library downloads to its cache folder.
        labels_per_class: training labels a class where the protocol draws so; None: its default.
        knn: k of the nearest-neighbour graph; None: 5 for digits and 20news, no graph for the user's own data.
        id: id column of a CSV table, the node names of its edge list; None: `id` if there, else row numbers from 0.
        ignore: columns of a CSV table to leave out.
        directed: keep the direction of the user's edges; else both directions are stored.
        size: number of examples of listops, imdb, cifar-pixels or cifar-images, the same share of every part; None: all.
        length: bytes at which a review of imdb is cut, None: 1000; symbols of a training window of a text, None: 256.
        env: gymnasium's environment of recorded episodes; None: that of the file, if it names one.

    Returns:
        checked `NodeData`, `SequenceData`, `ImageData`, `TextData` or `EpisodeData`.

    Raises:
        DataError: a ValueError that names the file or argument, what came, what was expected, what to do.
        DataNotFoundError: a DataError and FileNotFoundError, for what is not there and could not be fetched.
    """
    from .resolve import load_source

    return load_source(
        source,
        task=task,
        protocol=protocol,
        splits=splits,
        seed=seed,
        label=label,
        edges=edges,
        root=root,
        labels_per_class=labels_per_class,
        knn=knn,
        id=id,
        ignore=ignore,
        directed=directed,
        size=size,
        length=length,
        env=env,
    )


def load_new(
    source: str | Path,
    preprocessing: dict[str, Any],
    *,
    edges: str | Path | None = None,
    root: str | Path | None = None,
) -> NodeData | SequenceData | ImageData:
    """New rows, nodes, sequences or images for a trained model: data without splits, labels -1 where there are none.

    Args:
        source: for sequences a `.ts` file, an `.npz`, or for texts a CSV with a column `text`; for images an `.npz`, an
            image, or a folder of them; else rows in the form of the training data (the same columns, or the same number
            of features); for a public set its name, or an `.npz`, folder, `.npy` or CSV of features.
        preprocessing: `NodeData.preprocessing` of the training data (after JSON too). Its means, scales and
            categories are applied, nothing is fitted; a nearest-neighbour graph is made among the new rows.
        edges: edge list of the new rows, as for `load`.
        root: folder of raw public data, as for `load`.

    Raises:
        DataError: as `load`; also for columns, widths or classes that the model does not know.
    """
    from .new import load_new_source

    return load_new_source(
        source,
        preprocessing,
        edges=None if edges is None else Path(edges),
        root=None if root is None else Path(root),
    )


def load_episodes(
    source: str | Path,
    *,
    env: str | None = None,
    action_range: tuple[float, float] | None = None,
    scale: float | None = None,
    protocol: str | None = None,
    splits: int | None = None,
    seed: int = 123,
    root: str | Path | None = None,
) -> EpisodeData:
    """Recorded episodes for offline control, by the name of a public set or by the path of the user's own `.npz`.

    Args:
        source: a name of kind control; or an `.npz` (formats: docs/data.md).
        env: environment in gymnasium that the user's episodes are of; None: what the `.npz` calls `env`, else none.
        action_range: low and high of the user's actions; None: what the `.npz` calls `action_range`, else -1 to 1 where
            they keep to it, else no bounds.
        scale: what returns are divided by; None: the largest return-to-go of the training part.
        protocol: one of `CONTROL_PROTOCOLS`; None: `episodes` with ten or more, else `blocks`.
        splits: number of splits; None: 5 where they are drawn.
        seed: of the random splits.
        root: folder of raw public data; None: `OSMOSE_DATA`.

    Raises:
        DataError: a ValueError that names the file or argument, what came, what was expected, what to do.
        DataNotFoundError: a DataError and FileNotFoundError, for what is not there.
    """
    from .episode_arrays import load_episode_source

    return load_episode_source(
        source,
        env=env,
        action_range=action_range,
        scale=scale,
        protocol=protocol,
        splits=splits,
        seed=seed,
        root=None if root is None else Path(root),
    )
