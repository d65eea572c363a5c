"""Models with the weights and the numbers of the original implementations.

`load` takes a state dict as the authors' code saves it and returns our model, in eval mode, that computes what
theirs does. The key mapping of each source stands at the bottom of the model's own file (`from_reference`), or in a
`reference_*` module beside this one where it is long.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medseq.errors import InputError

__all__ = ["load", "sources"]

# Who reads the state dicts of each source: module and function.
_MODULES = {
    "atommic": "medseq.inference.reference_cirim:from_atommic",
    "direct": "medseq.inference.reference_direct:from_direct",
    "mridc": "medseq.inference.reference_cirim:from_mridc",
    "restore-rwkv": "medseq.models.restore_rwkv:from_reference",
}


def sources() -> list[str]:
    """Names of the original implementations whose state dicts load."""
    return sorted(_MODULES)


def load(source: str, state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build and load the model that a reference state dict belongs to.

    Args:
        source: One of `sources()`.
        state_dict: Parameter name -> tensor, as the original code saves it.
        config: The original constructor's arguments, as far as they cannot be read off the state dict; what can be
            is checked.

    Returns:
        The model in eval mode.

    Raises:
        InputError: Unknown source.
        BundleError: Unknown, missing or contradicting keys.
    """
    if source not in _MODULES:
        raise InputError("unknown reference implementation", found=source, wanted=", ".join(sources()))
    module, _, function = _MODULES[source].partition(":")
    return getattr(importlib.import_module(module), function)(state_dict, dict(config or {})).eval()
