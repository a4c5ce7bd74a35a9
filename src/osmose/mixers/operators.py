"""The mixers as operators: the kernel of each under its law, with any structure between the two.

A structure takes the kernel C and gives ``C * B``, so that what is known beforehand (a graph, a bias of offsets) stands
where the table of the framework has it: ``Law(C * B)``. Without one they are the matrices of the functions in table.py.

Shapes: as in table.py; operators ``(..., H, n, m)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import laws
from ..laws.base import mass_of, reciprocal
from ..operators import Causal, Dense, LowRank, Operator, Pairwise
from ..operators.base import refuse_past_limit
from ..ops.arguments import both_tokens, check_same_sets
from ..ops.diffusion.attention import KERNELS
from ..ops.diffusion.normalize import NORMALIZATIONS, SCOPES, frobenius_rows, unit_rows
from ..ops.flow.attention import features_of
from ..ops.flow.settings import Feature, FlowSettings, settings_of
from ..ops.flow.state import causal_settings
from ..tokens import Tokens
from .linear import positive

Structure = Callable[[Operator], Operator]


def mixer_operator(
    mixer: str,
    q: Tensor,
    k: Tensor,
    *,
    structure: Structure | None = None,
    targets: Tokens | None = None,
    sources: Tokens | None = None,
    causal: bool = False,
    **options: Any,
) -> Operator:
    """The matrix of a mixer as an operator, ``(..., H, n, m)``, with a structure on its kernel.

    Args:
        mixer: ``flow``, ``diffusion``, ``diffusion-sigmoid``, ``linear`` or ``mean``.
        q, k: ``(..., H, n, d)``, ``(..., H, m, d)``, before any feature map.
        structure: kernel in, kernel out, entry by entry; None leaves the kernel, in causal order without later sources.
            In causal order it leaves out what is later; for causal flow, whose outgoing sums take the targets before a
            source, it must not.
        targets, sources: masses and sets, as for the mixer.
        causal: target i sees sources j <= i. Flow forms the matrix: its order runs both ways.
        options: of the mixer's function.

    Returns:
        What values are multiplied with. The cost is that of the structured kernel, flow takes five products for its law.

    Raises:
        ValueError: a mixer without this form, options or an order that it does not have.
        DenseLimitError: causal flow past :func:`~osmose.operators.dense_limit`.
    """
    if mixer not in _KERNELS:
        raise ValueError(f"mixer_operator: mixer is {mixer!r}; expected one of {', '.join(_KERNELS)}.")
    sources, targets = both_tokens("mixer_operator", q, k, sources, targets)
    if causal:
        check_same_sets("mixer_operator", sources, targets)
    if structure is None:
        structure = partial(_plain, tokens=targets if causal and mixer != "flow" else None)
    with torch.autocast(q.device.type, enabled=False):
        return _KERNELS[mixer](q, k, structure, targets, sources, causal, **options)


def _plain(kernel: Operator, tokens: Tokens | None) -> Operator:
    """The kernel as it is, with ``tokens`` in their order."""
    return kernel if tokens is None else kernel * Causal(tokens.n, tokens=tokens, device=kernel.device)


def _row_law(kernel: Operator, structure: Structure, targets: Tokens, sources: Tokens) -> Operator:
    return laws.row(structure(kernel), sources=sources, targets=targets)


def _diffusion(
    q: Tensor,
    k: Tensor,
    structure: Structure,
    targets: Tokens,
    sources: Tokens,
    causal: bool,
    *,
    kernel: str = "simple",
    normalization: str = "row",
    scope: str = "set",
    joint_heads: bool = True,
) -> Operator:
    assert kernel in KERNELS
    assert normalization in NORMALIZATIONS
    assert scope in SCOPES
    if causal and (kernel != "simple" or normalization == "frobenius"):
        raise ValueError(
            f"diffusion: causal order with kernel={kernel!r} and normalization={normalization!r}; expected the simple kernel "
            "and normalization row or none."
        )
    q, k = _present(q, targets), _present(k, sources)
    if normalization == "row":
        q, k = unit_rows(q), unit_rows(k)
    elif normalization == "frobenius":
        q, k = (frobenius_rows(x, t, scope, joint_heads) for x, t in ((q, targets), (k, sources)))
    sets: dict[str, Any] = {"targets": targets, "sources": sources}
    if kernel == "sigmoid":
        return _row_law(Pairwise(q, k, "sigmoid", **sets), structure, targets, sources)
    q, k = F.pad(q, (1, 0), value=1.0), F.pad(k, (1, 0), value=1.0)
    return _row_law(LowRank(q, k, **sets), structure, targets, sources)


def _sigmoid(*arguments: Any, **options: Any) -> Operator:
    return _diffusion(*arguments, kernel="sigmoid", **options)


def _linear(
    q: Tensor, k: Tensor, structure: Structure, targets: Tokens, sources: Tokens, causal: bool
) -> Operator:
    q, k = positive(_present(q, targets)), positive(_present(k, sources))
    return _row_law(LowRank(q, k, targets=targets, sources=sources), structure, targets, sources)


def _mean(
    q: Tensor, k: Tensor, structure: Structure, targets: Tokens, sources: Tokens, causal: bool
) -> Operator:
    q, k = (torch.ones_like(_present(x, t)[..., :1]) for x, t in ((q, targets), (k, sources)))
    return _row_law(LowRank(q, k, targets=targets, sources=sources), structure, targets, sources)


def _flow(
    q: Tensor,
    k: Tensor,
    structure: Structure,
    targets: Tokens,
    sources: Tokens,
    causal: bool,
    *,
    preset: str | FlowSettings = "osmose",
    feature: Feature | None = None,
) -> Operator:
    settings = causal_settings(preset, feature) if causal else settings_of(preset, feature)
    q, k = features_of(q, targets, settings), features_of(k, sources, settings)
    inside = settings.eps if settings.eps_at == "factors" else 0.0
    sets = {"targets": targets, "sources": sources}
    kernel = structure(LowRank(q, k, **sets))
    taking = structure(LowRank(q + inside, k, **sets)) if inside else kernel
    giving = structure(LowRank(q, k + inside, **sets)) if inside else kernel
    # the eps that stands in every flow sum: at both factors of the products, or once at each
    taken, given = (
        settings.eps * (x + inside).sum(-1) if inside else settings.eps * x.new_ones(x.shape[:-1])
        for x in (q, k)
    )
    if causal:
        return _causal_flow(kernel, taking, giving, taken, given, settings, sources)
    flows = settings.law.conserve(
        lambda u: taking @ u + taken.unsqueeze(-1), lambda u: giving.mT @ u + given.unsqueeze(-1), q, sources, targets
    )  # fmt: skip
    left = flows.allocation * reciprocal(flows.incoming)
    left = left if targets.mass is None else left.where(targets.mass > 0, 0.0)
    return kernel.scale(left, flows.competition * mass_of(sources, q))


def _causal_flow(
    kernel: Operator,
    taking: Operator,
    giving: Operator,
    taken: Tensor,
    given: Tensor,
    settings: FlowSettings,
    tokens: Tokens,
) -> Operator:
    """Causal flow on any capacity: sums over j <= i for a target, over i <= j for a source, means of what came so far."""
    n = tokens.n
    refuse_past_limit(
        kernel.shape.numel(), "Causal flow on a kernel with structure", "Without a structure it is linear."
    )
    like = taken
    mass = mass_of(tokens, like).clamp(min=0)
    mass = mass.where(mass > 0, 0.0)
    same = tokens.same_set(tokens)
    meet = torch.ones(n, n, dtype=torch.bool, device=like.device) if same is None else same
    place = tokens.positions.to(like.device)
    meet = meet & (place[None, :] <= place[:, None])  # target i, source j
    weigh = meet.to(like.dtype) * mass.unsqueeze(
        -2
    )  # masses of the sources of a target; of the rivals of a source too
    seen = weigh.sum(-1)  # the mass so far: of sources at a target, of targets at a source
    back = meet.mT.to(like.dtype) * mass.unsqueeze(-1)  # masses of the targets i <= j of a source j
    took, gave = taking.to_dense(), giving.to_dense()
    incoming = (took * weigh).sum(-1) + taken
    outgoing = (gave * back).sum(-2) + given
    a, b = reciprocal(incoming) * seen * (mass > 0), reciprocal(outgoing) * seen * (mass > 0)
    s = ((took * weigh) @ b.unsqueeze(-1)).squeeze(-1)
    s = (s + taken) * reciprocal(seen)
    c = ((gave * back).mT @ a.unsqueeze(-1)).squeeze(-1)
    c = (c + given) * reciprocal(seen)
    if settings.clamp is not None:
        c = c.clamp(-settings.clamp, settings.clamp)
    rivals = torch.where(weigh > 0, weigh, 1.0).log().where(weigh > 0, -torch.inf) + c.unsqueeze(-2)
    some = weigh.sum(-1) > 0
    total = torch.logsumexp(rivals.where(some.unsqueeze(-1), 0.0), -1)
    weight = torch.where(some, (c - total).where(some, 0.0).exp(), 0.0)
    if settings.mean_weight:
        weight = weight * seen
    left = torch.sigmoid(s) * reciprocal(incoming) * (mass > 0)
    return Dense(kernel.to_dense() * meet).scale(left, weight * mass)


def _present(x: Tensor, tokens: Tokens) -> Tensor:
    """Points in float32 or better, 0 where there is no token: padding may hold anything."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if tokens.mass is None else torch.where(tokens.mass.unsqueeze(-1) > 0, x, 0.0)


_KERNELS: dict[str, Callable[..., Operator]] = {
    "flow": _flow,
    "diffusion": _diffusion,
    "diffusion-sigmoid": _sigmoid,
    "linear": _linear,
    "mean": _mean,
}
