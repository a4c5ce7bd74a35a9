"""Images as data: what was read is what is there, statistics of the training part alone, and clear refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from osmose.data import DataError, kind, load, load_new

RNG = np.random.default_rng(0)
SHADES = RNG.integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
CLASSES = np.arange(40) % 2


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures a class, PNG, so that nothing is lost."""
    for i, image in enumerate(SHADES):
        place = tmp_path / "pictures" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:02}.png")
    return tmp_path / "pictures"


def archive(path, **arrays):
    np.savez(path, **{"x": SHADES.transpose(0, 3, 1, 2), "y": CLASSES} | arrays)
    return path


def test_a_folder_and_both_orders_of_an_archive_are_the_same_images(folder, tmp_path):
    ours = load(folder, splits=2)
    assert (kind(folder), ours.classes, ours.x.shape) == ("images", ["cat", "dog"], (40, 3, 6, 5))
    order = np.argsort(CLASSES, kind="stable")
    assert torch.equal(ours.x, torch.from_numpy(SHADES.transpose(0, 3, 1, 2))[order])
    assert ours.ids[:2] == ["cat/00.png", "cat/02.png"]
    for x in (SHADES, SHADES.transpose(0, 3, 1, 2)):
        path = archive(tmp_path / "a.npz", x=x[order], y=CLASSES[order])
        assert kind(path) == "images"
        assert torch.equal(load(path).x, ours.x)
    assert torch.equal(load(folder, task="images").x, ours.x)


def test_a_batch_is_standardised_by_the_training_part_of_its_split(folder):
    data = load(folder, splits=3)
    for i in range(3):
        split = data.for_split(i)
        (x,) = split.batch(split.splits[i].train)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    means = [data.for_split(i).preprocessing["mean"] for i in range(3)]
    assert means[0] == data.preprocessing["mean"] != means[1]
    changed = load(folder, splits=1)
    changed.x[changed.splits[0].test] = 0
    assert changed.for_split(0).preprocessing["mean"] == means[0], "the test part does not count"


def test_new_images_are_prepared_as_the_training_images(folder, tmp_path):
    data = load(folder)
    new = load_new(folder, data.preprocessing)
    assert torch.equal(new.batch(torch.arange(40))[0], data.batch(torch.arange(40))[0])
    assert torch.equal(new.y, data.y)
    one = load_new(folder / "dog" / "01.png", data.preprocessing)
    assert (one.ids, one.y.tolist()) == (["01.png"], [-1])
    assert torch.equal(one.x[0], torch.from_numpy(SHADES[1]).permute(2, 0, 1))
    assert len(load_new(folder / "dog", data.preprocessing).x) == 20
    bare = load_new(archive(tmp_path / "a.npz", y=np.full(40, -1)), data.preprocessing)
    assert bare.x.shape == data.x.shape
    Image.fromarray(SHADES[0]).convert("L").save(tmp_path / "gray.png")
    assert load_new(tmp_path / "gray.png", data.preprocessing).x.shape == (1, 3, 6, 5)


def test_gray_pictures_have_one_channel_and_mixed_ones_three(tmp_path):
    for i in range(20):
        place = tmp_path / "g" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(SHADES[i, ..., 0]).save(place / f"{i}.png")
    assert load(tmp_path / "g").num_features == 1
    Image.fromarray(SHADES[0]).save(tmp_path / "g" / "a" / "colour.png")
    assert load(tmp_path / "g").num_features == 3


def test_digits_and_cifar(benchmark_data, monkeypatch):
    digits, pixels = load("digits-images", splits=2), load("digits-pixels", splits=2)
    assert digits.x.shape == (1797, 1, 8, 8)
    assert torch.equal(digits.x.flatten(), pixels.values)
    assert torch.equal(digits.splits[1].test, pixels.splits[1].test)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": SHADES / 255.0}, "float64 from 0 to 1; expected integers from 0 to 255"),
        ({"x": SHADES.astype(int) - 9}, r"from -9 to \d+; expected integers"),
        ({"y": CLASSES[:9]}, "has 9 labels for 40 images"),
    ],
)
def test_bad_arrays_say_what_to_do(tmp_path, arrays, says):
    with pytest.raises(DataError, match=says):
        load(archive(tmp_path / "a.npz", **arrays))


def test_bad_folders_say_what_to_do(folder, tmp_path):
    (folder / "dog" / "zz.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"zz\.png cannot be read as an image"):
        load(folder)
    Image.fromarray(SHADES[0, :3]).save(folder / "dog" / "zz.png")
    with pytest.raises(DataError, match=r"zz\.png is 5 x 3 pixels and 00\.png 5 x 6; expected one size"):
        load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load(tmp_path / "empty", task="images")
    data = load(archive(tmp_path / "gray.npz", x=SHADES[..., :1]))
    with pytest.raises(DataError, match="images of 3 channels; the model was trained on 1"):
        load_new(archive(tmp_path / "colour.npz"), data.preprocessing)
    with pytest.raises(DataError, match="holds no images"):
        load_new(tmp_path / "empty", data.preprocessing)
    with pytest.raises(DataError, match="knn is for tables and graphs, not for images"):
        load(tmp_path / "gray.npz", knn=3)
