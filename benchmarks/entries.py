"""The benchmarks. Each function yields the sizes of one; a new one is a new function here."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from osmose.equalities.published import published_diffusion, published_sigmoid_diffusion
from osmose.ops.diffusion import diffusion_attention
from osmose.tokens import Tokens

from .peers import sgformer_core
from .registry import Case, Contender, Inputs, differentiable, register

D = 64


def token_major(n: int, heads: int, scale: float = 1.0) -> Inputs:
    """q, k, v and a gradient, ``(n, H, d)``."""
    q, k, v = (torch.randn(n, heads, D).mul_(scale).requires_grad_() for _ in range(3))
    return q, k, v, torch.randn(n, heads, D)


def attend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    """Ours on ``(n, H, d)``: views in, token-major memory out."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return diffusion_attention(q, k, v, **options).transpose(0, 1)  # type: ignore[arg-type]


def simple_products(inputs: Inputs, mode: str) -> object:
    """The matrix products alone: 2 forward, 4 backward. No implementation by products is faster."""
    q, k, v = (x.detach().transpose(0, 1) for x in inputs[:3])
    for _ in range(1 if mode == "forward" else 3):
        moments = torch.bmm(k.mT, v)
        out = torch.bmm(q, moments)
    return out


@register("diffusion_s", "DIFFormer-s attention, d = 64")
def diffusion_s(quick: bool) -> Iterator[Case]:
    for n in (10_000,) if quick else (10_000, 100_000, 1_000_000):
        for heads in (1, 8):
            yield Case(
                {"heads": heads, "n": n},
                lambda n=n, heads=heads: token_major(n, heads),
                {
                    "osmose": differentiable(attend, forward=1.2, both=5),
                    "published einsum": differentiable(published_diffusion, forward=4, both=18),
                    "osmose, frobenius": differentiable(
                        lambda q, k, v: attend(q, k, v, normalization="frobenius"), forward=1.2, both=7
                    ),
                    "PyG SGFormerAttention core": sgformer(),
                    "matrix products": Contender(simple_products, {"forward": 1, "forward+backward": 1}),
                },
                limit="matrix products",
            )


def sgformer() -> Contender:
    """PyG's core gives the mean over heads: ``(n, d)``, so its gradient is that of one head."""

    def run(inputs: Inputs, mode: str) -> object:
        q, k, v, grad = inputs
        return inner.run((q, k, v, grad[:, 0]), mode)

    inner = differentiable(sgformer_core, forward=9, both=20)
    return Contender(run, inner.memory)


@register("diffusion_a", "DIFFormer-a attention, d = 64, one head")
def diffusion_a(quick: bool) -> Iterator[Case]:
    for n in (1000, 2708) if quick else (1000, 2000, 2708, 4000, 8000, 20_000):
        dense = n / D
        yield Case(
            {"n": n},
            lambda n=n: tuple(x.detach().squeeze(1).requires_grad_(i < 3) for i, x in enumerate(token_major(n, 1, 0.3))),
            {
                "osmose": differentiable(
                    lambda q, k, v: diffusion_attention(q, k, v, kernel="sigmoid", normalization="none")
                ),
                "dense": differentiable(published_sigmoid_diffusion, forward=2 * dense, both=5 * dense),
            },
        )  # fmt: skip


@register(
    "packed",
    "DIFFormer-s on many graphs in one packed batch, d = 64, one head, against one set of as many nodes",
)
def packed(quick: bool) -> Iterator[Case]:
    for sets, smallest, largest in ((100, 10, 500),) if quick else ((1000, 10, 500), (10_000, 10, 50)):
        sizes = torch.randint(smallest, largest + 1, (sets,), generator=torch.Generator().manual_seed(0))
        n = int(sizes.sum())
        tokens = Tokens.of(n, ptr=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))
        yield Case(
            {"sets": sets, "sizes": f"{smallest}..{largest}", "n": n},
            lambda n=n: token_major(n, 1),
            {
                "osmose": differentiable(lambda q, k, v, t=tokens: attend(q, k, v, sources=t, targets=t)),
                "one set": differentiable(attend),
            },
        )
