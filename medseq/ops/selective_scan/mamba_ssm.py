"""The selective scan by the CUDA kernels of the `mamba-ssm` package, where that is installed. An adapter only.

Never run by medseq's own tests, which have no such build: they check the order of arguments against a stand-in. What
the package cannot do (an initial state, a gradient of the last state, float64) goes to chunked.py.
"""

from typing import Any

import torch
from torch import Tensor

from medseq.ops.selective_scan import chunked

__all__ = ["backward", "forward"]


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state, and nothing for `backward`. Arguments: `naive.forward`."""
    *inputs, initial_state, reverse = arguments
    if initial_state is not None or inputs[0].dtype != torch.float32:
        return chunked.forward(*arguments)
    _, states, y = _run(_ordered(inputs, reverse))
    # The kernel keeps, per chunk of tokens, products of decays and states in turn.
    return y.flip(-1) if reverse else y, states[:, :, -1, 1::2].contiguous(), y.new_empty(0)


def backward(gy: Tensor, glast: Tensor | None, *arguments: Any) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; None where the input is None."""
    *inputs, initial_state, checkpoints, reverse = arguments
    if initial_state is not None or glast is not None or inputs[0].dtype != torch.float32:
        return chunked.backward(gy, glast, *arguments)
    import selective_scan_cuda

    inputs = _ordered(inputs, reverse)
    z, softplus = inputs[6], inputs[8]
    ungated, states, _ = _run(inputs)
    incoming = gy.flip(-1).contiguous() if reverse else gy
    before_gate = None if z is None else ungated
    found = selective_scan_cuda.bwd(*inputs[:8], incoming, states, before_gate, None, softplus, False)
    gu, gdelta, gA, gB, gC, gD, gbias, *gate = found
    gradients = [gu, gdelta, gA, gB, gC, gD if inputs[5] is not None else None, gate[0] if gate else None]
    gradients.append(gbias if inputs[7] is not None else None)
    return *_ordered([*gradients, False], reverse)[:8], None


def _run(inputs: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Output before the gate, the kernel's states, output after the gate."""
    import selective_scan_cuda

    ungated, states, *gated = selective_scan_cuda.fwd(*inputs)
    return ungated, states, gated[0] if gated else ungated


def _ordered(inputs: list[Any], reverse: bool) -> list[Any]:
    """What varies by token, flipped for a reversed scan."""
    if not reverse:
        return list(inputs)
    return [x.flip(-1).contiguous() if isinstance(x, Tensor) and x.dim() > 2 else x for x in inputs]
