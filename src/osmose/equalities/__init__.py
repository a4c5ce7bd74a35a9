"""Our layers against those that others wrote: torch, PyG, and the formulas of the papers' code.

``equalities()`` is the suite behind ``osmose verify``, the tests and the table of instances.
"""

from .registry import AGAINST, Equality, Trial, equalities

__all__ = ["AGAINST", "Equality", "Trial", "equalities"]
