"""The two toy tasks of positions: what a layer can do with a position encoding, in the length it learned and beyond.

**A**: ``y_j = (x_{j-1} + x_{j+2}) mod 12``; **B**: ``y_j = x_{j-1}`` of 8 symbols; a neighbour beyond the border counts as
symbol 0. One pre-norm layer of 48 channels with a feed-forward part of 192 and GELU; Adam under a one-cycle schedule with
peak 4e-3, 48 fresh sequences a step. Without positions the best is to guess by how often the symbols of the sequence occur,
which in B is right for a fifth of the tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osmose.nn import POSITIONS, EncoderBlock
from osmose.nn.position import FixedShift, Learned, PositionSettings

EMBED, FEED_FORWARD, BATCH, PEAK = 48, 192, 48, 4e-3
EVALUATED = 512  # sequences an accuracy is taken over


@dataclass(frozen=True)
class ToyTask:
    """A rule on the neighbours of a token, and how it is learned.

    Attributes:
        offsets: which neighbours are summed, modulo the symbols.
        longer: length of the longer test, about three times (A) and twice (B) what was learned.
        radius: of the positions that have one.
    """

    name: str
    rule: str
    offsets: tuple[int, ...]
    symbols: int
    heads: int
    radius: int
    length: int
    longer: int
    steps: int

    def draw(self, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences ``(batch, length)`` int64 and their targets."""
        x = torch.randint(self.symbols, (batch, length), generator=generator)
        reach = max(map(abs, self.offsets))
        padded = F.pad(x, (reach, reach))
        read = torch.stack([padded[:, reach + d : reach + d + length] for d in self.offsets])
        return x, read.sum(0) % self.symbols


TASKS: dict[str, ToyTask] = {
    "A": ToyTask("A", "(x[j-1] + x[j+2]) mod 12", (-1, 2), 12, 4, 8, 32, 96, 1500),
    "B": ToyTask("B", "x[j-1]", (-1,), 8, 2, 6, 20, 40, 2500),
}

OPTIONS = ("none", *POSITIONS)


def settings_for(option: str, task: ToyTask) -> PositionSettings | None:
    """The position of an option, with the radius of the task where it has one."""
    if option == "none":
        return None
    settings = POSITIONS[option]
    if isinstance(settings, Learned):
        return Learned(task.longer)
    if isinstance(settings, FixedShift):  # half of the heads, the nearest places first
        return FixedShift(tuple((-1, 1, -2, 2)[: max(task.heads // 2, 1)]))
    return type(settings)(radius=task.radius) if hasattr(settings, "radius") else settings  # type: ignore[call-arg]


class ToyModel(nn.Module):
    """Embedding, one block, norm, classes of every token: ``(batch, length)`` int64 to ``(batch, length, symbols)``."""

    def __init__(self, task: ToyTask, mixer: str, position: PositionSettings | None):
        super().__init__()
        self.embed = nn.Embedding(task.symbols, EMBED)
        self.block = EncoderBlock(
            EMBED, task.heads, FEED_FORWARD, mixer=mixer, position=position, dropout=0.0, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(EMBED), nn.Linear(EMBED, task.symbols)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.block(self.embed(x))))
        return out


def train_cell(task: ToyTask, mixer: str, option: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """Train one model and measure it: accuracies, parameters, seconds of one thread."""
    begin = time.perf_counter()
    steps = task.steps if steps is None else steps
    torch.manual_seed(seed)
    model = ToyModel(task, mixer, settings_for(option, task))
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps)
    loss = torch.zeros(())
    for _ in range(steps):
        x, y = task.draw(BATCH, task.length, generator)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    held_out = torch.Generator().manual_seed(7)
    return {
        "task": task.name,
        "mixer": mixer,
        "option": option,
        "seed": seed,
        "steps": steps,
        "accuracy": accuracy(model, task, task.length, held_out),
        "longer": accuracy(model, task, task.longer, held_out),
        "loss": float(loss.detach()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - begin,
    }


@torch.no_grad()
def accuracy(model: nn.Module, task: ToyTask, length: int, generator: torch.Generator) -> float:
    """Share of tokens whose class is right, over fresh sequences."""
    x, y = task.draw(EVALUATED, length, generator)
    right = [
        (model(part).argmax(-1) == wanted).float().mean()
        for part, wanted in zip(x.split(64), y.split(64), strict=True)
    ]
    return float(torch.stack(right).mean())
