"""Attention dynamics: the numbers of the closed forms, to the digits with which they are known."""

import math

import numpy as np
import pytest
import torch

from osmose.dynamics import theory
from osmose.dynamics.theory import (
    CODES,
    SCHEMES,
    continuous_transition_beta,
    critical_coupling,
    critical_kappa,
    equiangular_cosine,
    equiangular_gap,
    equiangular_time,
    fastest_degree,
    growth_rate,
    layer_phase_curve,
    layer_times,
    normalised_equiangular,
    phase_curve,
    ring_spectrum,
    staircase_plateaux,
    two_cluster_time,
)


def printed(value, want: str):
    """Whether a value rounds to what is printed."""
    places = len(want.partition(".")[2])
    return round(float(value), places) == float(want)


@pytest.mark.parametrize(
    ("beta", "at", "time"),
    [
        (0, "0.166429 0.626160 0.998549 1.000000", "5.186261"),
        (1, "0.151849 0.589773 0.998284 1.000000", "5.270284"),
        (4, "0.035441 0.118066 0.952775 0.999998", "6.953502"),
    ],
)
def test_equiangular_tokens_of_sa(beta, at, time):
    for value, want in zip(equiangular_cosine([1, 2, 5, 10], beta, 32), at.split(), strict=True):
        assert printed(value, want)
    assert printed(equiangular_time(0.999, beta, 32), time)


def test_equiangular_tokens_at_a_beta_beside_which_paces_underflow():
    """At beta = 2000 nothing happens before t = e^1990, and the answer says so without a warning."""
    for model in ("SA", "USA"):
        rho = theory.equiangular_cosine([0.0, 1.0, 1e300], 2000.0, 4, model=model)
        assert np.isfinite(rho).all()
    assert theory.equiangular_cosine([0.0, 1.0, 1e300], 2000.0, 4) == pytest.approx([0.0] * 3, abs=1e-15)


def test_equiangular_tokens_of_usa():
    assert printed(equiangular_cosine(1, 1, 32, model="USA"), "0.189942")
    assert printed(equiangular_cosine(1, 4, 32, model="USA"), "0.437360")


@pytest.mark.parametrize(
    ("beta", "times"), [(0, (5.22, 5.5, 6.5, 8)), (4, (7.01, 7.5, 9.5, 12))], ids=["b0", "b4"]
)
def test_the_layer_map_is_late(beta, times):
    for h, want in zip((0.01, 0.1, 0.5, 1), times, strict=True):
        assert layer_times(0.999, beta, 32, h) == pytest.approx(want)


def test_phase_curve():
    assert [round(b, 4) for b in phase_curve([10, 30], 32)] == [5.1099, 6.9065]
    # the last state before t = 30 of a run with h = 0.1
    assert printed(layer_phase_curve(299, 32, 0.1), "6.780")


def test_rates_of_the_last_approach():
    t = np.array([12.0, 12.5])
    for beta in (0.5, 3):
        slope = -np.diff(np.log(equiangular_gap(t, beta, 8)))[0] / 0.5
        assert slope == pytest.approx(theory.consensus_rate(beta), rel=1e-4)
    usa = -np.diff(np.log(equiangular_gap([5.0, 5.1], 1, 8, model="USA")))[0] / 0.1
    assert printed(usa, "5.4366")
    assert printed(theory.consensus_rate(1.0, model="USA"), "5.4366")


@pytest.mark.parametrize(
    ("beta", "degree", "want"), [(4, 2, "0.56824"), (9, 4, "0.70450"), (25, 7, "0.72580")]
)
def test_growth_on_the_circle(beta, degree, want):
    assert printed(growth_rate(degree, beta, 2), want)


def test_growth_on_the_sphere_and_its_maximum():
    rates = growth_rate([1, 2, 3], 4, 3, model="USA", scaled=True)
    assert all(printed(r, w) for r, w in zip(rates, ("0.046901", "0.081909", "0.076634"), strict=True))
    assert [fastest_degree(b, 2) for b in (25, 100, 400)] == [7, 14, 28]
    assert growth_rate(fastest_degree(1e5, 2), 1e5, 2) == pytest.approx(2 / math.e, rel=1e-4)


def test_three_clusters_are_stable_below_minus_two_thirds():
    assert printed(ring_spectrum(3, -0.66, model="USA")[0], "0.00695")
    assert printed(ring_spectrum(3, -0.667, model="USA")[0], "-0.000349")
    for model in ("SA", "USA"):
        assert (
            ring_spectrum(3, -2 / 3 - 1e-6, model=model)[0]
            < 0
            < ring_spectrum(3, -2 / 3 + 1e-6, model=model)[0]
        )


def test_two_clusters():
    assert printed(two_cluster_time(0.01, 4), "12.33")
    assert printed(two_cluster_time(0.01, 9), "468.21")
    log_time = two_cluster_time(0.01, 2000, log=True)
    assert log_time == pytest.approx(theory.two_cluster_time_asymptotic(0.0, 2000, log=True), abs=1e-3)


def test_plateaux_of_five_tokens():
    steps = staircase_plateaux([(0, 1), (0, 2), (3, 4), (2, 3)], 5)
    assert steps == pytest.approx([0.20, 0.28, 0.44, 0.52, 1], abs=1e-15)


@pytest.mark.parametrize(
    ("name", "mild", "steep"),
    [
        ("tetrahedron", "0.44769785", "0.25001748"),
        ("octahedron", "0.43447551", "0.16689033"),
        ("icosahedron", "0.43234846", "0.08834004"),
    ],
)
def test_energies_of_optimal_codes(name, mild, steep):
    assert printed(CODES[name].energy(1), mild)
    assert printed(CODES[name].energy(8), steep)


def test_hemisphere_probability():
    assert printed(theory.hemisphere_probability(8, 3), "0.2266")
    assert theory.hemisphere_probability(32, 3) == pytest.approx(2.3e-7, rel=0.02)
    assert theory.merging_dimension_log2(32) == 704


def test_strong_centres():
    assert printed(theory.expected_strong_centres(400, 0.2, 2), "15.71")


def test_noise():
    assert printed(continuous_transition_beta(2), "2.446918")
    assert printed(continuous_transition_beta(3), "1.816155")
    for d in (2, 3, 10):
        assert critical_kappa(0.0, d) == d
        assert critical_kappa(1e-6, d) == pytest.approx(d, rel=1e-6)
        b, gamma = 3.0, math.gamma(d / 2)
        from scipy.special import iv

        printed_form = b ** (d / 2) / (2 ** (d / 2) * gamma * iv(d / 2, b))
        assert critical_coupling(b, d) == pytest.approx(printed_form, rel=1e-12)


@pytest.mark.parametrize(
    ("scheme", "at", "want", "within"),
    [
        ("post-ln", 15, "2.0000", 5e-5),
        ("ngpt", 15, "2.0000", 5e-5),
        ("sqrt-ln", 300, "4.0000", 5e-5),
        ("pre-ln", 1500, "2.002", 1e-3),
        ("peri-ln", 1500, "1.9998", 1e-4),
        ("mix-ln", 1500, "2.002", 2e-3),
    ],
)
def test_decay_under_normalisation_schemes(scheme, at, want, within):
    t = np.array([at, 1.01 * at])
    clock = SCHEMES.get(scheme, SCHEMES["pre-ln"]).clock
    gap, _ = normalised_equiangular(t, scheme, 1.0, 32, switch=3.0)
    slope = -np.diff(np.log(gap))[0] / np.diff(clock(t))[0]
    assert slope == pytest.approx(float(want), abs=within)


def test_long_context_at_and_beside_the_threshold():
    rho = 0.3
    gamma = theory.critical_gamma(rho)
    for factor, want in ((0.9, 1.0), (1.0, 4 * rho / (1 + 3 * rho)), (1.1, rho)):
        assert theory.long_context_cosine(rho, factor * gamma) == pytest.approx(want)
        n = 10**120
        finite = theory.attention_cosine(rho, factor * gamma * math.log(n), n)
        assert finite == pytest.approx(want, abs=1e-9)


def test_causal_rates():
    assert theory.causal_rate([2, 3]).tolist() == pytest.approx([1 / 2, 2 / 3])
    values = np.sort(np.linalg.eigvals(theory.causal_linearisation(6)).real)[::-1]
    assert values == pytest.approx(
        sorted((-theory.causal_rate(np.arange(1, 7))).tolist(), reverse=True), abs=1e-12
    )
    assert -values[1] == pytest.approx(theory.CAUSAL_RATE)


def test_which_starts_cluster():
    assert [theory.clustering_status(b, 2) for b in (-1, -0.5, -0.1, 9)] == [
        "false",
        "open",
        "theorem",
        "theorem",
    ]
    assert [theory.clustering_status(b, 3) for b in (-1, 0, 9)] == ["open", "theorem", "theorem"]


def test_the_catalogue_is_whole():
    """Every entry names a function that is public, and says where it is from."""
    public = {id(getattr(theory, name)) for name in theory.__all__}
    for name, result in theory.RESULTS.items():
        assert id(result.function) in public, name
        assert result.statement, name
        assert result.source, name
        assert result.standing in ("theorem", "derived"), name
    noted = {name for name, result in theory.RESULTS.items() if result.errata}
    assert {"phase curve", "pairing", "optimal codes", "normalisation schemes", "strong centres"} <= noted


@pytest.mark.parametrize("kind", [float, np.float64, torch.tensor])
def test_scalars_give_floats_and_arrays_keep_their_shape(kind):
    assert isinstance(equiangular_cosine(kind(1.0), 1.0, 4), float)
    assert isinstance(growth_rate(2, kind(4.0), 3), float)
    t = torch.rand(2, 3, dtype=torch.float64)
    assert equiangular_cosine(t, 1.0, 4).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: equiangular_time(0.5, 1, 1), "n is 1"),
        (lambda: equiangular_time(0.5, 1, 4, start=-1 / 3), "simplex"),
        (lambda: equiangular_time(0.1, 1, 4, start=0.5), "rho holds 0.1"),
        (lambda: equiangular_cosine(-1.0, 1, 4), "t holds -1"),
        (lambda: equiangular_cosine(1.0, 1, 4, model="usa"), "'SA'"),
        (lambda: growth_rate(1.5, 1, 3), "integers"),
        (lambda: two_cluster_time(1.0, 1, start=0.5), "start"),
        (lambda: two_cluster_time(0.1, 1, -1.0), "masses"),
        (lambda: theory.dirac_energy(0.0), "beta is 0"),
        (lambda: normalised_equiangular(1.0, "preln", 1, 4), "post-ln"),
        (lambda: theory.collapse_time_bound(0.5, 1.0, 1.0), "beta > 1"),
        (lambda: theory.leading_functional(np.diag([1.0, 1.0])), "larger in size"),
        (lambda: staircase_plateaux([(0, 1), (1, 0)], 3), "not met"),
        (lambda: theory.pairing_sequence(np.ones((2, 2)), 5.0), "unit vectors"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
