"""The data of a run, loaded as its settings say, and a fingerprint to notice when they have changed."""

from __future__ import annotations

import zlib
from pathlib import Path

from osmose import data
from osmose.tasks.config import DataConfig
from osmose.tasks.loop import Data

_TENSORS = {
    "nodes": ("x", "y", "edge_index", "edge_weight"),
    "sequences": ("values", "ptr", "y"),
    "images": ("x", "y"),
    "text": ("values",),
    "control": ("states", "actions", "rewards", "terminals", "ptr"),
}
"""What makes up each kind of data."""


def load(config: DataConfig, splits: int) -> Data:
    """Load the data of a run; `splits` is the number of random splits to draw where the protocol draws them."""
    return data.load(
        config.source,
        task=config.task,
        protocol=config.protocol,
        splits=splits,
        seed=config.split_seed,
        label=config.label,
        edges=Path(config.edges) if config.edges else None,
        labels_per_class=config.labels_per_class,
        knn=config.knn,
        id=config.id,
        ignore=config.ignore,
        directed=config.directed,
        env=config.env,
        size=config.size,
        length=config.length,
    )


def fingerprint(loaded: Data) -> str:
    """CRC-32 over the tensors of the data. O(size of the data)."""
    value = 0
    for name in _TENSORS[loaded.kind]:
        tensor = getattr(loaded, name)
        if tensor is not None:
            value = zlib.crc32(tensor.contiguous().numpy().tobytes(), value)
    return f"{value:08x}"
