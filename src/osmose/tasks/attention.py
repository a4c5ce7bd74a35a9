"""What `osmose heads` and `osmose adaptivity` read of a run: its attentions on some inputs, and its score without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from osmose.data import ImageData, SequenceData, TextData
from osmose.diagnostics import COMPONENTS, StructureAnova
from osmose.inspection import Replaced, jacobian_gaps, replacement_test, study
from osmose.inspection.capture import Classes, stage_grids
from osmose.tasks import sources
from osmose.tasks.measures import Measure, report_of
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import open_model
from osmose.tasks.trainers import text_metrics

_AT_ONCE = 2**23  # entries of matrices of one attention that are formed at once


@dataclass(frozen=True)
class Subject:
    """The model of a run, inputs of its training part to read it on, and its score on the validation part."""

    model: nn.Module
    inputs: list[tuple[Tensor, ...]]
    score: Callable[[nn.Module], float]
    measure: Measure
    classes: Classes | None
    grids: bool
    """whether offsets are those of images"""
    about: dict[str, Any]


def open_subject(
    folder: RunFolder, *, sequences: int, length: int | None, scored: int | None, seed: int
) -> Subject:
    """Load the best model of a run on texts, sequences or images, and draw `sequences` inputs of its training part.

    With `length` texts are read in windows of that length, and sequences that are as long are cut to it. `scored` is the
    number of inputs of the validation part that score; None: all.

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
    if isinstance(data, TextData):
        inputs, score, longest = _text(data, number, sequences, length, scored, draw)
    elif isinstance(data, SequenceData | ImageData):
        inputs, score, longest = _classified(data, number, sequences, length, scored, draw)
    else:
        raise ValueError(
            f"{folder.path} is a run on {data.kind}; expected one on text, sequences or images. osmose.inspection.study reads "
            "other models from Python"
        )
    classes = stage_grids(saved.model, *_pixels(data)) if isinstance(data, ImageData) else None
    about |= {"sequences": sum(len(batch[0]) for batch in inputs)}
    about |= {} if longest is None else {"length": longest}
    return Subject(saved.model, inputs, score, measure, classes, classes is not None, about)


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


# ---- osmose heads -----------------------------------------------------------------------------------


def heads_of(
    subject: Subject,
    *,
    null: int = 99,
    replace: tuple[str, ...] = (),
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, StructureAnova]]:
    """A row for each head: shares, offsets, p-value, and with `replace` the change of the score.

    `null` is the number of permutations, 0: none. `told` hears how many replacements of how many are done.
    """
    found = study(subject.model, subject.inputs, classes=subject.classes)
    rows: list[dict[str, Any]] = []
    for name, anova in found.items():
        shares, about = anova.shares(), anova.heads()
        generator = torch.Generator().manual_seed(seed)
        p = anova.permutation_p(null, generator=generator).tolist() if null else None
        for head in range(len(shares.energy)):
            row: dict[str, Any] = {"layer": name, "head": head}
            row |= {part: float(shares[part][head]) for part in COMPONENTS}
            row |= {
                "outside": float(shares.outside[head]),
                "shift_score": float(shares.shift_score[head]),
                "chance": float(shares.chance[head]),
                "top_offset": about.top_offset[head],
                "top_mass": float(about.top_mass[head]),
                "effective_offsets": float(about.effective_offsets[head]),
                "first_source": float(about.first_source[head]),
                "sink": about.sink[head],
                "sink_share": float(about.sink_share[head]),
                "stable_rank": float(about.stable_rank[head]),
                "dominant": shares.dominant[head],
            }
            rows.append(row | ({} if p is None else {"p": p[head]}))
    result: dict[str, Any] = {**subject.about, "permutations": null, "heads": rows}
    if not replace:
        return result, found
    _check_lengths(subject)
    groups: dict[str, list[tuple[str, int]]] = {"all heads": [(row["layer"], row["head"]) for row in rows]}
    for part in COMPONENTS:
        members = [(row["layer"], row["head"]) for row in rows if row["dominant"] == part]
        if 1 < len(members) < len(rows):
            groups[part] = members
    alone = [[member] for member in groups["all heads"]]
    tests = [*alone, *groups.values()]
    done = 0

    def count(_: Replaced) -> None:
        nonlocal done
        done += 1
        if told is not None:
            told(done, len(tests) * len(replace))

    whole, replaced = replacement_test(
        subject.model, found, subject.score, kinds=replace, groups=tests, told=count
    )
    changes = {(one.kind, one.heads): one.change for one in replaced}
    for row in rows:
        row["change"] = {kind: changes[kind, ((row["layer"], row["head"]),)] for kind in replace}
    result["score"] = {"valid_" + subject.measure.key: whole}
    result["together"] = [
        {
            "heads": name,
            "number": len(members),
            "change": {kind: changes[kind, tuple(members)] for kind in replace},
        }
        for name, members in groups.items()
    ]
    return result, found


# ---- osmose adaptivity ------------------------------------------------------------------------------


def adaptivity_of(subject: Subject, *, samples: int = 4, probes: int = 32, seed: int = 0) -> dict[str, Any]:
    """A row for each layer: shares by energy, |J - Phi| / |J|, and the change of the score when A is frozen at its mean."""
    _check_lengths(subject)
    found = study(subject.model, subject.inputs, classes=subject.classes)
    gaps = jacobian_gaps(
        subject.model, *(part[:samples] for part in subject.inputs[0]), probes=probes, seed=seed
    )
    layers = {name: [(name, head) for head in range(len(a.shares().energy))] for name, a in found.items()}
    groups = [*layers.values(), [head for members in layers.values() for head in members]]
    whole, frozen = replacement_test(subject.model, found, subject.score, kinds=("mean",), groups=groups)
    rows = []
    for (name, anova), one in zip(found.items(), frozen, strict=False):
        together = anova.shares().together.tolist()
        row: dict[str, Any] = {"layer": name, **dict(zip(COMPONENTS, together, strict=True))}
        rows.append(
            row
            | {
                "depends_on_input": together[3] + together[4],
                "jacobian_gap": gaps.get(name),
                "frozen": one.change,
            }
        )
    score = {"valid_" + subject.measure.key: whole}
    taken = min(samples, len(subject.inputs[0][0]))
    return {
        **subject.about,
        "samples": taken,
        "probes": probes,
        "score": score,
        "layers": rows,
        "all_frozen": frozen[-1].change,
    }


def _check_lengths(subject: Subject) -> None:
    if "length" not in subject.about and not subject.grids:
        raise ValueError(
            "these sequences have different lengths, and a mean matrix has one; give --length, to which all are cut that are "
            "as long"
        )
