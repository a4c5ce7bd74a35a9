"""A decision model in its environment: returns that it reaches when a return is asked of it.

gymnasium is needed here only, and imported when used: `pip install 'osmose[control]'`.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from osmose.data.errors import DataError

if TYPE_CHECKING:
    from osmose.models.decision import DecisionModel

REFERENCE_RETURNS = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
"""Returns of a random policy and of an expert, as D4RL states them for its scores (Fu et al., 2004.07219; `infos.py` of
its code)."""


@dataclass(frozen=True)
class Rollouts:
    """What some episodes gave."""

    env: str
    target_return: float
    returns: list[float]
    """the rewards of each episode"""
    lengths: list[int]
    """the steps of each episode"""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.returns)

    @property
    def std(self) -> float:
        """Of the episodes, with the divisor n."""
        return statistics.pstdev(self.returns)

    @property
    def score(self) -> float | None:
        """:func:`normalised_score` of the mean."""
        return normalised_score(self.env, self.mean)


def normalised_score(env: str, value: float) -> float | None:
    """D4RL's score of a return, ``100 (value - random) / (expert - random)``; None for an environment it does not list.

    The two references are D4RL's own (:data:`REFERENCE_RETURNS`), the same for every version of an environment; they
    were measured in its versions (``-v2`` and before), so a score in ``-v4`` is close to a published one, not equal.
    """
    known = REFERENCE_RETURNS.get(env.split("-v")[0].lower().replace("-", ""))
    return None if known is None else 100 * (value - known[0]) / (known[1] - known[0])


def evaluate_policy(
    model: DecisionModel,
    preprocessing: dict[str, Any],
    *,
    env: str | None = None,
    target_return: float | None = None,
    episodes: int = 10,
    seed: int = 0,
    streaming: bool = False,
    max_steps: int | None = None,
) -> Rollouts:
    """Let the model act for some episodes of which a return is asked.

    Args:
        model: on any device; it is left in the mode it was in.
        preprocessing: ``EpisodeData.preprocessing`` of its training data (after JSON too).
        env: name in gymnasium; None: that of the data.
        target_return: the return that is asked, not scaled; after each step what was received is taken off. None: the
            best of an episode in the data.
        episodes: how many.
        seed: episode i is reset with ``seed + i``, so it does not depend on their number. On the CPU the same call
            gives the same returns.
        streaming: act with a state that holds the whole episode, in place of the last ``model.context`` steps.
        max_steps: cut every episode there; None: where the environment ends it.

    Raises:
        DataError: gymnasium or the environment is not installed, none is named, or its observations and actions are not
            those of the data.
        ValueError: numbers out of range; streaming with a mixer that keeps no state.

    Cost: a forward pass over ``context`` steps for every step; streaming, with ``flow`` and ``linear``, over one.
    """
    if episodes < 1 or seed < 0 or (max_steps is not None and max_steps < 1):
        raise ValueError(
            f"evaluate_policy: episodes {episodes}, seed {seed}, max_steps {max_steps}; expected episodes >= 1, seed >= 0, "
            "max_steps >= 1."
        )
    name = env or preprocessing["env"]
    if name is None:
        raise DataError(
            "evaluate_policy: the data name no environment and none was given; pass env='Hopper-v4' or the like"
        )
    target = float(preprocessing["best_return"] if target_return is None else target_return)
    returns, lengths = [], []
    with make_environment(name, preprocessing) as world:
        for i in range(episodes):
            kind = _Streaming if streaming else _Windowed
            actor = kind(model, preprocessing)
            received, steps = _episode(world, actor, target, seed + i, max_steps)
            returns.append(received)
            lengths.append(steps)
    return Rollouts(name, target, returns, lengths)


def _episode(
    world: Any, actor: _Windowed | _Streaming, target: float, seed: int, max_steps: int | None
) -> tuple[float, int]:
    low, high = world.action_space.low, world.action_space.high
    observation, _ = world.reset(seed=seed)
    received, steps, over = 0.0, 0, False
    while not over and (max_steps is None or steps < max_steps):
        action = actor(observation, target - received).clip(low, high)
        observation, reward, terminated, truncated, _ = world.step(action)
        received, steps, over = received + float(reward), steps + 1, terminated or truncated
    return received, steps


class _Actor:
    """An episode as the model sees it: states standardised and returns scaled as in training."""

    def __init__(self, model: DecisionModel, preprocessing: dict[str, Any]):
        weight = model.states.weight
        self.model = model
        self.made: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        self.mean = torch.tensor(preprocessing["mean"], **self.made)
        self.std = torch.tensor(preprocessing["std"], **self.made)
        self.scale = preprocessing["return_scale"]

    def _seen(self, observation: Any, to_come: float) -> tuple[Tensor, Tensor]:
        state = (torch.as_tensor(observation, **self.made) - self.mean) / self.std
        return state, torch.tensor([to_come / self.scale], **self.made)

    @staticmethod
    def _array(action: Tensor) -> Any:
        return action.float().cpu().numpy()


class _Windowed(_Actor):
    """Acts on the last K steps."""

    def __init__(self, model: DecisionModel, preprocessing: dict[str, Any]):
        super().__init__(model, preprocessing)
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.time = 0

    def __call__(self, observation: Any, to_come: float) -> Any:
        state, asked = self._seen(observation, to_come)
        unknown = torch.zeros(self.model.action_dim, **self.made)
        self.steps = [*self.steps, (asked, state, unknown)][-self.model.context :]
        self.time += 1
        returns, states, actions = (torch.stack(one)[None] for one in zip(*self.steps, strict=True))
        times = torch.arange(self.time - len(self.steps), self.time, device=state.device)
        action = self.model.act(returns, states, actions, times[None])[0]
        self.steps[-1] = (asked, state, action)
        return self._array(action)


class _Streaming(_Actor):
    """Acts on the whole episode, which the model's state holds."""

    def __init__(self, model: DecisionModel, preprocessing: dict[str, Any]):
        super().__init__(model, preprocessing)
        self.state = model.start(1)
        self.previous: Tensor | None = None

    def __call__(self, observation: Any, to_come: float) -> Any:
        state, asked = self._seen(observation, to_come)
        action, self.state = self.model.step(asked[None], state[None], self.state, self.previous)
        self.previous = action
        return self._array(action[0])


@contextmanager
def make_environment(name: str, preprocessing: dict[str, Any]) -> Iterator[Any]:
    """The environment, closed afterwards. Raises DataError where it cannot be made or is not the data's."""
    try:
        import gymnasium
    except ImportError as error:
        raise DataError(
            f"{name!r} runs in gymnasium, which is not installed: pip install 'osmose[control]'"
        ) from error
    try:
        with _quiet():
            world = gymnasium.make(name, disable_env_checker=True)
    except gymnasium.error.DependencyNotInstalled as error:
        raise DataError(
            f"environment {name!r} needs a package that is not installed ({error}): pip install 'osmose[control]'"
        ) from error
    except gymnasium.error.Error as error:
        raise DataError(
            f"environment {name!r} cannot be made ({error}); expected one of gymnasium's"
        ) from error
    try:
        for what, space, key in (
            ("observations", world.observation_space, "state_dim"),
            ("actions", world.action_space, "action_dim"),
        ):
            if not isinstance(space, gymnasium.spaces.Box) or space.shape != (preprocessing[key],):
                raise DataError(
                    f"environment {name!r} has {what} {space}; the data have {preprocessing[key]} real channels"
                )
        yield world
    finally:
        world.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes that an environment is not of the newest version, which is what its data were recorded in.

    MuJoCo has one of them about the XML of HalfCheetah-v4 and writes it to a file in the working folder.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*The environment \S+ is out of date", category=DeprecationWarning
        )
        try:
            import mujoco
        except ImportError:
            yield
            return
        before = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(before)
