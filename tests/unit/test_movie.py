"""Movies: real files with the frames asked for, whole or not at all; seeded."""

import importlib
import re
import subprocess
import sys
from itertools import pairwise

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from osmose.dynamics import Attention, Circle, Field, Gram, Rescaled, gram_matrix, simulate
from osmose.dynamics.pictures import figure, movie
from osmose.files import whole

from .test_dynamics_fields import draw, sphere

movies = importlib.import_module("osmose.dynamics.pictures.movie")

FIELD = Field(Attention(4.0))
SMALL = {"inches": 1.6, "dpi": 50}


def run():
    return simulate(FIELD, sphere(6, 3), [0.0, 1.0, 4.0])


def frames_of(path):
    with Image.open(path) as image:
        out, durations = [], []
        for k in range(image.n_frames):
            image.seek(k)
            out.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return out, durations


def test_a_gif_has_its_frames_and_its_length(tmp_path):
    path = movie(run(), tmp_path / "run.gif", seconds=1.0, fps=12, **SMALL)
    frames, durations = frames_of(path)
    assert len(frames) == 12
    assert sum(durations) == 1000
    assert frames[0].shape == (97, 80, 3)
    assert not np.array_equal(frames[0], frames[-1])
    assert list(tmp_path.iterdir()) == [path]


def test_gif_frames_are_the_pictures(tmp_path):
    made, axes = figure(1, 1)
    made.set_layout_engine("none")
    shown = []

    def draw_three():
        for k in range(3):
            axes.clear()
            axes.set_facecolor(["red", "white", "blue"][k])
            axes.plot([0, 1], [k, 1], color="black")
            made.canvas.draw()
            shown.append(np.asarray(made.canvas.buffer_rgba())[..., :3].copy())
            yield

    movies._write_gif(made, draw_three(), tmp_path / "a.gif", 10, 100)
    frames, _ = frames_of(tmp_path / "a.gif")
    for frame, picture in zip(frames, shown, strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 1.0  # 255 colours


@pytest.mark.parametrize("space", ["circle", "plane", "gram"])
def test_an_mp4_has_its_frames(tmp_path, space):
    solution = {
        "circle": lambda: simulate(FIELD, draw(5, 1), [0.1, 1.0, 9.0], space=Circle(), log_time=True),
        "plane": lambda: simulate(FIELD, draw(5, 2), [0.0, 1.0], space=Rescaled(1.0)),
        "gram": lambda: simulate(FIELD, gram_matrix(sphere(5, 8)), [0.0, 1.0], space=Gram()),
    }[space]()
    path = movie(solution, tmp_path / "run.mp4", seconds=0.5, fps=20, title="a run", **SMALL)
    assert path.read_bytes()[4:8] == b"ftyp"
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert count == 10
    assert seconds == pytest.approx(0.5, abs=0.01)
    # read by ffmpeg itself: the package's own reader leaves its pipes to the garbage collector
    command = [movies.ffmpeg(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = subprocess.run(command, capture_output=True, check=True)
    width, height = map(int, re.search(rb"Video:.*?(\d{2,})x(\d{2,})", read.stderr).groups())
    assert width % 2 == height % 2 == 0
    frames = np.frombuffer(read.stdout, np.uint8).reshape(10, height, width, 3)
    assert frames[0].min() < 100 < frames[0].max()
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_movie_leaves_what_was_there(tmp_path, monkeypatch, suffix, error):
    path = tmp_path / f"run.{suffix}"
    path.write_bytes(b"before")
    draw_state, calls = movies.draw_state, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise error("now")
        return draw_state(*args, **options)

    monkeypatch.setattr(movies, "draw_state", interrupted)
    with pytest.raises(error, match="now"):
        movie(run(), path, seconds=1.0, fps=8, **SMALL)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"


def test_frames_are_written_as_they_come(tmp_path):
    made, axes = figure(2, 2)
    path, sizes = tmp_path / "a.gif", []
    noise = np.random.default_rng(0)

    def frames():
        for _ in range(6):
            axes.clear()
            axes.imshow(noise.random((60, 60)))
            sizes.append(path.stat().st_size)
            yield

    movies._write_gif(made, frames(), path, 10, 60)
    assert all(b > a for a, b in pairwise(sizes[1:]))  # none is held back


def test_times_of_the_frames(tmp_path, monkeypatch):
    seen = []
    draw_state = movies.draw_state

    def watch(axes, trajectory, state, **options):
        seen.append((state, options))
        return draw_state(axes, trajectory, state, **options)

    monkeypatch.setattr(movies, "draw_state", watch)
    solution = simulate(FIELD, draw(4, 1), [0.0, 0.5, 8.0], space=Circle())
    movie(solution, tmp_path / "a.gif", seconds=0.4, fps=10, log_time=True, trail=0.0, **SMALL)
    states = torch.stack([s for s, _ in seen])
    assert torch.equal(states[[0, 1, 3]], solution.states)  # 0, then even in log t
    torch.testing.assert_close(states[2], (states[1] + states[3]) / 2)
    assert all(o["trail"] is None for _, o in seen)
    seen.clear()
    movie(run(), tmp_path / "a.gif", seconds=0.4, fps=10, turn=90.0, trail=0.5, **SMALL)
    for state, options in seen:
        torch.testing.assert_close(state.norm(dim=-1), torch.ones(6, dtype=state.dtype))
        assert options["trail"] is None or torch.equal(options["trail"][-1], state)
    assert seen[-1][1]["view"].azimuth - seen[0][1]["view"].azimuth == pytest.approx(90)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("run.avi", {}, ".gif or .mp4"),
        ("run", {}, ".gif or .mp4"),
        ("no/run.gif", {}, "does not exist"),
        ("run.gif", {"fps": 60}, "at most 50"),
        ("run.gif", {"seconds": 0.0}, "positive"),
        ("run.mp4", {"seconds": 1e6}, "at most 20000"),
        ("run.gif", {"system": 1}, "the run has one"),
    ],
)
def test_what_is_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        movie(run(), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="save=True"):
        movie(simulate(FIELD, sphere(3, 3), [0.0, 1.0], save=False), tmp_path / "a.gif")


def test_without_ffmpeg_the_error_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(movies.shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ModuleNotFoundError, match="pip install imageio-ffmpeg"):
        movie(run(), tmp_path / "run.mp4", seconds=0.2, **SMALL)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(movies.shutil, "which", lambda _: "/usr/bin/ffmpeg")
    assert movies.ffmpeg() == "/usr/bin/ffmpeg"


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    with whole(path) as part:
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError), whole(path) as part:
        part.write_text("half \ud800")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
