"""Another mixer in an existing model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .mixer import MultiheadMixer
from .position import PositionSettings


def replace_attention(
    model: nn.Module,
    mixer: str = "flow",
    *,
    where: Callable[[str, nn.Module], bool] | None = None,
    position: str | PositionSettings | None = None,
    **options: Any,
) -> list[str]:
    """Put a :class:`MultiheadMixer` in the place of every ``nn.MultiheadAttention`` of a model, in place.

    The new modules hold the same parameters under the same names: optimizers and state dicts stay valid. Modules that
    already are MultiheadMixers change their mixer. An attention that stands in several places stays one module.

    Args:
        model: what holds them; forward hooks on the replaced modules do not move along.
        mixer, options: as for :class:`MultiheadMixer`.
        where: ``where(name, module)`` tells which to replace; None means all. A model that masks pairs in some layers
            needs it: other mixers than softmax refuse masks that are not causal.
        position: as for :class:`MultiheadMixer`; its parameters are new, an optimizer does not know them yet. None leaves
            a position that a MultiheadMixer has.

    Returns:
        The names of the replaced modules, in the order of ``model.named_modules``.

    Raises:
        ValueError: nothing to replace, or an unknown mixer, position or option.
    """
    kinds = (nn.MultiheadAttention, MultiheadMixer)
    places = [
        (f"{path}.{name}".lstrip("."), parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent._modules.items()  # a module that stands here twice too
        if isinstance(child, kinds) and (where is None or where(f"{path}.{name}".lstrip("."), child))
    ]
    if not places:
        if isinstance(model, kinds):
            reason = "the model is itself the attention: put it in a module, or build a MultiheadMixer and load its state"
        elif where is not None:
            reason = "where() chose none of its modules"
        else:
            reason = "models that write out their own attention cannot be changed from outside"
        raise ValueError(
            f"replace_attention: no nn.MultiheadAttention to replace in {type(model).__name__}; {reason}."
        )
    made: dict[nn.Module, MultiheadMixer] = {}
    for _, parent, name, child in places:
        if child not in made:
            made[child] = _with_mixer(child, mixer, position, options)
        setattr(parent, name, made[child])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(m in made.values() for m in module.modules()):
            module.use_nested_tensor = False  # they serve torch's fused softmax only
    return [name for name, *_ in places]


def _with_mixer(
    old: nn.Module, mixer: str, position: str | PositionSettings | None, options: dict[str, Any]
) -> MultiheadMixer:
    """A mixer that holds the parameters of an attention."""
    assert isinstance(old, nn.MultiheadAttention | MultiheadMixer)
    new = MultiheadMixer(
        old.embed_dim,
        old.num_heads,
        old.dropout,
        bias=old.in_proj_bias is not None,
        add_bias_kv=old.bias_k is not None,
        add_zero_attn=old.add_zero_attn,
        kdim=old.kdim,
        vdim=old.vdim,
        batch_first=old.batch_first,
        device="meta",
        mixer=mixer,
        **options,
    )
    for name in new._parameters:
        new.register_parameter(name, getattr(old, name))
    new.out_proj = old.out_proj
    if position is not None:
        new.set_position(position)
    elif isinstance(old, MultiheadMixer):
        new.position = old.position
    return new.train(old.training)
