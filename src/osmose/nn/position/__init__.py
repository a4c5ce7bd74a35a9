"""Where a token stands, as ``position=`` of the mixers: shifts of the sequence, and the known encodings beside them.

``POSITIONS`` names them. A member is a frozen dataclass of settings; its ``build`` makes the module.
"""

from __future__ import annotations

from difflib import get_close_matches

from .base import Position, PositionSettings
from .bias import T5, ALiBi, Relative, ShiftScore
from .shift import FixedShift, Shift, ShiftMixture, ShortConv
from .vectors import Learned, RoPE, Sinusoidal

POSITIONS: dict[str, PositionSettings] = {
    settings.name: settings
    for settings in (
        Shift(), ShiftMixture(), ShiftScore(), ShortConv(), FixedShift(),
        Learned(), Sinusoidal(), Relative(), T5(), ALiBi(), RoPE(),
    )
}  # fmt: skip
"""Every member with its default settings."""


def position_of(position: str | PositionSettings, what: str) -> PositionSettings:
    """Settings, or those of a name.

    Raises:
        ValueError: an unknown name, with the nearest known one.
    """
    if isinstance(position, PositionSettings):
        return position
    if position not in POSITIONS:
        near = get_close_matches(str(position), POSITIONS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{what}: position is {position!r}; expected None, settings such as Shift(radius=8), or one of "
            f"{', '.join(POSITIONS)}.{hint}"
        )
    return POSITIONS[position]


__all__ = [
    "POSITIONS",
    "T5",
    "ALiBi",
    "FixedShift",
    "Learned",
    "Position",
    "PositionSettings",
    "Relative",
    "RoPE",
    "Shift",
    "ShiftMixture",
    "ShiftScore",
    "ShortConv",
    "Sinusoidal",
    "position_of",
]
