"""Gram matrices move as the particles they come from."""

import pytest
import torch

from osmose.dynamics import (
    RK4,
    Adaptive,
    Attention,
    Euler,
    Field,
    GradientBelow,
    Gram,
    HemisphereEntered,
    Layer,
    PairMerged,
    gram_matrix,
    simulate,
)
from osmose.dynamics.observables import EnergyBalance, Observable, Recorder, order_parameter
from osmose.tokens import Tokens

from .test_dynamics_fields import F64, draw, sphere

FIELDS = {
    "SA": Field(Attention(3.0)),
    "USA": Field(Attention(1.5, law="mean")),
    "scaled": Field(Attention(9.0, law="mean", scaled=True)),
    "heads": Field(Attention(3.0), Attention(-1.0, value=-0.3)),
    "causal": Field(Attention(2.0, causal=True)),
    "sigmoid": Field(Attention(2.0, kernel="sigmoid")),
    "linear": Field(Attention(0.5, kernel="linear", law="mean")),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("stepper", [Layer(0.5), Euler(0.25), RK4(0.05)])
@pytest.mark.parametrize("weighted", [False, True])
def test_inner_products_are_those_of_the_particles(name, stepper, weighted):
    x = sphere(2, 6, 9)
    mass = torch.tensor([1.0, 2, 0.5, 1, 1, 3], dtype=F64)
    tokens = Tokens.of(x, mass=mass) if weighted else None
    options = {"stepper": stepper, "tokens": tokens}
    particles = simulate(FIELDS[name], x, [0, 0.5, 1.0], **options).states
    products = simulate(FIELDS[name], gram_matrix(x), [0, 0.5, 1.0], space=Gram(), **options).states
    # a layer and Euler are the same steps; RK4 is of the same order
    close = 1e-12 if not isinstance(stepper, RK4) else 1e-4
    torch.testing.assert_close(products, particles @ particles.mT, rtol=0, atol=close)


def test_agreement_at_a_long_time():
    x = sphere(5, 12)
    field = Field(Attention(4.0))
    particles = simulate(field, x, [0, 10.0], stepper=Adaptive(1e-13)).final
    products = simulate(field, gram_matrix(x), [0, 10.0], space=Gram(), stepper=Adaptive(1e-13)).final
    assert float((products - particles @ particles.mT).abs().max()) < 1e-11


def test_batches_observables_and_events():
    x = sphere(3, 6, 9)
    field = Field(Attention(torch.tensor([0.0, 1.0, 5.0], dtype=F64)))
    seen = []
    for space, state in ((None, x), (Gram(), gram_matrix(x))):
        recorder = Recorder([Observable("order", order_parameter)])
        events = [
            HemisphereEntered(margin=0.3, terminal=False),
            PairMerged(distance=0.1),
            GradientBelow(tolerance=0.2, terminal=False),
        ]
        out = simulate(field, state, [0, 0.5, 8.0], space=space, observe=recorder, events=events)
        seen.append((out.results["order"], *out.events.values()))
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, equal_nan=True)
    assert torch.isfinite(seen[0][2]).all()
    meter = Recorder([EnergyBalance(2.0)])
    simulate(
        Field(Attention(2.0)),
        gram_matrix(x),
        [k / 50 for k in range(51)],
        space=Gram(),
        stepper=RK4(0.02),
        observe=meter,
    )
    assert float(meter.results()["energy_balance"]["residual"].abs().max()) < 1e-7


def test_points_of_tokens_that_have_met():
    x = sphere(3, 6, 9)
    x[0, 3], x[0, 5], x[1] = x[0, 1], -x[0, 2], x[1, :1].clone()
    g = gram_matrix(x)
    assert (torch.linalg.cholesky_ex(g).info > 0).tolist() == [True, True, False]
    points = Gram().points(g)
    assert float((points @ points.mT - g).abs().max()) < 1e-15


def test_products_of_a_cluster_go_at_twice_the_rate():
    x = torch.ones(9, dtype=F64) / 3 + 1e-4 * sphere(6, 9)
    start, field = gram_matrix(x / x.norm(dim=-1, keepdim=True)), Field(Attention(2.0))
    inside, outside = RK4(0.99 * 2.785 / 2), RK4(1.02 * 2.785 / 2)
    assert float((1 - simulate(field, start, [0, 500], space=Gram(), stepper=inside).final).max()) < 1e-12
    with pytest.warns(UserWarning, match=r"exceeds 1\.39, the stability bound of RK4"):
        out = simulate(field, start, [0, 500], space=Gram(), stepper=outside)
    assert float((1 - out.final).max()) > 1e-2


def test_what_is_no_gram_matrix_or_sees_more():
    x = sphere(4, 5)
    with pytest.raises(ValueError, match="gram_matrix"):
        simulate(FIELDS["SA"], x, [0, 1.0], space=Gram())
    with pytest.raises(ValueError, match="least eigenvalue"):
        simulate(FIELDS["SA"], 3 * torch.eye(4, dtype=F64) - 2, [0, 1.0], space=Gram())
    for field in (
        Field(Attention(1.0, query=draw(5, 5))),
        Field(Attention(1.0, kernel="hardmax", itself=False)),
    ):
        with pytest.raises(ValueError, match="expected"):
            simulate(field, gram_matrix(x), [0, 1.0], space=Gram())
    with pytest.raises(ValueError, match="drift"):
        simulate(Field(Attention(), drift=lambda x, t: x), gram_matrix(x), [0, 1.0], space=Gram())
