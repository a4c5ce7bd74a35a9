"""docs/data.md: its example runs, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from osmose.data import OWN_PROTOCOLS, PROTOCOLS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_example_runs(benchmark_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSMOSE_DATA", str(benchmark_data))
    rng = np.random.default_rng(0)
    rows = [
        f"{a:.3f},{b},{s}"
        for a, b, s in zip(rng.normal(size=30), ["x", "y"] * 15, ["p", "q", "r"] * 10, strict=True)
    ]
    Path("penguins.csv").write_text("\n".join(["bill,island,species", *rows]))
    Path("tomorrow.csv").write_text("bill,island\n0.5,x\n")
    Path("papers").mkdir()
    np.save("papers/features.npy", rng.normal(size=(20, 3)))
    np.save("papers/labels.npy", np.arange(20) % 2)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    found: dict = {}
    exec(code, found)
    assert found["cora"].num_nodes == 2708
    assert found["mine"].classes == ["p", "q", "r"]
    assert len(found["graph"].splits) == 3
    assert found["new"].x.shape == (1, 3)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_set_and_protocol_is_in_the_page(name):
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}`"))
    places = [line.find(f"`{protocol}`") for protocol in PROTOCOLS[name]]
    assert -1 not in places
    assert places == sorted(places)


def test_every_protocol_of_own_data_is_in_the_page():
    text = PAGE.read_text()
    assert all(f"`{protocol}`" in text for protocol in OWN_PROTOCOLS)
