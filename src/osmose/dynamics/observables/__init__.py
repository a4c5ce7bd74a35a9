"""Observables: pure functions of a batch of states ``x (..., n, d)`` with optional masses ``(..., n)``, streamed.

What they cost stands with each. ``Recorder`` follows a run with them and keeps the results alone.
"""

from .attention import attention_entropy, attention_operator, boolean_distance, leaders, listeners
from .centres import renyi_centres
from .distances import closest, diameter, gap, gaps, nearest
from .histogram import Histogram, close_share, mean_product, product_histogram
from .hull import hemisphere_margin, hemisphere_pole, hull_volume
from .interaction import dissipation, energy, energy_rate, log_interaction, normalised_energy
from .linkage import Clusters, cluster_count, cluster_scale, clusters
from .measure import distance_to_dirac, effective_rank, gram_spectrum, order_parameter
from .record import (
    EnergyBalance,
    Observable,
    Observer,
    Recorder,
    Watched,
    cumulative_integral,
    standard_observables,
)

__all__ = [
    "Clusters",
    "EnergyBalance",
    "Histogram",
    "Observable",
    "Observer",
    "Recorder",
    "Watched",
    "attention_entropy",
    "attention_operator",
    "boolean_distance",
    "close_share",
    "closest",
    "cluster_count",
    "cluster_scale",
    "clusters",
    "cumulative_integral",
    "diameter",
    "dissipation",
    "distance_to_dirac",
    "effective_rank",
    "energy",
    "energy_rate",
    "gap",
    "gaps",
    "gram_spectrum",
    "hemisphere_margin",
    "hemisphere_pole",
    "hull_volume",
    "leaders",
    "listeners",
    "log_interaction",
    "mean_product",
    "nearest",
    "normalised_energy",
    "order_parameter",
    "product_histogram",
    "renyi_centres",
    "standard_observables",
]
