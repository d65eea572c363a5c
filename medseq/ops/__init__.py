"""Pure tensor functions and their kernels: no layers, no files. Names are loaded on first use."""

from importlib import import_module
from typing import Any

__all__ = ["backends", "bi_wkv", "bidirectional_selective_scan", "selective_scan", "selective_state_update"]

_HOME = {
    "backends": "medseq.ops.backend",
    "bi_wkv": "medseq.ops.wkv",
    "bidirectional_selective_scan": "medseq.ops.selective_scan",
    "selective_scan": "medseq.ops.selective_scan",
    "selective_state_update": "medseq.ops.selective_scan",
}


def __getattr__(name: str) -> Any:
    # Lazy, because medseq.ops.quality and the backend table must load without torch.
    if name not in _HOME:
        raise AttributeError(f"module 'medseq.ops' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
