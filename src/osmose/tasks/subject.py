"""What `osmose heads`, `osmose adaptivity` and `osmose particles` read of a run: its model, some inputs, and its score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from osmose.data import ImageData, NodeData, SequenceData, TextData
from osmose.inspection.capture import Classes, stage_grids
from osmose.models import sparse_features
from osmose.tasks import sources
from osmose.tasks.measures import Measure, report_of
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import SavedModel, open_model
from osmose.tasks.trainers import text_metrics

_AT_ONCE = 2**23  # entries of matrices of one attention that are formed at once


@dataclass(frozen=True)
class Subject:
    """The model of a run, inputs of its training part to read it on, and its score on the validation part."""

    model: nn.Module
    inputs: list[tuple[Any, ...]]
    score: Callable[[nn.Module], float]
    measure: Measure
    classes: Classes | None
    grids: bool
    """whether offsets are those of images"""
    about: dict[str, Any]
    labels: Tensor | None = None
    """(n,) class of every node, -1 where it has none"""
    names: list[str] = dataclasses.field(default_factory=list)
    """of the classes of nodes"""


def open_subject(
    folder: RunFolder,
    *,
    sequences: int,
    length: int | None = None,
    scored: int | None = None,
    seed: int = 0,
    nodes: bool = False,
) -> Subject:
    """Load the best model of a run on texts, sequences or images, and draw `sequences` inputs of its training part.

    With `length` texts are read in windows of that length, and sequences that are as long are cut to it. `scored` is the
    number of inputs of the validation part that score; None: all. With `nodes` runs on graphs and tables too, of which all nodes
    are the one input.

    Raises ValueError for other kinds of runs, and numbers that the data do not have.
    """
    for name, value in (("--sequences", sequences), ("--length", length), ("--scored", scored)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    saved = open_model(folder)
    loaded = sources.load(saved.config.data, saved.config.train.splits)
    number = saved.split % len(loaded.splits)
    data = loaded.for_split(number)
    draw = torch.Generator().manual_seed(seed)
    about = {
        "run": str(folder.path),
        "source": saved.config.data.source,
        "protocol": data.protocol,
        "model": saved.config.model.name,
        "split": saved.split,
        "epoch": saved.epoch,
    }
    measure = report_of(data).valid
    if nodes and isinstance(data, NodeData):
        return _all_nodes(saved, data, number, length, measure, about)
    if isinstance(data, TextData):
        inputs, score, longest = _text(data, number, sequences, length, scored, draw)
    elif isinstance(data, SequenceData | ImageData):
        inputs, score, longest = _classified(data, number, sequences, length, scored, draw)
    else:
        expected = "nodes, text, sequences or images" if nodes else "text, sequences or images"
        raise ValueError(
            f"{folder.path} is a run on {data.kind}; expected one on {expected}. osmose.inspection reads other models from "
            "Python"
        )
    classes = stage_grids(saved.model, *_pixels(data)) if isinstance(data, ImageData) else None
    about |= {"sequences": sum(len(batch[0]) for batch in inputs)}
    about |= {} if longest is None else {"length": longest}
    return Subject(saved.model, inputs, score, measure, classes, classes is not None, about)


def _all_nodes(
    saved: SavedModel,
    data: NodeData,
    number: int,
    length: int | None,
    measure: Measure,
    about: dict[str, Any],
) -> Subject:
    if length is not None:
        raise ValueError("--length is for texts and sequences; all nodes are read at once. Leave it out")
    graph = None
    if data.edge_index is not None:
        graph = saved.model.prepare_graph(data.edge_index, data.edge_weight, len(data.x))  # type: ignore[operator]
    inputs, valid = (sparse_features(data.x), graph), data.splits[number].valid

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        model.eval()
        return float((model(*inputs)[valid].argmax(1) == data.y[valid]).double().mean())

    about = about | {"sequences": 1, "nodes": len(data.x)}
    return Subject(saved.model, [inputs], score, measure, None, False, about, data.y, data.classes)


Read = tuple[list[tuple[Tensor, ...]], Callable[[nn.Module], float], int | None]


def _text(
    data: TextData, number: int, sequences: int, length: int | None, scored: int | None, draw: torch.Generator
) -> Read:
    parts = data.splits[number]
    length = data.window if length is None else length
    if not 2 <= length <= min(len(parts.train), len(parts.valid)):
        raise ValueError(
            f"--length is {length}; expected 2 or more, and at most the {min(len(parts.train), len(parts.valid))} symbols of "
            "the parts"
        )
    starts = parts.train.start + torch.randint(len(parts.train) - length + 1, (sequences,), generator=draw)
    ids = data.values[starts.unsqueeze(1) + torch.arange(length)].long()
    windows = dataclasses.replace(data, window=length)
    valid = parts.valid if scored is None else parts.valid[: scored * length + 1]

    def score(model: nn.Module) -> float:
        return text_metrics(model, windows, {"valid": valid}, torch.device("cpu"))["valid_loss"]

    return [(part,) for part in ids.split(_batch(length))], score, length


def _classified(
    data: SequenceData | ImageData,
    number: int,
    sequences: int,
    length: int | None,
    scored: int | None,
    draw: torch.Generator,
) -> Read:
    split = data.splits[number]
    train, valid = split.train, split.valid
    if isinstance(data, ImageData):
        if length is not None:
            raise ValueError("--length is for texts and sequences; images are read whole. Leave it out")
        height, width = _pixels(data)
        longest = height * width
    else:
        if length is not None:
            train, valid = (part[data.lengths[part] >= length] for part in (train, valid))
            if not len(train) or not len(valid):
                raise ValueError(
                    f"--length is {length}; expected at most that of some sequence of the training and of the validation "
                    f"part (the longest of all has {int(data.lengths.max())} steps)"
                )
        longest = int(data.lengths.max()) if length is None else length
    chosen = train[torch.randperm(len(train), generator=draw)[:sequences]]
    valid = valid if scored is None else valid[torch.randperm(len(valid), generator=draw)[:scored]]
    if not isinstance(data, ImageData):  # similar lengths side by side
        chosen, valid = (part[data.lengths[part].argsort(stable=True)] for part in (chosen, valid))

    def batch(index: Tensor) -> tuple[Tensor, ...]:
        if isinstance(data, ImageData) or length is None:
            return data.batch(index)
        values, lengths = data.batch(index)
        return values[:, :length], lengths.clamp_max(length)

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        model.eval()
        right = sum(
            int((model(*batch(index)).argmax(1) == data.y[index]).sum())
            for index in valid.split(_batch(longest))
        )
        return right / len(valid)

    same = isinstance(data, ImageData) or length is not None or len(data.lengths.unique()) == 1
    inputs = [batch(index) for index in chosen.split(_batch(longest))]
    return inputs, score, longest if same and not isinstance(data, ImageData) else None


def _pixels(data: ImageData) -> tuple[int, int]:
    _, _, height, width = data.x.shape
    return height, width


def _batch(length: int) -> int:
    return max(1, min(32, _AT_ONCE // (8 * length**2)))
