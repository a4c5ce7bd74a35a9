"""Structure ANOVA: five parts that add up to the whole, and on each generator the part that it was made to have."""

import math

import pytest
import torch
import torch.nn.functional as F

from osmose.diagnostics import COMPONENTS, PairClasses, StructureAnova, expected_by_chance
from osmose.operators import DenseLimitError, dense_limit

N, SAMPLES, F64 = 24, 64, torch.float64
OFFSET = torch.arange(N) - torch.arange(N)[:, None]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def causal(scores):
    return scores.masked_fill(OFFSET > 0, -torch.inf).softmax(-1)


def toeplitz(values):
    return values[OFFSET + N - 1]


def content(seed=0):
    q, k = random(2, SAMPLES, N, 8, seed=seed)
    return q @ k.mT


def adaptive():
    d = torch.randint(0, 6, (SAMPLES,), generator=torch.Generator().manual_seed(3))
    return 6.0 * (d[:, None, None] == OFFSET)


GENERATORS = {
    "zero scores": (lambda: torch.zeros(SAMPLES, N, N, dtype=F64).softmax(-1), False, "uniform", None),
    "zero scores, causal": (lambda: causal(torch.zeros(SAMPLES, N, N, dtype=F64)), True, "uniform", None),
    "previous token": (
        lambda: causal(8.0 * (OFFSET == -1).double().expand(SAMPLES, N, N)),
        True,
        "fixed shift",
        -1,
    ),
    "bias by offset": (
        lambda: toeplitz(2 * random(2 * N - 1)).softmax(-1).expand(SAMPLES, N, N),
        False,
        "fixed shift",
        None,
    ),
    "attention sink": (
        lambda: causal(6.0 * (torch.arange(N) == 0).double().expand(SAMPLES, N, N)),
        True,
        "fixed absolute",
        None,
    ),
    "one random matrix": (
        lambda: (3 * random(N, N)).softmax(-1).expand(SAMPLES, N, N),
        False,
        "fixed absolute",
        None,
    ),
    "a shift for each input": (lambda: adaptive().softmax(-1), False, "adaptive shift", None),
    "content": (lambda: content().softmax(-1), False, "content", None),
    "content and bias": (
        lambda: (0.7 * content() + toeplitz(2 * random(2 * N - 1, seed=5))).softmax(-1),
        False,
        "content",
        None,
    ),
}


def study(matrices, order=False):
    anova = StructureAnova(PairClasses.sequence(matrices.shape[-2], causal=order))
    anova.update(matrices.unsqueeze(-3))
    return anova


def two_passes(a, valid=None):
    """The formula itself, with projections as dense orthogonal projectors on vectors of n² entries."""
    n = a.shape[-1]
    valid = torch.ones(n, n, dtype=torch.bool) if valid is None else valid
    rows = torch.stack([torch.zeros(n, n, dtype=F64).index_fill(0, torch.tensor([i]), 1.0) for i in range(n)])
    shifts = torch.stack([torch.diag(torch.ones(n - abs(d), dtype=F64), d) for d in range(1 - n, n)])

    def projector(basis):
        basis = (basis * valid).flatten(1)
        basis = basis[basis.any(-1)]
        return basis.mT @ torch.linalg.inv(basis @ basis.mT) @ basis

    p1, pi = projector(rows), projector(shifts)
    x = (a * valid).flatten(1)
    mean = x.mean(0)
    d, r = mean - p1 @ mean, x - mean
    parts = [p1 @ mean, pi @ d, d - pi @ d, (r @ pi), r - r @ pi]
    terms = torch.stack([part.square().sum(-1).mean() for part in parts])
    torch.testing.assert_close(terms.sum(), x.square().sum(-1).mean())
    return terms / terms.sum()


@pytest.mark.parametrize("name", GENERATORS)
def test_the_component_that_a_generator_has_dominates(name):
    make, order, expected, top = GENERATORS[name]
    anova = study(make(), order)
    shares = anova.shares()
    assert shares.dominant == [expected]
    assert shares[expected] > 0.5
    torch.testing.assert_close(shares.shares.sum(-1), torch.ones(1, dtype=F64))
    if expected == "uniform":
        torch.testing.assert_close(shares["uniform"], torch.ones(1, dtype=F64))
    if top is not None:
        assert anova.heads().top_offset == [top]
        assert anova.heads().top_mass > 0.9
    if name == "content and bias":
        assert shares.shares[0].argsort(descending=True)[:2].tolist() == [4, 1], "the bias comes second"


@pytest.mark.parametrize("order", [False, True])
def test_one_pass_is_the_formula_of_two(order):
    valid = OFFSET <= 0 if order else None
    a = content() + toeplitz(random(2 * N - 1)) + random(N, N, seed=2)  # of any sign, rows of any sum
    a = a if valid is None else a * valid
    anova = StructureAnova(PairClasses.sequence(N, causal=order))
    for part in a.split(7):
        anova.update(part.unsqueeze(1))
    got = anova.shares()
    torch.testing.assert_close(got.shares[0], two_passes(a, valid), rtol=1e-10, atol=1e-12)
    assert got.samples == SAMPLES
    assert float(got.outside) == 0.0


def test_energy_outside_the_valid_pairs_is_told_and_in_no_component():
    a = content().softmax(-1)
    shares = study(a, order=True).shares()
    want = (a * (OFFSET > 0)).square().sum() / a.square().sum()
    torch.testing.assert_close(shares.outside[0], want)
    torch.testing.assert_close(shares.shares[0], two_passes(a, OFFSET <= 0), rtol=1e-10, atol=1e-12)


def test_naive_toeplitzness_would_call_a_uniform_matrix_a_shift():
    uniform = torch.full((N, N), 1 / N, dtype=F64)
    classes = PairClasses.sequence(N)
    torch.testing.assert_close(classes.project(uniform), uniform)
    assert float(study(uniform.expand(4, N, N)).shares()["fixed shift"]) == 0.0


def test_different_lengths_are_kept_apart_and_combined_by_energy():
    long, short = content().softmax(-1), causal(content(1))[:, :9, :9]
    anova = StructureAnova(PairClasses.sequence)
    for part in (long[:40], short, long[40:]):
        anova.update(part.unsqueeze(1))
    weights = torch.stack([a.square().sum((-2, -1)).mean() for a in (long, short)])
    each = torch.stack([two_passes(long), two_passes(short)])
    want = (weights[:, None] * each).sum(0) / weights.sum()
    torch.testing.assert_close(anova.shares().shares[0], want, rtol=1e-9, atol=1e-12)
    assert anova.lengths == [(9, 9), (N, N)]


def test_an_image_shifted_in_two_dimensions_is_a_fixed_shift_in_two_only():
    height, width = 4, 6
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    table = random(2 * height - 1, 2 * width - 1)
    bias = table[y[None] - y[:, None] + height - 1, x[None] - x[:, None] + width - 1]
    a = (2 * bias).softmax(-1).expand(5, 1, N, N)
    found = {}
    for name, classes in (("grid", PairClasses.grid(height, width)), ("row", PairClasses.sequence(N))):
        anova = StructureAnova(classes)
        anova.update(a)
        found[name] = anova.shares()
    assert found["grid"].dominant == ["fixed shift"]
    assert found["row"]["fixed shift"] < 0.6 * found["grid"]["fixed shift"]
    right = (y[:, None] == y) & (x[None] == x[:, None] + 1)
    anova = StructureAnova(PairClasses.grid(height, width))
    anova.update(right.double()[None, None])
    assert anova.heads().top_offset == [(0, 1)]


def test_a_matrix_of_graph_distances_is_a_fixed_shift_of_the_graph():
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
    edges = torch.cat([edges, edges.flip(0)], 1)
    classes = PairClasses.graph(edges, 7)  # node 6 is alone
    want = torch.tensor([0, 1, 2, 1, 2, 1])
    torch.testing.assert_close(classes.index[0, :6], want)
    assert classes.labels == (0, 1, 2, 3, math.inf)
    assert (classes.index[6, :6] == 4).all()
    near = PairClasses.graph(edges, 7, farthest=1)
    assert near.labels == (0, 1, math.inf)
    assert int((near.index == 2).sum()) == 49 - 7 - 14
    a = classes.matrix(torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0], dtype=F64)).softmax(-1)
    anova = StructureAnova(classes)
    anova.update(a.expand(3, 1, 7, 7))
    assert anova.shares().dominant == ["fixed shift"]
    one = anova.replacement("shift", 7, 7, top=[2])[0]
    torch.testing.assert_close(one[0], torch.tensor([0, 0, 0.5, 0, 0.5, 0, 0], dtype=F64))


def test_a_directed_edge_goes_from_source_to_target():
    classes = PairClasses.graph(torch.tensor([[0, 1], [1, 2]]), 3)
    assert classes.labels[classes.index[2, 0]] == 2, "target 2 takes from source 0 over two edges"
    assert classes.labels[classes.index[0, 2]] == math.inf


@pytest.mark.parametrize(
    "classes",
    [
        PairClasses.sequence(12),
        PairClasses.sequence(9, 14),
        PairClasses.sequence(12, causal=True),
        PairClasses.grid(3, 4),
        PairClasses.sequence(12, causal=True).without([0], diagonal=True),
    ],
    ids=["both ways", "cross", "causal", "grid", "causal without the first"],
)
def test_the_share_by_chance_is_that_of_noise(classes):
    d = classes.centred(random(4000, *classes.shape))
    got = classes.project(d).square().sum() / d.square().sum()
    assert float(got) == pytest.approx(float(expected_by_chance(classes)), rel=0.02)


def test_the_share_by_chance_of_all_pairs_is_the_number_of_offsets_over_that_of_pairs():
    got = float(expected_by_chance(PairClasses.sequence(N)))
    assert got == pytest.approx((2 * N - 1) / N**2, abs=1e-12)


@pytest.mark.parametrize("order", [False, True])
def test_p_values_of_noise_are_uniform(order):
    """Of 200 heads of noise, about a tenth has p <= 0.1: within 3.5 deviations of the binomial."""
    heads = 200
    classes = PairClasses.sequence(10, causal=order)
    scores = random(heads, 10, 10, seed=1).masked_fill(classes.index < 0, -torch.inf)
    anova = StructureAnova(classes)
    anova.update(scores.softmax(-1))
    p = anova.permutation_p(99)
    for level in (0.1, 0.5):
        expected, sd = heads * level, math.sqrt(heads * level * (1 - level))
        assert abs(int((p <= level).sum()) - expected) < 3.5 * sd
    assert abs(float(anova.shares().shift_score.mean())) < 0.02


def test_p_values_of_shifts_are_the_smallest_and_ask_for_no_luck():
    anova = study(causal(3.0 * (OFFSET == -1).double().expand(3, N, N)), order=True)
    assert anova.permutation_p(99).tolist() == [0.01]
    assert float(anova.shares().shift_score) > 0.7
    sink = study(GENERATORS["attention sink"][0](), order=True)
    again = sink.permutation_p(19, generator=torch.Generator().manual_seed(4))
    assert torch.equal(again, sink.permutation_p(19, generator=torch.Generator().manual_seed(4)))


def test_heads_are_described():
    previous, sink = causal(50.0 * (OFFSET == -1).double()), torch.zeros(N, N, dtype=F64)
    sink[:, 5] = 1
    uniform = torch.full((N, N), 1 / N, dtype=F64)
    anova = StructureAnova(PairClasses.sequence(N))
    anova.update(torch.stack([previous, sink, uniform]))
    found = anova.heads()
    assert found.top_offset[0] == -1
    torch.testing.assert_close(found.top_mass[0], torch.tensor((N - 1) / N, dtype=F64))
    p = torch.tensor([(N - 1) / N, 1 / N], dtype=F64)  # target 0 has itself only
    torch.testing.assert_close(found.effective_offsets[0], torch.special.entr(p).sum().exp())
    torch.testing.assert_close(found.effective_offsets[1], torch.tensor(float(N), dtype=F64))
    assert found.sink[1] == 5
    torch.testing.assert_close(found.sink_share, torch.tensor([2 / N, 1, 1 / N], dtype=F64))
    torch.testing.assert_close(found.first_source, torch.tensor([2 / N, 0, 1 / N], dtype=F64))
    d = sink - 1 / N
    x = d - PairClasses.sequence(N).project(d)
    want = x.square().sum() / torch.linalg.svdvals(x)[0] ** 2
    torch.testing.assert_close(found.stable_rank[1], want)
    assert found.stable_rank[2] == 0
    torch.testing.assert_close(found.profile.sum(-1), torch.ones(3, dtype=F64))


def test_replacements_depend_on_no_input():
    a = causal(0.5 * content() + 4.0 * (OFFSET == -2))
    anova = study(a, order=True)
    torch.testing.assert_close(anova.replacement("mean", N, N)[0], a.mean(0))
    got = anova.replacement("toeplitz", N, N)[0]
    for d in (0, -2, -7):
        torch.testing.assert_close(got.diagonal(d), a.mean(0).diagonal(d).mean().expand(N + d))
    assert not got.triu(1).any()
    torch.testing.assert_close(anova.replacement("shift", N, N)[0], (OFFSET == -2).double())


def test_a_shift_fits_other_lengths_and_a_mean_does_not():
    anova = StructureAnova(lambda n, m: PairClasses.sequence(n, m, causal=True))
    anova.update(causal(9.0 * (OFFSET == -3).double())[None])
    assert torch.equal(anova.replacement("shift", 5, 5)[0], torch.eye(5, dtype=F64).roll(3, 0).tril(-1))
    with pytest.raises(ValueError, match=r"5 x 5 is asked for, but means are known for 24 x 24"):
        anova.replacement("mean", 5, 5)
    with pytest.raises(ValueError, match="offset -3 lies outside 3 targets and 3 sources"):
        anova.replacement("shift", 3, 3)
    with pytest.raises(ValueError, match="kind is 'shfit'"):
        anova.replacement("shfit", N, N)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no matrix was taken in"):
        StructureAnova().shares()
    anova = StructureAnova(PairClasses.sequence(4))
    with pytest.raises(ValueError, match=r"shape \(4, 4\); expected \(..., H, n, m\)"):
        anova.update(torch.eye(4))
    with pytest.raises(ValueError, match=r"5 x 5 but the classes are of 4 x 4"):
        anova.update(torch.eye(5)[None])
    with pytest.raises(ValueError, match="NaN"):
        anova.update(torch.full((1, 4, 4), torch.nan))
    anova.update(torch.eye(4)[None])
    with pytest.raises(ValueError, match=r"shape \(2, 4, 4\); expected \(..., 1, n, m\)"):
        anova.update(torch.eye(4).expand(2, 4, 4))
    with pytest.raises(ValueError, match=r"sources \[9\] of 4"):
        PairClasses.sequence(4).without([9])
    with dense_limit(100), pytest.raises(DenseLimitError, match=r"400 targets.*160,000.*rows\(i\)"):
        PairClasses.sequence(400)
    small = StructureAnova()
    with dense_limit(100):
        small.update(torch.eye(4)[None])
        with pytest.raises(DenseLimitError, match=r"sums of 2 shapes.*116.*Cut the inputs"):
            small.update(torch.eye(10)[None])


def test_the_names_of_the_components():
    assert COMPONENTS == ("uniform", "fixed shift", "fixed absolute", "adaptive shift", "content")
    a = F.one_hot(torch.arange(3)).double()[None]
    anova = StructureAnova()
    anova.update(torch.zeros_like(a))
    assert anova.shares().shares.sum() == 0, "a head that is 0 has no share"
