"""Small motions around a state, against closed forms and finite differences. Seeded."""

from __future__ import annotations

import math

import pytest
import torch

from osmose import Tokens
from osmose.dynamics import (
    Attention,
    Circle,
    Euclidean,
    Field,
    Gram,
    Sphere,
    gram_matrix,
    linearise,
    simulate,
    theory,
)
from osmose.dynamics.starts import equiangular, on_circle, seeded, uniform

RING = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64) * 2 * math.pi / 3


@pytest.mark.parametrize("beta", [-1.0, -0.667, -0.66, 0.5, 4.0])
@pytest.mark.parametrize(("law", "model"), [("row", "SA"), ("mean", "USA")])
def test_three_clusters_have_the_rates_of_theory(beta: float, law: str, model: str) -> None:
    field = Field(Attention(beta, law=law))
    angles = RING.repeat(2)  # two tokens in each, so that clusters can also spread
    want = [0.0, *theory.ring_spectrum(3, beta, model=model)]
    for space, x in ((Sphere(), on_circle(angles)), (Circle(), angles.unsqueeze(-1))):
        found = linearise(field, x, space=space)
        assert found.speed < 1e-15 * math.exp(abs(beta))
        off = (found.rates.real[:, None] - torch.tensor(want)).abs()
        assert float(off.amin(0).max()) < 1e-10, "each rate of theory is there"
        assert float(off.amin(1).max()) < 1e-10, "and no other"


def test_three_clusters_turn_stable_at_minus_two_thirds() -> None:
    indices = [linearise(Field(Attention(b)), on_circle(RING)).index() for b in (-0.66, -0.667)]
    assert indices == [2, 0]


@pytest.mark.parametrize("d", [2, 3, 5])
def test_consensus_attracts_at_the_rate_of_theory(d: int) -> None:
    x = torch.zeros(4, d, dtype=torch.float64)
    x[:, 0] = 1.0
    for law, model in (("row", "SA"), ("mean", "USA")):
        rates = linearise(Field(Attention(1.5, law=law)), x).rates.real
        # products close at twice the rate of distances
        fast = -float(theory.consensus_rate(1.5, model=model)) / 2
        assert torch.allclose(rates[: d - 1], torch.zeros(d - 1, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(
            rates[d - 1 :], torch.full((3 * (d - 1),), fast, dtype=torch.float64), atol=1e-10
        )


def test_the_simplex_is_a_saddle_and_its_unstable_direction_grows_at_its_rate() -> None:
    field, x = Field(Attention(1.0)), equiangular(4, 3, -1 / 3)
    found = linearise(field, x)
    assert found.index() > 0
    rate, size = float(found.rates[0].real), 1e-7
    pushed = Sphere().exp(x, size * found.directions[0].real / found.directions[0].real.norm())
    run = simulate(field, pushed, [0.0, 1.0, 2.0])
    away = (run.states - x).norm(dim=(-1, -2))
    # the direction may turn within its eigenspace; its length grows
    assert math.log(float(away[2] / away[1])) == pytest.approx(rate, rel=1e-4)


def test_rotations_are_neutral() -> None:
    found = linearise(Field(Attention(2.0, law="mean", value=-1.0)), equiangular(4, 3, -1 / 3))
    assert int((found.rates.abs() < 1e-10).sum()) == 3
    assert found.index() == 0, "the simplex is where repulsion rests"


def test_jacobian_is_that_of_finite_differences_with_masses() -> None:
    x = uniform(4, 3, generator=seeded(1))
    tokens = Tokens.of(4, mass=torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64))
    field = Field(Attention(2.0, value=0.7))
    found = linearise(field, x, tokens=tokens)
    assert found.jacobian.shape == (6, 6), "an absent token has no coordinates"
    assert float(found.directions[:, 2].abs().max()) == 0
    v, h = found.directions[0], 1e-6
    slope = torch.zeros_like(v)
    for part, unit in ((v.real, 1.0), (v.imag, 1j)):
        ahead, behind = (Sphere().retract(x, s * h * part) for s in (1, -1))
        ahead, behind = (Sphere().velocity(field, y, tokens, 0.0) for y in (ahead, behind))
        slope += unit * Sphere().tangent(x, (ahead - behind) / (2 * h))
    here = torch.tensor([0, 1, 3])
    torch.testing.assert_close(slope[here], (found.rates[0] * v)[here], atol=1e-8, rtol=1e-6)


def test_flat_space() -> None:
    w = torch.tensor([[0.3, 1.0], [0.0, -0.2]], dtype=torch.float64)
    field = Field(drift=lambda x, t: x @ w.mT)
    found = linearise(field, torch.ones(2, 2, dtype=torch.float64), space=Euclidean())
    assert found.rates.real.tolist() == pytest.approx([0.3, 0.3, -0.2, -0.2])


def test_batches_and_sizes_are_refused() -> None:
    field = Field(Attention(1.0))
    with pytest.raises(ValueError, match=r"expected one system \(n, d\)"):
        linearise(field, torch.eye(3, dtype=torch.float64)[None])
    with pytest.raises(ValueError, match="have 5000 coordinates; expected at most 4096"):
        linearise(field, uniform(5000, 2, generator=seeded(0)))


def test_what_has_no_rates_is_refused() -> None:
    x = uniform(3, 3, generator=seeded(0))
    with pytest.raises(ValueError, match=r"expected Sphere\(\), Circle\(\) or Euclidean\(\)"):
        linearise(Field(Attention(1.0)), gram_matrix(x), space=Gram())
    with pytest.raises(ValueError, match="hard maximum"):
        linearise(Field(Attention(1.0, kernel="hardmax")), x)
    with pytest.raises(ValueError, match="d of 2 or more"):
        linearise(Field(Attention(1.0)), torch.ones(3, 1, dtype=torch.float64))
