"""Pure tensor functions and their kernels: no layers, no files. Names are loaded on first use."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseq.ops.backend import backends as backends
    from medseq.ops.causal_conv1d import causal_conv1d as causal_conv1d
    from medseq.ops.causal_conv1d import causal_conv1d_update as causal_conv1d_update
    from medseq.ops.cross_scan import cross_merge as cross_merge
    from medseq.ops.cross_scan import cross_scan as cross_scan
    from medseq.ops.cross_scan import cross_selective_scan as cross_selective_scan
    from medseq.ops.duality import ssd as ssd
    from medseq.ops.selective_scan import bidirectional_selective_scan as bidirectional_selective_scan
    from medseq.ops.selective_scan import selective_scan as selective_scan
    from medseq.ops.selective_scan import selective_state_update as selective_state_update
    from medseq.ops.wkv import bi_wkv as bi_wkv

__all__ = [
    "backends",
    "bi_wkv",
    "bidirectional_selective_scan",
    "causal_conv1d",
    "causal_conv1d_update",
    "cross_merge",
    "cross_scan",
    "cross_selective_scan",
    "selective_scan",
    "selective_state_update",
    "ssd",
]

_HOME = {
    "backends": "medseq.ops.backend",
    "bi_wkv": "medseq.ops.wkv",
    "bidirectional_selective_scan": "medseq.ops.selective_scan",
    "causal_conv1d": "medseq.ops.causal_conv1d",
    "causal_conv1d_update": "medseq.ops.causal_conv1d",
    "cross_merge": "medseq.ops.cross_scan",
    "cross_scan": "medseq.ops.cross_scan",
    "cross_selective_scan": "medseq.ops.cross_scan",
    "selective_scan": "medseq.ops.selective_scan",
    "selective_state_update": "medseq.ops.selective_scan",
    "ssd": "medseq.ops.duality",
}


def __getattr__(name: str) -> Any:
    # Lazy, because medseq.ops.quality and the backend table must load without torch.
    if name not in _HOME:
        raise AttributeError(f"module 'medseq.ops' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Operators(ModuleType):
    """Keeps `medseq.ops.selective_scan` the function when Python binds the folder of that name here."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, getattr(value, name, value) if name in _HOME else value)


sys.modules[__name__].__class__ = _Operators
