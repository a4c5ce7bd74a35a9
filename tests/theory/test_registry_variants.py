"""Codes, normalisation schemes, causal and noisy systems: targets are met, fail where they should, and follow parameters."""

from dataclasses import replace

import pytest
import torch

from osmose.dynamics import EulerMaruyama, Field
from osmose.dynamics.registry import named
from osmose.dynamics.registry import transition as transition_module
from osmose.dynamics.registry.causal import Collapse, Leading
from osmose.dynamics.registry.centres import Centres, variance_of_strong_centres
from osmose.dynamics.registry.codes import OptimalCode, known
from osmose.dynamics.registry.noisy import Growth, NoisySphere, wave
from osmose.dynamics.registry.normalisation import Schemes

ONE_OF_EACH = [
    "codes/clebsch",
    "normalisation/random",
    "causal/centres-beta-64",
    "causal/leading-random",
    "noisy/transition-sphere",
    "noisy/growth",
    "noisy/sphere",
]
SMALL = {
    "codes/icosahedron": {"betas": (8.0,), "starts": 1, "rest": 1e-6},
    "normalisation/schemes": {
        "n": 6,
        "d": 6,
        "reach": 6.0,
        "until": 100.0,
        "rtol": 1e-7,
        "schemes": ("post-ln", "peri-ln", "sqrt-ln"),
    },
    "causal/collapse": {"n": 8, "draws": 1, "rtol": 1e-10},
    "causal/centres": {"n": 60, "draws": 200, "until": 5.0},
    "causal/leading": {"n": 6, "draws": 1, "until": 100.0},
    "noisy/growth": {"n": 300, "ratios": (0.5, 2.0), "until": 3.0},
    "noisy/sphere": {"n": 10, "free": 1000, "h": 0.05, "until": 4.0},
    "noisy/transition": {"ratios": (0.96, 1.1)},
}


def failed(system):
    findings = system.measure()
    assert not {t.name for t in system.targets()} - set(findings.measured)
    return {t.name for t in system.targets() if not t.holds(findings.measured[t.name])}


@pytest.mark.parametrize("name", SMALL)
def test_targets_are_met_and_figures_drawn(name):
    system = named(name, **SMALL[name])
    findings = system.measure()
    for target in system.targets():
        assert target.holds(findings.measured[target.name]), (target, findings.measured[target.name])
    drawn = system.draw(findings)
    drawn.canvas.draw()
    assert all(axes.has_data() for axes in drawn.axes if axes.get_visible())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_run_of_each(name):
    changes = {"until": 0.5} | ({"rtol": 1e-4, "reach": 1.0} if "normalisation" in name else {})
    system = named(name, **changes, **({"n": 8} if "codes" not in name else {"starts": 1, "rest": 1e-5}))
    solution = system.simulate()
    assert bool(torch.isfinite(solution.states).all())
    assert float(solution.times[-1]) == pytest.approx(0.5)
    assert system.quick().changed(seed=3).parameters["seed"] == 3


def with_field(system, change):
    """The same system with another field in its runs."""
    cls = type(system)

    class Wrong(cls):
        def _problem(self, *args):
            made = super()._problem(*args)
            problem = made[0] if isinstance(made, tuple) else made
            wrong = replace(problem, field=change(problem.field))
            return (wrong, made[1]) if isinstance(made, tuple) else wrong

    return Wrong(**system.parameters)


def term(field, **changes):
    return Field(replace(field.terms[0], **changes))


def test_codes_need_repulsion_and_rest():
    small = OptimalCode(n=6, betas=(2.0,), starts=1, rest=1e-6)
    assert "energy at beta = 2" in failed(replace(small, until=1.0))
    wrong = failed(with_field(replace(small, until=10.0), lambda f: term(f, value=1.0)))
    assert "largest rise of the energy" in wrong
    assert any(name.startswith("largest error of an inner product") for name in wrong)


def test_codes_targets_follow_n_and_beta():
    assert len(OptimalCode(n=5).targets()) == 1  # no optimal code known
    assert [t.source for t in OptimalCode(n=12).targets() if "stored" in t.source] != []
    assert not any("stored" in t.source for t in OptimalCode(n=12, betas=(3.0,)).targets())
    assert {t.name for t in OptimalCode(n=240, d=8, reached=False).targets()} == {
        "largest rise of the energy",
        "least energy less that of the code",
    }


@pytest.mark.parametrize(
    ("n", "d"), [(2, 3), (5, 2), (6, 2), (4, 3), (4, 5), (6, 3), (10, 5), (16, 5), (120, 4)]
)
def test_known_codes_are_what_their_tables_say(n, d):
    code = known(n, d)
    x = code.points()
    assert x.shape[0] == code.n == n
    products = sorted((x[0] @ x[1:].mT).tolist())
    table = [s for s, m in zip(code.products, code.multiplicity, strict=True) for _ in range(m)]
    assert products == pytest.approx(table, abs=1e-12)
    assert code.products == tuple(sorted(code.products))


def test_schemes_are_told_apart():
    class Swapped(Schemes):
        def _problem(self, scheme):
            return super()._problem("peri-ln" if scheme == "pre-ln" else scheme)

    schemes = ("pre-ln", "mix-ln")
    wrong = failed(Swapped(n=5, d=5, reach=6.0, until=100.0, rtol=1e-7, schemes=schemes))
    assert "1 - rho of pre-ln, relative error" in wrong
    assert "lengths of pre-ln, relative error" in wrong
    assert "1 - rho of mix-ln, relative error" not in wrong


def test_rates_of_schemes_follow_alpha_and_need_time():
    rates = {t.name: t.value for t in Schemes(alpha=1.5, start="random", d=64).targets()}
    assert rates["rate of ngpt in its clock"] == 3.0
    assert rates["rate of sqrt-ln in its clock"] == 4.0

    class Slower(Schemes):  # the clock of sqrt-ln under post-ln
        def _problem(self, scheme):
            return super()._problem("sqrt-ln" if scheme == "post-ln" else scheme)

    assert "rate of post-ln in its clock" in failed(
        Slower(start="random", n=5, d=16, reach=6.0, rtol=1e-7, schemes=("post-ln",))
    )


def test_collapse_needs_causal_order_and_v_identity():
    short = Collapse(n=4, draws=1, until=5.0, rtol=1e-8)
    assert "largest motion of the first token" in failed(with_field(short, lambda f: term(f, causal=False)))
    wrong = failed(with_field(Collapse(n=3, draws=1, until=60.0, rtol=1e-10), lambda f: term(f, value=0.9)))
    assert {"rate of token 2, farthest from 1/2", "rate of token 3, farthest from 1/2"} <= wrong
    assert "distances against the linearised flow, relative to the largest" in wrong


def test_centres_are_counted_and_held_by_order():
    class Everyone(Centres):
        def problem(self):
            made = super().problem()
            return replace(made, field=term(made.field, causal=False))

    small = {"n": 60, "draws": 400, "until": 1.0}
    assert failed(Everyone(**small)) == {"largest speed of a strong centre at the start, over its bound"}
    count = Centres(**small).measure().measured["strong centres, mean over draws"]
    other = Centres(**small, delta=0.19).targets()[0]
    assert not other.holds(count)


def test_variance_of_strong_centres():
    p = 0.3 / torch.pi
    assert variance_of_strong_centres(2, 0.3) == pytest.approx(p * (1 - p), rel=1e-6)
    spread = Centres(n=40, delta=0.3, draws=4000, until=0.2).measure().measured
    assert spread["strong centres, standard deviation"] ** 2 == pytest.approx(
        variance_of_strong_centres(40, 0.3), rel=0.1
    )


def test_leading_needs_its_eigenvector():
    wrong = failed(with_field(Leading(n=5, draws=1, until=60.0), lambda f: term(f, value=-f.terms[0].value)))
    assert "share of first tokens at xi or -xi" in wrong
    assert not any("conjecture" in t.source for t in Leading(weights="random").targets())


def test_random_queries_and_keys_have_other_limits_that_attract():
    system = Leading(weights="random", n=16, draws=1, seed=4)
    measured = system.measure().measured
    assert measured["share of first tokens at xi or -xi"] == 1
    assert measured["draws with tokens elsewhere"] == 1
    assert measured["largest speed of the first token elsewhere"] < 1e-8
    assert measured["largest growth rate about it (negative attracts)"] < -0.1


def test_growth_needs_the_noise_it_says():
    class Quieter(Growth):
        def _problem(self, ratio):
            return replace(super()._problem(ratio), stepper=EulerMaruyama(self.h, 3 * self._kappa(ratio)))

    small = {"n": 800, "ratios": (0.5, 0.6), "until": 4.0}
    assert failed(Quieter(**small)) == {"tokens against the mean field, in standard errors"}
    assert float(wave(1000, 0.2)[:, 0].mean()) == pytest.approx(0.2, abs=1e-6)


def test_memory_needs_the_noise_it_says():
    class Louder(NoisySphere):
        def problem(self):
            return replace(super().problem(), stepper=EulerMaruyama(self.h, 0.8 * self.kappa))

    assert {name for name in failed(Louder(n=4, free=2000, h=0.05, until=0.5)) if "memory" in name}


def test_transition_needs_its_beta(monkeypatch):
    small = named("noisy/transition", betas=(1.5,), ratios=(0.96, 1.05))
    exact = transition_module.FokkerPlanck
    monkeypatch.setattr(
        transition_module, "FokkerPlanck", lambda beta, d, modes=40: exact(1.01 * beta, d, modes)
    )
    wrong = failed(small)
    assert {"critical kappa, beta = 1.5", "slope of kappa / kappa_c in r^2, beta = 1.5"} <= wrong
    assert "beta where the slope vanishes" in wrong


def test_kind_of_the_transition_follows_beta():
    def least(beta):
        targets = named("noisy/transition", betas=(beta,)).targets()
        return next(t for t in targets if t.name.startswith("least kappa"))

    assert least(2.4).holds(1.0)
    assert not least(2.4).holds(0.98)
    assert least(2.5).holds(0.98)
    assert not least(2.5).holds(1.0)
