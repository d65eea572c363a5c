"""What no operator can do is refused by name, with the way out, instead of by torch's own words or a wrong zero."""

from typing import Any

import torch

from medseq.errors import BackendError

__all__ = ["refuse_second_derivative", "refuse_vmap"]


def refuse_second_derivative(library: torch.library.Library, operator: str, oracle: str) -> None:
    """Make `<operator>_backward` refuse to be differentiated; `oracle` is what can be."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        # Without this torch warns once and returns a wrong zero.
        raise BackendError(f"{operator} has no second derivative", remedy=f"differentiate {oracle} instead")

    torch.library.register_autograd(f"medseq::{operator}_backward", refuse, lib=library)


def refuse_vmap(library: torch.library.Library, operator: str, oracle: str) -> None:
    """Make the operator and its backward refuse `torch.vmap`; `oracle` is what can be mapped."""

    def refuse(info: Any, in_dims: Any, *arguments: Any) -> None:
        remedy = f"it has a batch axis: put the mapped axis there, or map {oracle}"
        raise BackendError(f"{operator} cannot be vmapped", remedy=remedy)

    for name in (operator, f"{operator}_backward"):
        torch.library.register_vmap(f"medseq::{name}", refuse, lib=library)
