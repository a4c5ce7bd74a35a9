"""Spaces: maps and their inverses, checks of starts, and what is refused."""

import math

import pytest
import torch

from osmose.dynamics.fields import Field
from osmose.dynamics.normalised import Normalised
from osmose.dynamics.spaces import Circle, Euclidean, Rescaled, Sphere
from osmose.dynamics.terms import Attention

from .test_dynamics_fields import F64, draw, sphere


def test_exponential_map_of_the_sphere():
    x = sphere(6, 4)
    u = Sphere().tangent(x, draw(6, 4, seed=1))
    u = (
        u
        / u.norm(dim=-1, keepdim=True)
        * torch.tensor([1e-9, 1e-3, 0.0301, 1.0, 3.0, 0.0], dtype=F64)[:, None]
    )
    y = Sphere().exp(x, u)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(6, dtype=F64))
    torch.testing.assert_close(Sphere().distance(x, y), u.norm(dim=-1), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("length", [0.0, 1e-6, 0.0299, 0.0301, 1.3, 3.0])
def test_pull_inverts_the_differential_of_exp(length):
    x = sphere(5, 4)
    u = Sphere().tangent(x, draw(5, 4, seed=1))
    u = u / u.norm(dim=-1, keepdim=True) * length
    w = Sphere().tangent(x, draw(5, 4, seed=2))

    def exp(u):  # without the root, which has no derivative at 0
        if length == 0:
            return (1 - u.square().sum(-1, keepdim=True) / 2) * x + u
        return Sphere().exp(x, u)

    _, v = torch.func.jvp(exp, (u,), (w,))
    torch.testing.assert_close(Sphere().pull(x, u, v), w, rtol=1e-9, atol=1e-11)


def test_circle_and_sphere_are_one():
    angles = draw(7, 1) * 2
    circle, points = Circle(), Circle().points(angles)
    field = Field(Attention(3.0), drift=lambda x, t: x.roll(1, -1) * 0.2)
    v = circle.vectors(angles, circle.velocity(field, angles, None, 0.0))
    torch.testing.assert_close(v, Sphere().velocity(field, points, None, 0.0))
    torch.testing.assert_close(circle.points(circle.angles(points)), points)


def test_rescaled_is_a_change_of_variables():
    v = torch.tensor([[0.64709742, 0.81911926], [0.61210449, 0.63263484]], dtype=F64)
    field, space, t = Field(Attention(1.0, value=v)), Rescaled(v), 0.7
    z = draw(6, 2)
    x = space.unscale(z, t)
    want = field(x) @ torch.linalg.matrix_exp(-t * v).mT - z @ v.mT
    torch.testing.assert_close(space.velocity(field, z, None, t), want, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="same V"):
        Rescaled(v).velocity(Field(Attention(1.0)), z, None, t)
    with pytest.raises(ValueError, match="law='row'"):
        Rescaled().velocity(Field(Attention(1.0, law="mean")), z, None, t)


@pytest.mark.parametrize("kind", ["symmetric", "diagonal"])
def test_rescaled_takes_a_symmetric_value_apart(kind):
    b = draw(4, 4, seed=3)
    v = b + b.mT if kind == "symmetric" else torch.diag(torch.tensor([1.0, 1.0, -0.5, 2.0], dtype=F64))
    z, times = draw(3, 5, 4), torch.tensor([0.0, 0.7, 1.3], dtype=F64)[:, None, None]
    want = torch.einsum("pij,pnj->pni", torch.linalg.matrix_exp(times * v), z)
    torch.testing.assert_close(Rescaled(v).unscale(z, times), want, rtol=1e-11, atol=1e-12)
    free = v.clone().requires_grad_()
    Rescaled(free).unscale(z, 0.7).sum().backward()
    assert free.grad is not None
    assert bool(free.grad.abs().sum() > 0)


def test_starts_off_the_sphere():
    x = sphere(5, 3)
    assert Sphere("refuse").check(x) is not None
    with pytest.raises(ValueError, match=r"differs from 1 by 1\b"):
        Sphere("refuse").check(2 * x)
    with pytest.warns(UserWarning, match="normalised"):
        torch.testing.assert_close(Sphere().check(2 * x), x)
    x[2] = 0
    with pytest.raises(ValueError, match="zero vector"):
        Sphere().check(x)
    mass = torch.ones(5, dtype=F64)
    mass[2] = 0
    assert (Sphere().check(x, mass)[2] == 0).all()
    x[1, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        Euclidean().check(x)
    with pytest.raises(ValueError, match="no direction"):
        Normalised("pre-ln").check(torch.zeros(2, 3, dtype=F64))
    with pytest.raises(ValueError, match="scheme is 'rms'"):
        Normalised("rms")
    with pytest.raises(ValueError, match="angles"):
        Circle().check(sphere(4, 2))


def test_special_starts_are_reported():
    x = sphere(4, 3)
    assert Sphere().notes(x) == ()
    assert "antipodal" in Sphere().notes(torch.cat([x, -x[:1]]))[0]
    assert "equiangular" in Sphere().notes(torch.eye(4, dtype=F64))[0]
    third = torch.arange(6, dtype=F64).unsqueeze(-1) * 2 * math.pi / 6
    assert "antipodal" in Circle().notes(third)[0]
    assert "balanced" in Circle().notes(third)[1]
    assert Sphere().notes(x[:1].expand(4, 3)) == ()  # consensus is no saddle


def test_a_pre_ln_layer_is_the_residual_stream():
    x = 3 * draw(5, 4)
    field = Field(Attention(2.0))
    theta = x / x.norm(dim=-1, keepdim=True)
    got = Normalised("pre-ln").layer(field, x, None, 0.0, 0.5)
    torch.testing.assert_close(got, x + 0.5 * field(theta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_way_between_opposite_tokens_is_a_right_angle_from_both(dtype):
    x = torch.randn(500, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x = x / x.norm(dim=-1, keepdim=True)
    half = Sphere().between(x, -x, 0.5)
    assert float((Sphere().distance(x, half) - math.pi / 2).abs().max()) < 1e3 * torch.finfo(dtype).eps
