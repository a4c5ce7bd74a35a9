"""Cora and CiteSeer, read by PyTorch Geometric from the raw files or from its download."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .cache import cache_dir, download_failed, find_raw, writing
from .catalog import CATALOG
from .errors import DataError, DataNotFoundError, some
from .graph import canonical
from .node import NodeData, Split
from .splits import per_class

_FOLDER = {"cora": "Cora", "citeseer": "CiteSeer"}
_CLASSES = {
    "cora": [
        "Theory",
        "Reinforcement_Learning",
        "Genetic_Algorithms",
        "Neural_Networks",
        "Probabilistic_Methods",
        "Case_Based",
        "Rule_Learning",
    ],
    "citeseer": ["AI", "ML", "IR", "DB", "Agents", "HCI"],
}


def load_planetoid(
    name: str, protocol: str, *, splits: int, seed: int, labels_per_class: int, root: Path | None
) -> NodeData:
    """Cora or CiteSeer: rows of word counts that sum to 1, undirected citations without self-loops.

    Protocols: `random` draws `labels_per_class` papers a class, 500 for validation and 1000 for test, anew for
    every split; `public` is the one fixed split of Planetoid (https://arxiv.org/abs/1603.08861). Figures of the
    two protocols do not compare.

    15 papers of CiteSeer are missing in the raw files: no words, no label. They stay in the graph as zero rows,
    unlabelled; code that takes the first class for them (PyTorch Geometric, and with it published figures)
    trains and tests on up to 15 labels that nobody gave.
    """
    raw = _raw_data(name, root)
    x = row_normalize(raw.x)
    edge_index, _, notes = canonical(raw.edge_index, None, x.shape[0])
    y = torch.where(x.sum(1) == 0, -1, raw.y)
    if bool((y < 0).any()):
        notes.append(f"{int((y < 0).sum())} papers have neither words nor a label: unlabelled, in no split")
    if protocol == "public":
        masks = (raw.train_mask, raw.val_mask, raw.test_mask)
        drawn = [Split(*(m.nonzero().flatten() for m in masks))]
    else:
        entry = CATALOG[name]
        drawn = per_class(
            y,
            labels_per_class=labels_per_class,
            valid=entry.valid,
            test=entry.test,
            splits=splits,
            seed=seed,
        )
    return NodeData(
        name=name,
        protocol=protocol,
        x=x,
        y=y,
        edge_index=edge_index,
        edge_weight=None,
        splits=drawn,
        classes=_CLASSES[name],
        preprocessing={"kind": "named", "name": name, "features": x.shape[1], "normalize": "row"},
        notes=notes,
    )


def row_normalize(x: Tensor) -> Tensor:
    """Rows divided by their sum; a row that sums to 0 stays as it is."""
    total = x.sum(1, keepdim=True)
    return x / torch.where(total == 0, torch.ones_like(total), total)


def _raw_data(name: str, root: Path | None):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch_geometric.datasets import Planetoid
    except ImportError as error:
        raise DataError(
            f"load({name!r}) reads the graph with torch-geometric, which is not installed: "
            "pip install 'osmose[graph]'"
        ) from error
    folder = _FOLDER[name]
    home = cache_dir() / "planetoid"
    raw = find_raw([f"{folder}/raw"], root)
    missing = [] if raw is None else [file for file in _files(name) if not (raw / file).is_file()]
    if missing:
        raise DataNotFoundError(
            f"load({name!r}): {raw} lacks {some(missing, 8)}; complete the folder or remove it"
        )
    if raw is None and (home / folder).is_dir():
        try:
            return _quiet(Planetoid, home, folder)
        except Exception as error:
            raise DataError(
                f"load({name!r}): {home / folder} cannot be read ({type(error).__name__}); remove this "
                "folder, then it is fetched again"
            ) from error
    with writing():
        home.mkdir(exist_ok=True)
    with writing(), tempfile.TemporaryDirectory(dir=home) as staging:
        if raw is not None:
            shutil.copytree(raw, Path(staging) / folder / "raw", copy_function=shutil.copyfile)
        try:
            data = _quiet(Planetoid, Path(staging), folder)
        except Exception as error:
            if raw is not None:
                raise DataError(
                    f"load({name!r}): the files in {raw} cannot be read ({type(error).__name__}: {error}); "
                    "expected the eight ind.* files of Planetoid. Remove or replace this folder"
                ) from error
            raise download_failed(
                name, error, f"{folder}/raw/ind.{name}.* (eight files of Planetoid)"
            ) from error
        if raw is None:
            with contextlib.suppress(OSError):  # another process was first
                os.replace(Path(staging) / folder, home / folder)
        return data


def _files(name: str) -> list[str]:
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    return [f"ind.{name}.{part}" for part in parts]


def _quiet(loader, home: Path, folder: str):
    """The graph, without the progress lines and the pickle and NumPy deprecation warnings of the reader."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return loader(str(home), folder)[0]
