"""Which implementation each operator runs, and why.

An operator has the implementations whose files lie in its folder: adding one is adding `<operator>/<name>.py`. The
environment decides last: MEDSEQ_BACKEND forces one implementation of every operator that has it, MEDSEQ_CPU_ISA
lowers the instruction set of the compiled kernels. Both are read at every call, so a test or a user may set them at
any time. Asking loads neither torch nor triton nor mamba_ssm; `medseq doctor` prints `backends()`.
"""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from medseq.errors import BackendError

__all__ = [
    "OPERATORS",
    "BackendChoice",
    "backends",
    "candidates",
    "choose",
    "compiled_kernels",
    "cpu_isa",
    "kernels",
    "load",
]

CHOICES = ("naive", "chunked", "cpu", "triton", "mamba_ssm")

_FOLDERS = {
    "bi_wkv": "wkv",
    "selective_scan": "selective_scan",
    "cross_selective_scan": "cross_scan",
    "causal_conv1d": "causal_conv1d",
}
OPERATORS = tuple(_FOLDERS)

# The package behind the choice "mamba_ssm": the authors publish the convolution apart.
_PACKAGES = {"selective_scan": "mamba_ssm", "causal_conv1d": "causal_conv1d"}

# Best first; pure torch runs everywhere.
_PREFERENCE = {"cpu": ("cpu", "chunked", "naive"), "cuda": ("triton", "mamba_ssm", "chunked", "naive")}
_REMEDY = "or unset MEDSEQ_BACKEND"


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


def kernels() -> ModuleType:
    """The extension module, for implementations that `choose` names only where it is there."""
    found = compiled_kernels()
    assert found is not None
    return found


def choose(operator: str, device: str = "cpu") -> BackendChoice:
    """The implementation of `operator` that tensors on `device` get now.

    Args:
        operator: One of `OPERATORS`.
        device: Kind of device: cpu, cuda or another of torch's.

    Raises:
        BackendError: MEDSEQ_BACKEND holds an unknown name, or asks for what is not installed or not for this device.
    """
    forced = os.environ.get("MEDSEQ_BACKEND")
    if forced and forced not in CHOICES:
        raise BackendError("unknown backend", where="MEDSEQ_BACKEND", found=forced, wanted=" | ".join(CHOICES))
    note = ""
    if forced and not _has(operator, forced):
        note = f"; MEDSEQ_BACKEND={forced} has no {operator}"
    elif forced:
        _require(operator, forced, device)
        return BackendChoice(forced, f"MEDSEQ_BACKEND={forced}")
    name = candidates(operator, device)[0]
    return BackendChoice(name, _reason(name, device) + note)


def candidates(operator: str, device: str = "cpu") -> list[str]:
    """The implementations of `operator` that can run on `device` here, best first."""
    names = [name for name in _PREFERENCE.get(device, ("chunked", "naive")) if _has(operator, name)]
    return [name for name in names if _missing(operator, name) is None]


def load(operator: str, device: str = "cpu") -> ModuleType:
    """The module of the chosen implementation, imported now.

    Raises:
        BackendError: As `choose`, or the module's own requirements fail when it is imported.
    """
    name = choose(operator, device).name
    try:
        return import_module(f"medseq.ops.{_FOLDERS[operator]}.{name}")
    except ImportError as error:
        raise BackendError(
            f"the {name} implementation cannot be imported",
            where=operator,
            found=str(error),
            remedy="MEDSEQ_BACKEND=chunked runs without it",
        ) from error


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


def backends() -> dict[str, dict[str, BackendChoice]]:
    """For every operator, what runs it on the CPU and on CUDA, with the reason. Needs no CUDA.

    Raises:
        BackendError: MEDSEQ_BACKEND holds an unknown name. A known one that cannot run is shown as "unavailable".
    """
    present = [operator for operator in OPERATORS if _has(operator, "naive")]
    return {operator: {device: _choice_or_why_not(operator, device) for device in _PREFERENCE} for operator in present}


def _choice_or_why_not(operator: str, device: str) -> BackendChoice:
    try:
        return choose(operator, device)
    except BackendError as error:
        if error.found not in CHOICES:
            raise
        return BackendChoice("unavailable", f"MEDSEQ_BACKEND={error.found}, but {error.what}")


@cache
def _instruction_sets() -> tuple[str, ...]:
    kernels = compiled_kernels()
    return tuple(kernels.instruction_sets()) if kernels else ()


@cache
def _has(operator: str, name: str) -> bool:
    return (Path(__file__).parent / _FOLDERS[operator] / f"{name}.py").exists()


def _missing(operator: str, name: str) -> str | None:
    """What has to be installed before `name` can run, or None."""
    if name == "cpu":
        return "a C++ compiler, then medseq again" if compiled_kernels() is None else None
    package = {"triton": "triton", "mamba_ssm": _PACKAGES.get(operator, "mamba_ssm")}.get(name)
    return None if package is None or _importable(package) else package


def _importable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # marked as absent in sys.modules
        return False


def _require(operator: str, name: str, device: str) -> None:
    if name not in _PREFERENCE.get(device, ("chunked", "naive")):
        wanted = next(kind for kind, names in _PREFERENCE.items() if name in names)
        raise BackendError(
            f"{name} runs on {wanted} tensors, not on {device}",
            where="MEDSEQ_BACKEND",
            found=name,
            remedy=f"move the tensors to {wanted}, {_REMEDY}",
        )
    missing = _missing(operator, name)
    if missing is not None:
        what = "the compiled kernels are not installed" if name == "cpu" else f"{missing} is not installed"
        remedy = "install a C++ compiler and reinstall medseq" if name == "cpu" else f"install {missing}"
        raise BackendError(what, where="MEDSEQ_BACKEND", found=name, remedy=f"{remedy}, {_REMEDY}")


def _reason(name: str, device: str) -> str:
    kernels = compiled_kernels()
    if name == "cpu":
        assert kernels is not None  # a candidate only then
        threads = "OpenMP" if kernels.openmp else "one thread: built without OpenMP"
        return f"compiled kernel, {cpu_isa()}, {threads}"
    if name == "triton":
        return "Triton kernel, compiled at its first call"
    if name == "mamba_ssm":
        return "the CUDA kernels of its authors"
    if device == "cpu":
        return "pure torch: " + ("no compiled kernel yet" if kernels else "medseq was installed without a C++ compiler")
    return f"pure torch: no {device} kernel here"
