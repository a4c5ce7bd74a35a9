"""Every call of an attention in a running model, seen and, where asked for, answered otherwise.

Shapes: B batch, H heads, n targets, m sources, c columns of values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models.difformer import DIFFormerConv
from ..nn import MultiheadMixer
from ..nn.replace import _with_mixer
from ..operators import Dense, LinearMap, Operator
from ..operators.base import refuse_past_limit
from ..tokens import Tokens


class Structure(NamedTuple):
    """The matrices of one attention for one input, and whether they are in causal order."""

    matrix: Tensor
    """``(H, n, m)``, without padding"""
    causal: bool


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of an attention, between its projections.

    Attributes:
        structure: its matrices as an operator ``(..., H, n, m)``, as in evaluation.
        values: ``(..., H, m, c)`` that it was called with.
        targets, sources: which tokens exist, where that is known: masses ``(..., n)`` or packed sets.
        causal: whether target i takes from sources j <= i only.
    """

    structure: Operator
    values: Tensor
    targets: Tokens | None = None
    sources: Tokens | None = None
    causal: bool = False

    def spans(self) -> list[tuple[int | None, Tensor | slice, Tensor | slice]]:
        """Every input of the call: its place in the batch (None: there is none), its targets and its sources.

        Raises:
            ValueError: padding in the middle of an input, where offsets are not those of places.
        """
        n, m = self.structure.shape[-2:]
        t, s = self.targets, self.sources
        if t is not None and s is not None and t.batch is not None and s.batch is not None:
            sets = range(t.num_sets)
            found = [((t.batch == i).nonzero()[:, 0], (s.batch == i).nonzero()[:, 0]) for i in sets]
            return [(None, rows, columns) for rows, columns in found if len(rows) and len(columns)]
        lead = self.structure.shape[:-3]
        if len(lead) > 1:
            raise ValueError(
                f"capture: an attention was called with leading dimensions {tuple(lead)}; expected one, the batch, or none."
            )
        places = range(lead[0]) if lead else (None,)
        return [(b, _span("targets", t, b, n), _span("sources", s, b, m)) for b in places]

    def matrices(self) -> list[Structure]:
        """The structure of every input, in the order of the batch, dense and without padding.

        Raises:
            DenseLimitError: ``B H n m`` entries are more than :func:`~osmose.operators.dense_limit`.
        """
        refuse_past_limit(
            self.structure.shape.numel(),
            f"The matrices {tuple(self.structure.shape)} of an attention",
            "Run fewer or shorter inputs at once, or read rows: osmose.inspection.structure(layer, x).rows(i).",
        )
        with torch.no_grad():
            dense = self.structure.to_dense()
        found = []
        for place, rows, columns in self.spans():
            one = dense if place is None else dense[place]
            found.append(Structure(one[..., rows, :][..., columns], self.causal))
        return found


Answer = Callable[[str, AttentionCall], Tensor | None]
"""``answer(name, call)``: None, or ``(..., H, n, c)`` in place of what the attention gives."""

Calls = Callable[[nn.Module, Answer], Any]
"""What sends the calls of a model to an answer: :func:`attention_calls`, or that of an adapter."""


@contextmanager
def attention_calls(model: nn.Module, answer: Answer) -> Iterator[list[str]]:
    """While it lasts, ``answer`` hears of every call of every attention of a model.

    These are :class:`~osmose.nn.MultiheadMixer`, ``nn.MultiheadAttention`` (which then computes softmax as
    MultiheadMixer does, with its own parameters; ``nn.TransformerEncoderLayer`` leaves its fused path), and the layers of
    DIFFormer. Where ``answer`` gives None the outputs are as before. The steps of text generation, which go on from a
    state, do not pass here.

    Args:
        model: which is left as it was, also after an error.
        answer: called with the name of the module and an :class:`AttentionCall`.

    Yields:
        the names of the attentions, in the order of ``model.named_modules``.

    Raises:
        ValueError: there is none.
    """
    with ExitStack() as stack:
        names = []
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                mixer = as_mixer(module)
                stack.enter_context(_own(module, _qkv_same_embed_dim=False))
                stack.enter_context(_mixer_calls(mixer, partial(answer, name), module))
            elif isinstance(module, MultiheadMixer):
                stack.enter_context(_mixer_calls(module, partial(answer, name), module))
            elif isinstance(module, DIFFormerConv):
                stack.enter_context(_difformer_calls(module, partial(answer, name)))
            else:
                if isinstance(module, nn.TransformerEncoder):
                    stack.enter_context(_own(module, use_nested_tensor=False))
                continue
            names.append(name)
        if not names:
            raise ValueError(
                f"No attention found in {type(model).__name__}: it holds no MultiheadMixer, nn.MultiheadAttention or "
                "DIFFormerConv. For a Hugging Face model take osmose.adapters.hf; attention that a model writes out itself "
                "cannot be seen from outside."
            )
        yield names


def as_mixer(module: nn.MultiheadAttention | MultiheadMixer) -> MultiheadMixer:
    """The same attention as a MultiheadMixer that holds the same parameters; itself if it is one."""
    return module if isinstance(module, MultiheadMixer) else _with_mixer(module, "softmax", None, {})


@contextmanager
def _own(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Attributes of one instance, for a while."""
    before = {name: module.__dict__[name] for name in attributes if name in module.__dict__}
    module.__dict__.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                module.__dict__[name] = before[name]
            else:
                del module.__dict__[name]


@contextmanager
def _mixer_calls(
    mixer: MultiheadMixer, answer: Callable[[AttentionCall], Tensor | None], module: nn.Module
) -> Iterator[None]:
    """The calls of ``mixer.carry``. ``module`` is the attention whose forward leads there: the mixer or its original."""
    carry, forward, own = mixer.carry, mixer.forward, False

    def called(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal own
        own = query is key
        try:
            mixer.train(module.training)
            return forward(query, key, value, *args, **kwargs)
        finally:
            own = False

    def carried(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> tuple[Tensor, Tensor | None]:
        # the softmax of self-attention is not told which targets exist: they are the sources
        targets = how.get("sources") if own and q.shape[-2] == k.shape[-2] else how.get("targets")
        call = AttentionCall(
            _structure_of(mixer, carry, q, k, how),
            v,
            targets,
            how.get("sources"),
            bool(how.get("causal")) or _is_causal(how.get("bias")),
        )
        out = answer(call)
        if out is None:
            return carry(q, k, v, **how)
        out = out.to(v.dtype)
        return out, carry(q, k, v, **how)[1] if how.get("need_weights") else None

    with _own(mixer, carry=carried), _own(module, forward=called):
        yield


def _structure_of(
    mixer: MultiheadMixer, carry: Callable[..., Any], q: Tensor, k: Tensor, how: dict[str, Any]
) -> LinearMap:
    how = how | {"need_weights": False}

    def function(v: Tensor) -> Tensor:
        training, mixer.training = mixer.training, False  # without dropout, and without its random numbers
        try:
            return carry(q, k, v, **how)[0]
        finally:
            mixer.training = training

    lead = tuple(torch.broadcast_shapes(q.shape[:-2], k.shape[:-2]))
    return LinearMap(function, q.shape[-2], k.shape[-2], lead=lead, dtype=q.dtype, device=q.device)


@contextmanager
def _difformer_calls(conv: DIFFormerConv, answer: Callable[[AttentionCall], Tensor | None]) -> Iterator[None]:
    attend = conv._attend

    def attended(
        query: Tensor, source: Tensor, v: Tensor, targets: Tokens | None, sources: Tokens | None
    ) -> Tensor:
        weights = conv.attention(query, source, targets=targets, sources=sources)
        values = v.expand(*v.shape[:-3], conv.num_heads, *v.shape[-2:])
        out = answer(AttentionCall(weights, values, targets, sources))
        return attend(query, source, v, targets, sources) if out is None else out.to(v.dtype)

    with _own(conv, _attend=attended):
        yield


def dense_call(
    weights: Tensor, values: Tensor, targets: Tokens | None = None, sources: Tokens | None = None
) -> AttentionCall:
    """A call whose matrices ``(B, H, n, m)`` are at hand; causal where no target that exists takes from above the diagonal."""
    n, m = weights.shape[-2:]
    later = weights.triu(1).any(-1).any(-2)  # (B, n)
    if targets is not None and targets.mass is not None:
        later = later & (targets.mass > 0)  # rows of padding may hold anything
    return AttentionCall(Dense(weights), values, targets, sources, n == m > 1 and not bool(later.any()))


def _is_causal(bias: Tensor | None) -> bool:
    """Whether a bias of pairs hides all later sources."""
    if bias is None or bias.shape[-2] != bias.shape[-1] or bias.shape[-1] < 2:
        return False
    later = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
    return bool((bias[..., later] == -torch.inf).all())


def _span(name: str, tokens: Tokens | None, place: int | None, size: int) -> slice:
    """Where the tokens of one input stand."""
    if tokens is None or tokens.mass is None:
        return slice(0, size)
    mass = tokens.mass
    while mass.ndim > (1 if place is None or mass.ndim == 1 else 2):  # the dimension of heads
        mass = mass.squeeze(-2)
    exists = (mass if mass.ndim == 1 or place is None else mass[place % len(mass)]) > 0
    at = exists.nonzero().flatten()
    if not len(at):
        return slice(0, 0)
    first, last = int(at[0]), int(at[-1])
    if last - first + 1 != len(at):
        raise ValueError(
            f"capture: {len(at)} {name} of an input stand between places {first} and {last}, with absent ones among them; "
            "expected padding at the ends only, so that the offset of two tokens is that of their places."
        )
    return slice(first, last + 1)
