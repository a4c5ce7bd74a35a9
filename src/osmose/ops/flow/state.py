"""The state of causal Flow-Attention: constant size, exact, for prefill and decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .causal import advance
from .scan import Carry
from .settings import Feature, FlowSettings, settings_of

__all__ = ["FlowState"]


@dataclass(frozen=True, eq=False)
class FlowState:
    """What causal Flow-Attention must know of the tokens so far: ``d c + 4 d + 2`` numbers a batch entry and head.

    Calling it with more tokens gives their outputs and the next state: all of a prompt at once, or one token. States are
    values: keep an old one to go back to it. Equal to the parallel form up to rounding.

    Attributes:
        carry: the sums, with leading dimensions ``(B, H)``: ``total`` mass, ``keys``, ``queries``, ``key_flow``,
            ``query_flow`` ``(B, H, d)``, ``log_total`` (of the competition), ``moments (B, H, d, c)``.
        settings: the variant of Flow-Attention.
    """

    carry: Carry
    settings: FlowSettings

    @classmethod
    def empty(
        cls, batch: int, heads: int, d: int, c: int, *, preset: str | FlowSettings = "osmose",
        feature: Feature | None = None, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None,
    ) -> FlowState:  # fmt: skip
        """No token seen yet. Raises ValueError for a preset without a causal form."""
        settings = causal_settings(preset, feature)
        carry = Carry.empty(batch * heads, d, c, torch.promote_types(dtype, torch.float32), device)
        return cls(Carry(*(x.unflatten(0, (batch, heads)) for x in carry)), settings)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None = None
    ) -> tuple[Tensor, FlowState]:
        """Outputs ``(B, H, n, c)`` of the next n tokens, and the state after them.

        Args:
            q, k: ``(B, H, n, d)``, before the feature map.
            v: ``(B, H, n, c)``.
            mass: ``(B, n)``; a token of mass 0 changes nothing and its output is 0.

        Raises:
            ValueError: shapes, a type or a device that are not those of the state.
        """
        self._check(q, k, v, mass)
        if not q.numel():
            return torch.zeros_like(v), self
        batch, heads, n = q.shape[:3]
        if mass is not None:
            mass = mass.unsqueeze(1).expand(batch, heads, n).flatten(0, 1)
        before = Carry(*(x.flatten(0, 1) for x in self.carry))
        phi = self.settings.feature
        if not isinstance(phi, str):
            q, k = phi(q), phi(k)
        out, after = advance(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mass, self.settings, before)
        after = Carry(*(x.unflatten(0, (batch, heads)) for x in after))
        return out.unflatten(0, (batch, heads)), FlowState(after, self.settings)

    def reorder(self, index: Tensor) -> FlowState:
        """The state of other batch entries, ``index (B',)``: what beam search needs."""
        return FlowState(Carry(*(x.index_select(0, index) for x in self.carry)), self.settings)

    def to(self, device: torch.device | str) -> FlowState:
        """The state on another device."""
        return FlowState(Carry(*(x.to(device) for x in self.carry)), self.settings)

    def tensors(self) -> dict[str, Tensor]:
        """By name, as safetensors and ``torch.save`` take them; :meth:`of_tensors` is the inverse."""
        return self.carry._asdict()

    @classmethod
    def of_tensors(
        cls,
        tensors: dict[str, Tensor],
        *,
        preset: str | FlowSettings = "osmose",
        feature: Feature | None = None,
    ) -> FlowState:
        """The state that :meth:`tensors` gave. Raises ValueError where one is missing."""
        missing = [name for name in Carry._fields if name not in tensors]
        if missing:
            raise ValueError(f"FlowState: {', '.join(missing)} missing; expected {', '.join(Carry._fields)}.")
        return cls(Carry(*(tensors[name] for name in Carry._fields)), causal_settings(preset, feature))

    def _check(self, q: Tensor, k: Tensor, v: Tensor, mass: Tensor | None) -> None:
        moments = self.carry.moments
        batch, heads, d, c = moments.shape
        n = q.shape[-2] if q.ndim == 4 else 0
        for name, x, width in (("q", q, d), ("k", k, d), ("v", v, c)):
            if x.shape != (batch, heads, n, width):
                raise ValueError(
                    f"FlowState: {name} has shape {tuple(x.shape)}; expected ({batch}, {heads}, n, {width}), the "
                    "batch, heads and channels that the state was made for."
                )
            if x.device != moments.device:
                raise ValueError(
                    f"FlowState: {name} is on {x.device} and the state on {moments.device}; move one of them "
                    "(state.to(device))."
                )
            if torch.promote_types(x.dtype, moments.dtype) != moments.dtype:
                raise ValueError(
                    f"FlowState: {name} is {x.dtype} and the moments {moments.dtype}; make the state with dtype={x.dtype}."
                )
        if mass is not None and mass.shape != (batch, n):
            raise ValueError(f"FlowState: mass has shape {tuple(mass.shape)}; expected ({batch}, {n}).")


def causal_settings(preset: str | FlowSettings, feature: Feature | None = None) -> FlowSettings:
    """The settings of a variant. Raises ValueError for one whose sources do not compete with each other."""
    settings = settings_of(preset, feature)
    if settings.competition != "sources":
        raise ValueError(
            f"flow_attention: competition over {settings.competition} has no causal form; choose a preset whose sources "
            "compete with each other, such as 'osmose' or 'core'."
        )
    if settings.feature == "exp":
        raise ValueError(
            "flow_attention: the feature 'exp' is shifted by the largest entry of the whole set, which a causal form may "
            "not know; use 'softplus', or a function of your own that is bounded."
        )
    return settings
