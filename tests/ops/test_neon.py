"""The kernels compile for ARM processors too, from the same vector types: NEON registers hold 16 bytes.

Compiled only: no ARM machine runs these tests.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = "aarch64-linux-gnu-g++"
CSRC = Path(__file__).parents[2] / "medseq" / "ops" / "csrc"
KERNELS = sorted(path.name for path in CSRC.glob("*.cpp") if "module" not in path.name)


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_to_neon_instructions(name, tmp_path):
    assert shutil.which(COMPILER), f"{COMPILER} is missing: apt-get install g++-aarch64-linux-gnu"
    # As CMakeLists.txt compiles the baseline, but for the level of optimisation, which costs minutes.
    flags = "-std=c++17 -O1 -fopenmp -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wall -Wextra -Werror"
    flags += " -Wno-psabi -Wno-ignored-attributes -DMEDSEQ_ISA=baseline -DMEDSEQ_VECTOR_BYTES=16"
    assembly = tmp_path / "kernel.s"
    command = [COMPILER, *flags.split(), "-S", "-o", str(assembly), str(CSRC / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    # Four floats at once; GCC joins multiplication and addition only where it optimises more.
    assert re.search(r"\bfmul\s+v\d+\.4s", assembly.read_text())
