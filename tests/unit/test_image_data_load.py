"""Images from the user's arrays and files: what is read, in which order, and what is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from osmose.data import DataError, DataNotFoundError, kind, load, load_new

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, size=(20, 3, 5, 6)).astype(np.uint8)
Y = np.arange(20) % 2


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


# ---- arrays


def test_channels_first_or_last(tmp_path):
    first = load(npz(tmp_path / "first.npz", x=COLOUR, y=Y))
    last = load(npz(tmp_path / "last.npz", x=COLOUR.transpose(0, 2, 3, 1), y=Y))
    assert kind(tmp_path / "first.npz") == "images"
    assert first.x.tolist() == COLOUR.tolist()
    assert last.x.equal(first.x)
    assert (first.name, first.protocol, first.notes) == ("first", "stratified", [])
    assert last.notes == ["x of shape (20, 5, 6, 3) read as (n, H, W, C)"]
    tiny = RNG.integers(0, 256, size=(20, 1, 3, 3)).astype(np.uint8)
    assert load(npz(tmp_path / "tiny.npz", x=tiny, y=Y)).x.shape == (20, 1, 3, 3), "the second where both fit"
    assert len(load(tmp_path / "first.npz", splits=2).splits) == 2
    assert load(tmp_path / "first.npz", labels_per_class=3).protocol == "few-label"


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool"])
def test_whole_numbers_of_any_type(tmp_path, dtype):
    x = (COLOUR > 99) if dtype == "bool" else COLOUR
    data = load(npz(tmp_path / "a.npz", x=x.astype(dtype), y=Y))
    assert data.x.tolist() == x.astype(np.uint8).tolist()


def test_masks_labels_and_unlabelled(tmp_path):
    parts = np.arange(20) % 4
    masks = {"train_mask": parts < 2, "valid_mask": parts == 2, "test_mask": parts == 3}
    masks = {name: mask & (np.arange(20) < 18) for name, mask in masks.items()}
    y = np.where(np.arange(20) < 18, np.where(np.arange(20) % 8 < 4, "cat", "dog"), "")
    data = load(npz(tmp_path / "a.npz", x=COLOUR, y=y, **masks))
    assert (data.protocol, data.classes) == ("given", ["cat", "dog"])
    assert data.splits[0].valid.tolist() == [2, 6, 10, 14]
    assert data.y[18:].tolist() == [-1, -1]
    assert data.notes == ["2 images without label: in no split, predicted all the same"]
    expected = COLOUR[data.splits[0].train.numpy()].mean((0, 2, 3))
    assert data.preprocessing["mean"] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": COLOUR}, r"a.npz holds no labels; expected an array y"),
        ({"x": np.ones((4, 5, 6, 7)), "y": [0, 1, 0, 1]}, r"shape \(4, 5, 6, 7\); expected images \(n, C, H, W\) or"),
        ({"x": np.ones((0, 3, 6, 7)), "y": []}, r"shape \(0, 3, 6, 7\)"),
        ({"x": COLOUR / 255, "y": Y}, r"goes from 0.0 to 1.0; expected whole numbers 0 to 255. Values from 0 to 1: write"),
        ({"x": COLOUR.astype(int) * 9, "y": Y}, r"is int64 and goes from 0 to 2295; expected whole numbers 0 to 255$"),
        ({"x": COLOUR - 1.0, "y": Y}, r"goes from -1.0 to 254.0"),
        ({"x": np.full((4, 1, 2, 2), np.nan), "y": [0, 1, 0, 1]}, r"goes from nan to nan"),
        ({"x": COLOUR.astype(str), "y": Y}, r"expected numbers 0 to 255"),
        ({"x": COLOUR, "y": Y[:3]}, r"has 3 labels but .* has 20 rows"),
    ],
)  # fmt: skip
def test_arrays_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path / "a.npz", **arrays))


# ---- files


def picture(path, colour=(10, 20, 30), size=(6, 5), mode="RGB", **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **how)
    return path


@pytest.fixture
def folder(tmp_path):
    """Six images of a cat and six of a dog, 5 high and 6 wide, cats reddish, and things to pass over."""
    place = tmp_path / "pets"
    for i in range(6):
        picture(place / "dog" / f"{i}.png", (i, 0, 200))
        picture(place / "cat" / f"{i}.JPG", (200, i, 0), format="JPEG", quality=95)
    (place / ".cache").mkdir()
    (place / "cat" / ".DS_Store").write_text("x")
    (place / "cat" / "notes.txt").write_text("x")
    (place / "README").write_text("x")
    return place


def test_a_folder_for_each_class(folder):
    assert kind(folder) == "images"
    data = load(folder)
    assert (data.name, data.classes, data.x.shape) == ("pets", ["cat", "dog"], (12, 3, 5, 6))
    assert data.y.tolist() == [0] * 6 + [1] * 6
    assert data.ids[:7] == [*(f"cat/{i}.JPG" for i in range(6)), "dog/0.png"]
    assert data.x[8, :, 4, 5].tolist() == [2, 0, 200]
    assert data.x[2].float().mean((1, 2)).tolist() == pytest.approx([200, 2, 0], abs=3)
    assert data.notes == ["2 files that are no .png, .jpg, .jpeg left out: 'README', 'notes.txt'"]
    assert [len(part) for part in load(folder, splits=1).splits[0].parts().values()] == [8, 2, 2]


def test_gray_images_have_one_channel_unless_some_are_in_colour(folder):
    for path in [*folder.glob("*/*.png"), *folder.glob("*/*.JPG")]:
        picture(path, 77, mode="L")
    data = load(folder)
    assert data.x.shape == (12, 1, 5, 6)
    picture(folder / "cat" / "0.JPG", 7, mode="L", size=(2, 2))
    new = load_new(picture(folder.parent / "new.png", (255, 0, 0)), data.preprocessing)
    assert new.x.flatten().tolist() == [76] * 30, "made gray"
    picture(folder / "cat" / "0.JPG", 7, mode="L")
    picture(folder / "dog" / "1.png", (1, 2, 3, 0), mode="RGBA")
    mixed = load(folder)
    assert mixed.x[7, :, 0, 0].tolist() == [1, 2, 3]
    assert mixed.x[0, :, 0, 0].tolist() == [7] * 3


def test_the_turn_of_a_camera(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    made = Image.new("RGB", (5, 6), (0, 0, 0))
    made.putpixel((0, 0), (255, 255, 255))
    made.save(folder / "dog" / "0.png", exif=exif)
    assert load(folder).x[6].float().mean(0).nonzero().tolist() == [[0, 5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: picture(p / "dog" / "3.png", size=(7, 8)), r"dog/3.png is 8 x 7 and .*cat/0.JPG is 5 x 6 \(height x width\); expected images of one size. Scale or crop"),
        (lambda p: (p / "dog" / "3.png").write_bytes(b"no image"), r"dog/3.png cannot be read as an image"),
        (lambda p: (p / "dog" / "3.png").write_bytes((p / "dog" / "3.png").read_bytes()[:50]), r"dog/3.png cannot be read as an image"),
        (lambda p: picture(p / "dog" / "3.png", 4000, mode="I;16"), r"dog/3.png has more than 8 bits a value"),
        (lambda p: (p / "bird").mkdir(), r"bird holds no image; expected files of .png, .jpg, .jpeg"),
        (lambda p: picture(p / "own.png"), r"pets holds images \(own.png\) and folders \(cat\)"),
    ],
)  # fmt: skip
def test_folders_refused(folder, change, message):
    change(folder)
    with pytest.raises(DataError, match=message):
        load(folder)


def test_images_without_classes_are_refused(folder):
    with pytest.raises(
        DataError, match=r"cat holds images and no folders; expected one folder for each class"
    ):
        load(folder / "cat")
    with pytest.raises(DataError, match=r"0.png is one image; expected"):
        load(folder / "dog" / "0.png")
    with pytest.raises(DataError, match=r"edges is for tables and graphs, not for images"):
        load(folder, edges="e.csv")
    with pytest.raises(DataError, match=r"root is for public data sets"):
        load(folder, root=folder)


def test_kind_is_told_without_reading(folder, tmp_path):
    npz(tmp_path / "images.npz", x=COLOUR)
    npz(tmp_path / "packed.npz", x=COLOUR, ptr=[0, 20])
    graph = tmp_path / "graph"
    picture(graph / "plots" / "loss.png")
    np.save(graph / "features.npy", np.ones((3, 2)))
    expected = {"images.npz": "images", "packed.npz": "sequences", "graph": "nodes", "pets": "images"}
    expected |= {
        "pets/cat": "images",
        "pets/dog/0.png": "images",
        "none.png": "images",
        "pets/.cache": "nodes",
    }
    assert {name: kind(tmp_path / name) for name in expected} == expected


# ---- new images


def test_new_images_are_prepared_as_the_training_data_were(folder, tmp_path):
    data = load(folder)
    preprocessing = json.loads(json.dumps(data.for_split(1).preprocessing))
    index = torch.arange(6)
    (expected,) = data.for_split(1).batch(index)

    whole = load_new(folder, preprocessing)
    assert (whole.protocol, whole.splits, whole.y.tolist()) == ("new", [], data.y.tolist())
    assert whole.batch(index)[0].equal(expected)
    flat = load_new(folder / "cat", preprocessing)
    assert (flat.y.tolist(), flat.ids) == ([-1] * 6, [f"{i}.JPG" for i in range(6)])
    assert flat.batch(index)[0].equal(expected)
    one = load_new(folder / "cat" / "2.JPG", preprocessing)
    assert (one.ids, one.classes) == (["2.JPG"], ["cat", "dog"])
    assert one.batch(torch.tensor([0]))[0][0].equal(expected[2])
    arrays = load_new(npz(tmp_path / "new.npz", x=data.x.numpy()), preprocessing)
    assert arrays.batch(index)[0].equal(expected)
    assert arrays.y.tolist() == [-1] * 12
    larger = load_new(picture(tmp_path / "larger.png", size=(9, 4)), preprocessing)
    assert larger.x.shape == (1, 3, 4, 9)
    assert larger.notes == ["images of 4 x 9; the model was trained on 5 x 6"]


def test_new_images_refused(folder, tmp_path):
    preprocessing = load(folder).preprocessing
    picture(tmp_path / "other" / "bird" / "0.png")
    gray = npz(tmp_path / "gray.npz", x=COLOUR[:, :1])
    for source, message in (
        ("digits-images", r"'digits-images' is a named data set; expected new images as an .npz, a .png"),
        (__file__, r"the model was trained on images; expected new images as"),
        (tmp_path / "other", r"classes that the model was not trained on: 'bird'"),
        (gray, r"gray.npz has images of 1 channels; the model was trained on 3"),
        (folder / ".cache", r"holds no image; expected files of"),
    ):
        with pytest.raises(DataError, match=message):
            load_new(source, preprocessing)
    with pytest.raises(DataNotFoundError, match=r"none.png' does not exist"):
        load_new(tmp_path / "none.png", preprocessing)
    with pytest.raises(DataError, match=r"edges = .*trained on images, which have none"):
        load_new(gray, preprocessing, edges="e.csv")
    two = load(npz(tmp_path / "two.npz", x=COLOUR[:, :2], y=Y)).preprocessing
    with pytest.raises(DataError, match=r"trained on images of 2 channels; image files have 1 or 3"):
        load_new(folder / "cat", two)
