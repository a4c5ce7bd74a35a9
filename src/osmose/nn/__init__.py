"""Mixers as modules: a drop-in for ``torch.nn.MultiheadAttention``, transformer blocks, and ``replace_attention``.

Everything here mixes by the table ``osmose.mixers.MIXERS``.
"""

from .blocks import CrossBlock, DecoderBlock, EncoderBlock
from .mixer import MultiheadMixer
from .replace import replace_attention

__all__ = ["CrossBlock", "DecoderBlock", "EncoderBlock", "MultiheadMixer", "replace_attention"]
