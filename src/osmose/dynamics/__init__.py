"""Dynamics: tokens as interacting particles, depth as time.

``simulate(Field(Attention(beta)), x0, times)`` runs tokens; spaces say where they live, steppers how they move, events what
stops them. ``theory`` holds every closed form with its source, ``observables`` streamed functions of a state.
"""

from typing import TYPE_CHECKING, Any

from . import observables
from .adaptive import Adaptive, Stiff
from .arc_length import ArcLength
from .clusters import MergeHistory, Stage, merge_model
from .events import ClustersLeft, Event, GradientBelow, HemisphereEntered, PairMerged, Plateau
from .fields import Field, FieldEnergy, Schedule, perceptron
from .gram import Gram, gram_matrix
from .normalised import Normalised
from .simulate import Solution, simulate
from .spaces import Circle, Euclidean, Rescaled, Space, Sphere
from .status import Status
from .steppers import RK4, Euler, EulerMaruyama, Layer, Stepper, stability_bound
from .terms import Attention, Mixed

if TYPE_CHECKING:
    from . import pictures, theory

__all__ = [
    "RK4",
    "Adaptive",
    "ArcLength",
    "Attention",
    "Circle",
    "ClustersLeft",
    "Euclidean",
    "Euler",
    "EulerMaruyama",
    "Event",
    "Field",
    "FieldEnergy",
    "GradientBelow",
    "Gram",
    "HemisphereEntered",
    "Layer",
    "MergeHistory",
    "Mixed",
    "Normalised",
    "PairMerged",
    "Plateau",
    "Rescaled",
    "Schedule",
    "Solution",
    "Space",
    "Sphere",
    "Stage",
    "Status",
    "Stepper",
    "Stiff",
    "gram_matrix",
    "merge_model",
    "observables",
    "perceptron",
    "pictures",
    "simulate",
    "stability_bound",
    "theory",
]


def __getattr__(name: str) -> Any:
    """``theory`` and ``pictures`` on first use: quadratures bring SciPy's integrators, which a simulation does without."""
    if name in ("pictures", "theory"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
