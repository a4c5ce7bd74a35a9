"""One system of a run as a path: geodesics between saved states, which system, which clusters; seeded."""

import math

import pytest
import torch

from osmose.dynamics import (
    Attention,
    Circle,
    Euclidean,
    Field,
    Gram,
    Normalised,
    Rescaled,
    Schedule,
    Sphere,
    gram_matrix,
    simulate,
)
from osmose.dynamics.observables import mean_product, product_histogram
from osmose.dynamics.trajectory import Trajectory
from osmose.tokens import Tokens

from .test_dynamics_fields import F64, draw, sphere

FIELD = Field(Attention(4.0))


def test_geodesic_of_the_sphere_is_an_arc_run_evenly():
    x, y = sphere(5, 4), sphere(5, 4, seed=1)
    whole = Sphere().distance(x, y)
    for share in (0.0, 1e-9, 0.25, 0.5, 1.0):
        z = Sphere().between(x, y, share)
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(5, dtype=F64), rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(Sphere().distance(x, z), share * whole, rtol=1e-7, atol=1e-15)
        torch.testing.assert_close(Sphere().distance(z, y), (1 - share) * whole, rtol=1e-7, atol=2e-15)


def test_geodesic_between_antipodes_and_equal_points():
    x = torch.eye(3, dtype=F64)[:1]
    half = Sphere().between(x, -x, 0.5)
    torch.testing.assert_close(half.norm(dim=-1), torch.ones(1, dtype=F64))
    assert abs(float((half * x).sum())) < 1e-12
    torch.testing.assert_close(Sphere().between(x, x, 0.3), x)
    close = Sphere().retract(x, torch.tensor([[0.0, 1e-12, 0.0]], dtype=F64))
    assert float(Sphere().between(x, close, 0.5)[0, 1]) == pytest.approx(5e-13, rel=1e-9)


def test_geodesic_of_tokens_with_length():
    x, y = 2 * sphere(3, 4), 8 * sphere(3, 4, seed=1)
    z = Normalised("pre-ln").between(x, y, 0.5)
    torch.testing.assert_close(z.norm(dim=-1), torch.full((3,), 4.0, dtype=F64))
    torch.testing.assert_close(z / 4, Sphere().between(x / 2, y / 8, 0.5))
    assert bool((Normalised("pre-ln").between(torch.zeros(1, 4, dtype=F64), y[:1], 0.5) == 0).all())


def test_states_at_saved_times_are_those_saved_and_others_lie_on_the_space():
    x0 = sphere(6, 3)
    run = Trajectory.of(simulate(FIELD, x0, [0.0, 0.4, 0.8]))
    assert torch.equal(run.at([0.0, 0.8, 0.4]), run.states[[0, 2, 1]])
    between = run.at([0.2, 0.5, 0.79])
    torch.testing.assert_close(between.norm(dim=-1), torch.ones(3, 6, dtype=F64), rtol=1e-15, atol=1e-15)
    true = simulate(FIELD, x0, [0.0, 0.2]).final
    assert Sphere().distance(between[0], true).max() < 0.1 * Sphere().distance(x0, true).max()


def test_even_in_log_time():
    angles = torch.tensor([[0.0], [1.0]], dtype=F64)
    run = Trajectory.of(simulate(FIELD, angles, [0.0, 1.0, 16.0], space=Circle()))
    a, b = run.states[1], run.states[2]
    torch.testing.assert_close(run.at([4.0], log=True)[0], (a + b) / 2)
    torch.testing.assert_close(run.at([4.0])[0], a + (b - a) / 5)
    torch.testing.assert_close(
        run.at([0.5], log=True)[0], (run.states[0] + a) / 2
    )  # from 0 there is no logarithm


def test_moments():
    run = Trajectory.of(simulate(FIELD, sphere(3, 3), [0.0, 0.5, 8.0]))
    assert run.moments(3).tolist() == [0.0, 4.0, 8.0]
    torch.testing.assert_close(run.moments(4, log=True), torch.tensor([0.0, 0.5, 2.0, 8.0], dtype=F64))
    torch.testing.assert_close(
        Trajectory.of(simulate(FIELD, sphere(3, 3), [1.0, 3.0, 4.0])).moments(3, log=True),
        torch.tensor([1.0, 2.0, 4.0], dtype=F64),
    )


def test_times_outside_the_run_are_refused():
    run = Trajectory.of(simulate(FIELD, sphere(3, 3), [0.0, 1.0]))
    with pytest.raises(ValueError, match="from 0 to 1"):
        run.at([1.5])
    last = Trajectory.of(simulate(FIELD, sphere(3, 3), [0.0, 1.0], save=False))
    assert last.times.tolist() == [1.0]
    with pytest.raises(ValueError, match="save=True"):
        last.at([0.0])


def test_which_system_of_a_batch():
    beta = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=F64)
    mass = torch.ones(2, 3, 4)
    mass[1, 2, 0] = 2.0
    field = Field(Attention(beta))
    solution = simulate(field, sphere(2, 3, 4, 3), [0.0, 1.0], tokens=Tokens(4, mass))
    for system in (5, (1, 2)):
        for given in (None, field):
            run = Trajectory.of(solution, system, given)
            assert run.index == 5
            assert run.beta == 6.0
            assert torch.equal(run.states, solution.states[:, 1, 2])
            assert run.mass is not None
            assert run.mass.tolist() == [2.0, 1.0, 1.0, 1.0]
    for wrong in (6, -1, (2, 0), (1,)):
        with pytest.raises(ValueError, match="the run has \\(2, 3\\)"):
            Trajectory.of(solution, wrong)
    with pytest.raises(ValueError, match="the run has one"):
        Trajectory.of(simulate(FIELD, sphere(3, 3), [0.0]), 1)


def test_schedules_and_single_systems_keep_their_field():
    pieces = Schedule([(0.0, FIELD), (1.0, Field(Attention(2.0)))])
    run = Trajectory.of(simulate(pieces, sphere(3, 3), [0.0, 2.0]))
    assert run.field.at(1.5).terms[0].beta == 2.0
    mixed = Field(Attention(1.0), Attention(2.0))
    assert Trajectory.of(simulate(mixed, sphere(3, 3), [0.0])).beta is None


def test_scale_of_clusters():
    def scale(beta, x, **options):
        return Trajectory.of(simulate(Field(Attention(beta)), x, [0.0], **options)).scale()

    assert scale(100.0, sphere(4, 3)) == pytest.approx(0.03)
    assert scale(-100.0, sphere(4, 3)) == pytest.approx(0.03)
    assert scale(1.0, sphere(4, 3)) == scale(0.0, sphere(4, 3)) == 0.1
    x = 7 * draw(9, 2)
    spread = (x - x.mean(0)).square().sum(-1).mean().sqrt()
    assert scale(1.0, x, space=Rescaled(1.0)) == pytest.approx(0.02 * float(spread))
    assert Trajectory.of(simulate(FIELD, x, [0.0], space=Euclidean())).scale(0.7) == 0.7


def test_fates_are_the_clusters_of_the_first_time_with_few():
    angles = torch.tensor([0.0, 0.5, 3.0, 3.4], dtype=F64)[:, None]
    solution = simulate(Field(Attention(9.0)), angles, torch.linspace(0, 12, 25), space=Circle())
    run = Trajectory.of(solution)
    assert run.clusters().count[[0, -1]].tolist() == [4, 2]
    assert run.fates(most=8).tolist() == [0, 1, 2, 3]
    assert run.fates(most=3).tolist() in ([0, 0, 1, 2], [0, 1, 2, 2])  # those that met first
    assert run.fates(most=2).tolist() == [0, 0, 1, 1]
    assert Trajectory.of(simulate(FIELD, angles[:1], [0.0], space=Circle())).fates() is None


def test_points_and_radii_by_space():
    x = 3 * sphere(4, 5)
    run = Trajectory.of(simulate(FIELD, x, [0.0], space=Normalised("pre-ln")))
    torch.testing.assert_close(run.radii(), torch.full((1, 4), 3.0, dtype=F64))
    torch.testing.assert_close(run.points()[0], x / 3)
    assert run.spherical
    assert Trajectory.of(simulate(FIELD, sphere(4, 3), [0.0])).radii() is None
    g = Trajectory.of(simulate(FIELD, gram_matrix(sphere(4, 9)), [0.0], space=Gram()))
    torch.testing.assert_close(g.points() @ g.points().mT, g.states)


@pytest.mark.parametrize("mass", [None, torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0])])
def test_mean_product_is_the_mean_of_pairs(mass):
    x = sphere(2, 5, 3)
    m = torch.ones(5, dtype=F64) if mass is None else mass.double()
    tokens = torch.repeat_interleave(x, m.long(), dim=-2)  # masses are tokens at one place
    k = tokens.shape[-2]
    off = ~torch.eye(k, dtype=torch.bool)
    expected = (tokens @ tokens.mT)[:, off].mean(-1)
    torch.testing.assert_close(mean_product(x, mass), expected)
    found = product_histogram(x, 4000, mass=mass)
    torch.testing.assert_close((found.share * found.centres).sum(-1), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(mean_product(x, mass, diagonal=True), (tokens @ tokens.mT).mean((-1, -2)))


def test_mean_product_of_weights():
    with pytest.raises(ValueError, match="diagonal=True"):
        mean_product(sphere(3, 3), torch.tensor([0.5, 1.0, 1.0]))
    assert float(mean_product(sphere(1, 3))) == 0.0
    assert math.isclose(float(mean_product(torch.ones(4, 1, dtype=F64))), 1.0)
