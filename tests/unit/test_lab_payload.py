"""The payload of a run: what it holds is what the observables say, it survives JSON, and it stays in its bounds; seeded."""

import copy
import json

import numpy as np
import pytest
import torch

from osmose.dynamics import (
    Attention,
    Circle,
    Euclidean,
    EulerMaruyama,
    Field,
    GradientBelow,
    Gram,
    HemisphereEntered,
    Mixed,
    Normalised,
    Rescaled,
    Sphere,
    gram_matrix,
    perceptron,
    simulate,
    theory,
)
from osmose.dynamics import observables as seen
from osmose.lab import SCHEMA, VERSION, check_payload, payload, write_payload
from osmose.tokens import Tokens

from .test_dynamics_fields import F64, draw, sphere

FIELD = Field(Attention(4.0))
TIMES = torch.linspace(0, 6, 13)


def close(value, expected, atol=1e-8):
    np.testing.assert_allclose(np.array(value, dtype=float), np.asarray(expected), rtol=1e-8, atol=atol)


def dumped(content):
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


@pytest.fixture(scope="module")
def run():
    return simulate(FIELD, sphere(9, 3), TIMES)


def test_it_holds_what_the_observables_say(run):
    p = payload(run, FIELD, name="demo", title="Nine", source="2312.10794v5", parameters={"T": 6.0}, bins=20)
    x = run.states
    assert (p["schema"], p["version"]) == (SCHEMA, VERSION) == ("osmose.particles", 1)
    assert p["system"] == {
        "name": "demo",
        "title": "Nine",
        "source": "2312.10794v5",
        "n": 9,
        "d": 3,
        "beta": 4.0,
        "law": "row",
        "kernel": "exp",
        "field": repr(FIELD),
        "space": "Sphere()",
        "stepper": repr(run.run.stepper),
        "parameters": {"T": 6.0},
        "shape": [],
        "index": 0,
    }
    assert p["times"] == TIMES.tolist()
    close(p["positions"], x, atol=0.5001e-4)
    assert all(len(f"{abs(v):.12g}") <= 6 for frame in p["positions"] for token in frame for v in token)
    close(p["energy"]["values"], seen.energy(x, 4.0))
    close(p["energy"]["normalised"], seen.normalised_energy(x, 4.0))
    assert p["energy"]["model"] == "SA"
    found = seen.clusters(x, 0.1)
    assert p["clusters"]["labels"] == found.labels.tolist()
    assert p["clusters"]["counts"] == found.count.tolist()
    assert p["clusters"]["scale"] == 0.1
    histogram = seen.product_histogram(x, 20)
    assert p["products"]["of"] == "inner products"
    close(p["products"]["edges"], histogram.edges)
    close(p["products"]["counts"], histogram.share * 72)
    close(p["products"]["mean"], seen.mean_product(x))
    close(p["order"], seen.order_parameter(x))
    close(p["dirac"], seen.distance_to_dirac(x))
    close(p["exact"]["values"], theory.equiangular_cosine(TIMES, 4.0, 9))
    assert (p["exact"]["start"], p["exact"]["exact"]) == (0.0, False)
    assert p["attention"]["times"] == [0.0, 3.0, 6.0]
    expected = (4 * x[[0, 6, 12]] @ x[[0, 6, 12]].mT).softmax(-1)
    close([w[0] for w in p["attention"]["weights"]], expected, atol=0.5001e-4)
    score = (x @ x.mT).masked_fill(torch.eye(9, dtype=torch.bool), -2)
    assert p["leaders"]["follows"] == score.argmax(-1).tolist()
    assert p["leaders"]["itself"] == [[1] * 9] * 13  # on the sphere with Q = K
    assert p["status"]["name"] == "done"
    assert p["status"]["steps"] == int(run.steps)
    assert p["left_out"] == p["thinned"] == p["events"] == {}
    assert p["notes"] == []
    assert p["angles"] is p["radii"] is p["masses"] is p["gram"] is None
    check_payload(p)


def test_it_survives_json(run, tmp_path):
    p = payload(run)
    path = write_payload(tmp_path / "run.json", p)
    text = path.read_text()
    assert json.loads(text) == p
    assert "NaN" not in text
    assert "Infinity" not in text
    check_payload(json.loads(text))
    assert payload(run, FIELD) == p  # the field of the run is the default


def test_chosen_times_are_points_of_geodesics(run):
    p = payload(run, times=[0.0, 0.25, 6.0], decimals=12, attention_at=[0.25])
    assert p["times"] == [0.0, 0.25, 6.0]
    middle = Sphere().between(run.states[0], run.states[1], 0.5)
    close(p["positions"][1], middle, atol=1e-12)
    close(p["energy"]["values"], seen.energy(torch.stack([run.states[0], middle, run.final]), 4.0))
    assert p["notes"] == ["1 of 3 frames lie between saved times: tokens are put on geodesics"]
    close(p["attention"]["weights"][0][0], (4 * middle @ middle.mT).softmax(-1))
    for times in ([0.0, 9.0], [1.0, 0.0], []):
        with pytest.raises(ValueError, match="times"):
            payload(run, times=times)


def test_circle_angles_and_events():
    events = [HemisphereEntered(), GradientBelow(tolerance=1e-30)]
    start = draw(5, 1) / 3
    solution = simulate(FIELD, start, [0.5, 1.0], space=Circle(), events=events)
    p = payload(solution)
    close(p["angles"], solution.states.squeeze(-1), atol=1e-4)
    close(p["positions"], torch.cat([solution.states.cos(), solution.states.sin()], -1), atol=1e-4)
    assert p["system"]["d"] == 2
    assert set(p["events"]) == {e.name for e in events}
    assert p["events"][events[0].name] == 0.5
    assert p["events"][events[1].name] is None  # NaN: it did not happen
    check_payload(p)


def test_flat_spaces():
    x = 3 * draw(6, 2)
    p = payload(simulate(FIELD, x, [0.0, 0.5], space=Rescaled(1.0)))
    assert p["energy"]["values"] is None
    assert "grows without bound" in p["energy"]["note"]
    assert p["products"]["of"] == "cosines"
    cosines = torch.nn.functional.normalize(x, dim=-1)
    close(p["products"]["mean"][0], seen.mean_product(cosines))
    close(p["dirac"][0], seen.distance_to_dirac(x, on="space"))
    z = simulate(FIELD, x, [0.0, 0.5], space=Rescaled(1.0)).final
    moved = torch.tensor(0.5, dtype=F64).exp() * z  # attention sees x = e^t z
    close(p["attention"]["weights"][-1][0], (4 * moved @ moved.mT).softmax(-1), atol=1e-4)
    assert p["exact"]["values"] is None
    check_payload(p)
    p = payload(simulate(Field(Attention(-1.0)), 40 * torch.eye(2, dtype=F64), [0.0], space=Euclidean()))
    check_payload(p)


def test_numbers_past_the_range_of_floats_are_null():
    x = 40 * torch.eye(2, dtype=F64)
    solution = simulate(Field(Attention(1.0)), x, [0.0, 1e-6], space=Euclidean())
    p = payload(solution)
    assert p["energy"]["values"] == [None, None]  # e^1600
    dumped(p)
    check_payload(p)
    on_sphere = payload(simulate(Field(Attention(2000.0)), sphere(4, 3), [0.0]))
    assert on_sphere["energy"]["log_scale"] == 2000.0
    assert all(v is not None for v in on_sphere["energy"]["values"])


def test_lengths_and_masses():
    x, mass = 2 * sphere(4, 3), torch.tensor([1.0, 3.0, 0.0, 2.0])
    solution = simulate(FIELD, x, [0.0, 1.0], space=Normalised("pre-ln"), tokens=Tokens(4, mass))
    p = payload(solution)
    theta = x / 2
    assert p["radii"][0] == [2.0] * 4
    assert p["masses"] == mass.tolist()
    close(p["positions"][0], theta, atol=1e-4)
    close(p["products"]["mean"][0], seen.mean_product(theta, mass.double()))
    assert p["clusters"]["labels"][0][2] == -1
    assert p["leaders"]["follows"][0][2] == -1
    assert all(row[2] == 0.0 for row in p["attention"]["weights"][0][0])  # nobody listens to mass 0
    check_payload(p)
    weights = Tokens(4, torch.tensor([0.25, 0.25, 0.25, 0.25]))
    p = payload(simulate(FIELD, x / 2, [0.0], tokens=weights))
    close(p["products"]["mean"][0], seen.order_parameter(x / 2).square())


def test_gram_space_has_inner_products_for_positions():
    solution = simulate(FIELD, gram_matrix(sphere(5, 12)), [0.0, 1.0], space=Gram())
    p = payload(solution, attention_at=2)
    assert p["positions"] is None
    assert "no places" in p["left_out"]["positions"]
    close(p["gram"]["values"], solution.states, atol=0.5001e-4)
    close([w[0] for w in p["attention"]["weights"]], (4 * solution.states).softmax(-1), atol=1e-4)
    off = ~torch.eye(5, dtype=torch.bool)
    close(p["products"]["mean"], solution.states[:, off].mean(-1))
    check_payload(p)


def test_heads_masks_and_fields_without_attention():
    heads = Field(Attention(1.0, causal=True), Attention(2.0, kernel="hardmax", itself=False))
    p = payload(simulate(heads, sphere(5, 3), [0.0]))
    causal, hard = np.array(p["attention"]["weights"][0])
    assert np.allclose(np.triu(causal, 1), 0)
    assert sorted(hard.ravel()) == [0] * 20 + [1] * 5
    assert p["energy"]["model"] is None
    check_payload(p)
    mixed = Field(Mixed("linear"))
    p = payload(simulate(mixed, sphere(5, 3), [0.0]))
    weights = torch.tensor(p["attention"]["weights"][0][0], dtype=F64)
    close((weights @ sphere(5, 3)).tolist(), mixed(sphere(5, 3)), atol=1e-3)
    assert p["system"]["kernel"] == "linear"
    drift = Field(drift=perceptron(draw(3, 2), draw(2, 3)))
    p = payload(simulate(drift, sphere(5, 3), [0.0]))
    assert p["attention"] is p["leaders"] is None
    assert "drift" in p["left_out"]["attention"]
    check_payload(p)


def test_more_than_256_tokens_have_no_pairs():
    p = payload(simulate(FIELD, sphere(257, 3), [0.0, 0.1]))
    assert p["attention"] is p["leaders"] is None
    assert p["left_out"]["attention"] == "257 tokens; weights of all pairs are given up to 256"
    assert len(p["positions"][0]) == 257
    check_payload(p)
    assert payload(simulate(FIELD, sphere(256, 3), [0.0]), attention_at=1)["attention"] is not None


def test_frames_are_thinned_to_the_limit(run):
    whole = payload(run, attention_at=0)
    limit = len(dumped(whole)) // 2
    p = payload(run, attention_at=0, limit=limit)
    kept = len(p["times"])
    assert len(dumped(p)) <= limit
    assert 4 <= kept < 13
    assert (p["times"][0], p["times"][-1]) == (0.0, 6.0)
    assert p["thinned"]["frames"] == f"{kept} of 13 frames, to stay under {limit:,} bytes"
    check_payload(p)  # every part was thinned alike
    again = payload(run, times=p["times"], attention_at=0)
    assert again | {"thinned": p["thinned"]} == p


def test_attention_goes_before_frames_and_what_cannot_fit_is_refused(run):
    p = payload(run, attention_at=12, limit=14_000)
    assert p["attention"] is None
    assert "bytes of weights" in p["left_out"]["attention"]
    assert len(dumped(p)) <= 14_000
    check_payload(p)
    with pytest.raises(ValueError, match="2 frames of 9 tokens take"):
        payload(run, limit=1000)
    many = payload(simulate(FIELD, sphere(300, 3), torch.linspace(0, 1, 200)), limit=60_000)
    assert len(dumped(many)) <= 60_000
    assert many["thinned"]["frames"].endswith("of 200 frames, to stay under 60,000 bytes")


def test_one_system_of_a_batch():
    beta = torch.tensor([1.0, 9.0], dtype=F64)
    field = Field(Attention(beta))
    solution = simulate(field, sphere(2, 5, 3), [0.0, 1.0])
    p = payload(solution, field, system=1)
    alone = payload(simulate(Field(Attention(9.0)), sphere(2, 5, 3)[1], [0.0, 1.0]))
    assert p["system"]["beta"] == 9.0
    assert (p["system"]["shape"], p["system"]["index"]) == ([2], 1)
    assert p["notes"] == ["system 1 of a batch of 2"]
    for part in ("positions", "clusters", "energy", "leaders", "attention"):
        assert p[part] == alone[part]
    with pytest.raises(ValueError, match="the run has \\(2,\\)"):
        payload(solution, system=2)


def test_noise_has_no_exact_curve_and_parameters_must_be_plain(run):
    noisy = simulate(
        FIELD,
        sphere(4, 3),
        [0.0, 0.1],
        stepper=EulerMaruyama(0.1, kappa=3.0),
        generator=torch.Generator().manual_seed(0),
    )
    assert payload(noisy)["exact"]["note"] == "noise"
    given = {"v": torch.eye(2), "k": np.float64(0.5), "list": (1, "a"), "inf": float("inf")}
    p = payload(run, parameters=given)
    assert p["system"]["parameters"] == {
        "v": [[1.0, 0.0], [0.0, 1.0]],
        "k": 0.5,
        "list": [1, "a"],
        "inf": None,
    }
    check_payload(p)
    with pytest.raises(ValueError, match=r"parameters\.f is function"):
        payload(run, parameters={"f": lambda: 0})


def corrupt(path, value):
    def change(p):
        *keys, last = path
        for key in keys:
            p = p[key]
        if value is KeyError:
            del p[last]
        else:
            p[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (corrupt(["schema"], "other"), r"payload\.schema: is 'other'"),
        (corrupt(["version"], 2), r"payload\.version: is 2; expected 1"),
        (corrupt(["positions", 3, 2, 0], "a"), r"payload\.positions\[3\]\[2\]\[0\]: is 'a'"),
        (corrupt(["positions", 3, 2], [0.0]), r"payload\.positions\[3\]\[2\]: has 1 entries; expected 3"),
        (corrupt(["positions"], None), r"payload\.left_out\.positions"),
        (corrupt(["energy", "values", 1], float("nan")), r"payload\.energy\.values\[1\]: is nan"),
        (
            corrupt(["clusters", "labels", 0, 4], 9),
            r"labels\[0\]\[4\]: is 9; expected a whole number from -1 to 8",
        ),
        (corrupt(["clusters", "counts"], [1]), r"clusters\.counts: has 1 entries; expected 13"),
        (corrupt(["products", "counts", 0], [1.0]), r"products\.counts\[0\]: has 1 entries; expected 50"),
        (corrupt(["times", 1], 0.0), r"payload\.times: .* numbers that rise"),
        (corrupt(["attention", "weights", 0, 0, 8], [0.5]), r"weights\[0\]\[0\]\[8\]: has 1"),
        (corrupt(["leaders", "itself", 0, 0], True), r"itself\[0\]\[0\]: is True"),
        (corrupt(["order"], KeyError), r"payload\.order: is missing"),
        (corrupt(["system", "n"], 0), r"payload\.system\.n: is 0"),
        (corrupt(["system", "parameters"], {"f": object}), r"system\.parameters\.f"),
        (corrupt(["more"], 1), r"payload\.more: is not a field"),
        (corrupt(["system"], None), r"payload\.system: is None; expected an object"),
    ],
)
def test_a_check_names_the_path(run, change, message):
    p = copy.deepcopy(payload(run))
    change(p)
    with pytest.raises(ValueError, match=message):
        check_payload(p)


def test_writing_is_all_or_nothing(run, tmp_path):
    path = tmp_path / "run.json"
    p = payload(run)
    write_payload(path, p)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"payload\.times"):
        write_payload(path, p | {"times": []})
    with pytest.raises(ValueError, match="expected at most 100"):
        write_payload(path, p, limit=100)
    with pytest.raises(ValueError, match="does not exist"):
        write_payload(tmp_path / "no" / "run.json", p)
    with pytest.raises(ValueError, match="an object"):
        check_payload([])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
