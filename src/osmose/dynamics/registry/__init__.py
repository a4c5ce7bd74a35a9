"""Named systems: canonical parameters, sources, targets; ``named("movie/sphere").simulate()``, ``reproduce("movie/sphere")``.

A family of systems is a file that holds their class and a dictionary ``SYSTEMS`` of its named instances.
"""

import difflib
from typing import Any

from . import (
    causal,
    centres,
    codes,
    equiangular,
    hyperplanes,
    invariants,
    layers,
    leaders,
    long_context,
    low_rank,
    merging,
    metastable,
    noisy,
    normalisation,
    one_dimension,
    pairing,
    phase,
    rates,
    separation,
    sphere,
    symmetry,
    transition,
    unprojected,
    weights,
)
from .base import Findings, Problem, System, Target
from .report import Check, Report, reproduce

__all__ = [
    "SYSTEMS",
    "Check",
    "Findings",
    "Problem",
    "Report",
    "System",
    "Target",
    "named",
    "reproduce",
]

SYSTEMS: dict[str, System] = {
    **sphere.SYSTEMS,
    **equiangular.SYSTEMS,
    **phase.SYSTEMS,
    **layers.SYSTEMS,
    **metastable.SYSTEMS,
    **merging.SYSTEMS,
    **pairing.SYSTEMS,
    **separation.SYSTEMS,
    **invariants.SYSTEMS,
    **symmetry.SYSTEMS,
    **rates.SYSTEMS,
    **long_context.SYSTEMS,
    **unprojected.SYSTEMS,
    **hyperplanes.SYSTEMS,
    **one_dimension.SYSTEMS,
    **leaders.SYSTEMS,
    **low_rank.SYSTEMS,
    **weights.SYSTEMS,
    **codes.SYSTEMS,
    **normalisation.SYSTEMS,
    **causal.SYSTEMS,
    **centres.SYSTEMS,
    **noisy.SYSTEMS,
    **transition.SYSTEMS,
}


def named(name: str, **parameters: Any) -> System:
    """The system of a name, with its canonical parameters or others.

    Raises:
        ValueError: a name or a parameter that does not exist.

    >>> named("movie/sphere", beta=4.0).parameters["beta"]
    4.0
    """
    if name not in SYSTEMS:
        near = difflib.get_close_matches(name, SYSTEMS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(SYSTEMS)}."
        raise ValueError(f"named: unknown system {name!r}; {hint}")
    return SYSTEMS[name].changed(**parameters)
