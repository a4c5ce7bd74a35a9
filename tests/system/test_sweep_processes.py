"""A sweep in two processes gives what one gives, bit by bit, in each of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from osmose.dynamics import SweepResult

SCRIPT = """
import os, sys
from pathlib import Path
from osmose.dynamics import Attention, Field, sweep
from osmose.dynamics.observables import Observable, mean_product

out, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "initialised":
    import torch.distributed as dist
    dist.init_process_group("gloo")
rank, told = os.environ.get("RANK", "0"), []
for turn in range(2):  # the second finds the processes as the first did
    found = sweep(
        lambda beta: Field(Attention(beta)), beta=[0.5, 2.0, 5.0], n=[4, 9], d=[3, 12], seeds=4, times=[0.0, 0.5, 1.0],
        observe=[Observable("p", mean_product), Observable("q", mean_product, "mean")], chunk=5,
        told=lambda done, of: told.append((done, of)), folder=out / "chunks" if turn else None)
    found.save(out / f"{mode}-{rank}-{turn}.safetensors")
if mode == "initialised":
    assert dist.is_initialized()
    dist.destroy_process_group()
print(told[-1])
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def launched(folder: Path, mode: str, *launcher: str) -> str:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, *launcher, str(script), str(folder), mode]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    folder = tmp_path_factory.mktemp("alone")
    assert launched(folder, "alone").split("\n")[0] == "(12, 12)"
    return SweepResult.load(folder / "alone-0-1.safetensors")


@pytest.mark.parametrize("mode", ["environment", "initialised"])
def test_two_processes_are_one(alone: SweepResult, tmp_path: Path, mode: str) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = launched(tmp_path, mode, *torchrun)
    assert out.count("(6, 6)") == 2  # each did half
    for rank in (0, 1):
        for turn in (0, 1):
            found = SweepResult.load(tmp_path / f"{mode}-{rank}-{turn}.safetensors")
            assert found.axes == alone.axes
            for name, value in alone.values.items():
                assert torch.equal(found.values[name], value), name
    assert len(list((tmp_path / "chunks").glob("chunk-*"))) == 12
