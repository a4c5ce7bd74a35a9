"""Recorded episodes from an `.npz`: the user's own, or the expert episodes of the named sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cache import find_raw
from .catalog import CATALOG, CONTROL_PROTOCOLS, choose_protocol
from .episodes import EpisodeData, Spans
from .errors import DataError, DataNotFoundError, nearest
from .read import load_npz
from .resolve import existing_source, named, reject

ENVIRONMENTS = {
    "hopper": "Hopper-v4",
    "half-cheetah": "HalfCheetah-v4",
    "walker2d": "Walker2d-v4",
    "ant": "Ant-v4",
}
"""Named set -> environment."""

_NUMBERED = re.compile(r"observation_(\d+)")
_WANTED = (
    "expected observation_0 (steps, S), action_0 (steps, A), reward_0 (steps,) and if wanted terminal_0 for each episode, "
    "numbered from 0; or observations (total, S), actions (total, A), rewards (total,), terminals (total,) and if wanted "
    "timeouts (total,)"
)
_VALID_SHARE = 0.1
_EPISODES_ENOUGH = 10


@dataclass
class _Recorded:
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    ptr: np.ndarray
    notes: list[str]


def load_episode_source(
    source: str | Path,
    *,
    env: str | None,
    action_range: tuple[float, float] | None,
    scale: float | None,
    protocol: str | None,
    splits: int | None,
    seed: int,
    root: Path | None,
) -> EpisodeData:
    """`osmose.data.load_episodes`."""
    if splits is not None and splits < 1:
        raise DataError(f"splits is {splits}; expected at least 1")
    common: dict[str, Any] = {"protocol": protocol, "splits": splits, "seed": seed, "scale": scale}
    name = named(source)
    if name in ENVIRONMENTS:
        own = {"env": env, "action_range": action_range}
        reject(f"load_episodes({name!r})", own, "the user's own data")
        return load_named_episodes(name, root=root, **common)
    if name is not None:
        raise DataError(f"{name!r} holds no episodes; expected one of {', '.join(ENVIRONMENTS)}, or an .npz")
    reject(f"load_episodes({str(source)!r})", {"root": root}, "public data sets")
    path = existing_source(source)
    if path.is_dir() or path.suffix.lower() != ".npz":
        raise DataError(f"{path} holds no episodes that can be read; expected an .npz with them")
    return load_own_episodes(path, env=env, action_range=action_range, **common)


def load_named_episodes(
    name: str, *, protocol: str | None, splits: int | None, seed: int, scale: float | None, root: Path | None
) -> EpisodeData:
    """Two expert episodes of a MuJoCo environment, from Berkeley's course CS285 (MIT licence).

    The policy's actions went to the simulator unbounded, which takes each at its bounds, -1 and 1; so does this. All that
    differs is the reward, which counted their squares before that.
    """
    protocol = choose_protocol(name, protocol)
    env = ENVIRONMENTS[name]
    file = f"rl_expert/expert_data_{env}.npz"
    path = find_raw([file, Path(file).name], root)
    if path is None:
        raise DataNotFoundError(
            f"load_episodes({name!r}): {file} is in no raw folder; name the folder that holds it in OSMOSE_DATA. It is "
            "not downloaded: https://github.com/berkeleydeeprlcourse/homework_fall2023 has it in hw1/cs285/expert_data as a "
            "pickle, to be saved as an .npz with observation_0, action_0, reward_0, terminal_0, observation_1, ..."
        )
    recorded = _read(path)
    beyond = float((np.abs(recorded.actions) > 1).mean())
    recorded.actions = recorded.actions.clip(-1.0, 1.0)
    recorded.notes.append(
        f"{100 * beyond:.0f} % of the actions' values lay beyond -1 to 1 and were cut there"
    )
    number = CATALOG[name].splits if splits is None else splits
    return _data(name, recorded, protocol, number, seed, env, (-1.0, 1.0), scale)


def load_own_episodes(
    path: Path,
    *,
    env: str | None,
    action_range: tuple[float, float] | None,
    protocol: str | None,
    splits: int | None,
    seed: int,
    scale: float | None,
) -> EpisodeData:
    """The user's own episodes; `env` and `action_range` also as arrays of the `.npz` with these names."""
    content = load_npz(path)
    recorded = _read(path, content)
    if env is None and "env" in content:
        if content["env"].size != 1:
            raise DataError(f"{path}: env is {content['env'].shape}; expected one name")
        env = str(content["env"].item())
    if action_range is None and "action_range" in content:
        bounds = content["action_range"]
        if bounds.shape != (2,) or bounds.dtype.kind not in "iuf":
            raise DataError(
                f"{path}: action_range is {bounds.shape} {bounds.dtype}; expected two numbers, low and high"
            )
        action_range = (float(bounds[0]), float(bounds[1]))
    if action_range is None and np.abs(recorded.actions).max(initial=0) <= 1:
        action_range = (-1.0, 1.0)
        recorded.notes.append("all actions lie in -1 to 1, which is taken for their range")
    if protocol is not None and protocol not in CONTROL_PROTOCOLS:
        raise DataError(
            f"{path}: protocol is {protocol!r}; expected one of {', '.join(map(repr, CONTROL_PROTOCOLS))}"
            + nearest(protocol, CONTROL_PROTOCOLS)
        )
    episodes = len(recorded.ptr) - 1
    protocol = protocol or ("episodes" if episodes >= _EPISODES_ENOUGH else "blocks")
    number = (5 if protocol == "episodes" else 1) if splits is None else splits
    return _data(path.stem, recorded, protocol, number, seed, env, action_range, scale)


def _data(
    name: str,
    recorded: _Recorded,
    protocol: str,
    splits: int,
    seed: int,
    env: str | None,
    action_range: tuple[float, float] | None,
    scale: float | None,
) -> EpisodeData:
    ptr = torch.from_numpy(recorded.ptr.astype(np.int64))
    notes = list(recorded.notes)
    if protocol == "episodes":
        drawn = [_by_episodes(name, ptr, seed, i) for i in range(splits)]
    else:
        drawn = [_by_blocks(name, ptr)]
        if splits > 1:
            notes.append(f"{splits} splits asked for; protocol 'blocks' has 1")
    with np.errstate(over="ignore"):
        arrays = (recorded.states, recorded.actions, recorded.rewards)
        states, actions, rewards = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in arrays)
    return EpisodeData(
        name=name,
        protocol=protocol,
        states=states,
        actions=actions,
        rewards=rewards,
        terminals=torch.from_numpy(recorded.terminals),
        ptr=ptr,
        splits=drawn,
        env=env,
        action_range=action_range,
        scale=scale,
        notes=notes,
    )


# ---- splits ---------------------------------------------------------------------------------------


def _by_episodes(name: str, ptr: Tensor, seed: int, index: int) -> Spans:
    """A tenth of the episodes, at least one, for validation, drawn from (`seed`, `index`)."""
    n = ptr.numel() - 1
    if n < 2:
        raise DataError(f"{name}: protocol 'episodes' with {n} episode; take 'blocks', or give more episodes")
    if seed < 0:
        raise DataError(f"seed is {seed}; expected 0 or more")
    order = np.random.default_rng([seed, index]).permutation(n)
    held = max(1, round(_VALID_SHARE * n))
    valid, train = (torch.from_numpy(np.sort(part)) for part in (order[:held], order[held:]))
    spans = torch.stack([ptr[:-1], ptr[1:]], -1)
    return Spans(spans[train], spans[valid])


def _by_blocks(name: str, ptr: Tensor) -> Spans:
    """A tenth of every episode's steps, at least one, for validation; episodes of one step are for training.

    The last tenth of the first episode, the one before of the second, and so on: a timestep that is held out of one
    episode is trained on in another. The first tenth is never held out.
    """
    start, stop = ptr[:-1], ptr[1:]
    held = ((stop - start) * _VALID_SHARE).round().long().clamp(min=1).where(stop - start > 1, 0)
    turn = torch.arange(len(held)) % (round(1 / _VALID_SHARE) - 1)
    first = torch.maximum(stop - held * (turn + 1), start + (held > 0).long())
    block = torch.stack([first, first + held], -1)
    train = torch.stack([start, block[:, 0], block[:, 1], stop], -1).view(-1, 2)
    spans = Spans(*(own[own[:, 1] > own[:, 0]] for own in (train, block)))
    if not len(spans.valid):
        raise DataError(f"{name}: all episodes have one step; expected one of two or more to validate on")
    return spans


# ---- files ----------------------------------------------------------------------------------------


def _read(path: Path, content: dict[str, np.ndarray] | None = None) -> _Recorded:
    content = load_npz(path) if content is None else content
    if "observations" in content:
        return _flat(path, content)
    numbers = sorted(int(m[1]) for m in map(_NUMBERED.fullmatch, content) if m)
    if not numbers:
        raise DataError(f"{path} holds {sorted(content)}; {_WANTED}")
    if numbers != list(range(len(numbers))):
        raise DataError(f"{path} holds the episodes {numbers}; expected numbers from 0 on without gaps")
    parts = [_episode(path, content, i) for i in numbers]
    for key, place in (("observation", 0), ("action", 1)):
        widths = [part[place].shape[1] for part in parts]
        if len(set(widths)) > 1:
            raise DataError(
                f"{path}: {key}_0 to {key}_{numbers[-1]} have {widths} channels; expected the same"
            )
    ptr = np.cumsum([0, *(len(part[0]) for part in parts)])
    states, actions, rewards, terminals = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Recorded(states, actions, rewards, terminals, ptr, [])


def _episode(path: Path, content: dict[str, np.ndarray], i: int) -> tuple[np.ndarray, ...]:
    states = _matrix(path, content, f"observation_{i}")
    actions = _matrix(path, content, f"action_{i}", len(states))
    rewards = _vector(path, content, f"reward_{i}", len(states))
    if not len(states):
        raise DataError(
            f"{path}: observation_{i} has no steps; expected at least one. Leave empty episodes out"
        )
    terminals = np.zeros(len(states), dtype=bool)
    if f"terminal_{i}" in content:
        terminals = _flags(path, content, f"terminal_{i}", len(states))
    return states, actions, rewards, terminals


def _flat(path: Path, content: dict[str, np.ndarray]) -> _Recorded:
    states = _matrix(path, content, "observations")
    total = len(states)
    if not total:
        raise DataError(f"{path}: observations have no steps; expected at least one")
    actions = _matrix(path, content, "actions", total)
    rewards = _vector(path, content, "rewards", total)
    terminals = _flags(path, content, "terminals", total)
    ends = terminals.copy()
    if "timeouts" in content:
        ends |= _flags(path, content, "timeouts", total)
    notes = []
    if not ends[-1]:
        begun = total - int(np.flatnonzero(ends)[-1] if ends.any() else -1) - 1
        notes.append(f"the last episode is cut off after {begun} steps; its returns count what was recorded")
        ends[-1] = True
    if not terminals.any() and "timeouts" not in content:
        notes.append("no step is terminal and there are no timeouts: all steps count as one episode")
    ptr = np.concatenate([[0], np.flatnonzero(ends) + 1])
    return _Recorded(states, actions, rewards, terminals, ptr, notes)


def _array(path: Path, content: dict[str, np.ndarray], key: str) -> np.ndarray:
    if key not in content:
        raise DataError(f"{path} holds {sorted(content)} and lacks {key}; {_WANTED}")
    array = content[key]
    if array.dtype.kind not in "iufb":
        raise DataError(f"{path}: {key} is of type {array.dtype}; expected numbers")
    return array


def _matrix(path: Path, content: dict[str, np.ndarray], key: str, steps: int | None = None) -> np.ndarray:
    array = _array(path, content, key)
    if array.ndim != 2 or not array.shape[1] or (steps is not None and len(array) != steps):
        expected = (
            "(steps, channels)" if steps is None else f"({steps}, channels), a row for each observation"
        )
        raise DataError(f"{path}: {key} has shape {array.shape}; expected {expected}")
    return array


def _vector(path: Path, content: dict[str, np.ndarray], key: str, steps: int) -> np.ndarray:
    array = _array(path, content, key)
    if array.shape == (steps, 1):
        array = array[:, 0]
    if array.shape != (steps,):
        raise DataError(
            f"{path}: {key} has shape {array.shape}; expected ({steps},), one for each observation"
        )
    return array


def _flags(path: Path, content: dict[str, np.ndarray], key: str, steps: int) -> np.ndarray:
    array = _vector(path, content, key, steps)
    if not np.isin(array, (0, 1)).all():
        raise DataError(f"{path}: {key} holds other values than 0 and 1; expected flags")
    return array.astype(bool)
