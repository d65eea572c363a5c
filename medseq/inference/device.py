"""Where a model runs: the caller's word, checked."""

import torch

from medseq.errors import BackendError, InputError

__all__ = ["require_device"]


def require_device(name: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        InputError: No such kind of device.
        BackendError: CUDA is asked for and not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError("no such device", found=str(name), wanted="cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("no CUDA device", found=str(name), wanted="cpu", remedy="medseq doctor says why")
    return device
