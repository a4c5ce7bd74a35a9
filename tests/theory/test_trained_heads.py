"""Heads that were trained to copy the previous token, with learned absolute positions only: they are shifts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osmose.inspection import replacement_test, replacing, study
from osmose.nn import EncoderBlock

N, SYMBOLS, WIDTH, STEPS = 12, 8, 32, 400
NAME = "block.self_attn"


class Copier(nn.Module):
    """One block of softmax attention that sees both ways; what it says at j is meant to be the symbol at j - 1."""

    def __init__(self):
        super().__init__()
        self.symbol, self.place = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(N, WIDTH)
        self.block = EncoderBlock(WIDTH, 2, mixer="softmax", dropout=0.0, norm_first=True)
        self.out = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x):
        return self.out(self.block(self.symbol(x) + self.place(torch.arange(x.shape[1]))))


def error(model, x):
    return F.cross_entropy(model(x)[:, 1:].flatten(0, 1), x[:, :-1].flatten())


def draw(rows, seed):
    return torch.randint(SYMBOLS, (rows, N), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = Copier()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        error(model, draw(48, step)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def test_its_heads_are_shifts_and_hard_shifts_take_their_place(trained):
    found = study(trained, [(draw(64, STEPS),)])
    shares, about = found[NAME].shares(), found[NAME].heads()
    assert shares.dominant == ["fixed shift"] * 2
    assert about.top_offset == [-1, -1]
    assert about.top_mass.min() > 0.6
    assert found[NAME].permutation_p(99).max() <= 0.01
    test = draw(128, STEPS + 1)

    def score(model):
        return float(error(model, test))

    whole, results = replacement_test(trained, found, score, groups=[[(NAME, 0), (NAME, 1)]])
    assert whole < 0.01
    assert all(one.change < 0.01 for one in results), (
        "all heads at once, by mean, Toeplitz projection and hard shift"
    )
    with torch.no_grad(), replacing(trained, {NAME: dict.fromkeys(range(2), torch.eye(N))}):
        assert score(trained) > 1, "another shift is another task"


def test_untrained_heads_are_no_shifts():
    torch.manual_seed(0)
    shares = study(Copier(), [(draw(64, 0),)])[NAME].shares()
    assert shares["fixed shift"].max() < 0.05
