"""The pages' examples run as printed, and the public surface is what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import osmose

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_readme_examples_run_in_order():
    examples = blocks("README.md")
    assert len(examples) == 7
    scope: dict = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), scope)
    assert scope["mixed"].shape == (100, 16)


@pytest.mark.parametrize("page", ["docs/flow.md", "docs/mixed_product.md", "docs/dynamics.md"])
def test_examples_of_the_pages_run(page):
    scope: dict = {}
    for example in blocks(page):
        exec(compile(example, page, "exec"), scope)


def test_the_operator_of_contributing_obeys_the_laws_of_operators():
    import torch

    from osmose import laws

    scope: dict = {}
    (example,) = blocks("CONTRIBUTING.md")
    exec(compile(example, "CONTRIBUTING.md", "exec"), scope)
    assert len(example.splitlines()) <= 32
    op, want = scope["Mirror"](5), torch.eye(5).flip(0)
    v = torch.randn(5, 2)
    assert (op @ v).allclose(want @ v)
    assert (op.mT @ v).allclose(want.T @ v)
    assert op.to_dense().equal(want)
    assert laws.row(op).row_sum().equal(torch.ones(5))


def test_public_surface():
    assert osmose.__all__ == [
        "DIFFormer",
        "DescentMonitor",
        "DiffusionState",
        "Energy",
        "FlowState",
        "MixedProduct",
        "MultiheadMixer",
        "Tokens",
        "__version__",
        "diagnostics",
        "diffusion_attention",
        "dynamics",
        "energy",
        "flow_attention",
        "inspection",
        "laws",
        "mixers",
        "models",
        "nn",
        "operators",
        "structure",
    ]
    assert all(getattr(osmose, name) is not None for name in osmose.__all__)
    with pytest.raises(AttributeError, match="no attribute 'attention'"):
        osmose.attention  # noqa: B018


def test_importing_the_package_imports_no_torch():
    code = "import sys, osmose, osmose.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_readme_calls_exists():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in re.findall(r"\]\((docs/[\w/.]+)\)", text):
        assert (ROOT / page).exists(), page


def test_the_version_is_the_same_everywhere():
    assert f"version: {osmose.__version__}" in (ROOT / "CITATION.cff").read_text()
