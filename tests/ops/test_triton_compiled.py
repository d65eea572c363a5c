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
    program = (
        "import sys, torch, medseq.ops; from medseq.ops import bi_wkv, backends\n"
        "bi_wkv(torch.zeros(2), torch.zeros(2), torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)); backends()\n"
        "print([name for name in sys.modules if name.startswith('medseq') and 'triton' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    # torch itself may import triton; none of our modules that need it is there.
    assert done.stdout.split() == ["[]"]
