"""Prediction without a trainer. Lazy: importing this package imports no torch."""

import importlib
from typing import Any

__all__ = ["Bundle", "Ledger", "load_bundle", "predict_folder"]

_HOME = {
    "Bundle": "medseq.inference.bundle",
    "load_bundle": "medseq.inference.bundle",
    "predict_folder": "medseq.inference.run",
    "Ledger": "medseq.inference.ledger",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
