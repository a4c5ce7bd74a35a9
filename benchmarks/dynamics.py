"""Benchmarks of tokens as particles: a velocity streamed and dense, inner products and particles, a phase diagram."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from osmose.dynamics import Attention, Field, Gram, Layer, Sphere, Stepper, gram_matrix, sweep
from osmose.dynamics.observables import Observable, close_share

from .registry import Case, Contender, Inputs, register

BETA, D = 4.0, 3
LAWS = {"SA": "row", "USA": "mean"}


def sphere(*shape: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Unit vectors, the only input."""
    x = torch.randn(*shape, dtype=dtype)
    return (x / x.norm(dim=-1, keepdim=True),)


def of_tokens(fn: Callable[[Tensor], Tensor], **memory: float) -> Contender:
    """A contender that computes a function of the tokens."""

    def run(inputs: Inputs, mode: str) -> object:
        with torch.no_grad():
            return fn(inputs[0])

    return Contender(run, memory)


def dense_velocity(x: Tensor, law: str) -> Tensor:
    """The formula with its matrix."""
    scores = BETA * x @ x.mT
    p = scores.softmax(-1) if law == "row" else scores.exp() / x.shape[-2]
    return Sphere().tangent(x, p @ x)


@register("particles", "One velocity of SA and USA, beta = 4, d = 3, float32")
def particles(quick: bool) -> Iterator[Case]:
    for model, law in LAWS.items():
        field = Field(Attention(BETA, law=law))
        for n in (64, 1_000) if quick else (64, 256, 1_000, 2_000, 4_000, 8_000, 100_000):
            yield Case(
                {"model": model, "n": n},
                partial(sphere, n, D),
                {
                    "osmose": of_tokens(lambda x, field=field: Sphere().velocity(field, x, None, 0.0)),
                    "dense": of_tokens(partial(dense_velocity, law=law), forward=n / D),
                },
                modes=("forward",),
            )


@register("gram", "A layer of 64 systems of 32 tokens, beta = 4: inner products against particles, float32")
def gram(quick: bool) -> Iterator[Case]:
    field = Field(Attention(BETA))
    for d in (64, 1_024) if quick else (32, 64, 128, 512, 1_024, 4_096):
        products: dict[int, Tensor] = {}

        def step(x: Tensor, products: dict[int, Tensor] = products) -> Tensor:
            if x.data_ptr() not in products:  # a run starts from inner products and keeps them
                products[x.data_ptr()] = gram_matrix(x)
            return Gram().layer(field, products[x.data_ptr()], None, 0.0, 0.1)

        yield Case(
            {"d": d},
            partial(sphere, 64, 32, d),
            {
                "osmose, inner products": of_tokens(step),
                "osmose, particles": of_tokens(lambda x: Sphere().layer(field, x, None, 0.0, 0.1)),
            },
            modes=("forward",),
        )


def plain_phase(x_SND: Tensor, betas: list[float], h: float, steps: int) -> Tensor:
    """The share of close pairs after each layer ``normalise(x + h A)``, one beta after the other, all draws at once."""
    draws, n, _ = x_SND.shape
    off = ~torch.eye(n, dtype=torch.bool)
    out = torch.empty(len(betas), draws, steps + 1, dtype=x_SND.dtype)
    for i, beta in enumerate(betas):
        x = x_SND
        for k in range(steps + 1):
            g = torch.einsum("snd,smd->snm", x, x)
            out[i, :, k] = (g >= 0.999)[:, off].to(x.dtype).mean(-1)
            x = x + h * torch.einsum("snm,smd->snd", torch.softmax(beta * g, -1), x)
            x = x / x.norm(dim=-1, keepdim=True)
    return out


@register(
    "phase", "The phase diagram of SA, n = 32, d = 128, every beta to 9 and t to 30 (quick: 3), float64"
)
def phase(quick: bool) -> Iterator[Case]:
    n, d, h = 32, 128, 0.1
    betas, draws, steps = ([1.5, 3.0, 6.0], 12, 30) if quick else ([k / 10 for k in range(1, 91)], 24, 300)

    def swept(x: Tensor, stepper: Stepper | None) -> Tensor:
        found = sweep(
            lambda beta: Field(Attention(beta)),
            beta=betas, n=n, d=d, seeds=len(x), times=[k * h for k in range(steps + 1)],
            observe=[Observable("close", close_share)], stepper=stepper, device="cpu",
        )  # fmt: skip
        return found.values["close"]

    yield Case(
        {"betas": len(betas), "draws": draws, "times": steps + 1},
        partial(sphere, draws, n, d, dtype=torch.float64),
        {
            "osmose, layers": of_tokens(partial(swept, stepper=Layer(h))),
            "plain particles, layers": of_tokens(partial(plain_phase, betas=betas, h=h, steps=steps)),
            "osmose, the equation": of_tokens(partial(swept, stepper=None)),
        },
        modes=("forward",),
    )
