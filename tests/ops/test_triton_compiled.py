"""The Triton kernels compile to CUDA binaries without a GPU, within the limits of benchmarks/triton_report.py."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("operator", ["selective_scan", "wkv", "causal_conv1d", "cross_scan"])
def test_kernels_compile_within_the_limits(repo_root, tmp_path, operator):
    # In a process of its own, with an empty cache: the compiler and the interpreter exclude each other.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = ["-m", "benchmarks.triton_report", "--quick", "--architecture", "sm_90a", "--operator", operator]
    done = subprocess.run([sys.executable, *command], cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if " registers " in line]
    kernels = {"selective_scan": 2, "wkv": 5, "causal_conv1d": 2, "cross_scan": 1}
    assert len(lines) == kernels[operator], done.stdout
    for words in lines:
        assert int(words[words.index("registers") - 1]) <= 128
        assert int(words[words.index("registers") + 1]) == 0


def test_importing_medseq_and_computing_on_a_cpu_never_loads_triton(repo_root):
    program = """
import sys, torch
loaded = "triton" in sys.modules  # by torch itself, which may
from medseq.ops import backends, bi_wkv, causal_conv1d, cross_selective_scan, selective_scan
x, w = torch.zeros(1, 2, 3, requires_grad=True), torch.zeros(2)
A, B = torch.zeros(2, 1), torch.zeros(1, 1, 3)
y = selective_scan(x, x, A, B, B) + causal_conv1d(x, torch.zeros(2, 4)) + bi_wkv(w, w, x.mT, x.mT).mT
image, steps = x[..., None], x[:, None, :, :, None].expand(-1, 4, -1, -1, -1)
y = y + cross_selective_scan(image, steps, torch.zeros(8, 1), steps[:, :, :1], steps[:, :, :1], None)[..., 0]
y.sum().backward()
backends()
ours = [name for name in sys.modules if name.startswith("medseq") and ("triton" in name or "mamba_ssm" in name)]
others = [name for name in ("mamba_ssm", "causal_conv1d", "selective_scan_cuda") if name in sys.modules]
print(ours, others, "triton" in sys.modules and not loaded)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] [] False"
