"""The variants of Flow-Attention: what the paper and each folder of its code do differently, as named settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from torch import Tensor

from ...laws import Flow
from .features import FEATURES

Feature = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FlowSettings:
    """What one variant of Flow-Attention does. L and S are the masses of targets and sources.

    Attributes:
        feature: non-negative feature map of queries and keys, a name of ``FEATURES`` or a function.
        clamp: the competition logits are cut to ``[-clamp, clamp]``; None leaves them. A cut logit has no gradient.
        competition: what the sources compete with in the softmax: each other, or, for one source, its heads.
        mean_weight: competition weights have mean 1 (the code), not sum 1 (the paper).
        sink_correction: allocation is ``sigmoid(s L / S)``, not ``sigmoid(s)``.
        source_correction: competition logits are ``c S / L``, not ``c``: their mean is then 1 whatever the lengths.
        eps: added in the four flow sums; 0 guards only against division by 0.
        eps_at: to both factors of every product, or once to every product.
    """

    feature: Feature = "sigmoid"
    clamp: float | None = None
    competition: Literal["sources", "heads"] = "sources"
    mean_weight: bool = True
    sink_correction: bool = True
    source_correction: bool = True
    eps: float = 0.0
    eps_at: Literal["factors", "products"] = "factors"

    @property
    def law(self) -> Flow:
        """The law that a kernel of these features carries."""
        return Flow(
            clamp=self.clamp,
            competition=self.competition,
            mean_weight=self.mean_weight,
            sink_correction=self.sink_correction,
            source_correction=self.source_correction,
        )


_CODE = FlowSettings(source_correction=False, eps=1e-6)

PRESETS: dict[str, FlowSettings] = {
    "osmose": FlowSettings(),
    "paper": FlowSettings(mean_weight=False, sink_correction=False, source_correction=False),
    "core": replace(_CODE, clamp=1.0),
    "nlp": replace(_CODE, clamp=5.0),
    "rl": replace(_CODE, clamp=10.0),
    "vision": replace(_CODE, clamp=1.0, eps_at="products"),
    "series": _CODE,
    "lra": replace(_CODE, feature="relu", competition="heads"),
}
"""``osmose`` is the default; ``paper`` is the published formula; the others are the folders of the published code."""


def settings_of(preset: str | FlowSettings, feature: Feature | None = None) -> FlowSettings:
    """The settings of a preset, with another feature map if one is given.

    Raises:
        ValueError: an unknown name, with the nearest known one.
    """
    if isinstance(preset, str):
        _known("preset", preset, tuple(PRESETS))
        preset = PRESETS[preset]
    if feature is not None:
        preset = replace(preset, feature=feature)
    if isinstance(preset.feature, str):
        _known("feature", preset.feature, tuple(FEATURES))
    return preset


def _known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"flow_attention: {what} is {name!r}; expected one of {', '.join(known)}.{hint}")
