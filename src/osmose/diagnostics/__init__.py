"""Taking a model apart: what its operators are, and what in them is structure."""

from .identify import Identification, NotLinearError, identify

__all__ = ["Identification", "NotLinearError", "identify"]
