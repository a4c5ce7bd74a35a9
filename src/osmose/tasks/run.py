"""A run: train a model on every split, keep everything in a run folder, continue where it stopped."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator

from osmose.tasks import checkpoint, environment, figures, sources, state
from osmose.tasks.config import RESUMABLE, RunConfig
from osmose.tasks.devices import make_accelerator, on_main
from osmose.tasks.loop import Data, SplitTrainer, TrainingDivergedError, check_trainable
from osmose.tasks.measures import kind_of, report_of, summary
from osmose.tasks.progress import Reporter
from osmose.tasks.run_folder import RunFolder, RunFolderError
from osmose.tasks.signals import Interrupted, StopRequest
from osmose.tasks.trainers import make_trainer


def run(
    config: RunConfig,
    folder: RunFolder,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
    data: Data | None = None,
) -> dict[str, Any]:
    """Train as `config` says into `folder`; returns the result that result.json holds.

    Test nodes are looked at once per split, with the state that was best on validation. `data` saves loading them
    again where the caller has them. With `resume` an unfinished run goes on from its checkpoint, bit for bit, and a
    finished one gives its result.

    Raises ValueError for settings, data, folders and checkpoints that cannot be used (nothing on disk is changed
    then), TrainingDivergedError when a loss is not finite, OSError when the disk is full, Interrupted after a stop
    request (the state is saved).
    """
    config.train.validate()
    accelerator = make_accelerator(config.train, tracking=folder.trackers)
    on_main(accelerator, lambda: _check_folder(folder, config, resume=resume, overwrite=overwrite))
    if data is None:
        with accelerator.main_process_first():
            data = sources.load(config.data, config.train.splits)
    check_trainable(data, config, accelerator.num_processes)  # before an old run is replaced
    reporter = reporter or Reporter(quiet=True)
    job = _Run(config, folder, data, accelerator, reporter, stop or StopRequest())
    try:
        if resume and folder.exists:
            job.continue_from_disk()
        else:
            on_main(accelerator, lambda: job.create(overwrite))
        return job.train()
    finally:
        folder.close()
        if config.train.trackers or accelerator.num_processes > 1:
            accelerator.end_training()


def _check_folder(folder: RunFolder, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    if not folder.exists:
        return
    if resume:
        different = folder.config().differences(config, ignore=RESUMABLE)
        if different:
            raise RunFolderError(
                f"{folder.path} was started with other settings ({'; '.join(different)}). "
                "Resume with the same ones, or choose another folder with --out"
            )
        if folder.finished and folder.config().train.splits > config.train.splits:
            raise RunFolderError(
                f"{folder.path} is finished with more splits than --splits {config.train.splits}"
            )
    elif not overwrite:
        raise RunFolderError(
            f"{folder.path} exists. To continue that run add --resume, to replace it --overwrite, "
            "or choose another folder with --out"
        )


class _Run:
    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: Data,
        accelerator: Accelerator,
        reporter: Reporter,
        stop: StopRequest,
    ) -> None:
        self.config, self.folder, self.data = config, folder, data
        self.accelerator, self.reporter, self.stop = accelerator, reporter, stop
        self.done: list[dict[str, Any]] = []
        self.saved: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None
        self.report = report_of(data)
        self.fingerprint = sources.fingerprint(data)
        self.elapsed = 0.0  # seconds spent on the current split before the clock was started
        self.clock = self.last_save = time.monotonic()

    def create(self, overwrite: bool) -> None:
        """Lay out a new run folder."""
        about = environment.describe(str(self.accelerator.device), self.accelerator.num_processes)
        self.folder.create(self.config, about, overwrite=overwrite)

    def continue_from_disk(self) -> None:
        """Take up what an earlier start has left: finished splits, and the state inside one."""
        if self.folder.finished:
            self.done = self.folder.result()["splits"]
            return
        if not self.folder.checkpoint_file.exists():
            on_main(self.accelerator, lambda: self.folder.keep_metrics(-1, 0))
            return
        tensors, meta = checkpoint.load(self.folder.checkpoint_file)
        if meta["data"] != self.fingerprint:
            raise checkpoint.CheckpointError(
                f"{self.folder.path}: the data have changed since this run was started (checksum {self.fingerprint}, "
                f"was {meta['data']}); bring the old data back, or start a new run with --out"
            )
        self.done = meta["done"]
        if tensors:
            self.saved = tensors, meta["trainer"]
            place = meta["trainer"]["split"], meta["trainer"]["epoch"]
        else:
            place = len(self.done) - 1, self.config.train.epochs
        self.elapsed = meta["seconds"]
        on_main(self.accelerator, lambda: self.folder.keep_metrics(*place))

    def train(self) -> dict[str, Any]:
        """All splits that are left, then the result."""
        if self.accelerator.is_main_process and self.folder.config() != self.config:
            self.folder.write_config(self.config)
        if self.folder.finished and len(self.done) == self.config.train.splits:
            return self.folder.result()
        if self.config.train.trackers:
            self.accelerator.init_trackers("osmose", config=_flat(self.config))
        for index in range(len(self.done), self.config.train.splits):
            self.done.append(self._train_split(index))
            on_main(self.accelerator, self._save_done)
        return on_main(self.accelerator, self._finish)

    def _train_split(self, index: int) -> dict[str, Any]:
        trainer = make_trainer(self.data, self.config, index, self.accelerator)
        if self.saved is not None:
            state.restore(trainer, *self.saved, self.folder)
            self.saved = None
        self.clock = time.monotonic()
        title = f"{self.config.data.source} {self.config.model.name} split {index}"
        self.reporter.start(title, self.config.train.epochs, trainer.epoch)
        try:
            trainer.fit(self._on_evaluation, lambda: self._after_epoch(trainer))
        except TrainingDivergedError:
            on_main(self.accelerator, lambda: self._save_model(trainer))
            raise
        seconds = self._seconds()
        record = on_main(self.accelerator, lambda: self._score(trainer, seconds))
        self.elapsed = 0.0
        if self.accelerator.device.type != "cpu":
            self.accelerator.free_memory()
        found = [
            f"{name.split('_')[0].replace('valid', 'validation')} {one.text(record[name])} {one.unit}"
            for name, one in list(self.report.named().items())[:2]
        ]
        self.reporter.line(
            f"{title}: {', '.join(found)} (epoch {record['best_epoch']} of {record['epochs']}), {seconds:.1f} s"
        )
        return record

    def _seconds(self) -> float:
        return self.elapsed + time.monotonic() - self.clock

    def _on_evaluation(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.folder.log(record)
            self.reporter.epoch(record)
        if self.config.train.trackers:
            values = {key: value for key, value in record.items() if key not in ("split", "epoch", "best")}
            named = {f"split{record['split']}/{key}": value for key, value in values.items()}
            self.accelerator.log(named, step=record["epoch"])

    def _after_epoch(self, trainer: SplitTrainer) -> None:
        stop = self.stop.asked
        due = time.monotonic() - self.last_save >= self.config.train.checkpoint_seconds
        if self.accelerator.num_processes > 1:  # all of them must come to the same decision
            flags = torch.tensor([stop, due], dtype=torch.float32, device=self.accelerator.device)
            stop, due = (value > 0 for value in self.accelerator.reduce(flags, "sum").tolist())
        if not (stop or due):
            return
        self._save_state(trainer)
        if stop:
            raise Interrupted(
                f"stopped at epoch {trainer.epoch} of split {trainer.index}; saved in {self.folder.path}"
            )

    def _save_state(self, trainer: SplitTrainer) -> None:
        tensors, meta = state.capture(trainer)
        if self.accelerator.is_main_process:
            self.folder.flush()
            checkpoint.save(
                self.folder.checkpoint_file, tensors, self._meta(trainer=meta, seconds=self._seconds())
            )
        self.last_save = time.monotonic()

    def _save_done(self) -> None:
        self.folder.flush()
        checkpoint.save(self.folder.checkpoint_file, {}, self._meta(trainer=None, seconds=0.0))

    def _meta(self, **more: Any) -> dict[str, Any]:
        return {"kind": "training", "data": self.fingerprint, "done": self.done, **more}

    def _score(self, trainer: SplitTrainer, seconds: float) -> dict[str, Any]:
        trainer.use_best()
        record = {
            "split": trainer.index,
            "seed": trainer.seed,
            "epochs": trainer.epoch,
            "best_epoch": trainer.stopping.epoch,
            **trainer.final_metrics(),
            "seconds": seconds,
            "parameters": trainer.parameters,
        }
        self._save_model(trainer)
        return record

    def _save_model(self, trainer: SplitTrainer) -> None:
        """Keep the best state of this split as the run's model, unless an earlier split did better."""
        rank = trainer.stopping.rank
        best = rank(trainer.stopping.score, trainer.stopping.loss)
        earlier = [rank(record[trainer.chosen], record["valid_loss"]) for record in self.done]
        if trainer.stopping.epoch == 0 or any(other >= best for other in earlier):
            return
        meta = {
            "kind": "model",
            "run": self.config.to_dict(),
            "split": trainer.index,
            "epoch": trainer.stopping.epoch,
            "valid_loss": trainer.stopping.loss,
            "shape": asdict(trainer.shape),
            "classes": getattr(self.data, "classes", []),
            "preprocessing": trainer.preprocessing,
        }
        checkpoint.save(self.folder.model_file, trainer.best, meta)

    def _finish(self) -> dict[str, Any]:
        self.folder.flush()
        measures = self.report.named()
        result = {
            "source": self.config.data.source,
            "protocol": self.data.protocol,
            "model": self.config.model.name,
            "parameters": self.done[0]["parameters"],
            "kind": kind_of(self.data),
            **{name: summary([record[name] for record in self.done]) for name in measures},
            "seconds": sum(record["seconds"] for record in self.done),
            "splits": self.done,
            "notes": self.data.notes,
        }
        title = f"{self.data.name} ({self.data.protocol}), {self.config.model.name}"
        figures.learning_curves(
            self.folder.metrics(), self.report, self.folder.figures / "learning_curves.png", title
        )
        self.folder.write_json("result.json", result)
        self.folder.checkpoint_file.unlink(missing_ok=True)
        return result


def _flat(config: RunConfig) -> dict[str, Any]:
    return {
        f"{section}.{key}": value if isinstance(value, str | int | float | bool) else str(value)
        for section, values in config.to_dict().items()
        for key, value in values.items()
    }
