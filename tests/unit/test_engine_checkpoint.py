"""Checkpoints: round trip, whole-file replacement, and clear refusal of what is not one."""

import errno
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from osmose.tasks import checkpoint
from osmose.tasks.checkpoint import CheckpointError

from .engine_helpers import limit_files


def test_round_trip_keeps_values_types_and_text(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "count": torch.tensor(7),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "view": torch.randn(4, 4).t(),
        "empty": torch.zeros(0, 3),
    }
    meta = {"epoch": 3, "loss": 0.1 + 0.2, "name": "ä", "list": [1, None, True]}
    checkpoint.save(path, tensors, meta)
    loaded, text = checkpoint.load(path)
    assert set(loaded) == set(tensors)
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
    assert {key: text[key] for key in meta} == meta
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    weight = torch.randn(3)
    checkpoint.save(tmp_path / "a.safetensors", {"a": weight, "b": weight}, {})
    loaded, _ = checkpoint.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded["a"], loaded["b"])


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": torch.ones(10)}, {"epoch": 1})
    limit_files(4096)
    try:
        with pytest.raises(OSError, match="file that was there is unchanged") as caught:
            checkpoint.save(path, {"w": torch.zeros(100_000)}, {"epoch": 2})
    finally:
        limit_files(None)
    assert caught.value.errno == errno.EFBIG
    loaded, meta = checkpoint.load(path)
    assert meta["epoch"] == 1
    assert torch.equal(loaded["w"], torch.ones(10))
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": torch.ones(10)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load(path)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not one of osmose's"):
        checkpoint.load(path)


def test_weights_of_another_model_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = nn.Linear(3, 2)
    with pytest.raises(
        CheckpointError, match=r"bias is missing.*extra is unknown.*weight has shape \(2, 4\)"
    ):
        checkpoint.load_weights(model, {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}, path)
    before = model.weight.clone()
    with pytest.raises(CheckpointError):
        checkpoint.load_weights(model, {"weight": torch.zeros(2, 3)}, path)
    assert torch.equal(model.weight, before), "a refused checkpoint changes nothing"
