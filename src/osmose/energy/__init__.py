"""The energy picks the kernel: pair weights, energies with graph and source, step bounds, a descent monitor.

One module for diffusion and, on the sphere, for particles.
"""

from .energy import Energy
from .monitor import DescentMonitor, LayerReport
from .weights import Custom, Gaussian, PairWeight, Sigmoid, Simple

__all__ = ["Custom", "DescentMonitor", "Energy", "Gaussian", "LayerReport", "PairWeight", "Sigmoid", "Simple"]
