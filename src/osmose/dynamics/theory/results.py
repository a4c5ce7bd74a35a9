"""The catalogue: every closed form with its source, its standing and what is wrong in print.

``standing``: ``theorem`` (proved in the source; for labels of 2312.10794 version 5 is meant, Bull. AMS 62(3), 2025, which
numbers otherwise than version 1), ``derived`` (worked out here, and checked numerically).
Labels follow the survey 2512.01868 and a public Lean 4 formalisation, not the papers' own text; where a number is not
confirmed the section or subject stands alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from . import (
    causal,
    clustering,
    codes,
    energies,
    equiangular,
    geometry,
    kuramoto,
    layer_map,
    long_context,
    metastability,
    noise,
    normalisation,
    pairing,
    rates,
    spectrum,
    two_clusters,
    unprojected,
)


@dataclass(frozen=True)
class Result:
    """One closed form.

    Attributes:
        function: computes it.
        statement: what it says, in one line.
        source: paper, version and label.
        standing: ``theorem`` or ``derived``.
        errata: what is known to be wrong in the printed form; empty if nothing.
    """

    function: Callable[..., Any]
    statement: str
    source: str
    standing: Literal["theorem", "derived"]
    errata: str = ""


RESULTS: dict[str, Result] = {
    "equiangular": Result(
        equiangular.equiangular_cosine,
        "inner product rho(t) of equiangular tokens, SA and USA",
        "2312.10794v5, theorem 6.8",
        "theorem",
    ),
    "equiangular time": Result(
        equiangular.equiangular_time,
        "the time to reach rho, a quadrature",
        "from 2312.10794v5, theorem 6.8",
        "derived",
    ),
    "phase curve": Result(
        equiangular.phase_curve,
        "beta*(t) with T_beta(1 - delta) = t",
        "from 2312.10794v5, theorem 6.8 and the phase diagram",
        "derived",
        "the published overlay is placed by hand: about 6.45 at t = 30 (n = 32), exact 6.9065",
    ),
    "layer map": Result(
        layer_map.layer_gap,
        "1 - rho after one residual layer of step h",
        "from 2312.10794v5, section 2",
        "derived",
    ),
    "energy of a Dirac": Result(
        energies.dirac_energy, "the maximum, e^beta / (2 beta)", "2312.10794v5, section 3", "theorem"
    ),
    "energy of the uniform measure": Result(
        energies.uniform_energy, "the minimum for beta > 0", "from 2312.10794v5, section 3", "derived"
    ),
    "monotone steps": Result(
        energies.monotone_step_bound,
        "steps h up to which the energy never falls",
        "from 2312.10794v5, section 3",
        "derived",
    ),
    "growth spectrum": Result(
        spectrum.growth_rate,
        "growth of the harmonic l about the uniform measure",
        "derived; used in 2410.06833 and by Bruno, Pasqualotto and Agazzi",
        "derived",
    ),
    "fastest degree": Result(
        spectrum.fastest_degree, "the pattern that shows first, near sqrt(2 beta)", "derived", "derived"
    ),
    "two clusters": Result(
        two_clusters.two_cluster_time,
        "merge time of two clusters",
        "for the setting of 2410.06833",
        "derived",
    ),
    "two clusters, large beta": Result(
        two_clusters.two_cluster_time_asymptotic,
        "e^{beta(1-c)} / (2 beta sin^2)",
        "for the setting of 2410.06833",
        "derived",
    ),
    "pairing": Result(
        pairing.pairing_sequence,
        "the closest pair merges, others stand still",
        "Bruno, Pasqualotto and Agazzi, as told in 2512.01868",
        "derived",
        "the survey rescales time by the initial inner product, which sends the merge to 0 like 1/beta; the current one works",
    ),
    "staircase": Result(
        metastability.staircase_plateaux, "plateaux sum_k (m_k/n)^2 of the energy", "2410.06833", "derived"
    ),
    "collapse lemma": Result(
        metastability.collapse_time_bound,
        "a bound on the time of collapse inside a cap",
        "2410.06833",
        "theorem",
    ),
    "cap velocity": Result(
        metastability.cap_velocity_bound,
        "the least inner product inside a cap rises",
        "2410.06833",
        "theorem",
    ),
    "noise threshold": Result(
        noise.critical_kappa,
        "kappa_c = beta / a_1(beta): the uniform measure is stable up to it",
        "2606.05140",
        "theorem",
        "convention: their K_# is half of kappa_c",
    ),
    "continuous transition": Result(
        noise.continuous_transition_beta,
        "beta*_d, root of I_{d/2+1}/I_{d/2} = 1/d",
        "2606.05140; d = 2 also derived",
        "theorem",
    ),
    "beginning of the transition": Result(
        noise.transition_slope,
        "r^2 = A (kappa/kappa_c - 1) near uniform, A = (d+2)(1-q)/(d(1-dq)), q = I_{d/2+1}/I_{d/2}",
        "for 2606.05140",
        "derived",
    ),
    "consensus rate": Result(
        rates.consensus_rate, "2 (SA), 2 e^beta (USA) for 1 - <x, y>", "linearisation", "derived"
    ),
    "hemisphere rate": Result(
        rates.hemisphere_rate_bound, "1 / (2 n e^{2 beta})", "2312.10794v5, statement 6.4", "theorem"
    ),
    "almost every start": Result(
        clustering.clustering_status,
        "which beta and d bring almost every start to one cluster",
        "Markdahl 2017; Criscitiello et al. 2024; 2507.22857",
        "theorem",
    ),
    "hemisphere": Result(
        geometry.hemisphere_probability, "n points lie in a hemisphere (Wendel)", "Wendel 1962", "theorem"
    ),
    "high dimension": Result(
        geometry.equiangular_deviation_bound,
        "near-orthogonal tokens follow rho(t)",
        "2312.10794v5, theorem 6.9",
        "theorem",
    ),
    "strong centres": Result(
        geometry.expected_strong_centres,
        "expected number of strong Renyi centres",
        "for 2411.04990",
        "derived",
        "2411.04990: a sign in the condition for fixed centres (reported)",
    ),
    "causal rate": Result(causal.causal_rate, "1 - 1/k, the slowest 1/2", "for 2411.04990", "derived"),
    "optimal codes": Result(
        codes.code_energy,
        "sharp configurations have the least energy at every beta",
        "Cohn and Kumar 2007; 2312.10794v5, on V = -I",
        "theorem",
        "the printed dichotomy (m > 1 inner products) misses m = 1, the antipodal pair",
    ),
    "cross-ratios": Result(
        kuramoto.cross_ratios,
        "conserved at beta = 0 in every dimension",
        "Watanabe and Strogatz 1994; 2312.10794v5, section 7",
        "theorem",
    ),
    "rings of clusters": Result(
        kuramoto.ring_spectrum,
        "three clusters are stable iff beta < -2/3",
        "for 2507.22857",
        "derived",
    ),
    "long context": Result(
        long_context.long_context_cosine, "1, 4 rho/(1 + 3 rho), rho", "2510.05554", "theorem"
    ),
    "normalisation schemes": Result(
        normalisation.normalised_equiangular,
        "decay e^{-2t}, t^{-2}, e^{-4 sqrt t} by place of the LayerNorm",
        "2510.22026",
        "theorem",
        "theorem 4.3(ii) needs delta small independently of beta; the nGPT row should read alpha_t Var (reported)",
    ),
    "polytope": Result(
        unprojected.polytope_gap,
        "limits inside the limit hull",
        "2305.05465, on polytopes (V = I)",
        "theorem",
    ),
    "hyperplanes": Result(
        unprojected.leading_functional,
        "<phi, z> takes at most three values",
        "2305.05465, on hyperplanes (good triples)",
        "theorem",
    ),
}
"""Every closed form by name."""
