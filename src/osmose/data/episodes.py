"""Recorded episodes for offline control: states, actions and rewards, checked once, and windows of steps drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .errors import DataError
from .sequence import check_ptr, place

Part = Literal["train", "valid"]


class Windows(NamedTuple):
    """B windows of K steps in the order in which a decision model takes them; the missing steps stand on the left.

    Shapes: `returns` (B, K, 1) still to come, scaled; `states` (B, K, S) standardised; `actions` (B, K, A); `timesteps`
    (B, K) int64, from the start of the episode; `mask` (B, K) bool, True = a recorded step. Missing steps hold 0.
    """

    returns: Tensor
    states: Tensor
    actions: Tensor
    timesteps: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> Windows:
        return Windows(*(x.to(device) for x in self))


@dataclass(frozen=True)
class Spans:
    """The steps of the two parts: `train` and `valid` (n, 2) int64, [start, stop) of the steps, none across episodes."""

    train: Tensor
    valid: Tensor

    def of(self, part: Part) -> Tensor:
        return self.valid if part == "valid" else self.train

    def __repr__(self) -> str:
        counts = (int((spans[:, 1] - spans[:, 0]).sum()) for spans in (self.train, self.valid))
        return "Spans(train={} steps, valid={} steps)".format(*counts)


@dataclass(repr=False)
class EpisodeData:
    """N recorded episodes, one behind the other: episode i is the steps `ptr[i]` to `ptr[i + 1]` (without the last).

    Shapes: `states` (total, S) and `actions` (total, A) float32, as recorded; `rewards` (total,) float32; `terminals`
    (total,) bool, True at an episode's last step where it ended of itself; `ptr` (N + 1,) int64.

    A return-to-go counts the rewards from a step to the end of its episode, whatever part that end belongs to. Means and
    deviations of the states, and the scale of returns, are those of the training part of the active split.

    Raises `DataError` when a shape, type or value is not as stated, when an episode is empty, and for spans that overlap,
    cross episodes or leave a part empty.
    """

    kind: ClassVar[str] = "control"

    name: str
    protocol: str
    states: Tensor
    actions: Tensor
    rewards: Tensor
    terminals: Tensor
    ptr: Tensor
    splits: list[Spans]
    env: str | None = None
    """Name of the environment in gymnasium; None: actions can be compared, but not tried."""
    action_range: tuple[float, float] | None = None
    """Low and high of every action; None: no bounds are known."""
    scale: float | None = None
    """What returns are divided by; None: the largest return-to-go, without its sign, of the training part."""
    notes: list[str] = field(default_factory=list)
    """What the loader did to the data that a user may want to know, one sentence each."""
    split: int = 0
    """The active one of `splits`; see `for_split`."""

    def __post_init__(self) -> None:
        self.validate()

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        worst, best = float(self.episode_returns.min()), float(self.episode_returns.max())
        return (
            f"EpisodeData({self.name!r}, protocol {self.protocol!r}: {self.num_episodes} episodes of {low} to {high} steps "
            f"with returns {worst:.1f} to {best:.1f}, {self.state_dim} state and {self.action_dim} action channels, "
            f"{len(self.splits)} splits)"
        )

    @property
    def num_episodes(self) -> int:
        return self.ptr.numel() - 1

    @property
    def state_dim(self) -> int:
        return self.states.shape[1]

    @property
    def action_dim(self) -> int:
        return self.actions.shape[1]

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.ptr.diff()

    @cached_property
    def returns_to_go(self) -> Tensor:
        """(total,) float32: the rewards from each step to the end of its episode, not scaled."""
        after = self.rewards.double().flip(0).cumsum(0).flip(0)
        beyond = torch.cat([after, after.new_zeros(1)])[self.ptr[1:]]
        return (after - beyond.repeat_interleave(self.lengths)).float()

    @property
    def episode_returns(self) -> Tensor:
        """(N,) float32: the rewards of each episode."""
        return self.returns_to_go[self.ptr[:-1]]

    @cached_property
    def timesteps(self) -> Tensor:
        """(total,) int64: the steps since the start of the episode."""
        return torch.arange(len(self.states)) - self.ptr[:-1].repeat_interleave(self.lengths)

    @cached_property
    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """(S,) and (S,) float32, of the states of the training part; the deviation of a constant channel counts as 1."""
        states = self.states[self._steps("train")].double()
        std = states.std(0, correction=0)
        return states.mean(0).float(), std.where(std > 1e-6, 1.0).float()

    @cached_property
    def return_scale(self) -> float:
        """What returns are divided by: `scale`, or the largest return-to-go, without its sign, of the training part."""
        if self.scale is not None:
            return self.scale
        return float(self.returns_to_go[self._steps("train")].abs().max()) or 1.0

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What acting needs to know of the data; JSON-serialisable. `best_return` is the best of an episode."""
        mean, std = self.mean_and_std
        return {
            "kind": "control",
            "name": self.name,
            "env": self.env,
            "state_dim": self.state_dim,
            "action_dim": self.action_dim,
            "action_range": None if self.action_range is None else list(self.action_range),
            "mean": mean.tolist(),
            "std": std.tolist(),
            "return_scale": self.return_scale,
            "best_return": float(self.episode_returns.max()),
        }

    def for_split(self, index: int) -> EpisodeData:
        """The same data with split `index` active."""
        if not 0 <= index < len(self.splits):
            raise DataError(
                f"{self.name}: split {index} of {len(self.splits)}; expected 0 to {len(self.splits) - 1}"
            )
        return self if index == self.split else replace(self, split=index)

    # ---- windows ----------------------------------------------------------------------------------

    def sample(
        self,
        batch_size: int,
        context: int,
        *,
        generator: torch.Generator | None = None,
        part: Part = "train",
    ) -> Windows:
        """Random windows of up to K = `context` steps; the same for the same state of the generator.

        As in the Decision Transformer: an episode by its length, then a start among its steps, all alike; that is a
        start among all steps. A window ends with the episode (or its piece in this part) and is then shorter than K.
        """
        steps = self._steps(part)
        drawn = torch.randint(len(steps), (batch_size,), generator=generator)
        return self.windows(steps[drawn], context, part=part)

    def tiles(self, context: int, *, part: Part = "valid") -> Tensor:
        """Starts of the windows that hold every step of a part once, for `windows`."""
        self._check_context(context)
        spans = self.splits[self.split].of(part).tolist()
        return torch.cat([torch.arange(start, stop, context) for start, stop in spans])

    def windows(self, start: Tensor, context: int, *, part: Part = "train") -> Windows:
        """The windows that begin at the steps `start` (B,), each inside its piece of the part.

        Raises `DataError` for a step that is not in the part.
        """
        self._check_context(context)
        spans = self.splits[self.split].of(part)
        own = torch.searchsorted(spans[:, 0].contiguous(), start, right=True) - 1
        stop = spans[own.clamp(min=0), 1]
        outside = (own < 0) | (start >= stop)
        if bool(outside.any()):
            raise DataError(f"{self.name}: step {int(start[outside][0])} is not in the {part} part")
        length = (stop - start).clamp(max=context)
        step = start[:, None] + torch.arange(context) - (context - length)[:, None]
        mask = step >= start[:, None]
        step = step.where(mask, start[:, None])
        mean, std = self.mean_and_std
        keep = mask.unsqueeze(-1)
        return Windows(
            (self.returns_to_go[step].unsqueeze(-1) / self.return_scale).where(keep, 0.0),
            ((self.states[step] - mean) / std).where(keep, 0.0),
            self.actions[step].where(keep, 0.0),
            self.timesteps[step].where(mask, 0),
            mask,
        )

    def _steps(self, part: Part) -> Tensor:
        """The steps of a part, in order."""
        return self._steps_of_parts[0 if part == "train" else 1]

    @cached_property
    def _steps_of_parts(self) -> tuple[Tensor, Tensor]:
        spans = self.splits[self.split]
        return _steps_of(spans.train), _steps_of(spans.valid)

    def _check_context(self, context: int) -> None:
        if context < 1:
            raise DataError(f"{self.name}: context is {context}; expected a window of 1 or more steps")

    # ---- checks -----------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise `DataError` on the first thing that is not as the class states."""
        for what, values in (("states", self.states), ("actions", self.actions)):
            if values.dim() != 2 or values.dtype != torch.float32 or not values.shape[1]:
                raise DataError(
                    f"{self.name}: {what} are {tuple(values.shape)} {values.dtype}; expected (total, channels) "
                    "torch.float32 with at least one channel"
                )
        total = len(self.states)
        expected = {"rewards": torch.float32, "terminals": torch.bool}
        for what, dtype in expected.items():
            values = getattr(self, what)
            if values.shape != (total,) or values.dtype != dtype:
                raise DataError(
                    f"{self.name}: {what} are {tuple(values.shape)} {values.dtype}; expected ({total},) {dtype}, one for "
                    "each state"
                )
        if len(self.actions) != total:
            raise DataError(
                f"{self.name}: {len(self.actions)} actions for {total} states; expected one for each"
            )
        check_ptr(self.name, self.ptr, total, "episode")
        for what in ("states", "actions", "rewards"):
            self._check_finite(what, getattr(self, what))
        self._check_ends()
        self._check_scales()
        for i, spans in enumerate(self.splits):
            _check_spans(f"{self.name}: split {i}", spans, self.ptr)

    def _check_finite(self, what: str, values: Tensor) -> None:
        bad = (~torch.isfinite(values)).nonzero()
        if bad.numel():
            raise DataError(
                f"{self.name}: {what} hold {len(bad)} NaN or infinite numbers, the first at "
                f"{place(self.ptr, int(bad[0, 0]), 'episode')}; expected finite numbers"
            )

    def _check_ends(self) -> None:
        inside = self.terminals.clone()
        inside[self.ptr[1:] - 1] = False
        if bool(inside.any()):
            where = place(self.ptr, int(inside.nonzero()[0]), "episode")
            raise DataError(
                f"{self.name}: terminals are set at {where}, before the end; expected them at last steps only. Divide "
                "the steps where an episode ended"
            )

    def _check_scales(self) -> None:
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise DataError(f"{self.name}: scale is {self.scale}; expected a positive number")
        if not self.splits or not 0 <= self.split < len(self.splits):
            raise DataError(
                f"{self.name}: split {self.split} of {len(self.splits)}; expected at least one split"
            )
        if self.action_range is None:
            return
        low, high = self.action_range
        if not low < high:
            raise DataError(f"{self.name}: action_range is {self.action_range}; expected low < high")
        least, most = float(self.actions.min()), float(self.actions.max())
        if least < low or most > high:
            raise DataError(
                f"{self.name}: actions go from {least:.6g} to {most:.6g}; expected {low:g} to {high:g}, the action_range"
            )


def _steps_of(spans: Tensor) -> Tensor:
    lengths = spans[:, 1] - spans[:, 0]
    first = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + (spans[:, 0] - first).repeat_interleave(lengths)


def _check_spans(where: str, spans: Spans, ptr: Tensor) -> None:
    for part, own in (("train", spans.train), ("valid", spans.valid)):
        if own.dim() != 2 or own.shape[1] != 2 or own.dtype != torch.int64 or not len(own):
            raise DataError(
                f"{where}: {part} is {tuple(own.shape)} {own.dtype}; expected (n, 2) torch.int64, the start and stop of "
                "at least one span of steps"
            )
        if bool((own[:, 1] <= own[:, 0]).any()) or bool((own[1:, 0] < own[:-1, 1]).any()):
            raise DataError(f"{where}: the spans of {part} are empty, overlap or are out of order")
        if int(own.min()) < 0 or int(own.max()) > int(ptr[-1]):
            raise DataError(
                f"{where}: {part} goes from {int(own.min())} to {int(own.max())}; expected steps from 0 to {int(ptr[-1])}"
            )
        episode = torch.searchsorted(ptr, own[:, 0].contiguous(), right=True) - 1
        if bool((own[:, 1] > ptr[episode + 1]).any()):
            raise DataError(f"{where}: a span of {part} goes across two episodes; divide it at `ptr`")
    shared = torch.isin(_steps_of(spans.train), _steps_of(spans.valid))
    if bool(shared.any()):
        raise DataError(f"{where}: {int(shared.sum())} steps are in train and in valid; expected none")
