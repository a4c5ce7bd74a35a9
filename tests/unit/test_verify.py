"""`osmose verify`: what it prints and keeps, and that a difference is told."""

import json

import pytest

from osmose.cli import main, verify


def test_table_figure_and_json(tmp_path, capsys):
    assert main(["verify", "--against", "published", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 hold" in out
    assert "Flow-Attention, released, causal" in out
    assert (tmp_path / "verify.png").stat().st_size > 10_000
    assert main(["verify", "--against", "published", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == []
    assert found == json.loads((tmp_path / "verify.json").read_text()) | {"figure": found["figure"]}
    assert all(0 <= row["error"] < 1e-14 for row in found["equalities"])
    page = (tmp_path / "verify.md").read_text()
    assert page.count("\n| ") == 1 + 6
    assert page.startswith("Against the formulas")


def test_what_does_not_hold_is_named_and_the_exit_code_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(verify.TOLERANCE, "float64", 1e-17)
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--against", "published", "--out", str(tmp_path), "--json"])
    assert stop.value.code == 1
    assert "DIFFormer-s, released" in json.loads(capsys.readouterr().out)["failed"]
