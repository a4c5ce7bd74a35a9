"""The user's own images: an `.npz` with a 4-dimensional `x`, or image files; and new images for a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import Arrays, read_npz, splits_of
from .errors import DataError
from .image_files import find_images, read_images
from .images import ImageData, image_data
from .kind import IMAGE_FILES
from .labels import encode
from .node import check_split
from .own import own_splits

_MOST_CHANNELS = 4
_WANTED = "one folder for each class with its images: give the path of the folder that holds them, or an .npz"


def load_images(
    path: Path, *, protocol: str | None, splits: int | None, seed: int, labels_per_class: int | None
) -> ImageData:
    """An `.npz` with `x` (n, C, H, W) or (n, H, W, C), `y` (n,) and if wanted masks; or a folder of folders of images."""
    if path.suffix.lower() in IMAGE_FILES and not path.is_dir():
        raise DataError(f"{path} is one image; expected {_WANTED}")
    if path.is_dir():
        files = find_images(path)
        if files.labels is None:
            raise DataError(f"{path} holds images and no folders; expected {_WANTED}")
        y, classes = encode(list(files.labels), f"{path}, folders")
        x, given, notes, ids = read_images(files), None, files.notes, files.ids
    elif path.suffix.lower() != ".npz":
        raise DataError(f"{path} holds no images that can be read; expected {_WANTED}")
    else:
        arrays = read_npz(path)
        if "y" not in arrays.found:
            raise DataError(f"{path} holds no labels; expected an array y, with -1 where unknown")
        x, notes = images_of(arrays)
        y, classes = arrays.labels()
        given, ids = splits_of(arrays, len(x)), None
    protocol, drawn = own_splits(path, y, given, protocol, splits, seed, labels_per_class)
    for split in drawn:
        check_split(str(path), split, y, classes, what="image")
    unlabelled = int((y < 0).sum())
    if unlabelled:
        notes = [*notes, f"{unlabelled} images without label: in no split, predicted all the same"]
    name = path.resolve().name if path.is_dir() else path.stem
    return image_data(
        name=name, protocol=protocol, x=x, y=y, splits=drawn, classes=classes, notes=notes, ids=ids
    )


def new_images(path: Path, preprocessing: dict[str, Any]) -> ImageData:
    """Images for a trained model: an `.npz`, an image file, or a folder of images, in folders by class or not."""
    ids: list[str] | None = None
    known: list[str] = preprocessing["classes"]
    if path.suffix.lower() == ".npz" and not path.is_dir():
        arrays = read_npz(path)
        x, notes = images_of(arrays)
        y, classes = arrays.labels(known)
    else:
        files = find_images(path)
        x, notes, ids = read_images(files, preprocessing["channels"]), files.notes, files.ids
        labels: list[str | None] = [None] * len(x)
        if files.labels is not None:
            labels = list(files.labels)
        y, classes = encode(labels, f"{path}, folders", known)
    if x.shape[1] != preprocessing["channels"]:
        raise DataError(
            f"{path} has images of {x.shape[1]} channels; the model was trained on {preprocessing['channels']}"
        )
    height, width = preprocessing["size"]
    if list(x.shape[2:]) != [height, width]:
        notes = [
            *notes,
            f"images of {x.shape[2]} x {x.shape[3]}; the model was trained on {height} x {width}",
        ]
    return ImageData(
        name=path.stem,
        protocol="new",
        x=x,
        y=y,
        splits=[],
        classes=classes,
        preprocessing=preprocessing,
        notes=notes,
        ids=ids,
    )


def images_of(arrays: Arrays) -> tuple[Tensor, list[str]]:
    """(n, C, H, W) uint8 of an array in either order, and a sentence if the channels came last.

    Channels are the dimension of at most 4: the second, else the last.
    """
    x, where = arrays.found["x"], arrays.origin["x"]
    if x.ndim != 4 or not x.size or min(x.shape[1], x.shape[3]) > _MOST_CHANNELS:
        raise DataError(
            f"{where} has shape {x.shape}; expected images (n, C, H, W) or (n, H, W, C) with 1 to {_MOST_CHANNELS} channels"
        )
    _check_bytes(x, where)
    notes = []
    if x.shape[1] > _MOST_CHANNELS:
        notes.append(f"x of shape {x.shape} read as (n, H, W, C)")
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8)), notes


def _check_bytes(x: np.ndarray, where: str) -> None:
    if x.dtype == np.uint8 or x.dtype == np.bool_:
        return
    if x.dtype.kind not in "iuf":
        raise DataError(f"{where} is of type {x.dtype}; expected numbers 0 to 255")
    low, high = x.min(), x.max()
    whole = x.dtype.kind in "iu" or bool((x == np.floor(x)).all())
    if whole and low >= 0 and high <= 255:
        return
    hint = ". Values from 0 to 1: write (255 * x).round().astype('uint8')" if low >= 0 and high <= 1 else ""
    raise DataError(
        f"{where} is {x.dtype} and goes from {low} to {high}; expected whole numbers 0 to 255{hint}"
    )
