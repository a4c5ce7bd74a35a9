"""The data of a run, loaded as its settings say, and a fingerprint to notice when they have changed."""

from __future__ import annotations

import zlib
from pathlib import Path

from osmose import data
from osmose.tasks.config import DataConfig
from osmose.tasks.recipes import check_name


def is_path(source: str) -> bool:
    """True if `source` means a file or folder of the user, not a named data set.

    Raises ValueError when it is neither a known name nor an existing path.
    """
    if source in data.names():
        return False
    if Path(source).exists():
        return True
    if "/" in source or Path(source).suffix:
        raise FileNotFoundError(f"no data at {source}: expected a folder, a .npz or a CSV file, or a name")
    check_name(source, data.names(), "data set")
    return False


def load(config: DataConfig, splits: int) -> data.NodeData:
    """Load the data of a run; `splits` is the number of random splits to draw where the protocol draws them."""
    source = Path(config.source) if is_path(config.source) else config.source
    return data.load(
        source,
        protocol=config.protocol,
        splits=splits,
        seed=config.split_seed,
        label=config.label,
        edges=Path(config.edges) if config.edges else None,
        labels_per_class=config.labels_per_class,
    )


def fingerprint(loaded: data.NodeData) -> str:
    """CRC-32 over features, labels and edges. O(size of the data)."""
    value = 0
    for tensor in (loaded.x, loaded.y, loaded.edge_index, loaded.edge_weight):
        if tensor is not None:
            value = zlib.crc32(tensor.contiguous().numpy().tobytes(), value)
    return f"{value:08x}"
