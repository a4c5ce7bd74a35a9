"""The mixed product: its matrix, its inversion by a basis, its rank and its gauge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osmose.operators import Dense, DenseLimitError, Graph, Identity, LowRank, Operator, Pairwise, dense_limit
from osmose.structure import (
    Basis,
    KroneckerSum,
    best_mixed_product,
    layer_matrix,
    layer_tensor,
    mixed_product,
    mixed_product_rank,
    spectrum,
    stable_rank,
)

N, M, P, Q = 5, 4, 3, 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def operators(n: int = 6) -> list[Operator]:
    """Three given kinds and one computed; independent."""
    edges = torch.tensor([[0, 1, 2, 5, 2, 2], [1, 1, 4, 0, 3, 3]])  # an edge comes twice: its weights add up
    return [
        Identity(n, dtype=torch.float64),
        Graph(edges, normal(6, seed=1), n),
        LowRank(normal(n, 2, seed=2), normal(n, 2, seed=3)),
        Pairwise(normal(n, 2, seed=4), normal(n, 2, seed=5), "sigmoid"),
    ]


# ---- the product -------------------------------------------------------------------------------------


def test_the_layer_is_a_sum_of_kronecker_products() -> None:
    a, theta, x = normal(3, N, M), normal(3, P, Q, seed=1), normal(M, P, seed=2)
    expected = sum(a[k] @ x @ theta[k] for k in range(3))
    phi = mixed_product(a, theta)
    close(torch.einsum("nmpq,mp->nq", phi, x), expected)
    matrix = layer_matrix(phi)
    close(matrix, sum(torch.kron(a[k], theta[k].mT.contiguous()) for k in range(3)))
    close((matrix @ x.flatten()).unflatten(0, (N, Q)), expected)
    close(layer_tensor(matrix, N, M), phi, 0)
    lazy = KroneckerSum(a, theta)
    close(lazy.apply(x), expected)
    close(lazy.tensor(), phi, 0)
    jacobian = torch.autograd.functional.jacobian(lazy.apply, x)
    close(jacobian.flatten(2).flatten(0, 1), matrix)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2)], ids=["widens", "narrows"])
def test_the_lazy_matrix_equals_its_dense_form(sizes: tuple[int, int]) -> None:
    parts = [normal(2, N, M), normal(N, 3, seed=1), normal(M, 3, seed=2)]  # a batch of two, and one for all
    theta, v, u = (
        normal(2, *sizes, seed=3),
        normal(2, M * sizes[0], 5, seed=4),
        normal(2, N * sizes[1], 5, seed=5),
    )
    inputs = [x.requires_grad_() for x in (*parts, theta)]

    def dense() -> Tensor:
        a = torch.stack([parts[0], (parts[1] @ parts[2].mT).expand(2, N, M)])
        return sum(
            torch.stack([torch.kron(a[k, b], theta[k].mT.contiguous()) for b in range(2)]) for k in range(2)
        )  # type: ignore[return-value]

    op = KroneckerSum([Dense(parts[0]), LowRank(parts[1], parts[2])], theta)
    close(op.to_dense(), dense())
    close(op.mT.to_dense(), dense().mT)
    i, j = torch.tensor([0, 3, 7]), torch.tensor([5, 0, 2])
    close(op.entries(i, j), dense()[:, i, j])
    for lazy, plain, w in ((op, dense(), v), (op.mT, dense().mT, u)):
        close(lazy @ w, plain @ w)
        got = torch.autograd.grad((lazy @ w).square().sum(), inputs)
        expected = torch.autograd.grad((plain @ w).square().sum(), inputs)
        for g, e in zip(got, expected, strict=True):
            close(g, e)


def test_a_large_layer_is_not_formed_by_mistake() -> None:
    n = 2000
    op = KroneckerSum([Identity(n)], torch.ones(1, 8, 8))
    assert op.cost().quadratic == ()
    assert op.cost().memory < 2 * 8 * n
    close(op.apply(torch.ones(n, 8)), torch.full((n, 8), 8.0))
    with pytest.raises(DenseLimitError, match=r"op.apply\(x\)"):
        op.tensor()


# ---- inversion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensors", "operators"])
def test_a_basis_inverts_the_product(kind: str) -> None:
    members = operators()
    dense = torch.stack([a.to_dense() for a in members])
    basis = Basis(dense if kind == "tensors" else members)
    theta = normal(4, P, Q, seed=9)
    phi = mixed_product(dense, theta)
    assert basis.independent
    close(basis.gram(), dense.flatten(1) @ dense.flatten(1).mT)
    close(
        torch.tensordot(basis.dual().flatten(1), dense.flatten(1), ([1], [1])),
        torch.eye(4, dtype=torch.float64),
    )
    close(basis.coefficients(phi), theta)
    close(basis.coefficients(KroneckerSum(members, theta)), theta)
    assert float(basis.residual(phi).norm()) < 1e-11
    outside = phi + normal(6, 6, P, Q, seed=10)
    rest = basis.residual(outside)
    assert float(rest.norm()) > 1
    close(basis.inner(rest), torch.zeros(4, P, Q, dtype=torch.float64))
    close(basis.coefficients(rest), torch.zeros_like(theta))


def test_with_a_whole_basis_every_map_is_a_mixed_product() -> None:
    a = normal(N * M, N, M)
    phi = normal(N, M, P, Q, seed=1)
    theta = Basis(a).coefficients(phi)
    close(mixed_product(a, theta), phi, 1e-10)
    close(
        theta, torch.linalg.solve(a.flatten(1).mT, phi.flatten(0, 1).flatten(1)).unflatten(1, (P, Q)), 1e-10
    )


@pytest.mark.parametrize("kind", ["tensors", "operators"])
def test_dependent_members_have_no_unique_coefficients(kind: str) -> None:
    dense = torch.stack([a.to_dense() for a in operators()])
    dense = torch.cat([dense, (dense[0] - 2 * dense[3]).unsqueeze(0)])
    basis = Basis(dense if kind == "tensors" else [Dense(a) for a in dense])
    phi = mixed_product(dense, normal(5, P, Q, seed=9))
    assert basis.rank == 4
    for ask in (lambda: basis.coefficients(phi), basis.dual):
        with pytest.raises(ValueError, match=r"the 5 members have rank 4.*least_norm=True"):
            ask()
    theta = basis.coefficients(phi, least_norm=True)
    close(
        theta,
        (torch.linalg.pinv(dense.flatten(1).mT) @ phi.flatten(0, 1).flatten(1)).unflatten(1, (P, Q)),
        1e-6,
    )
    close(basis.combine(theta), phi, 1e-6)


def test_more_members_than_entries_are_an_overcomplete_family() -> None:
    basis = Basis(normal(7, 2, 2))
    assert (len(basis), basis.rank) == (7, 4)
    phi = normal(2, 2, 3, seed=1)
    theta = basis.coefficients(phi, least_norm=True)
    close(basis.combine(theta), phi)
    other = theta + torch.linalg.svd(basis.members.flatten(1).mT).Vh[4:].mT @ normal(3, 3, seed=2)  # type: ignore[union-attr]
    close(basis.combine(other), phi)
    assert float(other.norm()) > float(theta.norm())


def test_the_basis_of_a_large_graph_stays_sparse() -> None:
    n = 5000
    node = torch.arange(n)
    shifts = [
        Graph(torch.stack([(node + d) % n, node]), num_targets=n, dtype=torch.float64) for d in (-1, 0, 1)
    ]
    with dense_limit(4 * n):
        basis = Basis(shifts)
        close(basis.gram(), n * torch.eye(3, dtype=torch.float64))
        theta = normal(3, 2, 2)
        close(basis.coefficients(KroneckerSum(shifts, theta)), theta)


# ---- rank and gauge ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("a_rank", "theta_rank"), [(3, 3), (2, 3), (3, 2), (2, 1)])
def test_rank_is_the_number_of_terms_if_both_lists_are_independent(a_rank: int, theta_rank: int) -> None:
    a = (normal(3, a_rank) @ normal(a_rank, N * M, seed=1)).unflatten(1, (N, M))
    theta = (normal(3, theta_rank, seed=2) @ normal(theta_rank, P * Q, seed=3)).unflatten(1, (P, Q))
    phi = mixed_product(a, theta)
    rank = mixed_product_rank(phi)
    assert rank <= min(a_rank, theta_rank)
    assert (rank == 3) == (a_rank == 3 and theta_rank == 3)
    assert mixed_product_rank(KroneckerSum(a, theta)) == rank
    close(spectrum(KroneckerSum(a, theta))[:rank], spectrum(phi)[:rank], 1e-9)
    assert mixed_product_rank(torch.zeros(N, M, P, Q)) == 0


def test_the_best_approximation_is_no_worse_than_any_other() -> None:
    phi = normal(N, M, P, Q)
    norm = float(phi.norm())
    for terms in range(P * Q + 1):
        best = best_mixed_product(phi, terms)
        assert best.error * norm == pytest.approx(float((phi - best.phi()).norm()), abs=1e-12)
        # alternating least squares from a random start comes to the same error
        theta = normal(terms, P, Q, seed=terms) if terms else normal(0, P, Q)
        a = normal(0, N, M)
        for _ in range(300 if terms else 0):
            a = Basis(theta).coefficients(phi.permute(2, 3, 0, 1))
            theta = Basis(a).coefficients(phi)
        other = float((phi - mixed_product(a, theta)).norm())
        assert best.error * norm <= other + 1e-10
        assert other == pytest.approx(best.error * norm, abs=1e-4)
    assert best_mixed_product(phi).a.shape[0] == P * Q
    values = spectrum(phi)
    assert stable_rank(values) == pytest.approx(
        norm**2 / float(torch.linalg.matrix_norm(phi.flatten(2).flatten(0, 1), 2)) ** 2
    )


def test_the_gauge_changes_the_factors_but_not_the_map() -> None:
    a, theta, g = normal(3, N, M), normal(3, P, Q, seed=1), normal(3, 3, seed=2)
    turned = torch.tensordot(g.mT, a, ([1], [0])), torch.tensordot(torch.linalg.inv(g), theta, ([1], [0]))
    phi, other = mixed_product(a, theta), mixed_product(*turned)
    close(other, phi, 1e-11)
    assert float((turned[1] - theta).norm()) > 0.1
    one, two = best_mixed_product(phi, 3), best_mixed_product(other, 3)
    close(one.a, two.a, 1e-9)
    close(one.theta, two.theta, 1e-9)
    close(one.phi(), phi, 1e-11)
    close(Basis(a).coefficients(other), theta, 1e-10)  # in one basis the values compare


# ---- bad input ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named() -> None:
    theta = normal(2, P, Q)
    with pytest.raises(ValueError, match=r"3 structures and values of shape \(2, 3, 2\)"):
        mixed_product(normal(3, N, M), theta)
    with pytest.raises(ValueError, match=r"member 1 has shape \(4, 4\), member 0 has \(5, 5\)"):
        KroneckerSum([Identity(5), Identity(4)], theta)
    with pytest.raises(ValueError, match=r"member 1 has shape"):
        Basis([Identity(5), Identity(4)])
    with pytest.raises(
        ValueError, match=r"phi has shape \(5, 5, 3\); expected \(\*S, \*T\) with S = \(5, 4\)"
    ):
        Basis(normal(2, N, M)).coefficients(normal(5, 5, 3))
    with pytest.raises(ValueError, match="multiples of 3 and 4"):
        layer_tensor(normal(10, 12), 3, 4)
    with pytest.raises(ValueError, match="terms is 7; expected 0 to 6"):
        best_mixed_product(normal(N, M, P, Q), 7)
    with pytest.raises(ValueError, match="layer_tensor"):
        spectrum(normal(10, 12))
    with pytest.raises(ValueError, match="no members"):
        Basis([])
