"""Fixtures of the whole suite: a cache folder of its own, and the benchmark data where they are to be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The suite neither reads nor fills the user's cache folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OSMOSE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder of benchmark data: OSMOSE_DATA, else ../shared/datasets beside the repository."""
    named = os.environ.get("OSMOSE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip(f"benchmark data: {folder} is no folder; name it in OSMOSE_DATA")
    return folder
