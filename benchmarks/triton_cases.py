"""The configurations of medseq's Triton kernels that benchmarks/triton_report.py compiles and counts."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CASES", "Case"]

F32, BF16 = torch.float32, torch.bfloat16


class Case(NamedTuple):
    """One call of an operator."""

    operator: str
    label: str
    sizes: tuple[int, ...]
    dtype: torch.dtype = F32
    options: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    counted: bool = False
    """Whether the traffic is counted too: at a small size, because the interpreter is slow."""

    def calls(self) -> dict[str, tuple[Any, ...]]:
        """Function to arguments. The values do not matter."""
        make = {"selective_scan": _scan, "wkv": _wkv, "causal_conv1d": _convolution, "cross_scan": _cross}
        calls = make[self.operator](self)
        return {"forward": calls["forward"]} if "forward only" in self.options else calls

    def elements(self) -> int:
        """Numbers in the main input."""
        return math.prod(self.sizes[:4] if self.operator == "cross_scan" else self.sizes[:3])


def _scan(case: Case) -> dict[str, tuple[Any, ...]]:
    batch, dim, length, state = case.sizes
    token = torch.zeros(batch, dim, length, dtype=case.dtype)
    rates, vector, last = torch.zeros(dim, state), torch.zeros(dim), torch.zeros(batch, dim, state)
    B = rates if "constant" in case.options else torch.zeros(batch, 1, state, length)
    z = token.clone() if "gate" in case.options else None
    start = last.clone() if "start" in case.options else None
    inputs = (token.clone(), token.clone(), rates.clone(), B.clone(), B.clone(), vector, z, vector.clone(), True, start)
    reverse = "reverse" in case.options
    checkpoints = torch.zeros(batch, dim, -(-length // 32), state)
    return {"forward": (*inputs, reverse), "backward": (token.clone(), None, *inputs, checkpoints, reverse)}


def _wkv(case: Case) -> dict[str, tuple[Any, ...]]:
    token, vector = torch.zeros(case.sizes, dtype=case.dtype), torch.zeros(case.sizes[2])
    inputs = (vector.clone(), vector.clone(), token.clone(), token.clone(), "exact")
    return {"forward": inputs, "backward": (token.clone(), *inputs)}


def _convolution(case: Case) -> dict[str, tuple[Any, ...]]:
    batch, dim, length = case.sizes
    token = torch.zeros(case.sizes, dtype=case.dtype)
    start: Tensor | None = torch.zeros(batch, dim, 3, dtype=case.dtype) if "start" in case.options else None
    inputs = (token.clone(), torch.zeros(dim, 4), torch.zeros(dim), start, True)
    return {"forward": inputs, "backward": (token.clone(), *inputs)}


def _cross(case: Case) -> dict[str, tuple[Any, ...]]:
    batch, channels, rows, cols, state = case.sizes
    image = torch.zeros(batch, channels, rows, cols, dtype=case.dtype)
    steps = torch.zeros(batch, 4, channels, rows, cols, dtype=case.dtype)
    B = torch.zeros(batch, 4, state, rows, cols, dtype=case.dtype)
    vector = torch.zeros(4 * channels)
    inputs = (image, steps, torch.zeros(4 * channels, state), B, B.clone(), vector, vector.clone(), True)
    return {"forward": (*inputs, "cross"), "backward": (image.clone(), *inputs, torch.zeros(0), "cross")}


CASES: tuple[Case, ...] = (
    Case("selective_scan", "narrow, N 16", (1, 1024, 10000, 16)),
    Case("selective_scan", "narrow, N 16, z", (1, 1024, 10000, 16), options="gate"),
    Case("selective_scan", "narrow, N 16, z, state, any length", (1, 1024, 9999, 16), options="gate start"),
    Case("selective_scan", "narrow, N 16, z, reversed", (1, 1024, 10000, 16), options="gate reverse"),
    Case("selective_scan", "narrow, N 16, z, bfloat16", (1, 1024, 10000, 16), BF16, "gate"),
    Case("selective_scan", "narrow, N 16, constant B, C", (1, 1024, 10000, 16), options="constant"),
    Case("selective_scan", "narrow, N 1", (2, 96, 16384, 1)),
    Case("selective_scan", "wide, N 16", (64, 768, 4096, 16)),
    Case("selective_scan", "wide, N 16, z, state, any length", (64, 768, 4095, 16), options="gate start"),
    Case("selective_scan", "wide, N 16, z, reversed", (64, 768, 4096, 16), options="gate reverse"),
    Case("selective_scan", "wide, N 16, z, bfloat16", (64, 768, 4096, 16), BF16, "gate"),
    Case("selective_scan", "wide, N 1", (64, 768, 4096, 1)),
    Case("selective_scan", "wide, N 1, any length", (64, 768, 3136 + 1, 1)),
    Case("wkv", "C 48", (4, 16384, 48)),
    Case("wkv", "C 48, bfloat16", (4, 16384, 48), BF16),
    Case("wkv", "any C", (4, 16384, 50)),
    Case("causal_conv1d", "K 4, silu", (1, 1024, 10000)),
    Case("causal_conv1d", "K 4, silu, state", (1, 1024, 10000), options="start"),
    Case("causal_conv1d", "K 4, silu, any length", (1, 1023, 9999), options="start"),
    Case("causal_conv1d", "K 4, silu, bfloat16", (1, 1024, 10000), BF16),
    Case("cross_scan", "28 x 28, N 1", (8, 192, 28, 28, 1), options="forward only"),
    Case("cross_scan", "64 x 64, N 16", (8, 96, 64, 64, 16)),
    Case("cross_scan", "64 x 64, N 16, bfloat16", (8, 96, 64, 64, 16), BF16, "forward only"),
    Case("cross_scan", "56 x 56, N 1", (8, 96, 56, 56, 1), options="forward only"),
    Case("cross_scan", "61 x 59, N 16", (8, 96, 61, 59, 16), options="forward only"),
    Case("cross_scan", "14 x 14, N 16", (8, 384, 14, 14, 16), options="forward only"),
    Case("cross_scan", "7 x 7, N 1", (8, 768, 7, 7, 1), options="forward only"),
    Case("cross_scan", "128 x 128, N 16", (8, 192, 128, 128, 16), options="forward only"),
    # Small enough for the interpreter, of the same tiles.
    Case("selective_scan", "narrow, N 16", (1, 4, 128, 16), counted=True),
    Case("selective_scan", "wide, N 16", (1, 16, 128, 16), settings=(("_WIDE_FROM", 0),), counted=True),
    Case("selective_scan", "wide, N 1", (1, 16, 128, 1), settings=(("_WIDE_FROM", 0),), counted=True),
    Case("wkv", "exact", (1, 128, 16), counted=True),
    Case("causal_conv1d", "K 4, silu", (1, 1, 1024), counted=True),
    Case("cross_scan", "64 x 64, N 16", (1, 1, 64, 64, 16), options="forward only", counted=True),
    Case("cross_scan", "56 x 56, N 1", (1, 1, 56, 56, 1), options="forward only", counted=True),
    Case("cross_scan", "walked, N 16", (1, 4, 32, 32, 16), settings=(("TOKENS", 0),), counted=True),
)
