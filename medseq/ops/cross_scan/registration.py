"""Registers `medseq::cross_selective_scan` and its backward with torch's dispatcher.

The dispatcher is the registry of implementations: CPU and CUDA tensors get what `medseq.ops.backend` chooses, autograd
and `torch.compile` see one opaque operator with exact gradients. `keep` asks for the states that backward starts from;
without them backward finds them again.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from medseq.ops.backend import load
from medseq.ops.cross_scan import naive
from medseq.ops.dispatch import register

__all__: list[str] = []

_INPUTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, bool delta_softplus,"
    " str directions"
)
_LIBRARY = torch.library.Library("medseq", "FRAGMENT")
_LIBRARY.define(f"cross_selective_scan({_INPUTS}, bool keep) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"cross_selective_scan_backward(Tensor gy, {_INPUTS}, Tensor checkpoints) -> ({', '.join(['Tensor'] * 7)})"
)
_TENSORS = 7  # the first of the inputs


def _compute_dtype(inputs: tuple[Any, ...]) -> torch.dtype:
    """float64 if any input is, else float32: half precision is only for storage."""
    tensors = (x for x in inputs if isinstance(x, Tensor))
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _implementation(x: Tensor, A: Tensor) -> ModuleType:
    """The chosen module; without any state there is nothing to make fast."""
    return load("cross_selective_scan", x.device.type) if A.shape[1] else naive


def _converted(inputs: tuple[Any, ...], dtype: torch.dtype, half: tuple[int, ...] = ()) -> list[Any]:
    """All tensors in one dtype, but half precision kept at the places `half`."""
    out = []
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            x = x.to(x.dtype if i in half and x.dtype.itemsize == 2 else dtype).contiguous()
        out.append(x)
    return out


def _half(module: ModuleType, dtype: torch.dtype) -> tuple[int, ...]:
    """Places of x, delta, B and C if the kernel converts what it reads, which spares copies in float32."""
    return (0, 1, 3, 4) if getattr(module, "READS_HALF", False) and dtype == torch.float32 else ()


def _checkpoint_shape(keep: bool, x: Tensor, A: Tensor) -> tuple[int, ...]:
    """What the chosen implementation keeps; nothing where it has no `checkpoint_shape`."""
    shape = getattr(_implementation(x, A), "checkpoint_shape", None) if keep and x.numel() else None
    return shape(x, A) if shape else (0,)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, directions, keep = arguments
    x, _, A = inputs[:3]
    dtype = _compute_dtype(arguments)
    if x.numel() == 0:
        return x.new_empty(x.shape), x.new_empty(0, dtype=dtype)
    module = _implementation(x, A)
    converted = _converted(tuple(inputs), dtype, _half(module, dtype))
    checkpoints = x.new_empty(0, dtype=dtype)
    if _checkpoint_shape(keep, x, A) != (0,):
        y, checkpoints = module.forward(*converted, directions)
    elif hasattr(module, "output"):
        y = module.output(*converted, directions)
    else:
        y = module.forward(*converted, directions)[0]
    # Contiguous, as the fake says: compiled graphs rely on the strides.
    return y.to(x.dtype).contiguous(), checkpoints


def _backward(gy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, directions, checkpoints = arguments
    x, _, A = inputs[:3]
    tensors = inputs[:_TENSORS]
    if x.numel() == 0:
        gradients: Any = [None if t is None else torch.zeros_like(t) for t in tensors]
    else:
        dtype = checkpoints.dtype
        module = _implementation(x, A)
        half = _half(module, dtype)
        converted = [*_converted((gy,), dtype, half[:1]), *_converted(tuple(inputs), dtype, half)]
        gradients = module.backward(*converted, checkpoints, directions)
    # An operator returns tensors only: an empty one stands for the gradient of what was not given.
    pairs = zip(gradients, tensors, strict=True)
    return tuple(x.new_empty(0) if t is None else g.to(t.dtype).contiguous() for g, t in pairs)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, _, A = arguments[:3]
    kept = _checkpoint_shape(arguments[-1], x, A)
    return x.new_empty(x.shape), x.new_empty(kept, dtype=_compute_dtype(arguments))


def _fake_backward(gy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(gy.new_empty(0) if t is None else t.new_empty(t.shape) for t in arguments[:_TENSORS])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[_TENSORS:-1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:_TENSORS], output[1])


def _autograd_backward(ctx: Any, gy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    x = tensors[0]
    gy = x.new_zeros(x.shape) if gy is None else gy
    gradients = torch.ops.medseq.cross_selective_scan_backward(gy, *tensors, *ctx.options, checkpoints)
    return *(None if t is None else g for g, t in zip(gradients, tensors, strict=True)), None, None, None


register(
    _LIBRARY,
    "cross_selective_scan",
    "medseq.ops.cross_scan.naive.cross_selective_scan",
    forward=(_forward, _fake_forward),
    backward=(_backward, _fake_backward),
    autograd=(_save, _autograd_backward),
)
