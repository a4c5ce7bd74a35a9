"""Images by name: digits and CIFAR-10, as images or as sequences of their pixels, row by row in gray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cifar import load_cifar
from .images import ImageData, image_data
from .node import Split
from .sequence import SequenceData
from .splits import stratified


def load_digits_pixels(*, splits: int, seed: int) -> SequenceData:
    """scikit-learn's 1797 digits as 64 symbols 0 to 16; 60 / 20 / 20 class by class."""
    pixels, y = _digits()
    drawn = stratified(y, splits=splits, seed=seed)
    return _sequences("digits-pixels", "stratified", pixels, 17, y, drawn, list(map(str, range(10))), [])


def load_cifar_pixels(*, splits: int, seed: int, size: int | None, root: Path | None) -> SequenceData:
    """CIFAR-10 in gray as 1024 symbols 0 to 255; see `load_cifar`."""
    found = load_cifar("cifar-pixels", "gray", splits=splits, seed=seed, size=size, root=root)
    return _sequences(
        "cifar-pixels", "holdout", found.x, 256, found.y, found.splits, found.classes, found.notes
    )


def load_digits_images(*, splits: int, seed: int) -> ImageData:
    """The same digits as images of 8 x 8 pixels, values 0 to 16, with the same splits."""
    pixels, y = _digits()
    return image_data(
        name="digits-images",
        protocol="stratified",
        x=torch.from_numpy(pixels).view(-1, 1, 8, 8),
        y=y,
        splits=stratified(y, splits=splits, seed=seed),
        classes=list(map(str, range(10))),
        notes=[],
    )


def load_cifar_images(*, splits: int, seed: int, size: int | None, root: Path | None) -> ImageData:
    """CIFAR-10 in colour, 32 x 32; see `load_cifar`."""
    found = load_cifar("cifar-images", "colour", splits=splits, seed=seed, size=size, root=root)
    return image_data(
        name="cifar-images",
        protocol="holdout",
        x=torch.from_numpy(found.x),
        y=found.y,
        splits=found.splits,
        classes=found.classes,
        notes=found.notes,
    )


def _digits() -> tuple[np.ndarray, Tensor]:
    """(1797, 64) uint8 and the digit of each."""
    from sklearn import datasets

    pixels, digit = datasets.load_digits(return_X_y=True)
    return pixels.astype(np.uint8), torch.from_numpy(digit).long()


def _sequences(
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
        values=torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1)),
        ptr=torch.arange(len(pixels) + 1) * (pixels.size // len(pixels)),
        y=y,
        vocab=vocab,
        splits=splits,
        classes=classes,
        preprocessing=fixed,
        notes=notes,
    )
