"""How every operator enters torch's dispatcher: implementations, shapes for tracing, gradients and refusals."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from medseq.errors import BackendError

__all__ = ["register"]

Function = Callable[..., Any]


def register(
    library: torch.library.Library,
    operator: str,
    oracle: str,
    *,
    forward: tuple[Function, Function],
    backward: tuple[Function, Function],
    autograd: tuple[Function, Function],
) -> None:
    """Register `medseq::<operator>` and `medseq::<operator>_backward`, which `library` has defined.

    Args:
        library: Keeps the registration alive.
        operator: Name of the operator.
        oracle: Import path of the definition, which can be differentiated twice and mapped; errors name it.
        forward: The operator for CPU and CUDA tensors, and its fake, which gives shapes and strides.
        backward: The same for the backward operator.
        autograd: What saves the inputs, ``setup_context(ctx, inputs, output)``, and what calls the backward operator.
    """
    names = (f"medseq::{operator}", f"medseq::{operator}_backward")
    for name, (run, fake) in zip(names, (forward, backward), strict=True):
        for device in ("CPU", "CUDA"):
            library.impl(name.removeprefix("medseq::"), _outside_autocast(run, device.lower()), device)
        torch.library.register_fake(name, fake, lib=library)
        torch.library.register_vmap(name, _refusal_of_vmap(operator, oracle), lib=library)
    save, pull = autograd
    torch.library.register_autograd(names[0], pull, setup_context=save, lib=library)
    torch.library.register_autograd(names[1], _refusal_of_second_derivative(operator, oracle), lib=library)


def _outside_autocast(run: Function, device: str) -> Function:
    """`run` with autocast switched off, which would send the products inside it to half precision."""

    @wraps(run)
    def call(*arguments: Any) -> Any:
        if not torch.is_autocast_enabled(device):
            return run(*arguments)
        with torch.autocast(device, enabled=False):
            return run(*arguments)

    return call


def _refusal_of_second_derivative(operator: str, oracle: str) -> Function:
    def refuse(ctx: Any, *gradients: Any) -> None:
        # Without this torch warns once and returns a wrong zero.
        raise BackendError(f"{operator} has no second derivative", remedy=f"differentiate {oracle} instead")

    return refuse


def _refusal_of_vmap(operator: str, oracle: str) -> Function:
    def refuse(info: Any, in_dims: Any, *arguments: Any) -> None:
        remedy = f"it has a batch axis: put the mapped axis there, or map {oracle}"
        raise BackendError(f"{operator} cannot be vmapped", remedy=remedy)

    return refuse
