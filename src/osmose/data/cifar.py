"""CIFAR-10 from an archive of JPEG files, in gray or in colour: decoded once, then kept in the cache folder."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .cache import cache_dir, find_raw, kept_arrays, replacing
from .errors import DataError, DataNotFoundError
from .node import Split
from .splits import holdout
from .symbols import thin

_ARCHIVE = ["cifar10_jpeg/cifar10_jpeg.tar.xz", "cifar10_jpeg.tar.xz"]
_MODES = {"gray": "L", "colour": "RGB"}
_SIDE = 32


@dataclass
class Cifar:
    """`x` (N, C, 32, 32) uint8, `y` (N,), and what a data set says of them."""

    x: np.ndarray
    y: Tensor
    splits: list[Split]
    classes: list[str]
    notes: list[str]


def load_cifar(
    name: str,
    colours: Literal["gray", "colour"],
    *,
    splits: int,
    seed: int,
    size: int | None,
    root: Path | None,
) -> Cifar:
    """60,000 images, or `size` of them: 45,000 / 5,000 / 10,000, validation drawn class by class.

    Of images re-encoded as JPEG (about 30 dB), so figures are not those of the original CIFAR-10. `name` is for errors.
    """
    arrays = _decoded(name, colours, root)
    y, train = torch.from_numpy(arrays["y"]), torch.from_numpy(arrays["train"])
    parts = thin(y, [train.nonzero().flatten(), (~train).nonzero().flatten()], size)
    chosen = torch.cat(parts)
    y = y[chosen]
    known, test = torch.arange(len(chosen)).split([len(part) for part in parts])
    notes = ["JPEG: images re-encoded with loss, figures are not those of the original CIFAR-10"]
    if size is not None:
        notes.append(f"{len(known)} training and {len(test)} test images drawn from 50000 and 10000")
    return Cifar(
        x=arrays["x"].reshape(len(arrays["x"]), -1, _SIDE, _SIDE)[chosen.numpy()],
        y=y,
        splits=holdout(y, known, test, share=0.1, splits=splits, seed=seed),
        classes=arrays["classes"].tolist(),
        notes=notes,
    )


def _decoded(name: str, colours: Literal["gray", "colour"], root: Path | None) -> dict[str, np.ndarray]:
    path = cache_dir() / f"cifar10-jpeg-{colours}.npz"
    arrays = kept_arrays(path, {"x", "y", "train", "classes"}) if root is None else None
    if arrays is None:
        archive = find_raw(_ARCHIVE, root)
        if archive is None:
            raise DataNotFoundError(
                f"load({name!r}): no {_ARCHIVE[1]} with train/CLASS/*.jpg and test/CLASS/*.jpg; make it of CIFAR-10 "
                "(https://www.cs.toronto.edu/~kriz/cifar.html) and name its folder in OSMOSE_DATA"
            )
        arrays = _read_images(name, archive, _MODES[colours])
        with replacing(path) as part:
            np.savez(part, allow_pickle=False, **arrays)
    return arrays


def _read_images(name: str, path: Path, mode: str) -> dict[str, np.ndarray]:
    """All images in the mode of Pillow, pixels in a row and channel by channel, in the order of their paths."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"load({name!r}) decodes JPEG with Pillow, which is not installed: pip install pillow"
        ) from error
    found: list[tuple[tuple[str, ...], np.ndarray]] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                names = Path(member.name).parts[-3:]
                if member.isfile() and len(names) == 3 and names[0] in ("train", "test"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    with Image.open(io.BytesIO(stream.read())) as image:
                        pixels = np.asarray(image.convert(mode)).reshape(image.height * image.width, -1)
                    found.append((names, pixels.T.reshape(-1)))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as an archive of images ({error}); make it again") from error
    if not found or {len(pixels) for _, pixels in found} != {len(mode) * _SIDE * _SIDE}:
        raise DataError(f"{path}: expected images of 32 x 32 pixels in train/CLASS and test/CLASS")
    found.sort(key=lambda one: one[0])
    classes = sorted({names[1] for names, _ in found})
    return {
        "x": np.stack([pixels for _, pixels in found]),
        "y": np.array([classes.index(names[1]) for names, _ in found], dtype=np.int64),
        "train": np.array([names[0] == "train" for names, _ in found]),
        "classes": np.array(classes),
    }
