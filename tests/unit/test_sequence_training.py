"""Sequences in the engine: padding counts nowhere, runs resume bit for bit, validation and test stay apart."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osmose.data import Split
from osmose.data.sequence import SequenceData
from osmose.models import SequenceClassifier
from osmose.models.config import SEQUENCE_MODELS, ModelConfig
from osmose.tasks.config import DataConfig, RunConfig, TrainConfig
from osmose.tasks.devices import make_accelerator
from osmose.tasks.progress import Reporter
from osmose.tasks.run import run
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import open_model
from osmose.tasks.signals import Interrupted, StopRequest
from osmose.tasks.trainers import BatchTrainer, batch_logits, make_trainer


def waves(n: int = 60, symbols: bool = False) -> SequenceData:
    """Slow and fast waves of different lengths; as symbols, their signs."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    lengths = torch.randint(8, 30, (n,), generator=draw)
    parts = [
        torch.sin(torch.arange(k) * (0.5 + c) + torch.rand(1, generator=draw) * 6)
        for k, c in zip(lengths, y, strict=True)
    ]
    values = torch.cat(parts)
    order = torch.randperm(n, generator=draw)
    return SequenceData(
        name="waves",
        protocol="holdout",
        values=(values > 0).long() if symbols else torch.stack([values, values**2], 1),
        ptr=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        y=y,
        vocab=2 if symbols else None,
        splits=[Split(*order.split(n // 3))],
        classes=["slow", "fast"],
        preprocessing={"kind": "sequences"},
    )


def settings(name: str = "flowformer", **train) -> RunConfig:
    model = ModelConfig(name=name, hidden=16, layers=1, heads=2, dropout=0.1, patch=2)
    train = {
        "lr": 3e-3,
        "weight_decay": 0.0,
        "epochs": 6,
        "patience": 0,
        "batch_size": 8,
        "device": "cpu",
    } | train
    return RunConfig(DataConfig("waves"), model, TrainConfig(**train))


def trainer_of(data: SequenceData, config: RunConfig) -> BatchTrainer:
    made = make_trainer(data, config, 0, make_accelerator(config.train))
    assert isinstance(made, BatchTrainer)
    return made


@pytest.mark.parametrize("mixer", SEQUENCE_MODELS.values())
@pytest.mark.parametrize("patch", [1, 3])
def test_a_batch_gives_what_each_sequence_gives_alone(mixer, patch):
    torch.manual_seed(0)
    data = waves()
    model = SequenceClassifier(2, 16, 2, num_heads=2, patch=patch, mixer=mixer).double().eval()
    values, lengths = data.batch(torch.arange(12))
    values = values.double()
    poisoned = values.masked_fill((torch.arange(values.shape[1]) >= lengths[:, None])[..., None], 1e9)
    together = model(poisoned, lengths)
    for i in range(12):
        alone = model(values[i : i + 1, : lengths[i]])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-10, rtol=1e-10)


def test_what_the_model_refuses():
    model = SequenceClassifier(2, 16, 2, num_heads=2, patch=4)
    with pytest.raises(ValueError, match="3 steps is shorter than the patch of 4"):
        model(torch.zeros(2, 8, 2), torch.tensor([8, 3]))
    with pytest.raises(ValueError, match=r"expected \(batch, steps, 2\)"):
        model(torch.zeros(2, 8, 3))
    with pytest.raises(ValueError, match="patch is 0"):
        SequenceClassifier(2, 16, 2, patch=0)


@pytest.mark.parametrize("symbols", [False, True])
@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_it_learns(name, symbols):
    trainer = trainer_of(waves(150, symbols), settings(name, epochs=40, lr=5e-3, optimizer="radam", clip=4.0))
    records = []
    trainer.fit(records.append)
    assert records[-1]["train_loss"] < 0.6 * records[0]["train_loss"]
    assert max(r["valid_accuracy"] for r in records) > 0.7


def test_logits_do_not_depend_on_the_batches():
    data, config = waves(), settings()
    trainer = trainer_of(data, config)
    index = torch.tensor([5, 3, 41, 17, 8])
    device = torch.device("cpu")
    ours = batch_logits(trainer.model, data, index, device, batch_size=2)
    torch.testing.assert_close(ours, trainer.logits()[index], atol=1e-5, rtol=1e-5)


class StopAtEpoch(Reporter):
    def __init__(self, stop: StopRequest, epoch: int) -> None:
        super().__init__(quiet=True)
        self.stop, self.at = stop, epoch

    def epoch(self, record) -> None:
        self.stop.asked = record["epoch"] == self.at


@pytest.mark.parametrize("optimizer", ["adam", "radam", "adamw"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    data, config = waves(), settings(optimizer=optimizer)
    whole = run(config, RunFolder(tmp_path / "whole"), data=data)
    stop = StopRequest()
    with pytest.raises(Interrupted):
        run(config, RunFolder(tmp_path / "parts"), data=data, stop=stop, reporter=StopAtEpoch(stop, 3))
    parts = run(config, RunFolder(tmp_path / "parts"), data=data, resume=True)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert whole["test_accuracy"] == parts["test_accuracy"]
    first = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[0])
    assert 0 <= first["train_accuracy"] <= 1


def test_the_saved_model_gives_the_recorded_test_accuracy(tmp_path: Path) -> None:
    data = waves(symbols=True)
    result = run(settings(), RunFolder(tmp_path / "run"), data=data)
    test = data.splits[0].test
    right = open_model(RunFolder(tmp_path / "run")).logits(data)[test].argmax(1) == data.y[test]
    assert right.double().mean().item() == pytest.approx(result["test_accuracy"]["mean"])


def test_test_labels_decide_nothing() -> None:
    data, config = waves(), settings()
    other = replace(data, y=data.y.clone().index_fill_(0, data.splits[0].test, 0))
    records: list[list[dict]] = [[], []]
    for kept, changed in zip(records, (data, other), strict=True):
        trainer_of(changed, config).fit(kept.append)
    assert records[0] == records[1]


def test_a_patch_longer_than_a_sequence_costs_nothing(tmp_path: Path) -> None:
    data, config = waves(), settings()
    config = replace(config, model=replace(config.model, patch=10))
    with pytest.raises(ValueError, match="--patch is 10, and the shortest sequence of waves has 9 steps"):
        run(config, RunFolder(tmp_path / "run"), data=data)
    assert not (tmp_path / "run").exists()


def test_models_of_the_other_kind_of_data_are_refused() -> None:
    from .engine_helpers import blobs

    with pytest.raises(ValueError, match="waves holds sequences, and gcn is a model of nodes or rows"):
        trainer_of(waves(), settings("gcn"))
    config = settings("transformer")
    with pytest.raises(ValueError, match="transformer is a model of sequences"):
        make_trainer(blobs(), config, 0, make_accelerator(config.train))
