"""Which implementation each operator runs, and why.

The environment decides last: MEDSEQ_BACKEND forces one implementation of every operator that has it, MEDSEQ_CPU_ISA
lowers the instruction set of the compiled kernels. Both are read at every call, so a test or a user may set them at
any time. `medseq doctor` prints `backends()`.
"""

import os
from functools import cache
from types import ModuleType
from typing import NamedTuple

from medseq.errors import BackendError

__all__ = ["BackendChoice", "backends", "choose", "compiled_kernels", "cpu_isa"]

CHOICES = ("naive", "chunked", "cpu")
OPERATORS = ("bi_wkv",)


class BackendChoice(NamedTuple):
    """What runs an operator on one kind of device, and the reason in one clause."""

    name: str
    reason: str


@cache
def compiled_kernels() -> ModuleType | None:
    """The extension module, or None where medseq was installed without a compiler."""
    try:
        from medseq.ops import _C
    except ImportError:
        return None
    return _C


def choose(device: str = "cpu") -> BackendChoice:
    """The implementation that tensors on `device` get now.

    Raises:
        BackendError: MEDSEQ_BACKEND holds an unknown name, or asks for kernels that are not installed.
    """
    forced = os.environ.get("MEDSEQ_BACKEND")
    if forced and forced not in CHOICES:
        raise BackendError("unknown backend", where="MEDSEQ_BACKEND", found=forced, wanted=" | ".join(CHOICES))
    if forced == "cpu" and compiled_kernels() is None:
        raise BackendError(
            "the compiled kernels are not installed",
            where="MEDSEQ_BACKEND",
            found=forced,
            remedy="install a C++ compiler and reinstall medseq, or unset MEDSEQ_BACKEND",
        )
    if device != "cpu":
        if forced == "naive":
            return BackendChoice("naive", "MEDSEQ_BACKEND=naive")
        return BackendChoice("chunked", f"pure torch: no {device} kernel yet")
    if forced:
        return BackendChoice(forced, f"MEDSEQ_BACKEND={forced}")
    kernels = compiled_kernels()
    if kernels is None:
        return BackendChoice("chunked", "pure torch: medseq was installed without a C++ compiler")
    threads = "OpenMP" if kernels.openmp else "one thread: built without OpenMP"
    return BackendChoice("cpu", f"compiled kernel, {cpu_isa()}, {threads}")


def cpu_isa() -> str:
    """Instruction set of the compiled kernels: the best this processor has, or the one MEDSEQ_CPU_ISA names.

    Raises:
        BackendError: MEDSEQ_CPU_ISA names one that this processor or this build does not have.
    """
    available = _instruction_sets()
    forced = os.environ.get("MEDSEQ_CPU_ISA")
    if not forced:
        return available[-1]
    if forced not in available:
        raise BackendError(
            "not available on this processor",
            where="MEDSEQ_CPU_ISA",
            found=forced,
            wanted=" | ".join(available) or "no value: the compiled kernels are not installed",
        )
    return forced


@cache
def _instruction_sets() -> tuple[str, ...]:
    kernels = compiled_kernels()
    return tuple(kernels.instruction_sets()) if kernels else ()


def backends() -> dict[str, dict[str, BackendChoice]]:
    """For every operator, what runs it on the CPU and on CUDA, with the reason. Needs no CUDA."""
    return {operator: {device: choose(device) for device in ("cpu", "cuda")} for operator in OPERATORS}
