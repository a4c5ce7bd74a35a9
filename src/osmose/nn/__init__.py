"""Mixers as modules: a drop-in for ``torch.nn.MultiheadAttention``, transformer blocks, and ``replace_attention``.

Everything here mixes by the table ``osmose.mixers.MIXERS`` and knows where tokens stand by the table ``POSITIONS``.
"""

from .blocks import CrossBlock, DecoderBlock, EncoderBlock
from .mixer import MultiheadMixer
from .position import POSITIONS
from .replace import replace_attention

__all__ = ["POSITIONS", "CrossBlock", "DecoderBlock", "EncoderBlock", "MultiheadMixer", "replace_attention"]
