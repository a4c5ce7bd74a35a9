"""One safetensors file per checkpoint, replaced as a whole: a failed save leaves the last good one untouched.

Tensors are stored by name; everything else is JSON in the file's metadata. Nothing is pickled, so reading a
checkpoint cannot run code.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_KEY = "osmose"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to something else."""


def replace_file(path: Path, payload: bytes) -> None:
    """Write `payload` to `path` so that at any moment the path holds either the old file or the new one.

    The bytes go to a temporary file beside it, are forced to disk, and take its place in one step.
    Raises OSError (disk full, quota) after removing the temporary file; the old file is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "the file that was there is unchanged" if path.exists() else "nothing was written"
        advice = (
            "Free some space (or choose another --out) and resume"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else "Check the path and its permissions, or choose another --out"
        )
        raise OSError(error.errno, f"cannot save {path}: {error.strerror}; {kept}. {advice}") from error
    _sync_folder(path.parent)


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Save tensors and JSON metadata in one safetensors file, atomically."""
    owned = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True)
    replace_file(path, safetensors.torch.save(owned, metadata={_KEY: text}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote, on the CPU. Raises CheckpointError for a damaged or foreign file."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): the file is truncated or damaged. Nothing was changed; "
            "restore it from a copy, or start again in another folder (--out) or in this one (--overwrite)"
        ) from error
    if _KEY not in meta:
        raise CheckpointError(f"{path} is a safetensors file, but not one of osmose's checkpoints")
    content = json.loads(meta[_KEY])
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {content.get('format')}; this version reads {FORMAT}"
        )
    return tensors, content


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy `weights` into `model`. Raises CheckpointError, naming the first parameters that do not fit."""
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in expected]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{source} is a checkpoint of another model: {'; '.join(wrong[:3])}{more}. "
            "Use the settings it was trained with (config.toml beside it)"
        )
    model.load_state_dict(weights)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
