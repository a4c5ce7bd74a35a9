"""Flow-Attention (Flowformer): the public entry, its flows, its decoding state, its variants and the dense reference.

The derivation of the sweeps is in README.md beside this file.
"""

from .attention import attention_flows, flow_attention
from .reference import flow_attention_reference
from .settings import PRESETS, FlowSettings
from .state import FlowState

__all__ = [
    "PRESETS",
    "FlowSettings",
    "FlowState",
    "attention_flows",
    "flow_attention",
    "flow_attention_reference",
]
