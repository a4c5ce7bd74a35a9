"""ImageData: batches are what was stored, standardised by the training part; what cannot be trained on is refused."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from osmose.data import DataError, DataNotFoundError, ImageData, Split, kind, load
from osmose.data.images import image_data, statistics


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def split(train=(0, 1), valid=(2,), test=(3,)) -> dict:
    return {"splits": [Split(index(*train), index(*valid), index(*test))]}


def make(**changes) -> ImageData:
    """Five images of 2 x 3 with two channels; the last one is unlabelled."""
    parts = {
        "name": "set",
        "protocol": "given",
        "x": torch.randint(
            0, 256, (5, 2, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        ),
        "y": index(0, 1, 0, 1, -1),
        "classes": ["a", "b"],
        "preprocessing": {"mean": [1.0, 2.0], "scale": [0.5, 4.0]},
    }
    return ImageData(**(split() | parts | changes))


def test_a_batch_is_standardised_channel_by_channel():
    data = make()
    (x,) = data.batch(index(3, 0))
    assert x.dtype == torch.float32
    stored = data.x[[3, 0]].float()
    torch.testing.assert_close(x[:, 0], (stored[:, 0] - 1) / 0.5)
    torch.testing.assert_close(x[:, 1], (stored[:, 1] - 2) / 4)
    assert data.batch(index())[0].shape == (0, 2, 2, 3)
    assert (data.num_images, data.num_features, data.num_classes) == (5, 2, 2)


def test_statistics_are_those_of_the_training_part_of_each_split():
    x = make().x.clone()
    x[3:] = 255  # no part of any training
    two = split()["splits"] + split(train=(1, 2), valid=(0,))["splits"]
    data = image_data(name="set", protocol="given", x=x, y=make().y, splits=two, classes=["a", "b"], notes=[])
    for i, one in enumerate(two):
        prepared = data.for_split(i)
        (train,) = prepared.batch(one.train)
        torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(2), atol=1e-6, rtol=0)
        torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(2))
        assert prepared.x is data.x, "one copy of the pixels"
        assert prepared.preprocessing["size"] == [2, 3]
    assert data.for_split(0) is data
    assert data.for_split(1).preprocessing["mean"] != data.preprocessing["mean"]
    assert json.loads(json.dumps(data.preprocessing)) == data.preprocessing
    with pytest.raises(DataError, match="split 2 of 2; expected 0 to 1"):
        data.for_split(2)


def test_a_constant_channel_keeps_its_scale():
    x = torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)
    assert statistics(x, index(0, 1)) == {"mean": [7.0], "scale": [1.0]}


BAD = [
    (
        {"x": torch.zeros(5, 2, 2, 3)},
        r"x is \(5, 2, 2, 3\) torch.float32; expected \(N, C, H, W\) torch.uint8",
    ),
    ({"x": torch.zeros(5, 2, 3, dtype=torch.uint8)}, r"x is \(5, 2, 3\)"),
    ({"x": torch.zeros(5, 2, 0, 3, dtype=torch.uint8)}, r"at least one image, channel and pixel"),
    ({"y": index(0, 1)}, r"labels have shape \(2,\) torch.int64; expected \(5,\)"),
    ({"y": index(0, 1, 0, 2, 0)}, r"labels run from 0 to 2"),
    ({"ids": ["a"]}, r"1 ids for 5 images"),
    ({"preprocessing": {"mean": [1.0], "scale": [1.0]}}, r"mean \[1.0\]; expected a list of 2 numbers"),
    ({"preprocessing": {"mean": [1.0, 2.0]}}, r"scale None; expected a list of 2 numbers"),
    ({"preprocessing": {"mean": [1.0, 2.0], "scale": [1.0, 0.0]}}, r"expected numbers above 0"),
    (split(valid=()), r"valid is empty; expected at least one labelled image"),
    (split(test=(9,)), r"test holds image 9; expected 0 to 4"),
    (split(test=(1, 3)), r"1 images stand in test and train"),
    (split(train=(0, 2), valid=(1,)), r"valid has classes that train lacks: 'b'.*Add such images"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_text_is_short():
    assert repr(make()) == (
        "ImageData('set', protocol 'given': 5 images of 2 x 3, 2 channels, 2 classes, 1 splits)"
    )


# ---- named sets


def test_digits_are_the_digits_of_the_pixels():
    data, pixels = load("digits-images", splits=2), load("digits-pixels", splits=2)
    assert kind("digits-images") == "images"
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.flatten().equal(pixels.values)
    assert data.y.equal(pixels.y)
    assert all(a.test.equal(b.test) for a, b in zip(data.splits, pixels.splits, strict=True))
    (train,) = data.batch(data.splits[0].train)
    torch.testing.assert_close(train.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)


def archive(path, files: dict[str, bytes]):
    with tarfile.open(path, "w:xz") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Ten red cats and ten blue dogs in a part, brighter below."""
    monkeypatch.setenv("OSMOSE_CACHE", str(tmp_path / "cache"))
    files = {}
    for part in ("train", "test"):
        for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
            for i in range(10):
                picture, memory = Image.new("RGB", (32, 32), colour), io.BytesIO()
                picture.paste((240, 240, 240), (0, 24, 32, 32))
                picture.save(memory, "JPEG", quality=95)
                files[f"{part}/{name}/{i:04}.jpg"] = memory.getvalue()
    archive(tmp_path / "cifar10_jpeg.tar.xz", files)
    return tmp_path


def test_cifar_in_colour(cifar):
    data = load("cifar-images", root=cifar, splits=2)
    assert (data.protocol, data.classes, data.x.shape) == ("holdout", ["cat", "dog"], (40, 3, 32, 32))
    cat, dog = data.x[0].float(), data.x[10].float()
    assert cat[:, :23].mean((1, 2)).tolist() == pytest.approx([200, 0, 0], abs=3)
    assert dog[:, :23].mean((1, 2)).tolist() == pytest.approx([0, 0, 200], abs=3)
    assert cat[:, 25:].mean((1, 2)).tolist() == pytest.approx([240] * 3, abs=3)
    assert [len(part) for part in data.splits[0].parts().values()] == [18, 2, 20]
    assert "JPEG" in data.notes[0]
    some = load("cifar-images", root=cifar, size=20)
    assert some.y.bincount().tolist() == [10, 10]
    gray = load("cifar-pixels", root=cifar, splits=2)
    assert all(a.valid.equal(b.valid) for a, b in zip(data.splits, gray.splits, strict=True))
    torch.testing.assert_close(
        gray.values[:1024].float().mean(), (cat.mean((1, 2)) * torch.tensor([0.299, 0.587, 0.114])).sum(),
        atol=1.0, rtol=0,
    )  # fmt: skip


def test_cifar_is_decoded_once(cifar, monkeypatch):
    monkeypatch.setenv("OSMOSE_DATA", str(cifar))
    first = load("cifar-images")
    load("cifar-pixels")
    (cifar / "cifar10_jpeg.tar.xz").unlink()
    assert load("cifar-images").x.equal(first.x)
    assert load("cifar-pixels").vocab == 256
    with pytest.raises(DataNotFoundError, match=r"load\('cifar-images'\): no cifar10_jpeg.tar.xz"):
        load("cifar-images", root=cifar)
