"""The folder of a sweep: what was asked, and a file for each finished chunk, all written as a whole or not at all.

sweep.json              settings, chunk sizes
chunk-00012.safetensors the values of a chunk, with the fingerprint of settings and sizes and a digest of its bytes
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from ...files import whole
from .settings import differences

Values = dict[str, Tensor]
MANIFEST = "sweep.json"


class Folder:
    """Finished chunks of one sweep.

    Args:
        path: created if needed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.fingerprint = ""

    def kept(self) -> dict[str, Any] | None:
        """The manifest; None for a new folder."""
        file = self.path / MANIFEST
        if not file.exists():
            return None
        try:
            manifest = json.loads(file.read_text())
            return {
                "settings": manifest["settings"],
                "chunks": manifest["chunks"],
                "fingerprint": manifest["fingerprint"],
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"sweep: {file} is no manifest of a sweep ({error}); take another folder, or remove this one."
            ) from None

    def open(self, settings: dict[str, Any], chunks: list[int], fingerprint: str) -> None:
        """Begin, or go on with the same settings.

        Raises:
            ValueError: the folder holds a sweep with other settings; the message says which.
        """
        self.fingerprint = fingerprint
        kept = self.kept()
        if kept is None:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"fingerprint": fingerprint, "chunks": chunks, "settings": settings}, indent=1)
            with whole(self.path / MANIFEST) as part:
                part.write_bytes(text.encode())
            return
        other = differences(kept["settings"], settings) + differences(kept["chunks"], chunks, "chunk")
        if other:
            more = f", and {len(other) - 4} more" if len(other) > 4 else ""
            raise ValueError(
                f"sweep: folder {str(self.path)!r} holds a sweep with other settings: {'; '.join(other[:4])}{more}. Take another "
                "folder, or the settings it has."
            )

    def read(self, number: int) -> tuple[Values, list[str]] | None:
        """The values and notes of a chunk; None where it is to be computed, with a warning if its file is damaged."""
        from safetensors import SafetensorError

        file = self._file(number)
        try:
            values, about = read_tensors(file)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            warnings.warn(f"sweep: {file} is damaged ({error}); the chunk is computed again.", stacklevel=2)
            return None
        if about.get("fingerprint") != self.fingerprint:
            warnings.warn(f"sweep: {file} is of another sweep; the chunk is computed again.", stacklevel=2)
            return None
        return values, about["notes"]

    def write(self, number: int, values: Values, notes: list[str]) -> None:
        write_tensors(self._file(number), values, {"fingerprint": self.fingerprint, "notes": notes})

    def _file(self, number: int) -> Path:
        return self.path / f"chunk-{number:05d}.safetensors"


def write_tensors(path: Path, tensors: Values, about: dict[str, Any]) -> None:
    """Tensors and JSON in one safetensors file, with a digest of the bytes."""
    from safetensors.torch import save

    owned = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(about | {"digest": _digest(owned)})
    with whole(path) as part:
        part.write_bytes(save(owned, metadata={"osmose.sweep": text}))


def read_tensors(path: Path) -> tuple[Values, dict[str, Any]]:
    """What :func:`write_tensors` wrote.

    Raises:
        FileNotFoundError, SafetensorError, ValueError, KeyError: no such file, or not as it was written.
    """
    from safetensors import safe_open

    if not path.exists():
        raise FileNotFoundError(path)
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {})["osmose.sweep"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no iterator)
    if about.pop("digest") != _digest(tensors):
        raise ValueError("its bytes are not those that were written")
    return tensors, about


def _digest(tensors: Values) -> str:
    sums = hashlib.sha256()
    for name in sorted(tensors):
        sums.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sums.update(tensors[name].numpy().tobytes())
    return sums.hexdigest()
