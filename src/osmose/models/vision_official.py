"""The released vision network (thuml/Flowformer, Flowformer_CV) by its state dict: sizes, and names as they are here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .official import check_names, count

_NAMES = {
    "attn.qkv.": "self_attn.in_proj_",
    "attn.proj.": "self_attn.out_proj.",
    "mlp.fc1.": "linear1.",
    "mlp.fc2.": "linear2.",
}


def released_settings(state: dict[str, Tensor], grid: tuple[int, int] | None) -> dict[str, Any]:
    """Arguments of :class:`~osmose.models.VisionClassifier` that the weights tell; all but heads and mixer.

    Raises:
        ValueError: the names are not those of this network, or its positions are those of another grid.
    """
    needed = ("patch_embed.0.proj.weight", "pos_embed", "blocks.0.0.mlp.fc1.weight", "head.weight")
    check_names("VisionClassifier.from_official", state, needed, " Pass the checkpoint's entry 'model'.")
    tokens = state["pos_embed"].shape[1]
    side = round(tokens**0.5)
    grid = (side, side) if grid is None else grid
    if grid[0] * grid[1] != tokens:
        raise ValueError(
            f"VisionClassifier.from_official: pos_embed has {tokens} tokens and the grid is {grid}; pass grid=(h, w)."
        )
    stages = range(count(state, "patch_embed."))
    embeds = [state[f"patch_embed.{i}.proj.weight"] for i in stages]
    blocks = {tuple(name.split(".")[1:3]) for name in state if name.startswith("blocks.")}
    return {
        "in_channels": embeds[0].shape[1],
        "out_channels": state["head.weight"].shape[0],
        "hidden": [embed.shape[0] for embed in embeds],
        "depths": [sum(stage == str(i) for stage, _ in blocks) for i in stages],
        "patch": embeds[0].shape[-1],
        "mlp_ratio": state["blocks.0.0.mlp.fc1.weight"].shape[0] / embeds[0].shape[0],
        "layer_scale": 1.0 if "blocks.0.0.gamma" in state else None,
        "positions": "learned",
        "grid": grid,
    }


def released_state(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """The same weights under the names here; positions ``(1, h w, E)`` become ``(1, E, h, w)``."""
    ours = {_name(name): value for name, value in state.items()}
    ours["stages.0.positions.weight"] = state["pos_embed"].mT.unflatten(-1, grid)
    return ours


def _name(name: str) -> str:
    first, _, rest = name.partition(".")
    if first == "pos_embed":
        return "stages.0.positions.weight"
    if first == "head":
        return f"output.{rest}"
    if first == "patch_embed":
        stage, _, part = rest.partition(".proj.")
        return f"stages.{stage}.embed.{part}"
    if first != "blocks":
        return name
    stage, number, part = rest.split(".", 2)
    for theirs, ours in _NAMES.items():
        part = part.replace(theirs, ours)
    return f"stages.{stage}.blocks.{number}.{'scale' if part == 'gamma' else part}"
