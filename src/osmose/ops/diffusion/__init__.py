"""Diffusion attention (DIFFormer): the public entry, its additive state, and the dense reference.

The derivation of the forward and backward sweeps is in README.md beside this file.
"""

from .attention import diffusion_attention
from .reference import diffusion_attention_reference
from .state import DiffusionState

__all__ = ["DiffusionState", "diffusion_attention", "diffusion_attention_reference"]
