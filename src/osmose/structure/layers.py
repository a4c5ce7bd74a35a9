"""The values that torch's layers hold, as factors.

Shapes: K members (heads, taps), P channels in, Q channels out, D width of a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .factors import Factors, Full, Grouped, Heads


def attention_factors(module: nn.Module) -> tuple[Heads, Heads]:
    """Values and scores of ``nn.MultiheadAttention``, or of a layer with its parameter names.

        y = sum_k A_k x Theta_k,   Theta_k  = W_V,k^T W_O,k^T   (P, Q)
        scores_k = y' Lambda_k^T x'^T / sqrt(D),   Lambda_k = W_K,k^T W_Q,k   (P', Q')

    Sources are on the left of both: values and keys, the sides that grouped queries share. Biases aside, and without
    the ``1 / sqrt(D)`` of softmax.

    Returns:
        ``(theta, lambda_)``: of ranks D at most, sharing memory with the parameters.
    """
    layer: Any = module
    H = layer.num_heads
    if layer.in_proj_weight is not None:
        w_q, w_k, w_v = layer.in_proj_weight.detach().chunk(3)
    else:
        w_q, w_k, w_v = (w.detach() for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight))
    w_o = layer.out_proj.weight.detach()
    heads = w_o.unflatten(1, (H, -1)).movedim(1, 0)  # (H, Q, D)
    return Heads(_by_head(w_v, H), heads), Heads(_by_head(w_k, H), _by_head(w_q, H))


def _by_head(weight: Tensor, heads: int) -> Tensor:
    """``(H D, P)`` to ``(H, P, D)``."""
    return weight.unflatten(0, (heads, -1)).mT


def convolution_factors(module: nn.Module) -> Factors:
    """The taps of ``nn.Conv1d/2d/3d`` and their transposes, row-major: :class:`Full`, or :class:`Grouped` with groups."""
    layer: Any = module
    weight, groups = layer.weight.detach().flatten(2), layer.groups
    # (Q, P/G, K), transposed (P, Q/G, K)
    blocks = weight.unflatten(0, (groups, -1)).movedim(-1, 0)  # (K, G, Q/G, P/G), transposed (K, G, P/G, Q/G)
    blocks = blocks if layer.transposed else blocks.mT
    return Full(blocks[:, 0]) if groups == 1 else Grouped(blocks)


def linear_factors(module: nn.Linear) -> Full:
    """``W^T (1, P, Q)``: the one value of the structure {I}."""
    return Full(module.weight.detach().mT.unsqueeze(0))
