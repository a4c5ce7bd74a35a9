"""Dynamics: tokens as interacting particles, depth as time.

``simulate(Field(Attention(beta)), x0, times)`` runs tokens; spaces say where they live, steppers how they move, events what
stops them; ``sweep`` does it over inverse temperatures, sizes and seeds. ``theory`` holds every closed form with its source,
``observables`` streamed functions of a state.
"""

from typing import TYPE_CHECKING, Any

from . import observables
from .adaptive import Adaptive, Stiff
from .arc_length import ArcLength
from .clusters import MergeHistory, Stage, merge_model
from .effective_beta import EffectiveBeta, HeadBeta, effective_beta
from .events import ClustersLeft, Event, GradientBelow, HemisphereEntered, PairMerged, Plateau
from .fields import Field, FieldEnergy, Schedule, perceptron
from .gram import Gram, gram_matrix
from .hidden import LayerReading, ParticleReport, Spread, particle_report
from .linearisation import Linearisation, linearise
from .normalised import Normalised
from .simulate import Solution, simulate
from .spaces import Circle, Euclidean, Rescaled, Space, Sphere
from .status import Status
from .steppers import RK4, Euler, EulerMaruyama, Layer, Stepper, stability_bound
from .sweep import Statistic, SweepResult, sweep
from .terms import Attention, Mixed
from .trajectory import Trajectory

if TYPE_CHECKING:
    from . import pictures, theory

__all__ = [
    "RK4",
    "Adaptive",
    "ArcLength",
    "Attention",
    "Circle",
    "ClustersLeft",
    "EffectiveBeta",
    "Euclidean",
    "Euler",
    "EulerMaruyama",
    "Event",
    "Field",
    "FieldEnergy",
    "GradientBelow",
    "Gram",
    "HeadBeta",
    "HemisphereEntered",
    "Layer",
    "LayerReading",
    "Linearisation",
    "MergeHistory",
    "Mixed",
    "Normalised",
    "PairMerged",
    "ParticleReport",
    "Plateau",
    "Rescaled",
    "Schedule",
    "Solution",
    "Space",
    "Sphere",
    "Spread",
    "Stage",
    "Statistic",
    "Status",
    "Stepper",
    "Stiff",
    "SweepResult",
    "Trajectory",
    "effective_beta",
    "gram_matrix",
    "linearise",
    "merge_model",
    "observables",
    "particle_report",
    "perceptron",
    "pictures",
    "simulate",
    "stability_bound",
    "sweep",
    "theory",
]


def __getattr__(name: str) -> Any:
    """``theory`` and ``pictures`` on first use: quadratures bring SciPy's integrators, which a simulation does without."""
    if name in ("pictures", "theory"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
