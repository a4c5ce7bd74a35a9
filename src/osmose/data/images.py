"""Images of one size, one class each, checked once when they are made: digits, CIFAR-10, the user's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .arrays import Arrays, read_npz, splits_of
from .errors import DataError, some
from .labels import cells_of_array, encode
from .node import Split, check_labels, check_split
from .own import own_splits
from .pixels import SUFFIXES, cifar_images, open_image
from .splits import holdout, stratified
from .symbols import thin


@dataclass(repr=False)
class ImageData:
    """N labelled images, `x` (N, C, H, W) uint8; `y` (N,) int64, class index or -1 = unlabelled.

    Raises `DataError` when a shape, type or value is not as stated, and for splits as `NodeData`.
    """

    kind: ClassVar[str] = "images"

    name: str
    protocol: str
    x: Tensor
    y: Tensor
    splits: list[Split]
    classes: list[str]
    preprocessing: dict[str, Any]
    """What `load_new` redoes on new images; JSON-serialisable. `mean` and `scale` of every channel are those of the
    training part of the active split."""
    notes: list[str] = field(default_factory=list)
    """What the loader did to the data that a user may want to know, one sentence each."""
    ids: list[str] | None = None
    """Names of the images, where the data give them."""

    def __post_init__(self) -> None:
        if self.x.dim() != 4 or self.x.dtype != torch.uint8 or not self.x.numel():
            raise DataError(
                f"{self.name}: images are {tuple(self.x.shape)} {self.x.dtype}; expected (N, C, H, W) torch.uint8"
            )
        check_labels(self.name, self.y, len(self.x), len(self.classes))
        for i, split in enumerate(self.splits):
            where = f"{self.name}: split {i}" if len(self.splits) > 1 else self.name
            check_split(where, split, self.y, self.classes, what="image")
        if "mean" not in self.preprocessing:
            self.preprocessing = self._measured(0)

    def __repr__(self) -> str:
        return (
            f"ImageData({self.name!r}, protocol {self.protocol!r}: {len(self.x)} images of {self.x.shape[2]} x "
            f"{self.x.shape[3]}, {self.num_features} channels, {self.num_classes} classes, {len(self.splits)} splits)"
        )

    @property
    def num_features(self) -> int:
        """Channels."""
        return self.x.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def for_split(self, index: int) -> ImageData:
        """The same data with statistics of the training part of split `index`."""
        if not 0 <= index < len(self.splits):
            raise DataError(
                f"{self.name}: split {index} of {len(self.splits)}; expected 0 to {len(self.splits) - 1}"
            )
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "kind"}
        return ImageData(**values | {"preprocessing": self._measured(index)})

    def batch(self, index: Tensor) -> tuple[Tensor]:
        """Images `index` (B,), standardised channel by channel: (B, C, H, W) float32."""
        mean, scale = (torch.tensor(self.preprocessing[k]).view(-1, 1, 1) for k in ("mean", "scale"))
        return ((self.x[index].float() - mean) / scale,)

    def _measured(self, index: int) -> dict[str, Any]:
        x = self.x[self.splits[index].train].transpose(0, 1).flatten(1).double()
        scale = x.std(1, correction=0)
        return self.preprocessing | {
            "mean": x.mean(1).tolist(),
            "scale": scale.where(scale > 0, 1.0).tolist(),
        }


def _fixed(x: Tensor, classes: list[str]) -> dict[str, Any]:
    return {"kind": "images", "channels": x.shape[1], "size": list(x.shape[2:]), "classes": classes}


def load_digits_images(*, splits: int, seed: int) -> ImageData:
    """scikit-learn's 1797 digits, 8 x 8 in gray; 60 / 20 / 20 class by class."""
    from sklearn import datasets

    pixels, digit = datasets.load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels.reshape(-1, 1, 8, 8).astype(np.uint8)), torch.from_numpy(digit).long()
    drawn, classes = stratified(y, splits=splits, seed=seed), list(map(str, range(10)))
    return ImageData("digits-images", "stratified", x, y, drawn, classes, _fixed(x, classes))


def load_cifar_images(*, splits: int, seed: int, size: int | None, root: Path | None) -> ImageData:
    """60,000 images of 32 x 32 in colour, re-encoded as JPEG: 45,000 / 5,000 / 10,000."""
    arrays = cifar_images("RGB", root)
    y, train = torch.from_numpy(arrays["y"]), torch.from_numpy(arrays["train"])
    parts = thin(y, [train.nonzero().flatten(), (~train).nonzero().flatten()], size)
    chosen = torch.cat(parts)
    x = torch.from_numpy(arrays["x"][chosen.numpy()]).permute(0, 3, 1, 2).contiguous()
    known, test = torch.arange(len(chosen)).split([len(part) for part in parts])
    drawn = holdout(y[chosen], known, test, share=0.1, splits=splits, seed=seed)
    notes = ["JPEG: images re-encoded with loss, figures are not those of the original CIFAR-10"]
    if size is not None:
        notes.append(f"{len(known)} training and {len(test)} test images drawn from 50000 and 10000")
    classes = arrays["classes"].tolist()
    return ImageData("cifar-images", "holdout", x, y[chosen], drawn, classes, _fixed(x, classes), notes)


def load_own_images(
    path: Path, *, protocol: str | None, splits: int | None, seed: int, labels_per_class: int | None
) -> ImageData:
    """A folder with one folder of images a class, or an `.npz` with `x` and `y` (and masks, as for nodes)."""
    arrays = None if path.is_dir() else read_npz(path)
    if arrays is None:
        x, names, ids = _of_folder(path)
        y, classes = encode(list(names), str(path))
    else:
        x, ids = _of_arrays(arrays), None
        if "y" not in arrays.found:
            raise DataError(f"{path} holds no labels; expected an array y, with -1 where unknown")
        y, classes = _labels(arrays, len(x), None)
    masks = None if arrays is None else splits_of(arrays, len(x))
    protocol, drawn = own_splits(path, y, masks, protocol, splits, seed, labels_per_class)
    unlabelled = int((y < 0).sum())
    notes = [f"{unlabelled} images without label: in no split, predicted all the same"] if unlabelled else []
    return ImageData(path.stem, protocol, x, y, drawn, classes, _fixed(x, classes), notes, ids)


def new_images(path: Path, preprocessing: dict[str, Any]) -> ImageData:
    """Images for a trained model: an `.npz`, one image, or a folder of images, in folders of classes or not."""
    y, classes, ids = None, preprocessing["classes"], None
    if path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        x = _of_arrays(arrays)
        if "y" in arrays.found:
            y, classes = _labels(arrays, len(x), classes)
    elif path.is_dir() and class_folders(path):
        x, names, ids = _of_folder(path)
        y, classes = encode(list(names), str(path), classes)
    else:
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path} holds no images; expected {', '.join(SUFFIXES)}")
        x, ids = _stack(files, "RGB" if preprocessing["channels"] == 3 else "L"), [p.name for p in files]
    if x.shape[1] != preprocessing["channels"]:
        raise DataError(
            f"{path} has images of {x.shape[1]} channels; the model was trained on {preprocessing['channels']}"
        )
    y = torch.full((len(x),), -1) if y is None else y
    return ImageData(path.stem, "new", x, y, [], classes, preprocessing, ids=ids)


def class_folders(path: Path) -> list[Path]:
    """The folders in `path` that hold images, one for each class."""
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    return [p for p in folders if any(q.suffix.lower() in SUFFIXES for q in p.iterdir())]


def _of_folder(path: Path) -> tuple[Tensor, list[str], list[str]]:
    """Images, the class of each, and their names."""
    files = [
        file
        for folder in class_folders(path)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{path} holds no images; expected one folder of {', '.join(SUFFIXES)} for each class"
        )
    names = [file.parent.name for file in files]
    return _stack(files, None), names, [f"{file.parent.name}/{file.name}" for file in files]


def _stack(files: list[Path], mode: str | None) -> Tensor:
    """Images of one size (N, C, H, W); without `mode` in gray where all are gray, else in colour."""
    images = [open_image(file, mode) for file in files]
    if mode is None and len({image.ndim for image in images}) > 1:
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, 2) for image in images]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{file} is {image.shape[1]} x {image.shape[0]} pixels and {files[0].name} {images[0].shape[1]} x "
                f"{images[0].shape[0]}; expected one size. Scale or cut them to it"
            )
    x = np.stack(images)
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x))


def _of_arrays(arrays: Arrays) -> Tensor:
    """`x` (N, C, H, W), or (N, H, W, C) where the last dimension alone is 1 or 3: integers 0 to 255."""
    if "x" not in arrays.found:
        raise DataError(f"{arrays.place} holds no images; expected an array x (N, C, H, W) or (N, H, W, C)")
    x, where = arrays.found["x"], arrays.origin["x"]
    if x.ndim != 4 or not x.size:
        raise DataError(f"{where} has shape {x.shape}; expected (N, C, H, W) or (N, H, W, C)")
    if x.dtype.kind not in "iu" or x.min() < 0 or x.max() > 255:
        low, high = (f"{value:.6g}" for value in (np.nanmin(x), np.nanmax(x)))
        raise DataError(
            f"{where} is {x.dtype} from {low} to {high}; expected integers from 0 to 255. Scale the images to that range"
        )
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8))


def _labels(arrays: Arrays, n: int, classes: list[str] | None) -> tuple[Tensor, list[str]]:
    where = arrays.origin["y"]
    cells = cells_of_array(arrays.found["y"], where)
    if len(cells) != n:
        raise DataError(
            f"{where} has {len(cells)} labels for {n} images; expected {n} (first: {some(cells, 3)})"
        )
    return encode(cells, where, classes)
