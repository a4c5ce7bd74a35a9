"""osmose: mixing operators for PyTorch.

Attention as diffusion, flow, interacting particles and convolution, in one framework:
``x <- Step(x, sum_k Law(C_k * B_k) @ x @ Theta_k)``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .__about__ import __version__

if TYPE_CHECKING:
    from . import diagnostics, dynamics, energy, inspection, laws, mixers, models, nn, operators, structure
    from .energy import DescentMonitor, Energy
    from .models import DIFFormer
    from .nn import MultiheadMixer
    from .nn.mixed import MixedProduct
    from .ops.diffusion import DiffusionState, diffusion_attention
    from .ops.flow import FlowState, flow_attention
    from .tokens import Tokens

__all__ = [
    "DIFFormer",
    "DescentMonitor",
    "DiffusionState",
    "Energy",
    "FlowState",
    "MixedProduct",
    "MultiheadMixer",
    "Tokens",
    "__version__",
    "diagnostics",
    "diffusion_attention",
    "dynamics",
    "energy",
    "flow_attention",
    "inspection",
    "laws",
    "mixers",
    "models",
    "nn",
    "operators",
    "structure",
]

_HOME = {
    "DIFFormer": ".models",
    "DescentMonitor": ".energy",
    "DiffusionState": ".ops.diffusion",
    "Energy": ".energy",
    "FlowState": ".ops.flow",
    "MixedProduct": ".nn.mixed",
    "MultiheadMixer": ".nn",
    "Tokens": ".tokens",
    "diffusion_attention": ".ops.diffusion",
    "flow_attention": ".ops.flow",
}


def __getattr__(name: str) -> Any:
    """Everything is imported when first asked for: the command line answers without torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
