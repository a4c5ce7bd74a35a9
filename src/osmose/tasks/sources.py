"""The data of a run, loaded as its settings say, and a fingerprint to notice when they have changed."""

from __future__ import annotations

import zlib
from pathlib import Path

from osmose import data
from osmose.tasks.config import DataConfig


def load(config: DataConfig, splits: int) -> data.NodeData:
    """Load the data of a run; `splits` is the number of random splits to draw where the protocol draws them."""
    return data.load(
        config.source,
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
    )


def fingerprint(loaded: data.NodeData) -> str:
    """CRC-32 over features, labels and edges. O(size of the data)."""
    value = 0
    for tensor in (loaded.x, loaded.y, loaded.edge_index, loaded.edge_weight):
        if tensor is not None:
            value = zlib.crc32(tensor.contiguous().numpy().tobytes(), value)
    return f"{value:08x}"
