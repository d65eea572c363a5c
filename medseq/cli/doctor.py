"""`medseq doctor`: what this installation can do here, and what would make it do more."""

import importlib.metadata
import os
import platform
import re
import sys
from typing import Annotated, Any

import typer

from medseq import __version__
from medseq.cli.console import AsJson, Quiet, Verbose, print_json, table
from medseq.cli.operator_times import operator_times, parse_shape
from medseq.errors import BackendError, BundleError

__all__ = ["doctor", "examine"]

LIBRARIES = ("torch", "numpy", "monai", "pytorch-lightning", "nibabel", "pydicom", "highdicom", "h5py", "safetensors")


Benchmark = Annotated[bool, typer.Option("--benchmark", help="Time every implementation of every operator here.")]
Device = Annotated[
    str | None, typer.Option("--device", help="Where to time: cpu, cuda, cuda:1; default the first GPU.")
]
Shape = Annotated[str, typer.Option("--shape", help="What to time: batch,channels,length,state.")]


def doctor(
    benchmark: Benchmark = False,
    device: Device = None,
    shape: Shape = "1,192,4096,16",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show versions, devices, which implementation each operator runs and why, missing extras, and zoo integrity."""
    report = examine()
    if benchmark:
        report["benchmark"] = _benchmark(device, shape)
    if as_json:
        print_json(report)
    elif not quiet:
        _show(report)
    if any(entry["state"] != "ok" for entry in report["zoo"]):
        raise typer.Exit(3)


def examine() -> dict[str, Any]:
    """Everything `medseq doctor` shows, as plain values."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "operators": _operators(),
        "extras": _extras(),
        "zoo": _zoo(),
    }


def _versions() -> dict[str, str]:
    found = {"medseq": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _devices() -> dict[str, Any]:
    import psutil
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda_build": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
    }


def _cpu_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _operators() -> list[dict[str, Any]]:
    from medseq import ops

    return [
        {"operator": operator, "device": device, "implementation": choice.name, "reason": choice.reason}
        for operator, devices in ops.backends().items()
        for device, choice in devices.items()
    ]


def _benchmark(device: str | None, shape: str) -> dict[str, Any]:
    sizes = parse_shape(shape)
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise BackendError("no CUDA device", where="--device", found=device, wanted="cpu")
    return {"device": device, "shape": list(sizes), "times": operator_times(device, sizes)}


def _extras() -> list[dict[str, Any]]:
    """Each extra with the packages that are missing and the command that installs them."""
    try:
        requirements = importlib.metadata.requires("medseq") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted: dict[str, list[str]] = {}
    for requirement in requirements:
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        package = re.match(r"[\w.-]+", requirement)
        if marker and package and package[0] != "medseq":
            wanted.setdefault(marker[1], []).append(package[0])
    out = []
    for extra, names in sorted(wanted.items()):
        missing = [name for name in names if not _installed(name)]
        command = f"pip install 'medseq[{extra}]'" if missing else None
        out.append({"extra": extra, "missing": missing, "command": command})
    return out


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _zoo() -> list[dict[str, str]]:
    from medseq.inference.bundle import load_bundle
    from medseq.inference.zoo import zoo_names

    out = []
    for name in zoo_names():
        try:
            out.append({"name": name, "state": "ok", "hash": load_bundle(name).hash})
        except BundleError as error:
            out.append({"name": name, "state": "broken", "reason": str(error)})
    return out


def _show(report: dict[str, Any]) -> None:
    table(["package", "version"], [[name, version] for name, version in report["versions"].items()])
    devices = {
        name: ", ".join(value) if isinstance(value, list) else value for name, value in report["devices"].items()
    }
    table(["device", "found"], [[name, str(value) if value else "none"] for name, value in devices.items()])
    rows = [
        [entry["operator"], entry["device"], entry["implementation"], entry["reason"]] for entry in report["operators"]
    ]
    table(["operator", "on", "runs", "because"], rows)
    if "benchmark" in report:
        _show_times(report["benchmark"])
    rows = [
        [entry["extra"], "complete" if not entry["missing"] else ", ".join(entry["missing"]), entry["command"] or ""]
        for entry in report["extras"]
    ]
    table(["extra", "missing", "command"], rows)
    table(["model", "state"], [[entry["name"], entry.get("reason", entry["state"])] for entry in report["zoo"]])


def _show_times(benchmark: dict[str, Any]) -> None:
    rows = []
    for entry in benchmark["times"]:
        notes = [note for note in ("auto", "fastest") if entry[note]]
        if "failure" in entry:
            rows.append([entry["operator"], entry["implementation"], "failed", "", entry["failure"]])
            continue
        times = [f"{1e3 * entry[way]:.2f} ms" for way in ("forward_seconds", "training_seconds")]
        rows.append([entry["operator"], entry["implementation"], *times, ", ".join(notes)])
    batch, channels, length, state = benchmark["shape"]
    size = f"{batch} x {channels} channels x {length} tokens, state {state}, {benchmark['device']}"
    table([size, "runs", "forward", "and backward", "auto takes / MEDSEQ_BACKEND forces"], rows)
