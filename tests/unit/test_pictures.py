"""Pictures: where tokens land on the page, what the panels show, one style; seeded."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import to_rgba

from osmose.dynamics import (
    Attention,
    Circle,
    Euclidean,
    Field,
    Gram,
    Normalised,
    Rescaled,
    gram_matrix,
    simulate,
    theory,
)
from osmose.dynamics.observables import cluster_count, distance_to_dirac, normalised_energy
from osmose.dynamics.pictures import (
    COLOURS,
    EXACT,
    View,
    draw_tokens,
    figure,
    outlined,
    overview,
    snapshots,
    style,
)
from osmose.dynamics.pictures.style import FAINT
from osmose.dynamics.pictures.tokens import INNER, principal_axes
from osmose.dynamics.trajectory import Trajectory
from osmose.tokens import Tokens

from .test_dynamics_fields import F64, draw, sphere

FIELD = Field(Attention(4.0))


def direction(azimuth, elevation):
    a, e = math.radians(azimuth), math.radians(elevation)
    return [math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]


def drawn(x, **options):
    _, axes = figure(3, 3)
    dots = draw_tokens(axes, x, **options)
    return axes, dots, np.asarray(dots.get_offsets())


# ---- style ----------------------------------------------------------------------------------------


def test_dynamics_imports_without_matplotlib_and_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
import osmose.dynamics
from osmose.dynamics.pictures import figure, movie, snapshots
import osmose.lab
assert not [m for m in sys.modules if m.startswith("matplotlib.")]
try:
    figure(2, 2)
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert "pip install 'osmose[dynamics]'" in done.stdout


def test_figures_share_one_style():
    import matplotlib

    before = dict(matplotlib.rcParams)
    made, axes = figure(4, 2, 1, 2, sharey=True)
    assert made.get_size_inches().tolist() == [4, 2]
    assert type(made.canvas).__name__ == "FigureCanvasAgg"
    assert len(axes) == 2
    assert not axes[0].spines["top"].get_visible()
    (line,) = axes[0].plot([0, 1], **EXACT, **outlined())
    assert to_rgba(line.get_color()) == to_rgba(EXACT["color"])
    assert line.is_dashed()
    with style():
        (line,) = axes[1].plot([0, 1])
        assert axes[1].set_title("a").get_fontsize() == 9.5
    assert line.get_color() == COLOURS[0]
    assert dict(matplotlib.rcParams) == before  # nothing of it stays


# ---- where tokens land ----------------------------------------------------------------------------


@pytest.mark.parametrize("view", [View(0, 0), View(35, 20), View(-100, -60)])
def test_views_put_directions_in_their_places(view):
    a, e = view.azimuth, view.elevation
    at, depth = view.project(
        np.array([direction(a, e), direction(a + 90, 0), direction(a, e + 90), direction(a + 180, -e)])
    )
    np.testing.assert_allclose(at, [[0, 0], [1, 0], [0, 1], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(depth, [1, 0, 0, -1], atol=1e-15)
    pole, _ = view.project(np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(pole, [0, math.cos(math.radians(e))], atol=1e-15)


def test_the_view_faces_the_mean():
    x = torch.tensor([direction(70, 15), direction(72, 15)], dtype=F64)
    view = View.facing(x)
    _, depth = view.project(x.numpy())
    assert depth.min() > 0.85
    assert View.facing(torch.cat([x, -x])) == View()


def test_tokens_on_a_sphere():
    view = View(35, 20)
    x = torch.tensor([direction(35, 20), direction(35 + 180, -20), direction(125, 0)], dtype=F64)
    axes, dots, at = drawn(x, colours=torch.tensor([0, 1, 2]), size=40.0, view=view)
    np.testing.assert_allclose(at, [[0, 0], [1, 0], [0, 0]], atol=1e-15)  # the farthest first
    areas, paint = dots.get_sizes(), dots.get_facecolors()
    np.testing.assert_allclose(areas, [20, 30, 40])
    np.testing.assert_allclose(paint[2], to_rgba(COLOURS[0]))
    np.testing.assert_allclose(paint[0], to_rgba(COLOURS[1], 0.45))
    assert axes.get_aspect() == 1.0
    assert not axes.axison
    outline = axes.lines[0].get_xydata()
    np.testing.assert_allclose(np.linalg.norm(outline, axis=-1), 1.0)


def test_tokens_on_a_circle_and_their_trails():
    angles = torch.tensor([[0.0], [math.pi / 2]], dtype=F64)
    past = torch.stack([angles - 0.2, angles - 0.1, angles])
    axes, _, at = drawn(angles, trail=past)
    np.testing.assert_allclose(np.sort(at, 0), [[0, 0], [1, 1]], atol=1e-15)
    (lines,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    ends = np.array(lines.get_segments())
    assert len(ends) == 4
    np.testing.assert_allclose(np.linalg.norm(ends[:2, 0], axis=-1), INNER)
    np.testing.assert_allclose(ends[2:, 1], [[1, 0], [0, 1]], atol=1e-15)
    alpha = lines.get_colors()[:, 3]
    assert alpha[0] < alpha[2]  # the past is paler
    points = torch.cat([angles.cos(), angles.sin()], -1)
    np.testing.assert_allclose(np.sort(drawn(points)[2], 0), np.sort(at, 0))


def test_tokens_in_the_plane_keep_scales_and_limits():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=F64)
    frame = torch.tensor([[[-5.0, 0.0], [5.0, 1.0]]], dtype=F64)
    axes, _, at = drawn(x, frame=frame)
    assert at.tolist() == [[1.0, 2.0], [3.0, -1.0]]
    low, high = axes.get_xlim()
    assert low < -5
    assert high > 5
    assert axes.get_aspect() == 1.0
    assert np.diff(axes.get_ylim()) == pytest.approx(high - low)


def test_tokens_on_a_line_and_in_space():
    assert drawn(torch.tensor([[3.0]]), on="line")[2].tolist() == [[3.0, 0.0]]
    x = 5 * draw(4, 3)
    view = View(10, 30)
    axes, _, at = drawn(x, view=view)
    expected, _ = view.project(x.numpy())
    np.testing.assert_allclose(np.sort(at, 0), np.sort(expected, 0))
    assert [t.get_text() for t in axes.texts] == ["x", "y", "z"]
    assert axes.get_xlim()[1] > np.abs(expected).max()


def test_tokens_in_many_dimensions_on_two_principal_axes():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=g, dtype=F64) * torch.tensor([0.1, 4.0, 0.1, 3.0, 0.1, 0.1])
    axes, _, at = drawn(x)
    share = x.var(0) / x.var(0).sum()
    assert axes.get_xlabel() == f"axis 1 ({100 * share[1]:.0f} % of variance)"
    assert axes.get_ylabel() == f"axis 2 ({100 * share[3]:.0f} %)"
    centre, ways, _ = principal_axes(x)
    np.testing.assert_allclose(np.abs(ways[[1, 3], [0, 1]]), 1, atol=0.02)
    np.testing.assert_allclose(ways.T @ ways, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.sort(at, 0), np.sort((x.numpy() - centre) @ ways, 0))
    assert ways[1, 0] > 0  # signs do not hang on the solver
    fixed = drawn(x[:2], frame=x)[2]
    np.testing.assert_allclose(np.sort(fixed, 0), np.sort((x[:2].numpy() - centre) @ ways, 0))


def test_masses_and_colours():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=F64)
    _, dots, at = drawn(x, mass=torch.tensor([1.0, 0.0, 3.0]), colours=torch.tensor([0, 1, -1]), size=30.0)
    assert sorted(at.tolist()) == [[1.0, 2.0], [5.0, 6.0]]  # mass 0 is not there
    assert sorted(dots.get_sizes()) == [15.0, 45.0]
    assert {tuple(c) for c in dots.get_facecolors()} == {to_rgba(COLOURS[0]), to_rgba(FAINT)}
    many = drawn(torch.ones(3, 2, dtype=F64), colours=["red", "blue", "blue"])[1]
    np.testing.assert_allclose(many.get_facecolors()[-1], to_rgba("blue"))  # at one place: what most are
    assert len({tuple(c) for c in drawn(x)[1].get_facecolors()}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": torch.ones(2, 3, 2)}, "one state"),
        ({"trail": torch.ones(4, 5, 2)}, "trail has shape"),
        ({"colours": ["red"]}, "1 colours for 3 tokens"),
        ({"mass": torch.ones(2)}, "mass has shape"),
        ({"frame": torch.ones(2, 3)}, "frame has shape"),
        ({"on": "sphere"}, r"expected \(n, 3\)"),
        ({"on": "torus"}, "expected one of angles"),
    ],
)
def test_what_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        drawn(**({"x": 2 * torch.ones(3, 2)} | options))


# ---- snapshots and overview -----------------------------------------------------------------------


def runs():
    x = sphere(12, 3)
    t = torch.linspace(0, 6, 13)
    return {
        "sphere": simulate(FIELD, x, t),
        "circle": simulate(FIELD, draw(6, 1), t, space=Circle()),
        "plane": simulate(FIELD, draw(6, 2), t, space=Rescaled(1.0)),
        "space": simulate(Field(Attention(0.1)), draw(6, 3), t / 6, space=Euclidean()),
        "lengths": simulate(FIELD, 2 * x, t, space=Normalised("pre-ln")),
        "gram": simulate(FIELD, gram_matrix(sphere(8, 20)), t, space=Gram()),
        "many": simulate(FIELD, sphere(8, 20), t),
    }


RUNS = runs()


@pytest.mark.parametrize("name", RUNS)
def test_snapshots_of_every_space(name):
    solution = RUNS[name]
    run = Trajectory.of(solution)
    last = float(solution.times[-1])
    at = [0.0, 0.3 * last, last]
    made = snapshots(solution, at, columns=2, title="a run")
    panels = [a for a in made.axes if a.get_title(loc="center")]
    counts = cluster_count(run.points(run.at(at)), run.scale())
    expected = [
        f"t = {t:.4g},  {c} cluster{'s' * (c != 1)}" for t, c in zip(at, counts.tolist(), strict=True)
    ]
    assert [a.get_title(loc="center") for a in panels] == expected
    assert {a.get_xlim() for a in panels} == {panels[0].get_xlim()}  # one scale for all
    assert sum(not a.get_visible() for a in made.axes) == 1
    assert made.get_suptitle() == "a run"
    made.canvas.draw()  # lays out without a warning


def test_snapshots_put_tokens_between_saved_times_on_the_sphere():
    made = snapshots(RUNS["sphere"], [1.23], view=View(0, 0))
    at = np.asarray(made.axes[0].collections[-1].get_offsets())
    run = Trajectory.of(RUNS["sphere"])
    np.testing.assert_allclose(np.sort(at, 0), np.sort(run.at([1.23])[0, :, 1:].numpy(), 0))


def test_gram_snapshots_show_tokens_by_cluster():
    x = torch.eye(2, dtype=F64)[[0, 1, 0, 1]]
    made = snapshots(simulate(FIELD, gram_matrix(x), [0.0], space=Gram()))
    shown = made.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, np.kron(np.eye(2), np.ones((2, 2))))


def test_snapshots_refuse():
    with pytest.raises(ValueError, match="times of the run"):
        snapshots(RUNS["sphere"], [9.0])
    with pytest.raises(ValueError, match="colours is 'rainbow'"):
        snapshots(RUNS["sphere"], colours="rainbow")
    with pytest.raises(ValueError, match="at is empty"):
        snapshots(RUNS["sphere"], [])


@pytest.mark.parametrize("name", RUNS)
def test_overview_of_every_space(name):
    solution = RUNS[name]
    run = Trajectory.of(solution)
    made = overview(solution)
    panels = {a.get_title(loc="left"): a for a in made.axes if a.get_title(loc="left")}
    energy = next(a for title, a in panels.items() if title.startswith(("energy", "distance")))
    steps = next(a for title, a in panels.items() if title.startswith("clusters"))
    x = run.points()
    flat = name in ("plane", "space")
    expected = distance_to_dirac(x, on="space") if flat else normalised_energy(x, 4.0)
    np.testing.assert_allclose(energy.lines[0].get_ydata(), expected)
    assert steps.lines[0].get_ydata().tolist() == cluster_count(x, run.scale()).tolist()
    cosines = next(a for title, a in panels.items() if title.endswith("of pairs"))
    (mesh,) = [c for c in cosines.collections if isinstance(c, QuadMesh)]
    shares = np.ma.filled(mesh.get_array(), 0.0)
    np.testing.assert_allclose(np.nan_to_num(shares).sum(0), 1.0)
    made.canvas.draw()
    assert made.axes[-1].get_window_extent().x1 <= made.bbox.x1


def test_overview_draws_the_exact_curve():
    field = Field(Attention(1.0))
    times = torch.linspace(0, 5, 11)
    made = overview(simulate(field, torch.eye(8, dtype=F64), times), field, exact=True)
    mean = next(a for a in made.axes if a.get_title(loc="left").startswith("mean"))
    measured, exact = mean.lines
    assert exact.is_dashed()
    assert mean.get_legend().get_texts()[1].get_text() == "exact"
    t = exact.get_xdata()
    np.testing.assert_allclose(exact.get_ydata(), theory.equiangular_cosine(t, 1.0, 8))
    np.testing.assert_allclose(
        measured.get_ydata(), theory.equiangular_cosine(times, 1.0, 8), atol=1e-6
    )  # and the tokens follow it
    near = overview(RUNS["many"], exact=True)
    mean = next(a for a in near.axes if a.get_title(loc="left").startswith("mean"))
    assert "large" in mean.get_legend().get_texts()[1].get_text()
    with pytest.raises(ValueError, match="tokens off the sphere"):
        overview(RUNS["plane"], exact=True)


@pytest.mark.parametrize(("law", "scaled"), [("row", False), ("mean", False), ("mean", True)])
def test_exact_curves_follow_the_clock_and_the_start(law, scaled):
    from osmose.dynamics.series import exact_curve, mean_products

    x = torch.full((5, 5), 0.3, dtype=F64) + 0.7 * torch.eye(5, dtype=F64)
    start = torch.linalg.cholesky(x)
    run = Trajectory.of(
        simulate(Field(Attention(2.0, law=law, scaled=scaled)), start, torch.linspace(1, 3, 9))
    )
    curve = exact_curve(run, run.times)
    assert curve.exact
    np.testing.assert_allclose(curve.values, mean_products(run), atol=1e-6)
    lengths = Trajectory.of(
        simulate(Field(Attention(2.0)), 3 * start, torch.linspace(0, 3, 9), space=Normalised("pre-ln"))
    )
    np.testing.assert_allclose(exact_curve(lengths, lengths.times).values, mean_products(lengths), atol=1e-6)


@pytest.mark.parametrize(
    ("field", "options", "why"),
    [
        (Field(Attention(1.0, causal=True)), {}, "mask"),
        (Field(Attention(1.0, value=-1.0)), {}, "weights"),
        (Field(Attention(1.0), Attention(1.0)), {}, "one Attention"),
        (FIELD, {"tokens": Tokens(4, torch.tensor([2.0, 1.0, 1.0, 1.0]))}, "masses"),
    ],
)
def test_no_exact_curve_and_why(field, options, why):
    from osmose.dynamics.series import exact_curve

    run = Trajectory.of(simulate(field, torch.eye(4, dtype=F64), [0.0], **options))
    curve = exact_curve(run, run.times)
    assert curve.values is None
    assert why in curve.note


def test_log_time_axis():
    t = torch.logspace(-1, 2, 7)
    solution = simulate(FIELD, draw(5, 1), t, space=Circle(), log_time=True)
    made = overview(solution)
    logs = [a for a in made.axes if a.get_xlabel() == "t"]
    assert len(logs) == 4
    assert all(a.get_xscale() == "log" for a in logs)
    np.testing.assert_allclose(logs[0].get_xlim(), [0.1, 100], rtol=1e-6)
    with pytest.raises(ValueError, match="save=True"):
        overview(simulate(FIELD, sphere(4, 3), [0.0, 1.0], save=False))
