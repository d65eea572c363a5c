"""What a result was computed with: versions, machine, device, operators. For reports; holds no host or user name."""

import importlib.metadata
import os
import platform
from typing import Any

from medseq import __version__

__all__ = ["environment"]

_LIBRARIES = ("torch", "numpy", "monai", "scipy", "safetensors", "nibabel", "pydicom", "pylibjpeg", "python-gdcm")


def environment(device: str) -> dict[str, Any]:
    """Versions, machine, device and which implementation each operator runs.

    Args:
        device: Where the model runs.

    Raises:
        BackendError: An implementation was asked for that is not here.
    """
    return {
        "medseq": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": device,
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "operators": _operators(device),
    }


def _operators(device: str) -> list[dict[str, str]]:
    from medseq import ops

    kind = device.partition(":")[0]
    return [
        {"operator": operator, "device": kind, "implementation": chosen[kind].name, "reason": chosen[kind].reason}
        for operator, chosen in ops.backends().items()
        if kind in chosen
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
