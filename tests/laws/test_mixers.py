"""The laws of tokens with mass for every kernel of the diffusion mixer, and what PyTorch's tools make of it."""

import pytest
import torch

from osmose.models import DIFFormer, DIFFormerConv
from osmose.tokens import Tokens

F64 = torch.float64
CASES = [
    ("simple", "row"), ("simple", "frobenius"), ("simple", "none"), ("sigmoid", "row"), ("sigmoid", "none"), ("mean", "row")
]  # fmt: skip


@pytest.fixture(params=CASES, ids="-".join)
def conv(request):
    kernel, normalization = request.param
    torch.manual_seed(0)
    return DIFFormerConv(3, 4, 2, kernel=kernel, normalization=normalization).double()


def points(n=6, lead=()):
    g = torch.Generator().manual_seed(1)
    return torch.randn(*lead, n, 3, dtype=F64, generator=g), torch.rand(
        *lead, n, dtype=F64, generator=g
    ) + 0.2


def test_mass_zero_is_absent(conv):
    x, m = points()
    m[[1, 4]] = 0
    keep = m > 0
    out = conv(x, targets=Tokens.of(x, mass=m))
    torch.testing.assert_close(out[keep], conv(x[keep], targets=Tokens.of(x[keep], mass=m[keep])))
    assert (out[~keep] == 0).all()


def test_a_token_equals_two_of_half_its_mass(conv):
    x, m = points()
    twice = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    m2 = m[twice].clone()
    m2[:2] /= 2
    got = conv(x[twice], targets=Tokens.of(7, mass=m2))
    torch.testing.assert_close(got, conv(x, targets=Tokens.of(6, mass=m))[twice])


def test_no_mass_gives_zero_and_finite_gradients(conv):
    x, _ = points()
    x.requires_grad_()
    out = conv(x, targets=Tokens.of(x, mass=torch.zeros(6, dtype=F64)))
    out.sum().backward()
    assert (out == 0).all()
    assert torch.isfinite(x.grad).all()


def test_padded_sets_of_every_mass_equal_the_sets_alone(conv):
    x, m = points(lead=(3,))
    m[1, 4:], m[2] = 0, 0
    out = conv(x, targets=Tokens.of(x, mass=m))
    for b, n in enumerate((6, 4)):
        torch.testing.assert_close(out[b, :n], conv(x[b, :n], targets=Tokens.of(n, mass=m[b, :n])))
    assert (out[2] == 0).all()


@pytest.mark.parametrize("kernel", ["simple", "sigmoid", "mean"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_autocast_stays_close_to_float32(kernel, dtype, bound):
    torch.manual_seed(0)
    model = DIFFormer(5, 16, 4, num_layers=3, kernel=kernel).eval()
    x, edges = torch.randn(3000, 5), torch.randint(0, 3000, (2, 9000))
    with torch.autocast("cpu", dtype):
        out = model(x, edges)
        out.float().square().mean().backward()
    want = model(x, edges)
    assert (out.float() - want).norm() / want.norm() < bound
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # from torch's tracer
@pytest.mark.parametrize("kernel", ["simple", "sigmoid", "mean"])
def test_compiles_in_one_graph_and_exports(kernel):
    torch.manual_seed(0)
    model = DIFFormer(5, 8, 4, num_layers=2, kernel=kernel).eval()
    x = torch.randn(2, 30, 5)
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    want = model(x, mask=mask)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = compiled(x, mask=mask)
    torch.testing.assert_close(got, want)
    want.sum().backward()
    reference = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    got.sum().backward()
    for name, p in model.named_parameters():
        if name in reference:
            torch.testing.assert_close(p.grad, reference[name])
    exported = torch.export.export(model, (x,), {"mask": mask})
    torch.testing.assert_close(exported.module()(x, mask=mask), want)
