"""Inner products through the layers of a model whose layers share their weights, as those of ALBERT do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fields import Field, perceptron
from ..observables import Observable, Recorder, effective_rank, mean_product, product_histogram
from ..pictures import COLOURS, figure
from ..starts import seeded, uniform
from ..steppers import Layer
from ..terms import Attention
from .base import Findings, Problem, System, Target, Told, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 100


@dataclass(frozen=True, eq=False)
class Weights:
    """Of a block: Q, K and values ``(H, r, d)``, their way out ``(H, d, r)``, the MLP ``(4 d, d)`` and ``(d, 4 d)``."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class SharedLayers(System):
    """Random heads and an MLP, the same in all layers: ``x <- normalise(x + h (attention + MLP))``."""

    n: int = 300
    d: int = 64
    heads: int = 4
    layers: int = 48
    beta: float = 8.0
    h: float = 0.2
    shown: tuple[int, ...] = (0, 5, 30, 48)
    seed: int = 0

    title = "inner products of all pairs through the layers of a model with shared weights"
    source = (
        "2312.10794v5, figure of ALBERT xlarge v2 (layers 0, 5, 30, 48, all pairs with the diagonal, more than 300 tokens). Its trained "
        "weights are not part of this: the block here is random; `osmose particles FOLDER --text FILE` reads a trained ALBERT"
    )
    time_scale = "layers"

    def quick(self) -> Self:
        return replace(self, n=128)

    @property
    def weights(self) -> Weights:
        """Gaussian, of the size at which products keep theirs; h is in what they give."""
        g, r = seeded(self.seed + 1), self.d // self.heads

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=g)

        query, key, value = (normal(self.heads, r, self.d) for _ in range(3))
        out, up, down = normal(self.heads, self.d, r), normal(4 * self.d, self.d), normal(self.d, 4 * self.d)
        return Weights(query, key, value, self.h * out / self.d, up, self.h * down / (2 * self.d))

    def problem(self) -> Problem:
        w, scale = self.weights, self.beta / math.sqrt(self.d // self.heads)
        values = w.out @ w.value
        terms = [
            Attention(scale, query=q, key=k, value=v) for q, k, v in zip(w.query, w.key, values, strict=True)
        ]
        times = torch.arange(self.layers + 1, dtype=torch.float64)
        start = uniform(self.n, self.d, generator=seeded(self.seed))
        return Problem(Field(*terms, drift=perceptron(w.down, w.up)), start, times, stepper=Layer(1.0))

    def measure(self, told: Told = silent) -> Findings:
        watched = Recorder(
            [
                Observable("histogram", lambda x, mass: product_histogram(x, BINS, diagonal=True).share),
                Observable("mean", mean_product),
                Observable("rank", effective_rank),
            ]
        )
        told("simulating")
        solution = self.problem().simulate(observe=watched)
        found = solution.results
        other = self._by_torch(solution.states[0])
        measured = {
            "states against nn.MultiheadAttention": float((solution.states - other).abs().max()),
            "mean inner product of the first state": float(found["mean"][0]),
            "mean inner product of the last state": float(found["mean"][-1]),
            "effective rank of the last state": float(found["rank"][-1]),
        }
        data = {name: found[name] for name in ("histogram", "mean", "rank")}
        return Findings(measured, data, solution)

    @torch.no_grad()
    def _by_torch(self, x: Tensor) -> Tensor:
        """All states by torch's own attention, with the same weights."""
        w = self.weights
        attention = nn.MultiheadAttention(self.d, self.heads, bias=False).double()
        rows = [part.reshape(self.d, self.d) for part in (self.beta * w.query, w.key, w.value)]
        attention.in_proj_weight.copy_(torch.cat(rows))
        attention.out_proj.weight.copy_(w.out.transpose(0, 1).reshape(self.d, self.d))
        states = [x]
        for _ in range(self.layers):
            x = F.normalize(
                x + attention(x, x, x, need_weights=False)[0] + F.relu(x @ w.up.T) @ w.down.T, dim=-1
            )
            states.append(x)
        return torch.stack(states)

    def targets(self) -> tuple[Target, ...]:
        first = 4 / math.sqrt(self.n * (self.n - 1) / 2 * self.d)
        return (
            Target(
                "states against nn.MultiheadAttention", 0.0, 1e-10, "torch's attention with these weights"
            ),
            Target(
                "mean inner product of the first state",
                0.0,
                first,
                "independent uniform tokens: 4 deviations",
            ),
        )

    def draw(self, findings: Findings) -> Figure:
        made, axes = figure(9.6, 2.9, 1, len(self.shown) + 1)
        edges = np.linspace(-1, 1, BINS + 1)
        for ax, layer in zip(axes, self.shown, strict=False):
            ax.stairs(np.asarray(findings.data["histogram"][layer]), edges, fill=True, color=COLOURS[5])
            ax.set(
                xlabel="inner product",
                title=f"layer {layer}",
                yscale="log",
                ylim=(1e-5, 1.2),
                xlim=(-1.02, 1.02),
            )
        axes[0].set_ylabel("share of pairs")
        axes[-1].plot(findings.data["mean"], color=COLOURS[0])
        axes[-1].set(xlabel="layer", title="mean inner product", xlim=(0, self.layers))
        return made


SYSTEMS: dict[str, System] = {"layers/shared-weights": SharedLayers()}
