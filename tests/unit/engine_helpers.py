"""A small problem that trains in milliseconds."""

from __future__ import annotations

import resource

import torch

from osmose.data import NodeData, Split
from osmose.models.config import ModelConfig
from osmose.tasks.config import DataConfig, RunConfig, TrainConfig


def blobs(n: int = 60, channels: int = 5, classes: int = 3, splits: int = 2, seed: int = 0) -> NodeData:
    """Three overlapping clouds with random edges, mostly inside a cloud."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, channels, generator=draw) + 1.5 * torch.nn.functional.one_hot(y, channels)
    ends = torch.randint(0, n, (2, 6 * n), generator=draw)
    alike = (y[ends[0]] == y[ends[1]]) & (ends[0] != ends[1])
    edges = torch.cat([ends[:, alike], ends[:, alike].flip(0)], dim=1)
    parts = []
    for _ in range(splits):
        order = torch.randperm(n // 3, generator=draw)
        rows = (3 * order[:, None] + torch.arange(3)).flatten()  # every class in every part
        parts.append(Split(rows[: n // 3], rows[n // 3 : 2 * n // 3], rows[2 * n // 3 :]))
    return NodeData(
        "blobs", "test", x.float(), y, edges, None, parts, [f"class{k}" for k in range(classes)], {}
    )


def limit_files(size: int | None) -> None:
    """No file of this process may grow beyond `size` bytes, as on a full disk; None: as before."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def settings(model: str = "difformer-s", **train: object) -> RunConfig:
    """Run settings for `blobs`: a small model with dropout, twelve epochs, two splits."""
    values = {
        "epochs": 12,
        "patience": 0,
        "splits": 2,
        "device": "cpu",
        "threads": 1,
        "checkpoint_seconds": 1e6,
    } | train
    return RunConfig(
        DataConfig("blobs"),
        ModelConfig(name=model, hidden=8, layers=2, dropout=0.3),
        TrainConfig(**values),
    )
