"""The mixed product as a layer, and the known layers as its instances.

``MixedProduct`` puts a structure (operators, given or computed) and values (a matrix for each) together; ``layers`` are
the constructors; ``from_torch`` and ``to_torch`` convert the layers of torch and PyG.
"""

from . import layers
from .attention import Attention
from .convert import from_torch, to_torch
from .graphs import (
    AdditiveEdges,
    BilinearEdges,
    Chebyshev,
    Gaussians,
    Neighbours,
    Powers,
    Propagation,
    Relations,
    Rings,
)
from .product import MixedProduct, Mixtures, Structure, Together
from .shifts import Average, Own, Shifts, Taps
from .values import Bases, Carried, Concatenated, Full, Joined, LowRank, Tied, Values

__all__ = [
    "AdditiveEdges",
    "Attention",
    "Average",
    "Bases",
    "BilinearEdges",
    "Carried",
    "Chebyshev",
    "Concatenated",
    "Full",
    "Gaussians",
    "Joined",
    "LowRank",
    "MixedProduct",
    "Mixtures",
    "Neighbours",
    "Own",
    "Powers",
    "Propagation",
    "Relations",
    "Rings",
    "Shifts",
    "Structure",
    "Taps",
    "Tied",
    "Together",
    "Values",
    "from_torch",
    "layers",
    "to_torch",
]
