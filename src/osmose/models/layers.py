"""What all models share: their input, as a tensor or as a sparse operator, and dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operators import Graph, Operator
from ..tokens import Tokens

SPARSE_BELOW = 0.1  # share of nonzero entries below which a sparse product wins on a CPU


def sparse_features(x: Tensor, below: float = SPARSE_BELOW) -> Tensor | Operator:
    """Bag-of-words features ``(n, c)`` as an operator where few are nonzero, else x itself.

    Every model takes either. The first linear layer then costs the nonzero entries instead of ``n c``, forward and
    backward; x gets no gradient.
    """
    if x.ndim != 2 or x.requires_grad or not x.numel() or x.count_nonzero() > below * x.numel():
        return x
    row, column = x.nonzero(as_tuple=True)
    return Graph(torch.stack([column, row]), x[row, column], *x.shape)


def linear(x: Tensor | Operator, layer: nn.Module) -> Tensor:
    """``x W^T + b`` for features of either kind."""
    if isinstance(x, Tensor):
        return layer(x)
    assert isinstance(layer, nn.Linear)
    out = x @ layer.weight.mT
    return out if layer.bias is None else out + layer.bias


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout. On a CPU four draws share a 64-bit random number, three times as fast as torch's.

    The probability is then a multiple of 2^-16, and the scale is that of the rounded one.
    """
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    dropped = round(p * 2**16)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(draws, dropped - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
    return x * kept.mul_(1 / (1 - dropped / 2**16))


def check_input(
    what: str,
    x: Tensor | Operator,
    channels: int,
    batch: Tensor | None,
    mask: Tensor | None,
    num_sets: int | None = None,
) -> tuple[Tensor | Operator, Tokens]:
    """A model's input ``(n, c)`` or ``(B, n, c)`` with absent tokens set to 0, and its tokens.

    Raises:
        ValueError: what is wrong with it.
    """
    if len(x.shape) not in (2, 3) or x.shape[-1] != channels:
        raise ValueError(
            f"{what}: x has shape {tuple(x.shape)}; expected (n, {channels}) or (batch, n, {channels})."
        )
    if batch is not None and len(x.shape) == 3:
        raise ValueError(
            f"{what}: batch goes with packed x (n, {channels}); for padded x (batch, n, {channels}) pass mask."
        )
    if isinstance(x, Operator):
        return x, Tokens.of(x.shape[-2], batch=batch, mask=mask, num_sets=num_sets)
    tokens = Tokens.of(x, batch=batch, mask=mask, num_sets=num_sets)
    return (x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)), tokens
