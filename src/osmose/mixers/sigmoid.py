"""The matrix of the sigmoid kernel of DIFFormer, which is otherwise never formed."""

from __future__ import annotations

from torch import Tensor

from .. import laws
from ..operators import Pairwise, dense_limit
from ..ops.diffusion.normalize import frobenius_rows, unit_rows
from ..tokens import Tokens


def sigmoid_weights(
    q: Tensor,
    k: Tensor,
    *,
    targets: Tokens | None = None,
    sources: Tokens | None = None,
    causal: bool = False,
    normalization: str = "row",
    scope: str = "set",
    joint_heads: bool = True,
) -> Tensor:
    """What ``diffusion_attention(..., kernel="sigmoid")`` multiplies values with, ``(..., H, n, m)``."""
    assert not causal, "diffusion_attention has refused it"
    targets, sources = targets or Tokens(q.shape[-2]), sources or Tokens(k.shape[-2])
    if normalization == "row":
        q, k = unit_rows(q), unit_rows(k)
    elif normalization == "frobenius":
        q, k = (frobenius_rows(x, t, scope, joint_heads) for x, t in ((q, targets), (k, sources)))
    kernel = Pairwise(q, k, "sigmoid", targets=targets, sources=sources)
    with dense_limit(kernel.shape.numel()):
        return laws.row(kernel, targets=targets, sources=sources).to_dense()
