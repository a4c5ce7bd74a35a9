"""One layer taken apart: its structure, its whole operator, and its Jacobian. They differ.

    structure   A_h(x)                               what carries the values, head by head
    operator    Phi(x) = sum_h A_h(x) kron Theta_h   y = Phi(x) x + constant: all that is linear once x has chosen A
    jacobian    J(x) = dy / dx                       Phi(x) and what a change of A does

Shapes: B batch, H heads, n targets, m sources, P channels of values, Q of outputs; ``vec`` of points is row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..models.difformer import DIFFormerConv
from ..nn import MultiheadMixer
from ..operators import LinearMap, Operator
from .calls import AttentionCall, _mixer_calls, _own, as_mixer

COPIES = 64  # copies of the input that go through a layer at once

Layer = MultiheadMixer | nn.MultiheadAttention


def structure(
    layer: Layer | DIFFormerConv,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    **call: Any,
) -> Operator:
    """The matrices A_h of an attention for its input, ``(..., H, n, m)``, exact for every mixer and formed only on demand.

    Args:
        layer: a MultiheadMixer, ``nn.MultiheadAttention`` (as softmax with the same parameters) or layer of DIFFormer.
        query, key, value: ``(..., n, E)``, batch first; key None means the query, value None the key.
        call: ``targets``, ``sources``, ``causal``, ``bias``, as for :meth:`MultiheadMixer.attend`.

    Returns:
        an operator: ``rows(i)`` for some targets, ``to_dense()`` under :func:`~osmose.operators.dense_limit`,
        ``@`` values. With ``add_bias_kv`` or ``add_zero_attn`` the added sources are its last columns.
    """
    key = query if key is None else key
    if isinstance(layer, DIFFormerConv):
        return layer.attention(query, None if key is query else key, **call)
    _check("structure", layer)
    seen: list[AttentionCall] = []
    mixer = as_mixer(layer)
    with _mixer_calls(mixer, seen.append, mixer):
        mixer.attend(query, key, key if value is None else value, **call)
    return seen[0].structure


def operator(
    layer: Layer, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, **call: Any
) -> LinearMap:
    """``Phi(x) = sum_h A_h(x) kron Theta_h`` as an operator ``(..., n Q, m P)`` on ``vec`` of the values.

    ``y = unvec(Phi vec(value)) + constant(layer, ...)`` is the output of the layer, dropout aside. Arguments as for
    :func:`structure`.

    Cost of a product with c columns: the layer, c times. ``to_dense()`` has ``n m P Q`` entries.
    """
    apply, value = _in_values(layer, query, key, value, call)
    base = apply(torch.zeros_like(value).unsqueeze(0))
    m, p = value.shape[-2:]
    n, q = base.shape[-2:]

    def function(v: Tensor) -> Tensor:
        return _columns(lambda copies: apply(copies) - base, v, (m, p))

    lead = tuple(value.shape[:-2])
    return LinearMap(function, n * q, m * p, lead=lead, dtype=value.dtype, device=value.device)


def constant(
    layer: Layer, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, **call: Any
) -> Tensor:
    """What a layer gives for values 0 with the same A: biases and added sources, ``(..., n, Q)``."""
    apply, value = _in_values(layer, query, key, value, call)
    return apply(torch.zeros_like(value).unsqueeze(0)).squeeze(0)


def jacobian(layer: Layer, x: Tensor, **call: Any) -> LinearMap:
    """``J = d vec(y) / d vec(x)`` of self-attention ``y = layer(x, x, x)``, an operator ``(..., n Q, n P)``.

    Inputs of a batch have a Jacobian each. Arguments as for :func:`structure`.

    Cost: ``J.mT @ u`` and rows take a pass forward and back for each column. ``J @ v`` goes by rows, ``n Q`` passes,
    because not every mixer has a second derivative.
    """
    mixer, copy = _copies(layer, x, call)

    def transposed(u: Tensor) -> Tensor:
        return _pull(lambda many: mixer.attend(many, many, many, **copy(len(many))), x, u, mixer)

    return _by_rows(transposed, x, mixer.embed_dim)


def jacobian_gap(layer: Layer, x: Tensor, *, probes: int = 64, seed: int = 0, **call: Any) -> float:
    """``|J - Phi| / |J|`` in the Frobenius norm, for self-attention: how much of the response is a change of A.

    0 for a layer whose A does not depend on its input. It is estimated by ``E|M^T u|² = |M|²`` for normal u, from
    ``probes`` of them, so matrices of any size can be compared; the relative error is about ``1 / sqrt(probes)`` or less.
    The inputs of a batch are taken together.
    """
    mixer, copy = _copies(layer, x, call)
    draw = torch.Generator().manual_seed(seed)
    n, q = x.shape[-2], mixer.embed_dim
    u = torch.randn(*x.shape[:-2], n * q, probes, generator=draw).to(x)
    full = _pull(lambda many: mixer.attend(many, many, many, **copy(len(many))), x, u, mixer)
    fixed = _pull(lambda many: mixer.attend(*_held(x, len(many)), many, **copy(len(many))), x, u, mixer)
    size = float(full.double().square().sum())
    return math.sqrt(float((full - fixed).double().square().sum()) / size) if size > 0 else 0.0


def jacobian_gaps(model: nn.Module, *arguments: Any, probes: int = 32, seed: int = 0) -> dict[str, float]:
    """:func:`jacobian_gap` of every self-attention of a model by MultiheadMixer, for the input that reaches it.

    Args:
        model: called as ``model(*arguments)``, in evaluation mode meanwhile.
        probes, seed: as for :func:`jacobian_gap`.
    """
    seen: dict[str, tuple[MultiheadMixer, Tensor, dict[str, Any]]] = {}

    def recorder(name: str, mixer: MultiheadMixer) -> Callable[..., Any]:
        attend = mixer.attend

        def attended(query: Tensor, key: Tensor, value: Tensor, **call: Any) -> Any:
            if query is key and key is value:
                kept = {what: call[what] for what in call if what != "need_weights"}
                seen.setdefault(name, (mixer, query.detach(), kept))
            return attend(query, key, value, **call)

        return attended

    training = model.training
    model.eval()
    try:
        with ExitStack() as stack, torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, MultiheadMixer):
                    stack.enter_context(_own(module, attend=recorder(name, module)))
            model(*arguments)
        return {
            name: jacobian_gap(mixer, x, probes=probes, seed=seed, **call)
            for name, (mixer, x, call) in seen.items()
        }
    finally:
        model.train(training)


def _held(x: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """The same points as query and key, many times: one object, for it is self-attention."""
    many = x.expand(copies, *x.shape)
    return many, many


def _in_values(
    layer: Layer, query: Tensor, key: Tensor | None, value: Tensor | None, call: dict[str, Any]
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The layer as a function of copies of its values, ``(c, ..., m, P)`` to ``(c, ..., n, Q)``, and the values."""
    key = query if key is None else key
    value = key if value is None else value
    mixer, copy = _copies(layer, query, call)
    sides = query, key

    def apply(values: Tensor) -> Tensor:
        c = len(values)
        q = sides[0].expand(c, *sides[0].shape)
        k = q if sides[1] is sides[0] else sides[1].expand(c, *sides[1].shape)
        return mixer.attend(q, k, values, **copy(c))[0]

    return _in_batches(apply, mixer), value


def _copies(
    layer: Layer, x: Tensor, call: dict[str, Any]
) -> tuple[MultiheadMixer, Callable[[int], dict[str, Any]]]:
    """The layer as a mixer in evaluation, and its call for c copies of the input in front of the batch."""
    _check("operator and jacobian", layer)
    mixer = as_mixer(layer)
    if mixer.training and mixer.dropout > 0:
        raise ValueError(
            "operator and jacobian: the layer is in training and drops weights at random; call layer.eval() first."
        )
    if mixer.options.get("scope") == "batch" and x.ndim > 2:
        raise ValueError(
            "operator and jacobian: this layer normalises over the batch, so its inputs depend on each other; pass one, (n, E)."
        )
    if x.ndim not in (2, 3):
        raise ValueError(f"operator and jacobian: points are {tuple(x.shape)}; expected (n, E) or (B, n, E).")

    def copy(c: int) -> dict[str, Any]:
        out = dict(call)
        for name in ("targets", "sources"):
            tokens = call.get(name)
            if tokens is not None and tokens.mass is not None and not tokens.packed and tokens.mass.ndim > 1:
                out[name] = tokens.with_mass(tokens.mass.expand(c, *tokens.mass.shape))
        if call.get("targets") is call.get("sources") and "sources" in out:
            out["targets"] = out["sources"]  # self-attention is known by the object
        return out

    return mixer, copy


def _check(what: str, layer: nn.Module) -> None:
    if not isinstance(layer, Layer):
        raise ValueError(
            f"{what}: the layer is a {type(layer).__name__}; expected MultiheadMixer or nn.MultiheadAttention. The operators of "
            "a MixedProduct are layer.family(x)."
        )


def _at_once(mixer: MultiheadMixer) -> int:
    """Copies that may go together: one where the layer's normalisation runs over the batch."""
    return 1 if mixer.options.get("scope") == "batch" else COPIES


def _in_batches(apply: Callable[[Tensor], Tensor], mixer: MultiheadMixer) -> Callable[[Tensor], Tensor]:
    def applied(copies: Tensor) -> Tensor:
        return torch.cat([apply(some) for some in copies.split(_at_once(mixer))])

    return applied


def _columns(apply: Callable[[Tensor], Tensor], v: Tensor, shape: tuple[int, int]) -> Tensor:
    """A function of copies of points on columns of ``vec``: ``(..., m P, c)`` to ``(..., n Q, c)``."""
    if not v.shape[-1]:
        v = v.new_zeros(*v.shape[:-1], 1)
        return _columns(apply, v, shape)[..., :0]
    return apply(v.movedim(-1, 0).unflatten(-1, shape)).flatten(-2).movedim(0, -1)


def _pull(f: Callable[[Tensor], tuple[Tensor, Any]], x: Tensor, u: Tensor, mixer: MultiheadMixer) -> Tensor:
    """``M^T u`` for columns ``u (..., n Q, c)``, with M the derivative of f at x."""
    found = []
    for some in u.split(_at_once(mixer), -1):
        with torch.enable_grad():
            many = x.detach().expand(some.shape[-1], *x.shape).requires_grad_()
            y = f(many)[0]
            back = some.movedim(-1, 0).unflatten(-1, tuple(y.shape[-2:])).to(y.dtype)
            (grad,) = torch.autograd.grad(y, many, back.expand_as(y))
        found.append(grad.flatten(-2).movedim(0, -1))
    return torch.cat(found, -1)


def _by_rows(transposed: Callable[[Tensor], Tensor], x: Tensor, q: int) -> LinearMap:
    n, p = x.shape[-2:]
    lead = tuple(x.shape[:-2])

    def function(v: Tensor) -> Tensor:
        parts = []
        for some in torch.arange(n * q, device=x.device).split(COPIES):
            unit = x.new_zeros(*lead, n * q, len(some))
            unit[..., some, torch.arange(len(some), device=x.device)] = 1.0
            parts.append(transposed(unit).mT @ v)
        return torch.cat(parts, -2)

    return LinearMap(function, n * q, n * p, transposed=transposed, lead=lead, dtype=x.dtype, device=x.device)
