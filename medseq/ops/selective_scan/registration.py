"""Registers `medseq::selective_scan` and its backward with torch's dispatcher.

The dispatcher is the registry of implementations: CPU and CUDA tensors get what `medseq.ops.backend` chooses, autograd
and `torch.compile` see one opaque operator with exact gradients. `keep` asks for the states that backward starts from;
without them backward runs the forward scan again.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from medseq.ops.backend import load
from medseq.ops.dispatch import register
from medseq.ops.selective_scan import naive

__all__: list[str] = []

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias,"
    " bool delta_softplus, Tensor? initial_state"
)
_LIBRARY = torch.library.Library("medseq", "FRAGMENT")
_LIBRARY.define(f"selective_scan({_INPUTS}, bool reverse, bool keep) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    f"selective_scan_backward(Tensor gy, Tensor? glast, {_INPUTS}, Tensor checkpoints, bool reverse)"
    f" -> ({', '.join(['Tensor'] * 9)})"
)
_SOFTPLUS = 8  # its place among the inputs, all others being tensors


def _compute_dtype(inputs: tuple[Any, ...]) -> torch.dtype:
    """float64 if any input is, else float32: half precision is only for storage."""
    tensors = (x for x in inputs if isinstance(x, Tensor))
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _implementation(u: Tensor, A: Tensor) -> ModuleType:
    """The chosen module; without any state there is nothing to make fast."""
    return load("selective_scan", u.device.type) if A.shape[1] else naive


def _converted(inputs: tuple[Any, ...], dtype: torch.dtype, half: tuple[int, ...] = ()) -> list[Any]:
    """All tensors in one dtype, but half precision kept at the places `half`; outside the CPU also contiguous."""
    out = []
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            wanted = x.dtype if i in half and x.dtype.itemsize == 2 else dtype
            x = x.to(wanted) if x.device.type == "cpu" else x.to(wanted).contiguous()
        out.append(x)
    return out


def _half(module: ModuleType, dtype: torch.dtype) -> tuple[int, ...]:
    """Places of u, delta, B, C and z if the kernel converts what it reads, which spares copies in float32."""
    return (0, 1, 3, 4, 6) if getattr(module, "READS_HALF", False) and dtype == torch.float32 else ()


def _checkpoint_shape(keep: bool, u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """What the chosen implementation keeps; nothing where it has no `checkpoint_shape`."""
    shape = getattr(_implementation(u, A), "checkpoint_shape", None) if keep else None
    return shape(u, A, B, C) if shape else (0,)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, reverse, keep = arguments
    u, _, A, B, C = inputs[:5]
    dtype, state = _compute_dtype(arguments), inputs[_SOFTPLUS + 1]
    kept = _checkpoint_shape(keep, u, A, B, C)
    if u.numel() == 0:
        zeros = u.new_zeros(u.shape[0], u.shape[1], A.shape[1], dtype=dtype)
        last_state = zeros if state is None else zeros.copy_(state)
        return u.new_empty(u.shape), last_state, u.new_zeros(kept, dtype=dtype)
    module = _implementation(u, A)
    converted = _converted(tuple(inputs), dtype, _half(module, dtype))
    on_demand = {"keep": keep} if getattr(module, "KEEPS_ON_DEMAND", False) else {}
    y, last_state, checkpoints = module.forward(*converted, reverse, **on_demand)
    if kept == (0,):
        checkpoints = u.new_empty(0, dtype=dtype)
    # Contiguous, as the fake says: compiled graphs rely on the strides.
    return y.to(u.dtype).contiguous(), last_state.contiguous(), checkpoints


def _backward(gy: Tensor, glast: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, checkpoints, reverse = arguments
    u, _, A = inputs[:3]
    dtype = checkpoints.dtype
    tensors = [x for i, x in enumerate(inputs) if i != _SOFTPLUS]
    if u.numel() == 0:
        gradients: Any = [None if x is None else torch.zeros_like(x) for x in tensors]
        if glast is not None and tensors[-1] is not None:
            gradients[-1] = glast.clone()
    else:
        module = _implementation(u, A)
        half = _half(module, dtype)
        gy, glast = _converted((gy, glast), dtype, half[:1])
        converted = _converted(tuple(inputs), dtype, half)
        gradients = module.backward(gy, glast, *converted, checkpoints, reverse)
    # An operator returns tensors only: an empty one stands for the gradient of what was not given.
    pairs = zip(gradients, tensors, strict=True)
    return tuple(u.new_empty(0) if x is None else g.to(x.dtype).contiguous() for g, x in pairs)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, _, A, B, C = arguments[:5]
    dtype = _compute_dtype(arguments)
    last_state = u.new_empty(u.shape[0], u.shape[1], A.shape[1], dtype=dtype)
    return u.new_empty(u.shape), last_state, u.new_empty(_checkpoint_shape(arguments[-1], u, A, B, C), dtype=dtype)


def _fake_backward(gy: Tensor, glast: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    tensors = [x for i, x in enumerate(arguments[:-2]) if i != _SOFTPLUS]
    return tuple(gy.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *arguments, ctx.reverse, _ = inputs
    ctx.delta_softplus = arguments.pop(_SOFTPLUS)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*arguments, output[2])


def _autograd_backward(
    ctx: Any, gy: Tensor | None, glast: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, initial_state, checkpoints = ctx.saved_tensors
    u = tensors[0]
    gradients = torch.ops.medseq.selective_scan_backward(
        *(u.new_zeros(u.shape) if gy is None else gy, glast, *tensors, ctx.delta_softplus, initial_state),
        *(checkpoints, ctx.reverse),
    )
    *found, ginitial = (None if x is None else g for g, x in zip(gradients, (*tensors, initial_state), strict=True))
    return *found, None, ginitial, None, None


register(
    _LIBRARY,
    "selective_scan",
    "medseq.ops.selective_scan.naive.selective_scan",
    forward=(_forward, _fake_forward),
    backward=(_backward, _fake_backward),
    autograd=(_save, _autograd_backward),
)
