"""Flowformer for images: stages of encoder blocks on a grid of tokens that halves from stage to stage.

    x_0 = image;  stage s:  x <- embed_s(x) + positions      patches of P x P pixels, later of 2 x 2 tokens
                            x <- block(x), depth_s times     pre-norm: mix all tokens, then feed-forward with GELU
    y = W_out mean_t(norm(x))                                the mean over what exists

Wu et al., ICML 2022 (2202.06258). With another mixer it is a Transformer, or a linear one, of the same size. The released
code takes one size of image, with a learned position for each token; :meth:`VisionClassifier.imagenet` is that network.

Shapes: B images of c channels, H x W pixels; a stage has h x w tokens of E channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers import mixer_of
from ..nn import EncoderBlock
from ..ops.flow import attention_flows
from ..tokens import Tokens
from .official import Checkpoint, read_state
from .vision_official import released_settings, released_state

_EPS = 1e-6  # of every LayerNorm, as in the released code


class VisionClassifier(nn.Module):
    """Classes of images of any size, by stages of encoder blocks around any mixer.

    A size that a patch does not divide is filled with zeros, on the right and below, to the next multiple. Images of
    different sizes go into one batch with ``sizes``: what lies beyond an image's size counts nowhere, exactly.

    Positions have to serve a grid of any size. ``conv``, the default, adds to every token a depthwise 3 x 3 convolution of
    the grid, in every stage: it has no size of its own, moves with the image, and the zeros around the grid show a token
    how near the border is. (Islam et al., ICLR 2020; Chu et al., CPVT, ICLR 2023.) ``learned`` is a table for the first
    stage, as released; on another grid it is interpolated, which is guesswork far from the trained size.

    Args:
        in_channels: c.
        out_channels: number of classes.
        hidden: E of every stage; their number is the number of stages.
        depths: blocks of every stage.
        num_heads: heads of every stage, or one number for all.
        patch: P, the side in pixels of a token of the first stage.
        mlp_ratio: width of the feed-forward part in E.
        mixer, options: as for :class:`~osmose.nn.EncoderBlock`.
        dropout: of the mixing weights, the feed-forward part and the branches.
        drop_path: probability, in training, that an image skips a branch of the last block; linear from 0 at the first.
        layer_scale: start of a learned factor for each channel of the feed-forward branch; None: no factor.
        positions: ``conv`` or ``learned``.
        grid: (h, w) of the learned positions.

    Raises:
        ValueError: sizes or options that do not fit.

    Cost: with ``flow`` and ``linear`` O(n E^2) for the n = H W / P^2 tokens of the first stage, with ``softmax`` also
    n^2 E. Every stage has a quarter of the tokens. Padding costs as much as images.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 10, 3),
        num_heads: int | Sequence[int] = 12,
        patch: int = 4,
        mlp_ratio: float = 4.0,
        mixer: str = "flow",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        positions: Literal["conv", "learned"] = "conv",
        grid: tuple[int, int] | None = None,
        **options: Any,
    ):
        super().__init__()
        heads = [num_heads] * len(hidden) if isinstance(num_heads, int) else list(num_heads)
        if not hidden or not len(hidden) == len(depths) == len(heads) or min(depths) < 0:
            raise ValueError(
                f"VisionClassifier: hidden is {tuple(hidden)}, depths {tuple(depths)} and num_heads {num_heads}; expected one "
                "of each for every stage."
            )
        if patch < 1 or in_channels < 1 or out_channels < 1:
            raise ValueError(
                f"VisionClassifier: patch is {patch}, in_channels {in_channels} and out_channels {out_channels}; expected 1 or "
                "more."
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"VisionClassifier: drop_path is {drop_path}; expected a probability in [0, 1).")
        if positions not in ("conv", "learned") or (positions == "learned") != (grid is not None):
            raise ValueError(
                f"VisionClassifier: positions is {positions!r} and grid {grid}; expected 'conv', or 'learned' with the grid "
                "(h, w) of the first stage's tokens."
            )
        rates = iter([drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        stages: list[VisionStage] = []
        for width, depth, number in zip(hidden, depths, heads, strict=True):
            blocks = [
                VisionBlock(
                    width,
                    number,
                    int(mlp_ratio * width),
                    mixer=mixer,
                    dropout=dropout,
                    drop_path=next(rates),
                    layer_scale=layer_scale,
                    **options,
                )
                for _ in range(depth)
            ]
            placed: nn.Module | None = ConvPositions(width) if grid is None else None
            if grid is not None and not stages:
                placed = LearnedPositions(width, grid)
            before, side = (hidden[len(stages) - 1], 2) if stages else (in_channels, patch)
            stages.append(VisionStage(before, width, side, placed, blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(hidden[-1], eps=_EPS)
        self.output = nn.Linear(hidden[-1], out_channels)
        self.in_channels = in_channels
        self._initialise()

    @classmethod
    def imagenet(cls, out_channels: int = 1000, *, mixer: str = "flow", **changes: Any) -> VisionClassifier:
        """The released network for ImageNet, 224 x 224: 43.31 M parameters with 1000 classes. ``changes`` are arguments.

        Its preset ``vision`` has the clamp 1 of the released code since June 2022; ``preset="osmose"`` is the sound form.
        Published with it: 80.6 % top-1, with softmax 78.7 %.
        """
        released: dict[str, Any] = {"drop_path": 0.2, "layer_scale": 1e-5}
        released |= {"positions": "learned", "grid": (56, 56)}
        if mixer == "flow":
            released["preset"] = "vision"
        return cls(3, out_channels, mixer=mixer, **(released | changes))

    @classmethod
    def from_official(
        cls,
        checkpoint: Checkpoint,
        *,
        num_heads: int = 12,
        grid: tuple[int, int] | None = None,
        **settings: Any,
    ) -> VisionClassifier:
        """A model with the weights of the authors' code (thuml/Flowformer, Flowformer_CV).

        Args:
            checkpoint: a ``.safetensors`` file or the state dict, ``["model"]`` of what its training saves.
            num_heads: of every stage; 12 in all they released.
            grid: (h, w) of the first stage; None: a square.
            settings: what weights do not tell. The preset is ``vision``; weights trained before 2022-06-12 had the clamp 5,
                ``preset=dataclasses.replace(PRESETS["vision"], clamp=5.0)``.

        Raises:
            ValueError: names or shapes that are not those of this network.
        """
        state = read_state(checkpoint)
        settings = released_settings(state, grid) | settings
        if settings.get("mixer", "flow") == "flow":
            settings = {"preset": "vision"} | settings
        model = cls(num_heads=num_heads, **settings).to(state["head.weight"].dtype)
        try:
            model.load_state_dict(released_state(state, settings["grid"]))
        except RuntimeError as error:
            raise ValueError(f"VisionClassifier.from_official: {error}") from error
        return model

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02, cut at 2, in the blocks and the output; convolutions keep torch's."""
        for name, value in self.named_parameters():
            if value.ndim == 2:
                nn.init.trunc_normal_(value, std=0.02)
            elif name.endswith(("linear1.bias", "linear2.bias", "output.bias")):
                nn.init.zeros_(value)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Logits ``(B, out_channels)``.

        Args:
            images: ``(B, c, H, W)`` float, standardised; any H and W.
            sizes: ``(B, 2)`` int64, the height and width of the upper left part of each that exists; what the rest holds
                does not matter. None: all.

        Raises:
            ValueError: a shape or type that does not fit.
        """
        self._check(images, sizes)
        x = images
        for stage in self.stages:
            x, sizes = stage(x, sizes)
        points, tokens = _points(x, sizes)
        points = self.norm(points)
        return self.output(points.mean(-2) if tokens is None else tokens.mean(points).to(points.dtype))

    @torch.no_grad()
    def source_weights(
        self, images: Tensor, stage: int = -1, block: int = -1, sizes: Tensor | None = None
    ) -> Tensor:
        """How much every token counts as a source in one block, a map for each head: ``(B, heads, h, w)``.

        With ``flow`` the competition weight w_j, of mean 1 over the tokens (sum 1 with the preset ``paper``). With any other
        mixer the mean ``(1/n) sum_i A_ij`` over the targets of what they take from j; where the rows of A sum to 1, the
        map sums to 1, so n times it is on the scale of w. 0 where no token exists. Computed as in evaluation.

        Args:
            images, sizes: as for :meth:`forward`.
            stage, block: which; negative ones count from the end.

        Raises:
            IndexError: no such stage or block.

        Cost: that of the model up to the block; the matrix is never formed, save by ``softmax`` as in its own backward.
        """
        self._check(images, sizes)
        last = range(len(self.stages))[stage]
        training, x = self.training, images
        self.eval()
        try:
            for before in list(self.stages)[:last]:
                x, sizes = before(x, sizes)
            return self.stages[last].source_weights(x, block, sizes)  # type: ignore[operator]
        finally:
            self.train(training)

    def _check(self, images: Tensor, sizes: Tensor | None) -> None:
        shape = tuple(images.shape)
        if images.ndim != 4 or shape[1] != self.in_channels or not shape[2] * shape[3]:
            raise ValueError(
                f"VisionClassifier: images have shape {shape}; expected (batch, {self.in_channels}, height, width)."
            )
        if not images.is_floating_point():
            raise ValueError(
                f"VisionClassifier: images are {images.dtype}; expected floats, standardised as in training."
            )
        if sizes is None:
            return
        if sizes.shape != (shape[0], 2) or sizes.is_floating_point():
            raise ValueError(
                f"VisionClassifier: sizes are {tuple(sizes.shape)} {sizes.dtype}; expected ({shape[0]}, 2) int64, height and "
                "width of every image."
            )
        if not torch.compiler.is_compiling() and sizes.numel():
            low, (high, wide) = int(sizes.min()), sizes.amax(0).tolist()
            if low < 1 or high > shape[2] or wide > shape[3]:
                raise ValueError(
                    f"VisionClassifier: sizes go from {low} to {high} x {wide}; expected 1 to {shape[2]} x {shape[3]}, the "
                    "size of the batch."
                )


class VisionStage(nn.Module):
    """Patches of a grid as tokens, their positions, and blocks: ``(B, c, H, W)`` to ``(B, E, h, w)``."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        patch: int,
        positions: nn.Module | None,
        blocks: Sequence[VisionBlock],
    ):
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = positions
        self.blocks = nn.ModuleList(blocks)
        self.patch = patch

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The stage's tokens and which of them exist, ``sizes (B, 2)`` in tokens."""
        x, sizes = self.enter(x, sizes)
        points, tokens = _points(x, sizes)
        for block in self.blocks:
            points = block(points, tokens)
        return points.mT.unflatten(-1, x.shape[-2:]), sizes

    def enter(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The tokens before the first block. What does not exist is 0 wherever a convolution could see it."""
        x = _existing(x, sizes)
        x = self.embed(F.pad(x, (0, -x.shape[-1] % self.patch, 0, -x.shape[-2] % self.patch)))
        if sizes is not None:
            sizes = (sizes + self.patch - 1).div(self.patch, rounding_mode="floor")
            x = _existing(x, sizes)
        return (x if self.positions is None else x + self.positions(x, sizes)), sizes

    def source_weights(self, x: Tensor, block: int, sizes: Tensor | None) -> Tensor:
        """See :meth:`VisionClassifier.source_weights`; ``x`` is what comes into the stage."""
        last = range(len(self.blocks))[block]
        x, sizes = self.enter(x, sizes)
        points, tokens = _points(x, sizes)
        for before in list(self.blocks)[:last]:
            points = before(points, tokens)
        weights: Tensor = self.blocks[last].source_weights(points, tokens)  # type: ignore[operator]
        return weights.unflatten(-1, x.shape[-2:])


class VisionBlock(EncoderBlock):
    """An :class:`~osmose.nn.EncoderBlock`, norm first, whose branches an image may skip and the second of which is scaled.

    Args:
        drop_path: probability, in training, that an image skips a branch; where it does not, the branch grows to match.
        layer_scale: start of the factor for each channel of the feed-forward branch; None: no factor.
        others: as for the encoder block.
    """

    scale: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ff_dim: int | None = None,
        *,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        **others: Any,
    ):
        super().__init__(embed_dim, num_heads, ff_dim, norm_first=True, **others)
        self.norm1.eps = self.norm2.eps = _EPS
        self.drop_path = drop_path
        start = None if layer_scale is None else torch.full((embed_dim,), float(layer_scale))
        self.register_parameter("scale", None if start is None else nn.Parameter(start))

    def _branch(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.training or not self.drop_path:
            return super()._branch(x, norm, branch)
        kept = F.dropout(x.new_ones(x.shape[0], 1, 1), self.drop_path)
        return super()._branch(x, norm, lambda h: kept * branch(h))

    def _feed_forward(self, x: Tensor) -> Tensor:
        out = super()._feed_forward(x)
        return out if self.scale is None else self.scale * out

    def source_weights(self, x: Tensor, tokens: Tokens | None) -> Tensor:
        """``(B, heads, n)``; see :meth:`VisionClassifier.source_weights`."""
        attention, h = self.self_attn, self.norm1(x)
        q, k, _ = attention.project(h, h, h)
        sides = None if tokens is None else tokens.heads()
        if attention.mixer == "flow":
            weights = attention_flows(q, k, sources=sides, targets=sides, **attention.options).competition
        else:
            # linear in the values: what all targets take from a source is the gradient of their sum by its value
            function = mixer_of(attention.mixer, "VisionBlock").function
            with torch.enable_grad():
                v = torch.zeros_like(q[..., :1]).requires_grad_()
                out = function(q, k, v, sources=sides, targets=sides, **attention.options)
                (weights,) = torch.autograd.grad(out.sum(), v)
            total = x.shape[1] if tokens is None else tokens.total(x).view(-1, 1, 1)
            weights = weights.squeeze(-1) / total
        return weights if sides is None or sides.mass is None else weights.where(sides.mass > 0, 0.0)


class ConvPositions(nn.Module):
    """A depthwise 3 x 3 convolution of the grid; zeros around it tell where the border is."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, E, h, w)`` to the same; absent tokens hold 0."""
        return self.conv(x)


class LearnedPositions(nn.Module):
    """A table of a grid; on another grid interpolated (bicubic, smoothed where it shrinks)."""

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width, *grid), std=0.02))

    def forward(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """``(1, E, h, w)``, with ``sizes`` ``(B, E, h, w)``: for each image the table of its own grid."""
        h, w = x.shape[-2:]
        if sizes is None:
            return self._at(h, w)
        grids: list[tuple[int, int]] = [(a, b) for a, b in sizes.tolist()]
        tables = {grid: F.pad(self._at(*grid), (0, w - grid[1], 0, h - grid[0])) for grid in set(grids)}
        return torch.cat([tables[grid] for grid in grids])

    def _at(self, h: int, w: int) -> Tensor:
        if self.weight.shape[-2:] == (h, w):
            return self.weight
        return F.interpolate(self.weight, (h, w), mode="bicubic", antialias=True)


def _points(x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tokens | None]:
    """A grid ``(B, E, h, w)`` as points ``(B, h w, E)``, and which of them exist."""
    points = x.flatten(2).mT
    if sizes is None:
        return points, None
    return points, Tokens.of(points, mask=_mask(sizes, *x.shape[-2:]).flatten(1))


def _existing(x: Tensor, sizes: Tensor | None) -> Tensor:
    return x if sizes is None else x.where(_mask(sizes, *x.shape[-2:]).unsqueeze(1), 0.0)


def _mask(sizes: Tensor, h: int, w: int) -> Tensor:
    """``(B, h, w)`` bool."""
    rows, columns = (torch.arange(n, device=sizes.device) < sizes[:, i : i + 1] for i, n in enumerate((h, w)))
    return rows.unsqueeze(-1) & columns.unsqueeze(-2)
