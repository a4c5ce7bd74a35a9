"""Images as sequences of their pixels, row by row: digits and CIFAR-10 in gray."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .cache import cache_dir, find_raw, kept_arrays, replacing
from .errors import DataError, DataNotFoundError
from .node import Split
from .sequence import SequenceData
from .splits import holdout, stratified
from .symbols import thin

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
"""Endings of the files that are read as images."""

_CIFAR = ["cifar10_jpeg/cifar10_jpeg.tar.xz", "cifar10_jpeg.tar.xz"]


def load_digits_pixels(*, splits: int, seed: int) -> SequenceData:
    """scikit-learn's 1797 digits as 64 symbols 0 to 16; 60 / 20 / 20 class by class."""
    from sklearn import datasets

    pixels, digit = datasets.load_digits(return_X_y=True)
    y = torch.from_numpy(digit).long()
    drawn = stratified(y, splits=splits, seed=seed)
    return _images("digits-pixels", "stratified", pixels, 17, y, drawn, list(map(str, range(10))), [])


def load_cifar_pixels(*, splits: int, seed: int, size: int | None, root: Path | None) -> SequenceData:
    """60,000 images in gray as 1024 symbols 0 to 255: 45,000 / 5,000 / 10,000, validation drawn class by class.

    Of images re-encoded as JPEG (about 30 dB), so figures are not those of the original CIFAR-10. The images are decoded
    once and kept in the cache folder.
    """
    arrays = cifar_images("L", root)
    y, train = torch.from_numpy(arrays["y"]), torch.from_numpy(arrays["train"])
    parts = thin(y, [train.nonzero().flatten(), (~train).nonzero().flatten()], size)
    chosen = torch.cat(parts)
    y = y[chosen]
    known, test = torch.arange(len(chosen)).split([len(part) for part in parts])
    drawn = holdout(y, known, test, share=0.1, splits=splits, seed=seed)
    notes = ["JPEG: images re-encoded with loss, figures are not those of the original CIFAR-10"]
    if size is not None:
        notes.append(f"{len(known)} training and {len(test)} test images drawn from 50000 and 10000")
    classes = arrays["classes"].tolist()
    pixels = arrays["x"][chosen.numpy()].reshape(len(chosen), -1)
    return _images("cifar-pixels", "holdout", pixels, 256, y, drawn, classes, notes)


def _images(
    name: str,
    protocol: str,
    pixels: np.ndarray,
    vocab: int,
    y: Tensor,
    splits: list[Split],
    classes: list[str],
    notes: list[str],
) -> SequenceData:
    fixed: dict[str, Any] = {"kind": "sequences", "form": "symbols", "vocab": vocab, "classes": classes}
    return SequenceData(
        name=name,
        protocol=protocol,
        values=torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.uint8).reshape(-1)),
        ptr=torch.arange(len(pixels) + 1) * pixels.shape[1],
        y=y,
        vocab=vocab,
        splits=splits,
        classes=classes,
        preprocessing=fixed,
        notes=notes,
    )


def cifar_images(mode: str, root: Path | None) -> dict[str, np.ndarray]:
    """Images `x` (60000, 32, 32) in gray, mode L, or (60000, 32, 32, 3) in colour, mode RGB; labels, which ones are to train
    on, and the classes' names. Kept in the cache folder."""
    path = cache_dir() / f"cifar10-jpeg-{mode}.npz"
    arrays = kept_arrays(path, {"x", "y", "train", "classes"}) if root is None else None
    if arrays is None:
        archive = find_raw(_CIFAR, root)
        if archive is None:
            raise DataNotFoundError(
                f"CIFAR-10: no {_CIFAR[1]} with train/CLASS/*.jpg and test/CLASS/*.jpg; make it of CIFAR-10 "
                "(https://www.cs.toronto.edu/~kriz/cifar.html) and name its folder in OSMOSE_DATA"
            )
        arrays = _read_images(archive, mode)
        with replacing(path) as part:
            np.savez(part, allow_pickle=False, **arrays)
    return arrays


def open_image(file: Path | IO[bytes], mode: str | None, where: str = "") -> np.ndarray:
    """(H, W) in gray, or (H, W, 3) in colour; without `mode` as the file is. Raises DataError, which names the file or
    `where`, for what is no image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("images are read with Pillow, which is not installed: pip install pillow") from error
    try:
        with Image.open(file) as image:
            if mode is None:
                mode = "L" if image.mode in ("1", "L", "I;16", "LA") else "RGB"
            return np.asarray(image.convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(
            f"{where or file} cannot be read as an image ({error}); leave it out, or make it again"
        ) from error


def _read_images(path: Path, mode: str) -> dict[str, np.ndarray]:
    found: list[tuple[tuple[str, ...], np.ndarray]] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                names = Path(member.name).parts[-3:]
                if member.isfile() and len(names) == 3 and names[0] in ("train", "test"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    where = f"{path}, {member.name}"
                    found.append((names, open_image(io.BytesIO(stream.read()), mode, where)))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as an archive of images ({error}); make it again") from error
    if not found or {pixels.shape[:2] for _, pixels in found} != {(32, 32)}:
        raise DataError(f"{path}: expected images of 32 x 32 pixels in train/CLASS and test/CLASS")
    found.sort(key=lambda one: one[0])
    classes = sorted({names[1] for names, _ in found})
    return {
        "x": np.stack([pixels for _, pixels in found]),
        "y": np.array([classes.index(names[1]) for names, _ in found], dtype=np.int64),
        "train": np.array([names[0] == "train" for names, _ in found]),
        "classes": np.array(classes),
    }
