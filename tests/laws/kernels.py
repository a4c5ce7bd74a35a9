"""Kernels as functions of points, so that a test can delete, repeat, batch and permute tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osmose.operators import (
    Dense,
    Graph,
    LinearMap,
    LowRank,
    Operator,
    Pairwise,
    Scaled,
    ScoreKernel,
    Toeplitz,
)
from osmose.tokens import Tokens

SOFT_STEP = ScoreKernel.from_function(lambda s: F.softplus(s) + 0.1, name="softplus")


# coefficients of offsets source - target: all that six tokens have, some far apart, and a band
TAPS = {
    "toeplitz": (
        (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5),
        (0.2, 0.1, 0.4, 0.7, 1.0, 0.8, 0.5, 0.6, 0.1, 0.3, 0.2),
    ),
    "shifts": ((3, -700, 0, -2, 600), (0.5, 2.0, 1.0, 0.3, 1.0)),
    "fft": ((-1, 0, 1, 2), (0.5, 1.0, 0.7, 0.4)),
    "local": ((-2, -1, 0, 1), (0.5, 1.0, 0.7, 0.4)),
}


def _place(tokens: Tokens | None, n: int) -> Tensor:
    """The place of every token in its set, counted one by one."""
    if tokens is None or tokens.batch is None:
        return torch.arange(n)
    batch = tokens.batch.tolist()
    return torch.tensor([batch[:i].count(b) for i, b in enumerate(batch)], dtype=torch.int64)


def by_offset(name: str, x: Tensor, y: Tensor, targets: Tokens | None, sources: Tokens | None) -> Tensor:
    """``sum_d c_d [j - i = d]`` for places i and j, pair by pair."""
    n, m = x.shape[-2], y.shape[-2]
    d = _place(sources, m)[None, :] - _place(targets, n)[:, None]
    out = torch.zeros(n, m, dtype=x.dtype)
    for offset, c in zip(*TAPS[name], strict=True):
        out = torch.where(d == offset, c, out)
    return out + 0 * (
        x.sum() + y.sum()
    )  # the suite asks for gradients of the points; coefficients have their own test


def _together(x: Tensor, y: Tensor, targets: Tokens | None, sources: Tokens | None) -> Tensor:
    if targets is None or sources is None or targets.batch is None or sources.batch is None:
        return torch.ones(x.shape[-2], y.shape[-2], dtype=torch.bool)
    return targets.batch[:, None] == sources.batch[None, :]


def weights(
    name: str, x: Tensor, y: Tensor, targets: Tokens | None = None, sources: Tokens | None = None
) -> Tensor:
    """The dense kernel, straight from its formula."""
    scores = x @ y.mT
    out = {
        "dense": lambda: (-torch.cdist(x, y).square()).exp() + 0.1,
        "graph": lambda: torch.where((x[..., :1] > 0) == (y[..., :1] > 0).mT, 1.0 + scores.square(), 0.0),
        "low_rank": lambda: F.softplus(x) @ F.softplus(y).mT,
        "exp": scores.exp,
        "sigmoid": scores.sigmoid,
        "gaussian": lambda: (-0.7 * torch.cdist(x, y).square() / 2).exp(),
        "custom": lambda: F.softplus(scores) + 0.1,
        "sum": lambda: F.softplus(x) @ F.softplus(y).mT + scores.sigmoid(),
        "khatri_rao": lambda: (F.softplus(x) @ F.softplus(y).mT) * (x.exp() @ y.exp().mT),
        "low_rank_on_graph": lambda: torch.where(
            (x[..., :1] > 0) == (y[..., :1] > 0).mT, F.softplus(x) @ F.softplus(y).mT, 0.0
        ),
        "streamed_product": lambda: scores.exp() * scores.sigmoid(),
        "toeplitz": lambda: by_offset(name, x, y, targets, sources),
        "shifts": lambda: by_offset(name, x, y, targets, sources),
        "fft": lambda: by_offset(name, x, y, targets, sources),
        "local": lambda: (F.softplus(x) @ F.softplus(y).mT + 0.1) * by_offset(name, x, y, targets, sources),
        "linear_map": lambda: F.softplus(scores) + 0.2,
        "scaled": lambda: (
            0.5 * x.square().sum(-1).unsqueeze(-1) * scores.sigmoid() * y.square().sum(-1).unsqueeze(-2)
        ),
    }[name]()
    return torch.where(_together(x, y, targets, sources), out, 0.0)


def operator(
    name: str, x: Tensor, y: Tensor, targets: Tokens | None = None, sources: Tokens | None = None
) -> Operator:
    """The same kernel as a lazy operator."""
    sets = {"targets": targets, "sources": sources}

    def low_rank() -> LowRank:
        return LowRank(F.softplus(x), F.softplus(y), **sets)

    def support(weight) -> Graph:
        keep = ((x[:, :1] > 0) == (y[:, :1] > 0).mT) & _together(x, y, targets, sources)
        target, source = keep.nonzero(as_tuple=True)
        return Graph(torch.stack([source, target]), weight(target, source), x.shape[-2], y.shape[-2])

    def toeplitz(method: str = "auto") -> Toeplitz:
        offsets, c = TAPS[name]
        coefficients = torch.tensor(c, dtype=x.dtype) + 0 * (x.sum() + y.sum())
        return Toeplitz(coefficients, offsets, x.shape[-2], y.shape[-2], method=method, **sets)

    def linear_map() -> LinearMap:
        matrix = weights(name, x, y, targets, sources)
        lead = tuple(matrix.shape[:-2])
        return LinearMap(lambda v: matrix @ v, *matrix.shape[-2:], lead=lead, dtype=matrix.dtype)

    makers = {
        "dense": lambda: Dense(weights(name, x, y, targets, sources)),
        "graph": lambda: support(lambda t, s: 1.0 + (x[t] * y[s]).sum(-1).square()),
        "low_rank": low_rank,
        "exp": lambda: Pairwise(x, y, "exp", **sets),
        "sigmoid": lambda: Pairwise(x, y, "sigmoid", **sets),
        "gaussian": lambda: Pairwise.gaussian(x, y, 0.7, **sets),
        "custom": lambda: Pairwise(x, y, SOFT_STEP, **sets),
        "sum": lambda: low_rank() + Pairwise(x, y, "sigmoid", **sets),
        "khatri_rao": lambda: low_rank() * LowRank(x.exp(), y.exp(), **sets),
        "low_rank_on_graph": lambda: low_rank() * support(lambda t, s: torch.ones(len(t), dtype=x.dtype)),
        "linear_map": linear_map,
        "streamed_product": lambda: Pairwise(x, y, "exp", **sets) * Pairwise(x, y, "sigmoid", **sets),
        "toeplitz": toeplitz,
        "shifts": toeplitz,
        "fft": lambda: toeplitz("fft"),
        "local": lambda: (
            (low_rank() + LowRank(x[..., :1] * 0 + 0.1, y[..., :1] * 0 + 1, **sets)) * toeplitz()
        ),
        "scaled": lambda: (
            0.5 * Scaled(Pairwise(x, y, "sigmoid", **sets), x.square().sum(-1), y.square().sum(-1))
        ),
    }
    return makers[name]()


ALL = [
    "dense",
    "graph",
    "low_rank",
    "exp",
    "sigmoid",
    "gaussian",
    "custom",
    "sum",
    "khatri_rao",
    "low_rank_on_graph",
    "linear_map",
    "streamed_product",
    "scaled",
    "toeplitz",
    "shifts",
    "fft",
    "local",
]
PLACED = list(TAPS)  # they know the place of a token: it can be neither left out, doubled nor moved
UNPLACED = [name for name in ALL if name not in PLACED]
BATCHED = [name for name in ALL if "graph" not in name]  # a graph has one set of points
