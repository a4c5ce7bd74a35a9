"""A hierarchical model of images around any mixer: stages of blocks on a grid of tokens that halves from stage to stage.

    x   = conv_{P x P}(image) + p_{row, column}                       tokens are patches
    x <- x + mix(norm(x));   x <- x + gamma * feed_forward(norm(x))   the blocks of a stage, pre-norm
    x <- conv_{2 x 2}(x)                                              between stages
    y   = W mean(norm(x))

Flowformer for images (Wu et al., ICML 2022, 2202.06258, section 4.3) with ``mixer="flow", preset="vision"``. Images may have
any size: grids are rounded up, and what lacks at the lower and right border is 0. Positions are sinusoids of row and column,
which have no end; or a learned table, as in the released code, which is interpolated to other grids than its own.

Shapes: B images of C channels and H x W pixels, E hidden channels, grids h x w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import EncoderBlock, MultiheadMixer
from .language import sinusoids
from .official import Checkpoint, check_names, count, moved, read_state

RELEASED: dict[str, Any] = {
    "hidden": (96, 192, 384, 768),
    "depths": (3, 3, 10, 3),
    "num_heads": 12,
    "patch": 4,
    "layer_scale": 1e-5,
    "positions": (56, 56),
    "mixer": "flow",
    "preset": "vision",
}
"""The settings of the released ImageNet model for images of 224 x 224; ``drop_path`` was 0.2 there."""


class VisionClassifier(nn.Module):
    """Classes of images, by stages of encoder blocks around any mixer.

    Args:
        in_channels: C.
        out_channels: number of classes.
        hidden: E of every stage.
        depths: blocks of every stage.
        num_heads: of every stage, or of each.
        patch: P, the side of a patch.
        dropout: of positions and in the blocks.
        drop_path: probability, in training, that an image skips a branch of the last block; less for earlier ones.
        layer_scale: start of gamma, a learned factor for each channel of the feed-forward branch; None: no factor.
        positions: grid ``(h, w)`` of a learned table; None: sinusoids.
        mixer, options: as for :class:`~osmose.nn.EncoderBlock`.

    Raises:
        ValueError: sizes or options that do not fit.

    Cost: with ``flow`` and ``linear`` O(h w E^2) a block, with ``softmax`` also (h w)^2 E.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: Sequence[int] = (64, 128),
        depths: Sequence[int] = (2, 2),
        num_heads: int | Sequence[int] = 4,
        patch: int = 2,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        positions: tuple[int, int] | None = None,
        mixer: str = "flow",
        **options: Any,
    ):
        super().__init__()
        heads = [num_heads] * len(hidden) if isinstance(num_heads, int) else list(num_heads)
        if (
            not len(hidden) == len(depths) == len(heads)
            or min((*hidden, *depths, patch, in_channels), default=0) < 1
        ):
            raise ValueError(
                f"VisionClassifier: hidden {tuple(hidden)}, depths {tuple(depths)}, num_heads {num_heads}, patch {patch}, "
                f"in_channels {in_channels}; expected positive numbers, as many of each as there are stages."
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"VisionClassifier: drop_path is {drop_path}; expected a probability in [0, 1).")
        sides = [patch] + [2] * (len(hidden) - 1)
        self.patches = nn.ModuleList(
            nn.Conv2d(before, after, side, stride=side)
            for before, after, side in zip((in_channels, *hidden), hidden, sides, strict=False)
        )
        self.positions = None if positions is None else nn.Parameter(torch.zeros(hidden[0], *positions))
        rates = (drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths)))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                _Block(
                    width,
                    number,
                    mixer=mixer,
                    dropout=dropout,
                    drop_path=next(rates),
                    layer_scale=layer_scale,
                    **options,
                )
                for _ in range(depth)
            )
            for width, depth, number in zip(hidden, depths, heads, strict=True)
        )
        self.norm = nn.LayerNorm(hidden[-1])
        self.output = nn.Linear(hidden[-1], out_channels)
        self.in_channels, self.dropout = in_channels, dropout
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, out_channels)`` of images ``(B, C, H, W)``. Raises ValueError for another shape."""
        x, _ = self._run(images, len(self.stages), 0)
        return self.output(self.norm(x).mean(1))

    @torch.no_grad()
    def received(self, images: Tensor, stage: int = 0, block: int = -1) -> Tensor:
        """What every source gives in one block: maps ``(B, heads, h, w)`` with mean 1, in evaluation mode.

        It is the mean of each column of the true attention matrix, over the mean of all: 1 everywhere if all sources matter
        alike. Cost: that of the matrix, (h w)^2. Arguments and errors as :meth:`before`.
        """
        h, mixer, grid = self.before(images, stage, block)
        _, weights = mixer(h, h, h, need_weights=True, average_attn_weights=False)
        columns = weights.mean(-2)
        return (columns / columns.mean(-1, keepdim=True)).unflatten(-1, grid)

    @torch.no_grad()
    def before(
        self, images: Tensor, stage: int = 0, block: int = -1
    ) -> tuple[Tensor, MultiheadMixer, tuple[int, int]]:
        """What the mixer of one block is given, ``(B, h w, E)``, that mixer, and the grid ``(h, w)``; in evaluation mode.

        Raises:
            ValueError: no such stage or block.
        """
        if not -len(self.stages) <= stage < len(self.stages):
            raise ValueError(f"VisionClassifier: stage is {stage}; expected one of {len(self.stages)}.")
        stage, blocks = stage % len(self.stages), self.stages[stage]
        assert isinstance(blocks, nn.ModuleList)
        if not -len(blocks) <= block < len(blocks):
            raise ValueError(
                f"VisionClassifier: block is {block}; expected one of {len(blocks)} in stage {stage}."
            )
        training = self.training
        self.eval()
        try:
            x, grid = self._run(images, stage, block % len(blocks))
        finally:
            self.train(training)
        chosen = blocks[block]
        assert isinstance(chosen, _Block)
        return chosen.norm1(x), chosen.self_attn, grid

    def _run(self, images: Tensor, stage: int, block: int) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``(B, h w, E)`` and their grid before a block of a stage; a stage more than there are is the end."""
        if images.ndim != 4 or images.shape[1] != self.in_channels or not images.numel():
            raise ValueError(
                f"VisionClassifier: images have shape {tuple(images.shape)}; expected (batch, {self.in_channels}, height, width)."
            )
        x, grid = images, (0, 0)
        for i, (patches, blocks) in enumerate(zip(self.patches, self.stages, strict=True)):
            assert isinstance(patches, nn.Conv2d)
            assert isinstance(blocks, nn.ModuleList)
            side = patches.stride[0]
            x = patches(F.pad(x, (0, -x.shape[-1] % side, 0, -x.shape[-2] % side)))
            if i == 0:
                x = F.dropout(x + self._places(x), self.dropout, self.training)
            grid = (x.shape[-2], x.shape[-1])
            x = x.flatten(2).mT
            for j, layer in enumerate(blocks):
                if (i, j) == (stage, block):
                    return x, grid
                x = layer(x)
            if i + 1 < len(self.stages):
                x = x.mT.unflatten(-1, grid)
        return x, grid

    def _places(self, x: Tensor) -> Tensor:
        """What tells the places of the grid apart, ``(E, h, w)``."""
        e, (h, w) = x.shape[1], x.shape[-2:]
        if self.positions is None:
            rows, columns = (
                sinusoids(torch.arange(n, device=x.device), size)
                for n, size in ((h, e // 2), (w, e - e // 2))
            )
            table = torch.cat([rows[:, None].expand(-1, w, -1), columns.expand(h, -1, -1)], -1)
            return table.permute(2, 0, 1).to(x.dtype)
        if self.positions.shape[1:] == (h, w):
            return self.positions
        return F.interpolate(self.positions[None], (h, w), mode="bicubic", align_corners=False)[0]

    @classmethod
    def from_official(cls, checkpoint: Checkpoint, **settings: Any) -> VisionClassifier:
        """A model with the weights of the authors' image model (``Flowformer_CV``).

        Args:
            checkpoint: a ``.pt``, ``.pth`` or ``.safetensors`` file, or its state dict.
            settings: ``dropout``, ``drop_path``, or another ``preset`` than ``vision``. The code cut logits at 1 after
                12 June 2022 and at 5 before.

        Raises:
            ValueError: the names are not those of that model; it lists the first that are missing.
        """
        state = read_state(checkpoint)
        names = (
            "pos_embed",
            "patch_embed.0.proj.weight",
            "blocks.0.0.attn.qkv.weight",
            "norm.weight",
            "head.weight",
        )
        check_names("VisionClassifier.from_official", state, names)
        stages = range(count(state, "patch_embed."))
        depths = [count(state, f"blocks.{i}.") for i in stages]
        found = {"norm": "norm", "output": "head"}
        weights: dict[str, Tensor] = {}
        for i in stages:
            for kind in ("weight", "bias"):
                weights[f"patches.{i}.{kind}"] = state[f"patch_embed.{i}.proj.{kind}"]
            for j in range(depths[i]):
                ours, theirs = f"stages.{i}.{j}", f"blocks.{i}.{j}"
                parts = {"norm1": "norm1", "norm2": "norm2", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
                found |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}
                found[f"{ours}.self_attn.out_proj"] = f"{theirs}.attn.proj"
                for kind in ("weight", "bias"):
                    weights[f"{ours}.self_attn.in_proj_{kind}"] = state[f"{theirs}.attn.qkv.{kind}"]
                weights[f"{ours}.gamma"] = state[f"{theirs}.gamma"]
        hidden = [len(state[f"patch_embed.{i}.proj.weight"]) for i in stages]
        side = round(state["pos_embed"].shape[1] ** 0.5)
        weights["positions"] = state["pos_embed"][0].T.unflatten(1, (side, side)).contiguous()
        first = state["patch_embed.0.proj.weight"]
        told = {"hidden": hidden, "depths": depths, "patch": first.shape[-1], "positions": (side, side)}
        model = cls(first.shape[1], len(state["head.weight"]), **(RELEASED | told | settings)).to(first.dtype)
        model.load_state_dict(weights | moved(state, found))
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        return model


class _Block(EncoderBlock):
    """A pre-norm block with a factor on its feed-forward branch, which an image may skip in training."""

    def __init__(
        self, embed_dim: int, num_heads: int, *, drop_path: float, layer_scale: float | None, **options: Any
    ):
        super().__init__(embed_dim, num_heads, norm_first=True, **options)
        self.drop_path = drop_path
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((embed_dim,), layer_scale))

    def _feed_forward(self, x: Tensor) -> Tensor:
        out = super()._feed_forward(x)
        return out if self.gamma is None else self.gamma * out

    def _branch(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        out = self._drop(branch(norm(x)))
        if self.training and self.drop_path:
            keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
            out = out * keep / (1 - self.drop_path)
        return x + out
