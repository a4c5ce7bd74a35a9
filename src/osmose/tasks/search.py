"""Search over settings with Optuna: the same space and the same number of trials for every model.

Settings are chosen by what validation chooses epochs by (`osmose.tasks.measures`; ties: lower loss) on the first split or splits; no test node is looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from osmose.tasks.config import RunConfig
from osmose.tasks.devices import make_accelerator
from osmose.tasks.loop import Data, TrainingDivergedError
from osmose.tasks.measures import report_of
from osmose.tasks.progress import Reporter
from osmose.tasks.signals import Interrupted, StopRequest
from osmose.tasks.trainers import make_trainer

SPACE: dict[str, tuple[Any, ...]] = {
    "lr": (5e-4, 1e-3, 5e-3, 1e-2),
    "weight_decay": (0.0, 1e-4, 5e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "dropout": (0.0, 0.2, 0.5),
    "hidden": (16, 32, 64, 128),
    "layers": (1, 2, 4, 8, 16),
}
"""The paper's grid, the learning rates of its released scripts, and what the baselines' recipes need. A recipe with
values of its own adds them (`search_space`)."""

_TRAIN = ("lr", "weight_decay")
_SHORT = {"lr": "lr", "wd": "weight_decay", "drop": "dropout"}


def with_settings(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """`config` with settings of the search space put in their places."""
    train = {name: value for name, value in settings.items() if name in _TRAIN}
    model = {name: value for name, value in settings.items() if name not in _TRAIN}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **model),
        train=dataclasses.replace(config.train, **train),
    )


def search(
    config: RunConfig,
    data: Data,
    database: Path,
    *,
    trials: int,
    splits: int,
    seed: int,
    reporter: Reporter,
    stop: StopRequest,
) -> dict[str, Any]:
    """The best settings of `trials` different ones: {"settings", "valid_loss", "valid_...", "trials"}, the
    third being what validation chooses by.

    The first are those of `config`, the others are Optuna's choice from `search_space(config)`. Every finished trial is in the SQLite `database`; a search that was interrupted goes on where it stopped and gives
    the same result as one that was not. A trial whose loss is not finite counts, as the worst.
    Raises Interrupted after a stop request.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database.parent.mkdir(parents=True, exist_ok=True)
    space, chosen = search_space(config), report_of(data).valid
    storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
    try:
        study = optuna.create_study(
            storage=storage, study_name="search", direction="maximize", load_if_exists=True
        )
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(left.number, state=TrialState.FAIL)
        begun = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.WAITING))
        if not begun:
            study.enqueue_trial(_point(config))
        while len(done := _complete(study)) < min(trials, _size(space)):
            study.sampler = optuna.samplers.TPESampler(seed=seed * 100_003 + len(done))
            trial = _ask_new(study, space, done, seed)
            title = f"{config.data.source} {config.model.name} trial {len(done) + 1} of {trials}"
            try:
                value, loss = _validation(
                    with_settings(config, trial.params), data, splits, reporter, stop, title
                )
            except Interrupted:
                study.tell(trial, state=TrialState.FAIL)
                raise
            trial.set_user_attr("valid_loss", loss)
            study.tell(trial, value)
            shown = f"{chosen.text(abs(value))} {chosen.unit}"
            reporter.line(f"{title}: validation {shown} with {describe(trial.params)}")
        best = max(_complete(study), key=lambda entry: (entry.value, -entry.user_attrs["valid_loss"]))
        assert best.value is not None
        return {
            "settings": {name: best.params[name] for name in SPACE},
            "valid_loss": best.user_attrs["valid_loss"],
            f"valid_{chosen.key}": abs(best.value),
            "trials": len(done),
        }
    finally:
        storage.remove_session()
        storage.engine.dispose()


def search_space(config: RunConfig) -> dict[str, tuple[Any, ...]]:
    """SPACE with the values of `config` added where it has others, so that every recipe can be the first trial."""
    point = _point(config)
    return {
        name: values if point[name] in values else (*values, point[name]) for name, values in SPACE.items()
    }


def _point(config: RunConfig) -> dict[str, Any]:
    return {name: getattr(config.train if name in _TRAIN else config.model, name) for name in SPACE}


def describe(settings: dict[str, Any]) -> str:
    """`lr 0.001, wd 0.01, drop 0.2, 8 x 64`: the last is layers x hidden width."""
    chosen = [f"{short} {settings[name]:g}" for short, name in _SHORT.items()]
    return ", ".join([*chosen, f"{settings['layers']} x {settings['hidden']}"])


def _validation(
    config: RunConfig, data: Data, splits: int, reporter: Reporter, stop: StopRequest, title: str
) -> tuple[float, float]:
    """Means over the first `splits` splits of what validation chooses by (higher is better) and of the loss."""

    chosen = report_of(data).valid
    by_score = chosen.higher

    def check() -> None:
        if stop.asked:
            raise Interrupted("stopped during the search; finished trials are kept")

    accelerator = make_accelerator(config.train)
    values, losses = [], []
    try:
        for index in range(splits):
            trainer = make_trainer(data, config, index, accelerator)
            reporter.start(title, config.train.epochs)
            trainer.fit(reporter.epoch, check)
            losses.append(min(trainer.stopping.loss, 1e9))
            values.append(trainer.stopping.score if by_score else -losses[-1])
    except TrainingDivergedError:
        return -1e9, 1e9
    return statistics.fmean(values), statistics.fmean(losses)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _size(space: dict[str, tuple[Any, ...]]) -> int:
    return math.prod(len(values) for values in space.values())


def _ask_new(
    study: optuna.Study, space: dict[str, tuple[Any, ...]], done: list[FrozenTrial], seed: int
) -> Trial:
    """A trial with settings that were not tried before: the sampler's proposal, else a random one."""
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(values) for name, values in space.items()
    }
    tried = {tuple(entry.params[name] for name in space) for entry in done}
    trial = study.ask(fixed_distributions=distributions)
    if tuple(trial.params[name] for name in space) not in tried:
        return trial
    study.tell(trial, state=TrialState.FAIL)
    left = [entry for entry in itertools.product(*space.values()) if entry not in tried]
    chosen = random.Random(seed * 100_003 + len(done)).choice(left)
    study.enqueue_trial(dict(zip(space, chosen, strict=True)))
    return study.ask(fixed_distributions=distributions)
