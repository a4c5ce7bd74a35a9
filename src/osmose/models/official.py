"""Weights under the names of the authors' code, brought to ours. What a file does not tell is an argument of the models.

The released Flowformer has a linear layer each for queries, keys and values; here they are one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

Checkpoint = str | Path | dict[str, Tensor]


def read_state(checkpoint: Checkpoint, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a ``.pt``, ``.pth`` or ``.safetensors`` file, or of a state dict, under names without ``prefix``."""
    if isinstance(checkpoint, dict):
        state = checkpoint
    elif Path(checkpoint).suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(checkpoint)
    else:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def check_names(what: str, state: dict[str, Tensor], names: Iterable[str], advice: str = "") -> None:
    """Raise ValueError where names are missing; it lists them, and some of those that came."""
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(
            f"{what}: the checkpoint has no {', '.join(missing)}; it holds {', '.join(sorted(state)[:5]) or 'nothing'}.{advice}"
        )


def count(state: dict[str, Tensor], prefix: str) -> int:
    """How many modules ``prefix0``, ``prefix1``, ... there are."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def moved(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Weights and biases of modules under our names, from ``names``: ours to theirs. 1 x 1 convolutions become linear."""
    found = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                value = state[f"{theirs}.{kind}"]
                found[f"{ours}.{kind}"] = value.flatten(1) if value.ndim > 2 else value
    return found


def attention(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    """The projections of one attention of the released Flowformer, as those of a ``MultiheadMixer``."""
    found = moved(state, {f"{ours}.out_proj": f"{theirs}.out_projection"})
    for kind in ("weight", "bias"):
        parts = [state[f"{theirs}.{part}_projection.{kind}"] for part in ("query", "key", "value")]
        found[f"{ours}.in_proj_{kind}"] = torch.cat(parts)
    return found
