"""Chameleon without duplicate pages, with its ten splits."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path

from .arrays import read_npz, splits_of
from .cache import cache_dir, download_failed, find_raw, replacing
from .errors import DataError
from .graph import canonical
from .node import NodeData

_FILE = "chameleon_filtered.npz"
_URL = f"https://github.com/yandex-research/heterophilous-graphs/raw/main/data/{_FILE}"


def load_chameleon(*, splits: int, root: Path | None) -> NodeData:
    """Wikipedia pages on chameleons, class = traffic (Platonov et al. 2023, https://arxiv.org/abs/2302.11640).

    The file holds every link once, from the smaller to the larger index: no direction is to be had from it.
    Links are made undirected (17,708 directed edges), as the authors of the file and of DIFFormer do.
    Features are the bits of the file, not normalised.
    """
    arrays = read_npz(_path(root))
    y, classes = arrays.labels()
    x = arrays.features()
    found, drawn = arrays.edges(x.shape[0]), splits_of(arrays, x.shape[0])
    if found is None or drawn is None:
        raise DataError(f"{arrays.place} lacks edges or masks; expected the file of Platonov et al.: {_URL}")
    edge_index, _, notes = canonical(found, None, x.shape[0])
    return NodeData(
        name="chameleon",
        protocol="fixed",
        x=x,
        y=y,
        edge_index=edge_index,
        edge_weight=None,
        splits=drawn[:splits],
        classes=classes,
        preprocessing={"kind": "named", "name": "chameleon", "features": x.shape[1], "normalize": None},
        notes=notes,
    )


def _path(root: Path | None) -> Path:
    found = find_raw([_FILE, f"heterophilous/{_FILE}"], root)
    if found is not None:
        return found
    path = cache_dir() / _FILE
    if not path.is_file():
        try:
            with urllib.request.urlopen(_URL, timeout=30) as reply:
                content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise download_failed("chameleon", error, _FILE) from error
        with replacing(path) as part:
            part.write(content)
    return path
