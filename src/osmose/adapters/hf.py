"""Hugging Face transformers taken apart: structures, ANOVA, replacement and hidden states for the models that the user has.

They have the arguments of :mod:`osmose.inspection`. A model's attention is reached through transformers' own registry of
attention functions, in place of ``sdpa`` or another: each layer then computes its weights as ``eager`` does. So every model
that takes ``attn_implementation="eager"`` through the registry can be read, GPT-2, BERT and Llama among them; outputs agree
to rounding with those of the implementation it had.

Needs ``pip install 'osmose[hf]'``.

Shapes: B batch, H heads, n targets, m sources, d channels of a head.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import eager_mask
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "osmose.adapters.hf needs transformers: pip install 'osmose[hf]'", name="transformers"
    ) from error

from .. import inspection
from ..diagnostics import StructureAnova
from ..inspection.calls import Answer, Structure, dense_call
from ..inspection.capture import Receive
from ..inspection.hidden import HiddenStates, Stream, first_tensor, states_of, watching
from ..inspection.particles import ParticleStudy
from ..inspection.replacement import Matrix, Replaced
from ..tokens import Tokens

_NAME = "osmose"  # of our function in transformers' registry


@contextmanager
def attention_calls(model: nn.Module, answer: Answer) -> Iterator[list[str]]:
    """While it lasts, ``answer`` hears of every call of every attention of a model; see :func:`osmose.inspection.attention_calls`.

    Padding is known from the attention mask that the model was given: sources that no target may see do not exist.
    In self-attention their rows do not either.

    Raises:
        ValueError: the model is none of transformers', or none of its attentions goes through the registry.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"adapters.hf: the model is a {type(model).__name__}; expected a transformers.PreTrainedModel. For torch's and "
            "osmose's own modules take osmose.inspection."
        )
    names = {module: name for name, module in model.named_modules() if _through_registry(module)}
    if not names:
        raise ValueError(
            f"adapters.hf: no attention of {type(model).__name__} goes through transformers' AttentionInterface; this "
            "version of it writes its attention out, which cannot be seen from outside."
        )
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    AttentionInterface.register(_NAME, partial(_attention, names, answer))
    AttentionMaskInterface.register(_NAME, eager_mask)
    try:
        for config in configs.values():
            config._attn_implementation_internal = _NAME
        yield list(names.values())
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
        AttentionInterface._global_mapping.pop(_NAME, None)
        AttentionMaskInterface._global_mapping.pop(_NAME, None)


def capture(
    model: nn.Module, receive: Receive | None = None
) -> AbstractContextManager[dict[str, list[Structure]]]:
    """:func:`osmose.inspection.capture` for a model of transformers."""
    return inspection.capture(model, receive, calls=attention_calls)


def study(
    model: nn.Module, inputs: Iterable[Mapping[str, Any]], *, classes: Callable[..., Any] | None = None
) -> dict[str, StructureAnova]:
    """:func:`osmose.inspection.study`; ``inputs`` are what a tokenizer returns, ``model(**batch)`` is called with each."""
    batches = ((batch,) for batch in inputs)
    return inspection.study(
        model, batches, classes=classes, calls=attention_calls, run=lambda batch: model(**batch)
    )


def replacing(
    model: nn.Module, matrices: Mapping[str, Mapping[int, Matrix | Tensor]]
) -> AbstractContextManager[None]:
    """:func:`osmose.inspection.replacing` for a model of transformers."""
    return inspection.replacing(model, matrices, calls=attention_calls)


def replacement_test(
    model: nn.Module,
    found: Mapping[str, StructureAnova],
    score: Callable[[nn.Module], float],
    **settings: Any,
) -> tuple[float, list[Replaced]]:
    """:func:`osmose.inspection.replacement_test` for a model of transformers."""
    return inspection.replacement_test(model, found, score, calls=attention_calls, **settings)


@contextmanager
def residual_stream(model: nn.Module) -> Iterator[Stream]:
    """:func:`osmose.inspection.residual_stream` for an encoder or a decoder of transformers.

    The states are those of ``output_hidden_states=True``, but for the last: many models report it after their final norm, here it
    is what the last block leaves. An attention mask ``(B, n)`` that the model is called with tells which tokens exist.

    Raises:
        ValueError: none of transformers' models, one of an encoder and a decoder, or one whose blocks are not known.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"adapters.hf: the model is a {type(model).__name__}; expected a transformers.PreTrainedModel. For torch's and "
            "osmose's own modules take osmose.inspection."
        )
    base = getattr(model, model.base_model_prefix, model)
    if hasattr(base, "encoder") and hasattr(base, "decoder"):
        raise ValueError(
            f"adapters.hf: {type(model).__name__} has an encoder and a decoder, two streams of tokens; take one of them, "
            "model.get_encoder() or model.get_decoder()."
        )
    stream, forward = Stream(), inspect.signature(model.forward)

    def begins(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = forward.bind_partial(*arguments, **named).arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = None
        stream.begin(None if mask is None else Tokens.of(mask.shape[-1], mask=mask.bool()))

    def parts(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor, None]:
        return first_tensor(arguments, named), None

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begins, with_kwargs=True).remove)
        for name, block in _blocks(model):
            stack.enter_context(watching(stream, name, block, parts))
        yield stream


def hidden_states(model: nn.Module, **batch: Any) -> HiddenStates:
    """:func:`osmose.inspection.hidden_states` for a model of transformers; ``batch`` is what a tokenizer returns."""
    return states_of(model, lambda: model(**batch), residual_stream)


def particle_study(model: nn.Module, inputs: Iterable[Mapping[str, Any]], **settings: Any) -> ParticleStudy:
    """:func:`osmose.inspection.particle_study`; ``inputs`` are what a tokenizer returns, as for :func:`study`."""
    return inspection.particle_study(
        model,
        ((batch,) for batch in inputs),
        calls=attention_calls,
        streams=residual_stream,
        run=lambda batch: model(**batch),
        **settings,
    )


def _blocks(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The modules that the model itself takes its hidden states from; else the list of as many modules as it has layers."""
    recorded = (getattr(model, "_can_record_outputs", None) or {}).get("hidden_states")
    kinds = recorded if isinstance(recorded, list | tuple) else [recorded]
    kinds = [getattr(kind, "target_class", kind) for kind in kinds]
    kinds = tuple(kind for kind in kinds if isinstance(kind, type))
    found = [(name, m) for name, m in model.named_modules() if kinds and isinstance(m, kinds)]
    if found:
        return found
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return [(f"{name}.{i}", block) for i, block in enumerate(module)]
    raise ValueError(
        f"adapters.hf: the blocks of {type(model).__name__} are not known; name them to osmose.inspection.residual_stream, "
        "blocks=[...]."
    )


def _through_registry(module: nn.Module) -> bool:
    """Whether a module's own forward asks the registry, and there are eager weights to take its place."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and _eager(module) is not None


def _eager(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The eager attention that stands beside the class of a module."""
    home = inspect.unwrap(type(module).forward).__module__
    return getattr(sys.modules[home], "eager_attention_forward", None)


def _attention(
    names: Mapping[nn.Module, str],
    answer: Answer,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **how: Any,
) -> tuple[Tensor, Tensor]:
    """What transformers calls in place of its own function: queries ``(B, H, n, d)``, fewer heads of keys where shared."""
    eager = _eager(module)
    assert eager is not None
    weights = eager(module, query, key, value, attention_mask, **how | {"dropout": 0.0})[1]
    name = names.get(module)
    if name is None:  # another model that runs meanwhile
        return eager(module, query, key, value, attention_mask, **how)
    heads, m = weights.shape[1], weights.shape[-1]
    values = value.repeat_interleave(heads // value.shape[1], 1)
    sources = _existing(attention_mask, m)
    own = weights.shape[-2] == m and "cross" not in f"{name} {type(module).__name__}".lower()
    out = answer(name, dense_call(weights, values, sources if own else None, sources))
    if out is None:
        return eager(module, query, key, value, attention_mask, **how)
    return out.to(value.dtype).transpose(1, 2).contiguous(), weights


def _existing(mask: Tensor | None, m: int) -> Tokens | None:
    """Which sources any target may see, by an additive mask ``(B, 1, n, m)``."""
    if mask is None:
        return None
    seen = (mask if mask.dtype == torch.bool else mask > -1e4).flatten(1, -2).any(1)
    return Tokens.of(m, mask=seen[:, :m])
