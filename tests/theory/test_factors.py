"""Values in factors: degrees of freedom against the rank of a Jacobian, gauge, and conversions."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from osmose.nn import MultiheadMixer
from osmose.structure import (
    CP,
    Bases,
    Diagonal,
    Factors,
    Full,
    Grouped,
    GroupedQuery,
    Heads,
    Tucker,
    mixed_product,
)
from osmose.structure.layers import attention_factors
from osmose.tasks.ranks import score_freedom


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def cp(K: int, P: int, Q: int, R: int) -> CP:
    return CP(normal(K, R), normal(P, R, seed=1), normal(Q, R, seed=2))


def tucker(sizes: tuple[int, int, int], ranks: tuple[int, int, int]) -> Tucker:
    parts = [normal(n, r, seed=i) for i, (n, r) in enumerate(zip(sizes, ranks, strict=True))]
    return Tucker(normal(*ranks, seed=3), *parts)


KINDS: dict[str, Factors] = {
    "full": Full(normal(2, 3, 4)),
    "heads": Heads(normal(3, 4, 2), normal(3, 5, 2, seed=1)),
    "heads wider than their channels": Heads(normal(2, 3, 5), normal(2, 4, 5, seed=1)),
    "one left factor for two": GroupedQuery(normal(2, 5, 3), normal(4, 4, 3, seed=1)),
    "one left factor for all": GroupedQuery(normal(1, 4, 2), normal(3, 3, 2, seed=1)),
    "grouped": Grouped(normal(2, 3, 2, 1)),
    "diagonal": Diagonal(normal(2, 3)),
    "bases": Bases(normal(4, 2), normal(2, 3, 2, seed=1)),
    "more bases than members": Bases(normal(2, 4), normal(4, 2, 2, seed=1)),
    "cp": cp(3, 4, 5, 3),
    "cp of matrices": cp(1, 4, 3, 2),
    "cp with one long side": cp(2, 2, 7, 4),
    "cp, defective 3 x 3 x 3": cp(3, 3, 3, 4),
    "cp, defective 3 x 5 x 5": cp(5, 3, 5, 7),
    "cp, defective 3 x 4 x 4": cp(4, 3, 4, 5),
    "cp that fills the space": cp(2, 3, 3, 5),
    "tucker": tucker((3, 4, 5), (2, 3, 3)),
    "tucker, a rank too high": tucker((3, 4, 5), (1, 2, 4)),
}


@pytest.mark.parametrize("name", KINDS)
def test_degrees_of_freedom_are_the_rank_of_the_jacobian(name: str) -> None:
    factors = KINDS[name]
    assert factors.measured_degrees_of_freedom() == factors.degrees_of_freedom <= factors.num_parameters


@pytest.mark.parametrize(("d", "K"), [(4, 2), (6, 3)])
def test_attention_has_fewer_degrees_of_freedom_than_parameters(d: int, K: int) -> None:
    layer = MultiheadMixer(d, K, mixer="softmax")
    theta, scores = attention_factors(layer)
    assert theta.num_parameters + scores.num_parameters == 4 * d * d
    assert theta.degrees_of_freedom + scores.degrees_of_freedom == 4 * d * d - 2 * d * d // K
    assert theta.measured_degrees_of_freedom() == theta.degrees_of_freedom
    assert score_freedom(scores, "softmax") == scores.degrees_of_freedom


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("softmax", {}),
        ("diffusion", {"normalization": "row"}),
        ("diffusion", {"normalization": "none"}),
        ("diffusion", {"normalization": "frobenius"}),
        ("diffusion", {"normalization": "frobenius", "joint_heads": False}),
        ("flow", {}),
        ("linear", {}),
        ("mean", {}),
    ],
)
def test_what_the_scores_can_do_depends_on_the_mixer(mixer: str, options: dict) -> None:
    d, H, B, n = 4, 2, 12, 3
    layer = MultiheadMixer(d, H, mixer=mixer, dtype=torch.float64, **options)
    x, weight, value = normal(B, n, d), normal(2 * d, d, seed=1), torch.eye(n, dtype=torch.float64)

    def matrix(joint: Tensor) -> Tensor:
        q, k = ((x @ w.mT).unflatten(-1, (H, d // H)).transpose(1, 2) for w in joint.chunk(2))
        return layer.carry(q, k, value.expand(B, H, n, n))[0]

    jacobian = torch.autograd.functional.jacobian(matrix, weight, vectorize=True).reshape(-1, weight.numel())
    measured = int((torch.linalg.svdvals(jacobian) > 1e-9).sum())
    assert measured == score_freedom(attention_factors(layer)[1], mixer, **options)


# ---- gauge -------------------------------------------------------------------------------------------


def regauged(factors: Factors) -> Factors:
    """The same tensor by other parameters."""

    def two(rank: int, *lead: int) -> tuple[Tensor, Tensor]:
        g = normal(*lead, rank, rank, seed=7) + 2 * torch.eye(rank, dtype=torch.float64)
        return g, torch.linalg.inv(g).mT

    if isinstance(factors, Heads | GroupedQuery):
        g, h = two(factors.left.shape[-1], len(factors.left))
        right = h if isinstance(factors, Heads) else h.repeat_interleave(len(factors.right) // len(h), 0)
        return type(factors)(factors.left @ g, factors.right @ right)
    if isinstance(factors, Bases):
        g, h = two(len(factors.values))
        return Bases(factors.coefficients @ g, torch.tensordot(h.mT, factors.values, ([1], [0])))
    if isinstance(factors, CP):
        R = factors.members.shape[1]
        order, (s, t) = torch.randperm(R, generator=torch.Generator().manual_seed(1)), normal(2, R, seed=5)
        return CP(*((x * y)[:, order] for x, y in zip(factors.parameters, (s, t, 1 / (s * t)), strict=True)))
    assert isinstance(factors, Tucker)
    core, parts = factors.core, []
    for axis, part in enumerate((factors.members, factors.left, factors.right)):
        g, h = two(part.shape[1])
        parts.append(part @ g)
        core = torch.tensordot(h.mT, core, ([1], [axis])).movedim(0, axis)
    return Tucker(core, *parts)


@pytest.mark.parametrize("name", ["heads", "one left factor for two", "bases", "cp", "tucker"])
def test_equal_tensors_have_equal_canonical_factors(name: str) -> None:
    factors = KINDS[name]
    other = regauged(factors)
    close(other.full(), factors.full(), 1e-9)
    assert all(float((a - b).norm()) > 0.1 for a, b in zip(other.parameters, factors.parameters, strict=True))
    one, two = factors.canonical(), other.canonical()
    for a, b in zip(one.parameters, two.parameters, strict=True):
        close(a, b, 1e-8)
    close(one.full(), factors.full())


# ---- conversions -------------------------------------------------------------------------------------


def test_what_has_a_form_is_found_exactly() -> None:
    for name, found in {
        "heads": lambda t: Heads.of(t, 2),
        "one left factor for two": lambda t: GroupedQuery.of(t, 2, 3),
        "grouped": lambda t: Grouped.of(t, 3),
        "diagonal": Diagonal.of,
        "bases": lambda t: Bases.of(t, 2),
        "tucker": lambda t: Tucker.of(t, (2, 3, 3)),
        "full": Full.of,
    }.items():
        assert found(KINDS[name]).error(KINDS[name]) < 1e-12, name
    assert CP.of(KINDS["cp"], 3).error(KINDS["cp"]) < 1e-6


def test_grouped_and_diagonal_tensors_are_blocks() -> None:
    blocks = normal(2, 3, 2, 1)
    close(Grouped(blocks).full(), torch.stack([torch.block_diag(*blocks[k]) for k in range(2)]), 0)
    close(Diagonal(normal(2, 3)).full(), torch.stack([torch.diag(row) for row in normal(2, 3)]), 0)


def test_errors_are_those_of_the_singular_values() -> None:
    theta = normal(4, 3, 5)
    norm = float(theta.norm())
    heads = torch.linalg.svdvals(theta)[:, 2:].norm() / norm
    assert Heads.of(theta, 2).error(theta) == pytest.approx(float(heads))
    side = torch.cat(list(theta[:2]), 1), torch.cat(list(theta[2:]), 1)
    shared = torch.stack([torch.linalg.svdvals(x)[2:] for x in side]).norm() / norm
    assert GroupedQuery.of(theta, 2, 2).error(theta) == pytest.approx(float(shared))
    bases = torch.linalg.svdvals(theta.flatten(1))[2:].norm() / norm
    assert Bases.of(theta, 2).error(theta) == pytest.approx(float(bases))
    off = theta[:, :, :3] - torch.diag_embed(theta.diagonal(dim1=1, dim2=2)[..., :3])
    assert Diagonal.of(theta[..., :3]).error(theta[..., :3]) == pytest.approx(
        float(off.norm() / theta[..., :3].norm())
    )


def test_heads_are_a_collaborative_tensor_and_fewer_terms_cost_accuracy() -> None:
    heads = Heads(normal(3, 5, 2), normal(3, 4, 2, seed=1))
    collaborative = CP.of_heads(heads)
    assert collaborative.members.shape == (3, 6)
    close(collaborative.full(), heads.full())
    errors = [CP.of(heads, rank, starts=2, iterations=200).error(heads) for rank in (1, 3, 6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 1


def test_bases_are_mixtures_of_structures() -> None:
    bases, a = Bases(normal(4, 2), normal(2, 3, 2, seed=1)), normal(4, 5, 5, seed=2)
    close(mixed_product(bases.mixtures(a), bases.values), mixed_product(a, bases.full()))


def test_what_does_not_fit_is_named() -> None:
    theta = normal(4, 3, 5)
    with pytest.raises(ValueError, match=r"rank is 4; expected 1 to 3 = min\(P, Q\)"):
        Heads.of(theta, 4)
    with pytest.raises(ValueError, match="groups is 3; expected a divisor of the 4 members"):
        GroupedQuery.of(theta, 3, 1)
    with pytest.raises(ValueError, match="groups is 2; expected a divisor of P = 3 and Q = 5"):
        Grouped.of(theta, 2)
    with pytest.raises(ValueError, match=r"expected \(K, P, P\)"):
        Diagonal.of(theta)
    with pytest.raises(ValueError, match=r"bases is 0; expected 1 to 4"):
        Bases.of(theta, 0)
    with pytest.raises(ValueError, match=r"ranks are \(4, 4, 5\); expected 1 to \(4, 3, 5\)"):
        Tucker.of(theta, (4, 4, 5))
    with pytest.raises(ValueError, match=r"shape \(3, 5\).*expected float \(K, P, Q\)"):
        Heads.of(theta[0], 1)
    with pytest.raises(ValueError, match="K a multiple of G"):
        GroupedQuery(normal(2, 3, 2), normal(3, 3, 2))


def test_tensorly_is_needed_for_fits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly", None)
    assert CP.of_heads(Heads(normal(3, 5, 2), normal(3, 4, 2))).canonical().full().shape == (3, 5, 4)
    with pytest.raises(ModuleNotFoundError, match="tensorly"):
        CP.of(normal(3, 4, 5), 2)
    with pytest.raises(ModuleNotFoundError, match="tensorly"):
        Tucker.of(normal(3, 4, 5), (1, 1, 1))
