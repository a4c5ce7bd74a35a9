"""Flow-Attention: one entry for its variants, token layouts and the causal form."""

from __future__ import annotations

import torch
from torch import Tensor

from ...laws import Flows
from ...tokens import Tokens
from ..arguments import both_tokens, check_points, check_same_sets, spread_heads
from ..layout import Layout
from .causal import causal_flow
from .composed import composed_flow, flows_of
from .features import FEATURES, shifted
from .linear import linear_flow
from .settings import Feature, FlowSettings, settings_of
from .state import causal_settings

__all__ = ["attention_flows", "flow_attention"]


def flow_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    preset: str | FlowSettings = "osmose",
    feature: Feature | None = None,
    causal: bool = False,
    sources: Tokens | None = None,
    targets: Tokens | None = None,
) -> Tensor:
    """Attention as a flow network: what sources give and sinks take is conserved in turn; linear cost, no softmax of pairs.

    With ``C_ij = phi(q_i) . phi(k_j)``, masses nu (sources, total S) and mu (targets, total L):

        I_i = sum_j nu_j C_ij,  O_j = sum_i mu_i C_ij
        s_i = (L/S) sum_j nu_j C_ij / O_j,  c_j = (S/L) sum_i mu_i C_ij / I_i
        w = S softmax(c),  alpha = sigmoid(s)
        x_i = alpha_i / I_i sum_j nu_j C_ij w_j v_j

    which is the law ``flow`` on a low-rank operator. The causal form takes the sums over j <= i for a target and over
    i <= j for a source, and fixes the weight of a source when it comes; :class:`FlowState` continues it.

    Args:
        q, k, v: ``(..., H, n, d)``, ``(..., H, m, d)``, ``(..., H, m, c)``; or without heads, ``(n, d)`` ...; q and k
            before the feature map.
        preset: a name of ``PRESETS`` (``osmose``, the default; ``paper``; the variants of the released code), or settings.
        feature: non-negative feature map in place of the preset's: ``sigmoid``, ``relu``, ``elu``, ``softplus``,
            ``exp``, or a function of a tensor.
        causal: target i takes from sources j <= i of its sequence. Needs as many sources as targets.
        sources, targets: which tokens there are and what they weigh; None means all, with mass 1. Give both for
            self-attention with a mask.

    Returns:
        ``(..., H, n, c)`` in the type of v; 0 for targets of mass 0, and where no source has mass.

    Raises:
        ValueError: what does not fit, and a causal form that does not exist.

    Cost: time ``(n + m) d c`` a head, causal ``n (64 d + d c)``; memory O(n + m) numbers beside inputs, outputs and
    ``d x c`` a head, forward and backward. Sums are kept in float32 or better, as means: half precision is safe.
    The second derivative raises.

    Source: Wu et al., Flowformer, ICML 2022 (2202.06258). The default differs from it in the corrections of lengths L/S and
    S/L and in weights of mean 1, and from the released code in having no clamp.
    """
    settings = causal_settings(preset, feature) if causal else settings_of(preset, feature)
    check_points("flow_attention", q, k, v)
    flat = q.ndim == 2
    q, k, v = spread_heads(q, k, v)
    sources, targets = both_tokens("flow_attention", q, k, sources, targets)
    if not q.shape[:-2].numel():
        return v.new_zeros(*q.shape[:-1], v.shape[-1])
    q, k = _prepared(q, targets, settings), _prepared(k, sources, settings)
    if causal:
        out = causal_flow(q, k, v, settings, _one_sequence(q, k, targets, sources))
    elif settings.competition == "heads" or _learned(targets) or _learned(sources):
        # a token of mass 0 is absent: its mass has gradient 0
        targets, sources = (
            t if t.mass is None else t.with_mass(torch.where(t.mass > 0, t.mass, 0.0))
            for t in (targets, sources)
        )
        q, k, v_ = _features(q, k, v, settings, targets, sources)
        with torch.autocast(v.device.type, enabled=False):
            out = composed_flow(q, k, v_, settings, targets, sources)[0].to(v.dtype)
    else:
        layout = Layout.of(q, sources, targets)
        q, k, v_ = layout.points(q, targets), layout.points(k, sources), layout.points(v, sources)
        out = linear_flow(
            q, k, v_, layout.bounds(targets), layout.bounds(sources), layout.mass(targets), layout.mass(sources), settings
        )  # fmt: skip
        out = layout.restore(out, targets)
    return out.squeeze(0) if flat else out


def attention_flows(
    q: Tensor,
    k: Tensor,
    *,
    preset: str | FlowSettings = "osmose",
    feature: Feature | None = None,
    sources: Tokens | None = None,
    targets: Tokens | None = None,
) -> Flows:
    """The flows of :func:`flow_attention` before and after conservation, with its arguments (not causal).

    Cost: that of the attention without values. Differentiable.
    """
    settings = settings_of(preset, feature)
    check_points("attention_flows", q, k, k)
    q, k, _ = spread_heads(q, k, k)
    sources, targets = both_tokens("attention_flows", q, k, sources, targets)
    q, k = _prepared(q, targets, settings), _prepared(k, sources, settings)
    q, k, _ = _features(q, k, k, settings, targets, sources)
    with torch.autocast(q.device.type, enabled=False):
        return flows_of(q, k, settings, targets, sources)


def _prepared(x: Tensor, tokens: Tokens, settings: FlowSettings) -> Tensor:
    """Points ready for a feature map by name; those of a function are its values."""
    if settings.feature == "exp":
        return shifted(x, tokens)
    if isinstance(settings.feature, str):
        return x
    y = settings.feature(x)
    if y.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"flow_attention: the feature map made {tuple(y.shape)} of {tuple(x.shape)}; expected another last dimension at most."
        )
    if not torch.compiler.is_compiling():
        seen = y.detach() if tokens.mass is None else y.detach().where(tokens.mass.unsqueeze(-1) > 0, 0.0)
        if bool((seen < 0).any()):
            raise ValueError(
                "flow_attention: the feature map gave negative values; flows need features >= 0, such as sigmoid, relu or exp."
            )
    return y.to(x.dtype)


def _features(
    q: Tensor, k: Tensor, v: Tensor, settings: FlowSettings, targets: Tokens, sources: Tokens
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of prepared points, and values, in float32 or better, 0 at tokens of mass 0."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    q, k = _mapped(q.to(dtype), targets, settings), _mapped(k.to(dtype), sources, settings)
    return q, k, _present(v.to(dtype), sources)


def features_of(x: Tensor, tokens: Tokens, settings: FlowSettings) -> Tensor:
    """Features of points ``(..., H, n, d)`` before the feature map: float32 or better, 0 at tokens of mass 0."""
    x = _prepared(x, tokens, settings)
    return _mapped(x.to(torch.promote_types(x.dtype, torch.float32)), tokens, settings)


def _mapped(x: Tensor, tokens: Tokens, settings: FlowSettings) -> Tensor:
    x = _present(x, tokens)
    if isinstance(settings.feature, str):
        x = _present(FEATURES[settings.feature].value(x), tokens)
    return x


def _present(x: Tensor, tokens: Tokens) -> Tensor:
    return x if tokens.mass is None else torch.where(tokens.mass.unsqueeze(-1) > 0, x, 0.0)


def _learned(tokens: Tokens) -> bool:
    return tokens.mass is not None and tokens.mass.requires_grad


def _one_sequence(q: Tensor, k: Tensor, targets: Tokens, sources: Tokens) -> Tokens:
    """The tokens of a causal call, which are its targets and its sources."""
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"flow_attention: causal=True with {q.shape[-2]} targets and {k.shape[-2]} sources; 'earlier' is defined within "
            "one sequence. To continue a sequence use FlowState; for cross attention leave causal out."
        )
    check_same_sets("flow_attention", sources, targets)
    same = targets.mass is sources.mass or (
        targets.mass is not None
        and sources.mass is not None
        and (torch.compiler.is_compiling() or torch.equal(targets.mass, sources.mass))
    )
    if not same:
        raise ValueError(
            "flow_attention: causal=True with different masses of targets and sources; a token of a sequence is both: pass "
            "the same Tokens as targets and sources."
        )
    return sources
