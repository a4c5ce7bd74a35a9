"""Images from files (Pillow): a folder with one subfolder for each class, a folder of images, single files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, some
from .kind import IMAGE_FILES

_GRAY = ("1", "L", "LA", "La")
_DEEP = ("I", "F")


@dataclass
class Files:
    """Images found in a place, and the subfolder of each; None: the images lie in no subfolder."""

    place: Path
    paths: list[Path]
    labels: list[str] | None
    notes: list[str]

    @property
    def ids(self) -> list[str]:
        """Paths below the place, with `/` on every platform."""
        return [p.name if p == self.place else p.relative_to(self.place).as_posix() for p in self.paths]


def find_images(place: Path) -> Files:
    """The images of a folder or a file, in the order of their paths. Hidden files are passed over."""
    if not place.is_dir():
        return Files(place, [place], None, [])
    direct = _visible(place)
    folders = [p for p in direct if p.is_dir()]
    images, others = _divide(direct)
    if images and folders:
        raise DataError(
            f"{place} holds images ({images[0].name}) and folders ({folders[0].name}); expected one folder for each class "
            "and the images in them, or only images"
        )
    if not folders:
        if not images:
            raise DataError(f"{place} holds no image; expected files of {_suffixes()}")
        return Files(place, images, None, _left_out(others))
    paths, labels = [], []
    for folder in folders:
        inside, more = _divide(_visible(folder))
        if not inside:
            raise DataError(
                f"{folder} holds no image; expected files of {_suffixes()}, all images of this class without further "
                "folders. Remove it if it is no class"
            )
        others += more
        paths += inside
        labels += [folder.name] * len(inside)
    return Files(place, paths, labels, _left_out(others))


def read_images(files: Files, channels: int | None = None) -> Tensor:
    """(N, C, H, W) uint8.

    Args:
        channels: 1: gray; 3: red, green, blue. None: 1 where all images are gray, else 3. Transparency is left out.

    Raises:
        DataError: a file that is no image, of 16 bits, or of another size than the first.
    """
    if channels not in (None, 1, 3):
        raise DataError(
            f"{files.place}: the model was trained on images of {channels} channels; image files have 1 or 3. Expected an "
            ".npz with x (n, C, H, W)"
        )
    found: list[np.ndarray] = []
    for path in files.paths:
        found.append(_read(path, channels))
        if found[-1].shape[:2] != found[0].shape[:2]:
            (h, w), (a, b) = found[-1].shape[:2], found[0].shape[:2]
            raise DataError(
                f"{path} is {h} x {w} and {files.paths[0]} is {a} x {b} (height x width); expected images of one size. "
                f"Scale or crop them first, such as with ImageMagick: mogrify -resize {b}x{a}! FILES"
            )
    if len({image.ndim for image in found}) > 1:  # some gray, some in colour
        found = [np.repeat(i[..., None], 3, axis=2) if i.ndim == 2 else i for i in found]
    x = np.stack(found)
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x))


def _read(path: Path, channels: int | None) -> np.ndarray:
    """(H, W) of a gray image or (H, W, 3), turned as its camera says."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(f"{path} is read with Pillow, which is not installed: pip install pillow") from error
    try:
        with Image.open(path) as image:
            if image.mode.startswith(_DEEP):
                raise DataError(
                    f"{path} has more than 8 bits a value (mode {image.mode}); expected 8. Convert it first, such as with "
                    "ImageMagick: mogrify -depth 8 FILE"
                )
            gray = channels == 1 or (channels is None and image.mode in _GRAY)
            return np.asarray(ImageOps.exif_transpose(image).convert("L" if gray else "RGB"))
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise DataError(f"{path} cannot be read as an image ({error}); save it again or remove it") from error


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _divide(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and files that are none."""
    files = [p for p in paths if p.is_file()]
    images = [p for p in files if p.suffix.lower() in IMAGE_FILES]
    return images, [p for p in files if p not in set(images)]


def _left_out(others: list[Path]) -> list[str]:
    if not others:
        return []
    return [f"{len(others)} files that are no {_suffixes()} left out: {some([p.name for p in others], 3)}"]


def _suffixes() -> str:
    return ", ".join(IMAGE_FILES)
