"""The training loop: what counts as best, when it stops, what a step is, and that nothing peeks at the test nodes."""

import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import Accelerator

from osmose.data import Split
from osmose.tasks.config import TrainConfig
from osmose.tasks.devices import make_accelerator
from osmose.tasks.evaluate import final_metrics
from osmose.tasks.loop import EarlyStopping
from osmose.tasks.measures import ACCURACY, summary
from osmose.tasks.signals import StopRequest
from osmose.tasks.trainers import NodeTrainer

from .engine_helpers import blobs, settings


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator(TrainConfig(device="cpu"))


def test_early_stopping_resets_on_improvement_and_breaks_ties_by_loss() -> None:
    stopping = EarlyStopping(patience=3)
    assert stopping.update(1, 0.5, 1.0)
    assert not stopping.update(2, 0.5, 1.0)
    assert stopping.update(3, 0.5, 0.9), "same accuracy, lower loss"
    assert not stopping.update(4, 0.4, 0.1), "a lower loss alone is no improvement"
    assert not stopping.exhausted(5)
    assert stopping.update(5, 0.6, 2.0)
    assert [stopping.exhausted(epoch) for epoch in (6, 7, 8)] == [False, False, True]
    assert not EarlyStopping(patience=0).exhausted(10**6)


def test_training_learns_and_returns_to_the_best_epoch(accelerator: Accelerator) -> None:
    config = settings("mlp", epochs=40, lr=0.05)
    config = replace(config, model=replace(config.model, dropout=0.0))  # the loss itself, not the noise in it
    trainer = NodeTrainer(blobs(n=120), config, 0, accelerator)
    records: list[dict] = []
    trainer.fit(records.append)
    assert len(records) == 40
    assert records[-1]["train_loss"] < 0.6 * records[0]["train_loss"]
    best = max(records, key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    assert trainer.stopping.epoch == best["epoch"]
    trainer.use_best()
    found = final_metrics(trainer.logits(), trainer.data.y, trainer.split)
    assert found["valid_accuracy"] == pytest.approx(best["valid_accuracy"])
    assert found["valid_loss"] == pytest.approx(best["valid_loss"], rel=1e-5)
    assert found["valid_accuracy"] > 0.6


def test_test_labels_do_not_touch_training(accelerator: Accelerator) -> None:
    """Other labels on the test nodes: the same weights, the same records."""
    outcomes = []
    for shift in (0, 1):
        data = blobs()
        data.y = data.y.clone()
        test = data.splits[0].test
        data.y[test] = (data.y[test] + shift) % 3
        trainer = NodeTrainer(data, settings(), 0, accelerator)
        records: list[dict] = []
        trainer.fit(records.append)
        outcomes.append((records, trainer.best))
    assert outcomes[0][0] == outcomes[1][0]
    for name, value in outcomes[0][1].items():
        assert torch.equal(value, outcomes[1][1][name])


def test_weight_decay_is_l2_in_the_gradient(accelerator: Accelerator) -> None:
    """One step equals Adam on loss + wd/2 |w|^2, which decoupled decay does not."""
    config = settings("mlp", epochs=1, lr=0.1, weight_decay=0.5)
    trainer = NodeTrainer(blobs(), config, 0, accelerator)
    before = {name: value.clone() for name, value in trainer.live.items()}
    state = torch.get_rng_state()
    trainer.fit()
    other = NodeTrainer(blobs(), config, 0, accelerator)
    other.model.load_state_dict(before)
    torch.set_rng_state(state)
    other.model.train()
    logits = other.model(other.data.x, other.graph)[other.split.train]
    loss = torch.nn.functional.cross_entropy(logits, other.data.y[other.split.train])
    loss = loss + 0.25 * sum(p.square().sum() for p in other.model.parameters())
    plain = torch.optim.Adam(other.model.parameters(), lr=0.1)
    loss.backward()
    plain.step()
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(trainer.live[name], value, rtol=1e-4, atol=1e-5)


def test_batches_without_labels_make_no_step(accelerator: Accelerator) -> None:
    data = blobs(splits=1)
    split = data.splits[0]
    one = torch.stack([split.train[split.train % 3 == k][0] for k in range(3)])
    data.splits = [Split(one, split.valid, split.test)]
    trainer = NodeTrainer(data, settings(batch_size=4, epochs=5), 0, accelerator)
    trainer.fit()
    steps = {int(state["step"]) for state in trainer.optimizer.state_dict()["state"].values()}
    (count,) = steps
    assert 5 <= count <= 15, "60 nodes in batches of 4 are 75 batches; at most 3 an epoch carry a label"
    assert all(bool(torch.isfinite(value).all()) for value in trainer.live.values())


def test_mini_batches_learn(accelerator: Accelerator) -> None:
    trainer = NodeTrainer(blobs(n=120), settings("gcn", batch_size=50, epochs=30, lr=0.05), 0, accelerator)
    trainer.fit()
    assert trainer.stopping.score > 0.6


def test_evaluation_every_few_epochs_includes_the_last(accelerator: Accelerator) -> None:
    trainer = NodeTrainer(blobs(), settings(epochs=7, eval_every=3), 0, accelerator)
    records: list[dict] = []
    trainer.fit(records.append)
    assert [row["epoch"] for row in records] == [3, 6, 7]


def test_patience_ends_training(accelerator: Accelerator) -> None:
    trainer = NodeTrainer(blobs(), settings("mlp", epochs=500, patience=5, lr=0.05), 0, accelerator)
    trainer.fit()
    assert trainer.epoch == trainer.stopping.epoch + 5 < 500


def test_gcn_without_edges_is_refused(accelerator: Accelerator) -> None:
    data = blobs()
    data.edge_index = None
    with pytest.raises(ValueError, match="no edges, and gcn needs them"):
        NodeTrainer(data, settings("gcn"), 0, accelerator)


def test_full_batch_over_several_processes_is_refused() -> None:
    several = cast(Accelerator, SimpleNamespace(num_processes=4))
    with pytest.raises(ValueError, match="cannot be shared by 4 processes: give --batch-size"):
        NodeTrainer(blobs(), settings(), 0, several)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_acts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_summary_and_its_text() -> None:
    assert summary([0.5])["sd"] is None
    entry = summary([0.80, 0.82, 0.84])
    assert entry["sd"] == pytest.approx(0.02)
    assert ACCURACY.of(entry) == "82.0 ± 2.0"
    assert ACCURACY.of(summary([0.5])) == "50.0"


def test_final_metrics_of_a_known_table() -> None:
    y = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
    whole = torch.arange(4)
    found = final_metrics(logits, y, Split(whole[:2], whole[2:], whole))
    assert (found["train_accuracy"], found["valid_accuracy"], found["test_accuracy"]) == (1.0, 0.5, 0.75)
    assert found["test_macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert found["test_loss"] == pytest.approx((3 * right + wrong) / 4)
