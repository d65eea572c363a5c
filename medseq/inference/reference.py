"""Models with the weights and the numbers of the original implementations.

`load` takes a state dict as the authors' code saves it and returns our model, in eval mode, that computes what
theirs does. The key mapping of each source stands at the bottom of the model's own file (`from_reference`), or in a
`reference_*` module beside this one where it is long.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medseq.errors import BundleError, InputError

__all__ = ["detect", "load", "sources"]

# Who reads the state dicts of each source: module and function.
_MODULES = {
    "atommic": "medseq.inference.reference_cirim:from_atommic",
    "direct": "medseq.inference.reference_direct:from_direct",
    "mamba-ssm": "medseq.inference.reference_mamba:from_mamba_ssm",
    "mambamil": "medseq.inference.reference_mambamil:from_mambamil",
    "mridc": "medseq.inference.reference_cirim:from_mridc",
    "restore-rwkv": "medseq.models.restore_rwkv:from_reference",
    "vmamba": "medseq.inference.reference_vmamba:from_vmamba",
}


def sources() -> list[str]:
    """Names of the original implementations whose state dicts load."""
    return sorted(_MODULES)


# What a key of each source begins with. Checkpoints of the others cannot be told apart by their names.
_SIGNS = {
    "atommic": "reconstruction_module.",
    "direct": "block_list.",
    "mambamil": "_fc1.0.",
    "mridc": "cirim.",
    "restore-rwkv": "encoder_level1.",
}


def detect(state_dict: Mapping[str, Tensor]) -> str:
    """The source of a state dict, by the names of its keys.

    Raises:
        BundleError: The names are of no source that can be told by them, or of several.
    """
    found = [source for source, sign in _SIGNS.items() if any(key.startswith(sign) for key in state_dict)]
    if len(found) != 1:
        raise BundleError(
            "the source of the checkpoint cannot be told by its keys",
            found=", ".join(found) or ", ".join(sorted(state_dict)[:3]),
            wanted=", ".join(f"{sign}* ({source})" for source, sign in _SIGNS.items()),
            remedy="name the source",
        )
    return found[0]


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
