"""Images of one size with a class each, checked once when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import DataError
from .node import Split, check_labels, check_split


@dataclass(repr=False)
class ImageData:
    """N labelled images of H x W pixels and C channels, kept in one byte a value.

    Shapes: `x` (N, C, H, W) uint8; `y` (N,) int64, class index or -1 = unlabelled. `preprocessing` holds `mean` and
    `scale`, C numbers each, by which `batch` standardises.

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
    """What `load_new` redoes on new images; JSON-serialisable."""
    notes: list[str] = field(default_factory=list)
    """What the loader did to the data that a user may want to know, one sentence each."""
    ids: list[str] | None = None
    """Names of the images, where they come from files."""

    def __post_init__(self) -> None:
        self.validate()

    def __repr__(self) -> str:
        height, width = self.x.shape[2:]
        return (
            f"ImageData({self.name!r}, protocol {self.protocol!r}: {self.num_images} images of {height} x {width}, "
            f"{self.num_features} channels, {self.num_classes} classes, {len(self.splits)} splits)"
        )

    @property
    def num_images(self) -> int:
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        """Channels."""
        return self.x.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def batch(self, index: Tensor) -> tuple[Tensor]:
        """Images `index` (B,), standardised channel by channel: (B, C, H, W) float32, alone in a tuple."""
        mean, scale = (
            torch.tensor(self.preprocessing[key], dtype=torch.float32, device=self.x.device).view(-1, 1, 1)
            for key in ("mean", "scale")
        )
        return ((self.x[index].float() - mean) / scale,)

    def for_split(self, index: int) -> ImageData:
        """The same images, standardised for split `index` (statistics from its training part only).

        The data as loaded are standardised for split 0.
        """
        if not 0 <= index < len(self.splits):
            raise DataError(
                f"{self.name}: split {index} of {len(self.splits)}; expected 0 to {len(self.splits) - 1}"
            )
        if index == 0:
            return self
        return replace(self, preprocessing=self.preprocessing | statistics(self.x, self.splits[index].train))

    def validate(self) -> None:
        """Raise `DataError` on the first thing that is not as the class states."""
        if self.x.dim() != 4 or self.x.dtype != torch.uint8 or not self.x.numel():
            raise DataError(
                f"{self.name}: x is {tuple(self.x.shape)} {self.x.dtype}; expected (N, C, H, W) torch.uint8 with at least "
                "one image, channel and pixel"
            )
        n, channels = self.x.shape[:2]
        for key in ("mean", "scale"):
            given = self.preprocessing.get(key)
            if not isinstance(given, list) or len(given) != channels:
                raise DataError(
                    f"{self.name}: preprocessing has {key} {given}; expected a list of {channels} numbers, one a channel"
                )
        if not all(scale > 0 for scale in self.preprocessing["scale"]):
            raise DataError(
                f"{self.name}: preprocessing has scale {self.preprocessing['scale']}; expected numbers above 0"
            )
        if self.ids is not None and len(self.ids) != n:
            raise DataError(f"{self.name}: {len(self.ids)} ids for {n} images; expected one an image")
        check_labels(self.name, self.y, n, len(self.classes))
        for i, split in enumerate(self.splits):
            where = f"{self.name}: split {i}" if len(self.splits) > 1 else self.name
            check_split(where, split, self.y, self.classes, what="image")


def statistics(x: Tensor, train: Tensor) -> dict[str, list[float]]:
    """`mean` and `scale` (deviation; 1 for a constant channel) of every channel over the pixels of the images `train`."""
    means, scales = [], []
    levels = torch.arange(256, dtype=torch.float64)
    for channel in x.unbind(1):
        counts = torch.bincount(channel[train].flatten(), minlength=256).double()
        total = counts.sum()
        mean = (counts @ levels) / total
        scale = ((counts @ (levels - mean).square()) / total).sqrt()
        means.append(float(mean))
        scales.append(float(scale) or 1.0)
    return {"mean": means, "scale": scales}


def image_data(
    *,
    name: str,
    protocol: str,
    x: Tensor,
    y: Tensor,
    splits: list[Split],
    classes: list[str],
    notes: list[str],
    ids: list[str] | None = None,
) -> ImageData:
    """Images to train on, standardised for their first split."""
    fixed: dict[str, Any] = {"kind": "images", "classes": classes}
    fixed |= {"channels": x.shape[1], "size": list(x.shape[2:])}
    return ImageData(
        name=name,
        protocol=protocol,
        x=x,
        y=y,
        splits=splits,
        classes=classes,
        preprocessing=fixed | statistics(x, splits[0].train),
        notes=notes,
        ids=ids,
    )
