"""Flow-Attention (Flowformer)."""

from .reference import flow_attention_reference
from .settings import PRESETS, FlowSettings
