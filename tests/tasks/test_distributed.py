"""Two processes train what one trains with their batches together, and count every validation case once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def train(name, processes, out):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.tasks.ddp_script", name, str(processes), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(f"{out}.pt", map_location="cpu", weights_only=True)
    return state, json.loads(Path(f"{out}.json").read_text())


@pytest.mark.parametrize("name", ["restore", "mil"])
def test_two_processes_equal_one(name, tmp_path):
    (one, scores), (two, shared) = (train(name, processes, tmp_path / str(processes)) for processes in (1, 2))
    # Sums in another order: a few float32 roundings of the largest gradient.
    largest = one["gradients"].abs().max()
    torch.testing.assert_close(two["gradients"] / largest, one["gradients"] / largest, rtol=0, atol=1e-5)
    # Adam divides by the gradient's own size, so an element whose gradient is rounding noise may move by a step.
    for part in ("net", "ema"):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=0, atol=2e-5)
    assert shared.keys() == scores.keys()
    for key, value in scores.items():
        assert shared[key] == pytest.approx(value, rel=1e-3), key
