"""Theory: what is known in closed form about tokens as particles, each with its source, standing and errata.

Functions of floats, arrays or tensors on the CPU, in float64, safe for any beta. ``RESULTS`` is the catalogue.
"""

from ._arrays import Model
from .causal import CAUSAL_RATE, causal_linearisation, causal_rate
from .clustering import clustering_status
from .codes import (
    CODES,
    Code,
    code_energy,
    cross_polytope,
    cross_polytope_energy,
    polygon,
    polygon_energy,
    simplex,
    simplex_energy,
)
from .energies import dirac_energy, equiangular_energy, monotone_step_bound, uniform_energy
from .equiangular import (
    equiangular_cosine,
    equiangular_gap,
    equiangular_time,
    equiangular_velocity,
    phase_curve,
)
from .geometry import (
    cap_measure,
    equiangular_deviation_bound,
    expected_strong_centres,
    hemisphere_probability,
    merging_dimension_log2,
)
from .kuramoto import cross_ratios, ring_spectrum
from .layer_map import layer_gap, layer_phase_curve, layer_times
from .long_context import attention_cosine, critical_gamma, long_context_cosine
from .metastability import (
    cap_velocity_bound,
    collapse_time,
    collapse_time_bound,
    collapse_velocity,
    plateau_energy,
    staircase_plateaux,
)
from .noise import (
    continuous_transition_beta,
    critical_coupling,
    critical_kappa,
    noisy_growth_rate,
    transition_slope,
)
from .normalisation import SCHEMES, Scheme, normalised_equiangular
from .pairing import Merge, paired_angle, pairing_log_time, pairing_sequence
from .rates import MEAN_FIELD_RATE, consensus_rate, hemisphere_rate_bound
from .results import RESULTS, Result
from .spectrum import fastest_degree, growth_rate
from .two_clusters import (
    two_cluster_angle,
    two_cluster_time,
    two_cluster_time_asymptotic,
    two_cluster_velocity,
)
from .unprojected import leading_functional, polytope_gap

__all__ = [
    "CAUSAL_RATE",
    "CODES",
    "MEAN_FIELD_RATE",
    "RESULTS",
    "SCHEMES",
    "Code",
    "Merge",
    "Model",
    "Result",
    "Scheme",
    "attention_cosine",
    "cap_measure",
    "cap_velocity_bound",
    "causal_linearisation",
    "causal_rate",
    "clustering_status",
    "code_energy",
    "collapse_time",
    "collapse_time_bound",
    "collapse_velocity",
    "consensus_rate",
    "continuous_transition_beta",
    "critical_coupling",
    "critical_gamma",
    "critical_kappa",
    "cross_polytope",
    "cross_polytope_energy",
    "cross_ratios",
    "dirac_energy",
    "equiangular_cosine",
    "equiangular_deviation_bound",
    "equiangular_energy",
    "equiangular_gap",
    "equiangular_time",
    "equiangular_velocity",
    "expected_strong_centres",
    "fastest_degree",
    "growth_rate",
    "hemisphere_probability",
    "hemisphere_rate_bound",
    "layer_gap",
    "layer_phase_curve",
    "layer_times",
    "leading_functional",
    "long_context_cosine",
    "merging_dimension_log2",
    "monotone_step_bound",
    "noisy_growth_rate",
    "normalised_equiangular",
    "paired_angle",
    "pairing_log_time",
    "pairing_sequence",
    "phase_curve",
    "plateau_energy",
    "polygon",
    "polygon_energy",
    "polytope_gap",
    "ring_spectrum",
    "simplex",
    "simplex_energy",
    "staircase_plateaux",
    "transition_slope",
    "two_cluster_angle",
    "two_cluster_time",
    "two_cluster_time_asymptotic",
    "two_cluster_velocity",
    "uniform_energy",
]
