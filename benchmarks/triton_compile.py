"""Compiles medseq's Triton kernels ahead of time, without a GPU, exactly as the operators would launch them.

A launch is recorded by calling the operator's own code with tensors that have no data, so nothing here repeats which
tile, dtype or constant a shape gets. Used by triton_report.py and by the tests.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The default changes with Triton 3.10; the figures should not.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

__all__ = ["ARCHITECTURES", "Build", "Launch", "compiled", "recorded"]

ARCHITECTURES = {"sm_80": 80, "sm_90a": 90}
_POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Launch(NamedTuple):
    """A kernel with what the just-in-time compiler would know at this launch."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[int, ...]
    warps: int
    most_registers: int | None

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


class Build(NamedTuple):
    """What ptxas says."""

    registers: int
    shared: int
    spilled: int


class _Recorder:
    """Stands for a kernel: `kernel[grid](...)` notes the launch."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        return self._launch

    def _launch(self, *args: Any, num_warps: int, maxnreg: int | None = None, **constants: Any) -> None:
        names = self._kernel.arg_names
        values = dict(zip(names, args, strict=False)) | constants
        loose = {parameter.name for parameter in self._kernel.params if parameter.do_not_specialize}
        signature, fixed, divisible = {}, {}, []
        for i, name in enumerate(names):
            value = values[name]
            if isinstance(value, Tensor):
                signature[name] = _POINTERS[value.dtype]
                divisible.append(i)
            elif name in constants or value is None or (value == 1 and name not in loose):
                signature[name], fixed[name] = "constexpr", value
            else:
                signature[name] = "i32" if abs(value) < 2**31 else "i64"
                divisible += [i] if value % 16 == 0 and name not in loose else []
        self._launches.append(Launch(self._kernel, signature, fixed, tuple(divisible), num_warps, maxnreg))


@contextmanager
def _recording(module: ModuleType, settings: dict[str, Any]) -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    kernels = {name: x for name, x in vars(module).items() if name.endswith("_kernel")}
    replaced = {name: _Recorder(x, launches) for name, x in kernels.items()} | settings
    before = {name: getattr(module, name) for name in replaced}
    try:
        for name, x in replaced.items():
            setattr(module, name, x)
        yield launches
    finally:
        for name, x in before.items():
            setattr(module, name, x)


def recorded(operator: str, function: str, args: tuple[Any, ...], settings: dict[str, Any]) -> list[Launch]:
    """The launches of `medseq.ops.<operator>.triton.<function>(*args)`; `settings` replaces constants of the module."""
    module = import_module(f"medseq.ops.{operator}.triton")
    with _recording(module, settings) as launches:
        getattr(module, function)(*(x.to("meta") if isinstance(x, Tensor) else x for x in args))
    return launches


def compiled(launch: Launch, architecture: str) -> Build:
    """Compiles to a CUDA binary and asks the assembler for registers and spills."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs=launch.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in launch.divisible},
    )
    target = GPUTarget("cuda", ARCHITECTURES[architecture], 32)
    kernel = triton.compile(
        source, target=target, options={"num_warps": launch.warps, "maxnreg": launch.most_registers}
    )
    registers, spilled = _assembled(kernel.asm["ptx"], architecture)
    return Build(registers, kernel.metadata.shared, spilled)


def _assembled(ptx: str, architecture: str) -> tuple[int, int]:
    from triton.backends import nvidia

    # What is emitted for sm_90a is newer than the plain ptxas of the package.
    assembler = "ptxas-blackwell" if architecture == "sm_90a" else "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [Path(nvidia.__file__).parent / "bin" / assembler, "-v", f"-arch={architecture}", file.name]
        log = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    assert registers, log
    return int(registers[1]), sum(map(int, spills))
