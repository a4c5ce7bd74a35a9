"""Movies of runs: tokens on their way, as GIF by Pillow or as MP4 by ffmpeg, frame after frame without keeping them.

Shapes: states ``(F, n, d)`` of a trajectory, ``F`` frames.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import whole
from ..gram import Gram
from ..simulate import Solution
from ..trajectory import Trajectory
from .moments import Colours, draw_state, moment_title, token_colours, view_of
from .style import figure, require_matplotlib, style
from .tokens import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".gif", ".mp4")
FRAMES = 20_000  # more is a mistake in seconds or fps
CHUNK = 32  # frames whose states and clusters are computed at once


@style()
def movie(
    solution: Solution,
    path: str | os.PathLike[str],
    *,
    seconds: float = 8.0,
    fps: int = 25,
    system: int | tuple[int, ...] = 0,
    log_time: bool | None = None,
    colours: Colours = None,
    scale: float | None = None,
    trail: float = 0.15,
    view: View | None = None,
    turn: float = 0.0,
    size: float = 34.0,
    inches: float = 4.4,
    dpi: int = 110,
    title: str | None = None,
) -> Path:
    """A movie of one system, in a file that is there whole or not at all.

    Frames are even in time (or its logarithm); between saved times tokens go along geodesics of their space.

    Args:
        solution: a run with its states kept.
        path: of the file, ``.gif`` or ``.mp4``; its folder must exist.
        seconds, fps: length and frames per second; a GIF holds at most 50 of these.
        system: of a batch.
        log_time: whether frames are even in log t, from the first positive saved time on; None is as the run stepped.
        colours, scale: as in :func:`snapshots`.
        trail: share of the movie that a trail goes back; 0 draws none.
        view, turn: from where spheres and space are seen, and by how many degrees the eye goes round them.
        size: of a token.
        inches, dpi: of the picture, which is square, and a little higher for its title.
        title: over all frames.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, no frames or too many, a run with a single state, no such folder.
        ModuleNotFoundError: for ``.mp4`` neither an ffmpeg on the PATH nor imageio-ffmpeg, for ``.gif`` no Pillow.

    Cost: some 50 ms a frame of a hundred tokens; memory that of two frames.
    """
    target = Path(path)
    count = _checked(target, seconds, fps)
    trajectory = Trajectory.of(solution, system)
    if len(trajectory.times) < 2:
        raise ValueError("movie: the run kept a single state; expected several: simulate with save=True.")
    log = trajectory.log_time if log_time is None else log_time
    times = trajectory.moments(count, log=log)
    made, axes = figure(inches, inches + (0.35 if title is None else 0.6))
    if title is not None:
        made.suptitle(title)
    frame = trajectory.at(trajectory.moments(64, log=log), log=log)
    chosen = token_colours(trajectory, colours, scale)
    behind = round(trail * count)
    seen = view_of(trajectory, view)
    if isinstance(trajectory.space, Gram):
        axes.set_aspect("equal")
    bar: list[Any] = []

    def draw(k: int, count_there: int) -> None:
        axes.clear()
        states = trajectory.at(times[max(0, k - behind) : k + 1], log=log)
        drawn = draw_state(
            axes,
            trajectory,
            states[-1],
            trail=states if len(states) > 1 else None,
            colours=chosen,
            scale=scale,
            size=size,
            frame=frame,
            view=View(seen.azimuth + turn * k / max(count - 1, 1), seen.elevation),
        )
        axes.set_title(moment_title(float(times[k]), count_there), loc="center")
        if isinstance(trajectory.space, Gram) and not bar:
            bar.append(made.colorbar(drawn, ax=axes, shrink=0.8, label="inner product"))
        if k == 0:  # places are found once: a layout of its own for each frame would make the picture tremble
            made.canvas.draw()
            made.set_layout_engine("none")

    def frames() -> Iterator[None]:
        for start in range(0, count, CHUNK):
            some = times[start : start + CHUNK]
            counts = trajectory.clusters(trajectory.at(some, log=log), scale).count
            for k, there in enumerate(counts.tolist()):
                draw(start + k, there)
                yield

    write: Callable[..., None] = _write_gif if target.suffix.lower() == ".gif" else _write_mp4
    with whole(target) as part:
        write(made, frames(), part, fps, dpi)
    return target


def ffmpeg() -> str:
    """The ffmpeg to use: the one on the PATH, else that of imageio-ffmpeg.

    Raises:
        ModuleNotFoundError: there is neither.
    """
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise ModuleNotFoundError(
            "MP4 movies need ffmpeg, and there is none on the PATH: pip install imageio-ffmpeg (or install ffmpeg, or write "
            "a .gif)",
            name="imageio_ffmpeg",
        ) from error


def _write_mp4(made: Figure, frames: Iterator[None], path: Path, fps: int, dpi: int) -> None:
    matplotlib = require_matplotlib()
    from matplotlib.animation import FFMpegWriter

    with matplotlib.rc_context({"animation.ffmpeg_path": ffmpeg()}):
        # even sizes and 4:2:0 are what browsers play; faststart lets them begin before the end has come
        writer = FFMpegWriter(
            fps=fps, codec="h264", extra_args=["-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"]
        )
        with writer.saving(made, str(path), dpi):
            for _ in frames:
                writer.grab_frame()


def _write_gif(made: Figure, frames: Iterator[None], path: Path, fps: int, dpi: int) -> None:
    """Pillow's encoder, one frame at a time: its own ``save_all``, and matplotlib's PillowWriter, keep every frame."""
    try:
        from PIL import Image, ImageChops
        from PIL.GifImagePlugin import getdata, getheader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "GIF movies need Pillow, which is not installed: pip install pillow", name="PIL"
        ) from error
    made.set_dpi(dpi)
    before: Any = None
    passed = 0
    with open(path, "wb") as file:
        for k, _ in enumerate(frames):
            made.canvas.draw()
            width, height = made.canvas.get_width_height()
            buffer = made.canvas.buffer_rgba()  # type: ignore[attr-defined]
            now = Image.frombuffer("RGBA", (width, height), buffer, "raw", "RGBA", 0, 1).convert("RGB")
            box = (0, 0, width, height) if before is None else ImageChops.difference(now, before).getbbox()
            part = now.crop(box or (0, 0, 1, 1)).quantize(255, dither=Image.Dither.NONE)
            if before is None:
                header, _palette = getheader(part.copy(), info={"loop": 0})
                file.write(b"".join(header))
            # hundredths of a second, without drift: frame k ends at (k + 1) / fps
            ends = round(100 * (k + 1) / fps)
            blocks = getdata(
                part,
                (box or (0, 0))[:2],
                duration=10 * (ends - passed),
                disposal=1,
                include_color_table=True,
                optimize=False,
            )
            file.write(b"".join(blocks))
            before, passed = now, ends
        file.write(b";")


def _checked(path: Path, seconds: float, fps: int) -> int:
    """How many frames."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"movie: path is {path.name!r}; expected a name that ends in {' or '.join(SUFFIXES)}."
        )
    if not path.parent.is_dir():
        raise ValueError(f"movie: the folder {path.parent} does not exist; make it first.")
    if not (seconds > 0 and math.isfinite(seconds) and fps >= 1):
        raise ValueError(
            f"movie: seconds is {seconds} and fps {fps}; expected positive numbers, fps at least 1."
        )
    if suffix == ".gif" and fps > 50:
        raise ValueError(
            f"movie: fps is {fps}; a GIF counts hundredths of a second and viewers slow down below two: expected at most 50."
        )
    count = max(2, round(seconds * fps))
    if count > FRAMES:
        raise ValueError(
            f"movie: {seconds:g} s of {fps} frames are {count}; expected at most {FRAMES}, take fewer."
        )
    return count
