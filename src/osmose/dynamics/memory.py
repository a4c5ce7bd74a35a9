"""How much memory there is, for asks that are refused before they start."""

from __future__ import annotations

import math
import os

import torch


def held_by(device: torch.device) -> float:
    """Bytes of memory of a device; inf where it cannot be told."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf


def gib(size: float) -> str:
    """Bytes in GiB, for messages."""
    return f"{size / 2**30:.3g} GiB"
