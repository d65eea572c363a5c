"""A kernel built for an instruction set never runs on a processor without it, with processors that are fake."""

import itertools
import subprocess

import pytest

from medseq.errors import BackendError
from medseq.ops import backend

FLAGS = ("avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl")
MAIN = """
#include "processor.hpp"
#include <cstdio>
int main() {
  for (int bits = 0; bits < 64; ++bits) {
    std::printf("%d", bits);
    const auto has = [bits](int i) { return (bits >> i & 1) != 0; };
    for (const auto &name : medseq::builds_for({has(0), has(1), has(2), has(3), has(4), has(5)}))
      std::printf(" %s", name.c_str());
    std::printf("\\n");
  }
}
"""


def test_every_flag_of_a_build_must_be_there(tmp_path, repo_root):
    (tmp_path / "main.cpp").write_text(MAIN)
    include = f"-I{repo_root / 'medseq' / 'ops' / 'csrc'}"
    command = ["g++", "-std=c++17", include, str(tmp_path / "main.cpp"), "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True, timeout=120)
    lines = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 64
    for line, bits in zip(lines, itertools.product((False, True), repeat=6), strict=True):
        # itertools counts with the last flag fastest, the program with the first.
        has = dict(zip(FLAGS, reversed(bits), strict=True))
        wanted = ["baseline"]
        if has["avx2"] and has["fma"]:
            wanted.append("avx2")
            if all(has.values()):
                wanted.append("avx512")
        assert line.split()[1:] == wanted, has


def test_the_flags_asked_for_are_those_compiled_with(repo_root):
    cmake = (repo_root / "CMakeLists.txt").read_text()
    (line,) = [line for line in cmake.splitlines() if "add_kernels(avx512 " in line]
    assert {word.removeprefix("-m") for word in line.split() if word.startswith("-m")} <= {
        *FLAGS,
        "prefer-vector-width=512)",
    }
    module = (repo_root / "medseq" / "ops" / "csrc" / "module.cpp").read_text()
    assert [flag for flag in FLAGS if f'__builtin_cpu_supports("{flag}")' not in module] == []


def test_no_code_of_the_build_can_stand_in_for_another(tmp_path, repo_root):
    # A weak symbol, such as an inline function of the standard library, may be taken from any object file: if it were
    # compiled for AVX-512, every processor would run it.
    source = repo_root / "medseq" / "ops" / "csrc" / "causal_conv1d.cpp"
    flags = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
    defines = ["-DMEDSEQ_ISA=avx512", "-DMEDSEQ_VECTOR_BYTES=64"]
    object_file = tmp_path / "kernels.o"
    command = ["g++", "-std=c++17", "-O2", "-fPIC", "-c", *flags, *defines, str(source), "-o", str(object_file)]
    subprocess.run(command, check=True, timeout=300)
    listed = subprocess.run(
        ["nm", "--demangle", "--defined-only", object_file], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split(maxsplit=2)[1:] for line in listed.splitlines()]
    assert any("medseq::avx512" in name for _, name in symbols)
    shared = [name for kind, name in symbols if kind in "WuTBD" and "medseq::avx512::" not in name]
    assert shared == []


def test_a_processor_without_avx512_is_given_avx2_and_refuses_more(monkeypatch):
    monkeypatch.setattr(backend, "_instruction_sets", lambda: ("baseline", "avx2"))
    monkeypatch.delenv("MEDSEQ_CPU_ISA", raising=False)
    assert backend.cpu_isa() == "avx2"
    monkeypatch.setenv("MEDSEQ_CPU_ISA", "avx512")
    with pytest.raises(BackendError, match="MEDSEQ_CPU_ISA"):
        backend.cpu_isa()


def test_the_kernels_themselves_refuse_a_set_that_is_not_there():
    kernels = backend.kernels()
    with pytest.raises(ValueError, match="no instruction set 'avx1024'"):
        kernels.wkv_forward("avx1024", False, False, 1, 1, 1, 0, 0, 0, 0, 0, 1)
