"""What a network costs: parameters, floating-point operations, memory of activations, without running it if possible.

Operations are counted on tensors without data (`FakeTensorMode`), so a model that this machine could never run can be
asked about. One multiplication with one addition counts as 2. Formulas of our operators, per element of the scan:

* selective scan: 7 for each state (delta A, exp, delta B u, h, C h) and 3 beside them (delta u, D u), Mamba section 3;
* cross scan: the four directions of it, and the sum;
* bidirectional WKV: 16 (two recurrences of numerator and denominator, their exponentials, one division);
* causal convolution: 2 for each tap; FFT: 5 log2 of its length, the usual count of a radix-2 transform.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import medseq.ops.causal_conv1d
import medseq.ops.cross_scan
import medseq.ops.selective_scan
import medseq.ops.wkv  # noqa: F401 (their import registers the operators that are counted)
from medseq.errors import InputError

__all__ = ["Cost", "formulas", "model_cost", "model_inputs"]

Shape = Sequence[int]


@dataclass(frozen=True)
class Cost:
    """Costs of one network on one input.

    Attributes:
        parameters: Numbers that are trained.
        flops: Floating-point operations of one forward pass; 2 for a multiplication with an addition.
        activation_bytes: What a training step keeps from the forward for the backward pass, parameters left out.
        weight_bytes: Parameters and buffers.
        training_bytes: Activations, weights, gradients, Adam's two moments and averaged weights: a lower bound.
        seconds: Median of forward passes on this machine; None if none was run.
        exact: False if the forward pass had to be run with data, since it looks at values.
    """

    parameters: int
    flops: int
    activation_bytes: int
    weight_bytes: int
    training_bytes: int
    seconds: float | None
    exact: bool = True


def model_inputs(task: str, model: nn.Module, shape: Shape) -> dict[str, Tensor]:
    """Inputs of a task's contract, random.

    Args:
        task: ``restore`` (batch, channel, row, col), ``recon`` (batch, coil, row, col), ``mil`` (instances, features).
        model: The network.
        shape: See `task`.

    Raises:
        InputError: A shape of another length, or sizes below 1.
    """
    wanted = {"restore": 4, "recon": 4, "mil": 2}
    if task not in wanted:
        raise InputError("unknown task", found=task, wanted=", ".join(wanted))
    if len(shape) != wanted[task] or min(shape) < 1:
        raise InputError("not a shape of this task", where=task, found=list(shape), wanted=f"{wanted[task]} sizes")
    generator = torch.Generator().manual_seed(0)
    if task == "restore":
        return {"image": torch.rand(*shape, generator=generator)}
    if task == "mil":
        count = shape[0]
        side = math.isqrt(count - 1) + 1
        place = torch.arange(count)
        coords = torch.stack([place % side, place // side], dim=1) * 256
        return {"features": torch.randn(*shape, generator=generator), "coords": coords}
    batch, coil, row, col = shape
    kspace = torch.randn(batch, coil, row, col, dtype=torch.complex64, generator=generator)
    mask = torch.rand(batch, 1, 1, col, generator=generator) < 0.4
    mask[..., col // 2 - min(4, col // 2) : col // 2 + 4] = True
    maps = torch.full((batch, coil, row, col), 1 / math.sqrt(coil), dtype=torch.complex64)
    inputs = {"masked_kspace": kspace * mask, "mask": mask}
    return inputs if getattr(model, "sens_net", None) is not None else {**inputs, "sens_maps": maps}


def model_cost(model: nn.Module, inputs: Mapping[str, Tensor], *, runs: int = 0) -> Cost:
    """Count.

    Args:
        model: The network; left in evaluation mode.
        inputs: Arguments of its forward pass by name.
        runs: Forward passes to time, after one that is not; 0 for none.
    """
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weight_bytes = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    model.eval()
    try:
        flops, kept = _on_fakes(model, inputs)
        exact = True
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        # It looks at the values of its input: masks, coordinates, calibration regions.
        flops, kept, exact = _flops(model, inputs), _activations(model, inputs), False
    seconds = _median_seconds(model, inputs, runs) if runs else None
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Cost(parameters, flops, kept, weight_bytes, kept + weight_bytes + 4 * trained, seconds, exact)


def _on_fakes(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Operations and activation bytes, without data."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {name: mode.from_tensor(value) for name, value in inputs.items()}
        return _flops(model, fakes), _activations(model, fakes)


def _flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    with torch.no_grad(), counter:
        model(**inputs)
    return int(counter.get_total_flops())


def _activations(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Bytes of what autograd keeps; views of one storage count once, parameters not at all."""
    own = {id(p) for p in model.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in own:
            kept[id(base)] = base.numel() * base.element_size()
            held.append(base)  # while it lives, nobody else has its id
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(kept.values())


def _median_seconds(model: nn.Module, inputs: Mapping[str, Tensor], runs: int) -> float:
    seconds = []
    with torch.inference_mode():
        model(**inputs)
        for _ in range(runs):
            started = time.perf_counter()
            model(**inputs)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def formulas() -> dict[Any, Callable[..., int]]:
    """Operators that torch cannot count -> operations from the shapes of their arguments, for `FlopCounterMode`."""
    ours = torch.ops.medseq
    return {
        ours.selective_scan: _selective_scan,
        ours.cross_selective_scan: _cross_scan,
        ours.bi_wkv: _bi_wkv,
        ours.causal_conv1d: _causal_conv1d,
        torch.ops.aten._fft_c2c: _fft,
        torch.ops.aten._fft_r2c: _fft,
        torch.ops.aten._fft_c2r: _fft,
    }


def _scan(batch: int, channel: int, length: int, state: int) -> int:
    return batch * channel * length * (7 * state + 3)


def _selective_scan(u: Shape, delta: Shape, a: Shape, *_: Any, **__: Any) -> int:
    batch, channel, length = u
    return _scan(batch, channel, length, a[1])


def _cross_scan(x: Shape, delta: Shape, a: Shape, *_: Any, **__: Any) -> int:
    batch, channel, row, col = x
    ways = a[0] // channel
    return ways * _scan(batch, channel, row * col, a[1]) + (ways - 1) * math.prod(x)


def _bi_wkv(w: Shape, u: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return 16 * math.prod(v)


def _causal_conv1d(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[-1]


def _fft(x: Shape, axes: Sequence[int], *_: Any, **__: Any) -> int:
    return int(5 * math.prod(x) * math.log2(max(2, math.prod(x[axis] for axis in axes))))
