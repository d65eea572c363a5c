"""Bidirectional WKV on the CPU: medseq's kernel against the recurrence and the O(T^2) formula, in one process.

Run: `python benchmarks/bench_wkv.py` (about two minutes). Writes benchmarks/results/bench_wkv.json.

The peers are written here from the definition, in torch operations, as one would without a kernel:

- recurrence: a loop over tokens with a moving scale, one token's row taken by indexing;
- recurrence, unbound: the same, rows taken by `unbind`, which spares autograd a zero-filled tensor per token;
- formula: the table of all pairs of tokens. Measured on a few channels and multiplied, because all 96 do not fit.

Everything runs on one thread and is timed by the process's CPU time, so a busy machine matters less; rounds of all
contestants are interleaved and the median is reported. Exits with 1 if results differ or a claim is not met.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from medseq.ops import backends, bi_wkv
from medseq.ops.wkv import naive

SHAPE = (1, 4096, 96)
FORMULA_CHANNELS = 4
CLAIMS = {"forward": 100.0, "forward and backward": 500.0}
OURS_PER_ROUND = 5
RESULTS = Path(__file__).parent / "results" / "bench_wkv.json"


def recurrence(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, unbound: bool = False) -> Tensor:
    """Both directions token by token; each sum is relative to exp(its largest exponent)."""
    length = k.shape[1]
    ks = k.unbind(1) if unbound else [k[:, t] for t in range(length)]
    vs = v.unbind(1) if unbound else [v[:, t] for t in range(length)]
    future = sweep(w, ks[::-1], vs[::-1])[::-1]
    y = []
    for t, (past, later) in enumerate(zip(sweep(w, ks, vs), future, strict=True)):
        scale = torch.maximum(torch.maximum(past[2], later[2]), u + ks[t])
        in_past, in_later, own = (past[2] - scale).exp(), (later[2] - scale).exp(), (u + ks[t] - scale).exp()
        numerator = in_past * past[0] + in_later * later[0] + own * vs[t]
        y.append(numerator / (in_past * past[1] + in_later * later[1] + own))
    return torch.stack(y, 1)


def sweep(w: Tensor, ks: list[Tensor], vs: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For every token: numerator, denominator and exponent of what came before it."""
    n, d, o = torch.zeros_like(ks[0]), torch.zeros_like(ks[0]), torch.full_like(ks[0], -1e30)
    states = []
    for k, v in zip(ks, vs, strict=True):
        states.append((n, d, o))
        scale = torch.maximum(o - w, k)
        old, new = (o - w - scale).exp(), (k - scale).exp()
        n, d, o = old * n + new * v, old * d + new, scale
    return states


def with_gradients(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """The function's result and the gradients of its sum of squares."""

    def run(*inputs: Tensor) -> list[Tensor]:
        args = [x.clone().requires_grad_() for x in inputs]
        y = function(*args)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), args)]

    return run


def timed(function: Callable[..., object], inputs: list[Tensor]) -> tuple[float, object]:
    """CPU seconds of this process and the result."""
    start = time.process_time()
    result = function(*inputs)
    return time.process_time() - start, result


def relative_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest error in units of the largest value, over all results."""
    pairs = zip(got, wanted, strict=True)
    return max(((a.double() - b.double()).abs().max() / b.double().abs().max()).item() for a, b in pairs)


def contestants(inputs: list[Tensor]) -> dict[str, tuple[Callable[..., object], list[Tensor], float]]:
    """Name -> function, its inputs, and the factor to the full number of channels."""
    few = [x[..., :FORMULA_CHANNELS].contiguous() for x in inputs]
    factor = SHAPE[2] / FORMULA_CHANNELS
    return {
        "medseq": (bi_wkv, inputs, 1.0),
        "recurrence": (recurrence, inputs, 1.0),
        "recurrence, unbound": (lambda *x: recurrence(*x, unbound=True), inputs, 1.0),
        "formula": (naive.bi_wkv, few, factor),
    }


def measure(mode: str, inputs: list[Tensor], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every contestant in every round; checks that all compute the same."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        results = {}
        for name, (function, args, factor) in contestants(inputs).items():
            run = with_gradients(function) if mode == "forward and backward" else function
            repeats = OURS_PER_ROUND if name == "medseq" else 1
            for _ in range(repeats):
                spent, results[name] = timed(run, args)
                seconds.setdefault(name, []).append(spent * factor)
        check(mode, inputs, results)
    return seconds


def check(mode: str, inputs: list[Tensor], results: dict) -> None:
    """All contestants agree with ours, and ours with the definition in float64 on a few channels."""
    as_list = {name: value if isinstance(value, list) else [value] for name, value in results.items()}
    ours = as_list["medseq"]
    few = [x[..., :FORMULA_CHANNELS] for x in ours]
    exact = with_gradients(naive.bi_wkv) if mode == "forward and backward" else lambda *x: [naive.bi_wkv(*x)]
    truth = exact(*(x[..., :FORMULA_CHANNELS].double() for x in inputs))
    errors = {
        "medseq against float64 formula": relative_error(few, truth),
        "recurrence against medseq": relative_error(as_list["recurrence"], ours),
        "unbound recurrence against medseq": relative_error(as_list["recurrence, unbound"], ours),
        "float32 formula against medseq": relative_error(as_list["formula"], few),
    }
    # Ours is held to its own promise; the plain recurrence drifts with the length (about 1e-4 in gradients).
    limits = {"medseq against float64 formula": 5e-6}
    wrong = {name: error for name, error in errors.items() if not error < limits.get(name, 1e-2)}
    if wrong:
        sys.exit(f"results differ, nothing was compared: {wrong}")


def machine() -> dict[str, object]:
    """What the numbers belong to."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "kernel": backends()["bi_wkv"]["cpu"]._asdict(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> int:
    """Measure, print, write the JSON; 0 if every claim is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batch, length, channels = SHAPE
    w, u = (torch.randn(channels, generator=generator) / length for _ in range(2))
    inputs = [w, u, *(torch.randn(SHAPE, generator=generator) for _ in range(2))]
    # The first backward pass of a process pays for torch's start-up.
    with_gradients(bi_wkv)(*inputs)

    facts = machine()
    print(
        f"bi_wkv (batch, length, channel) = {SHAPE}, float32, 1 thread, CPU seconds, median of {options.rounds} rounds"
    )
    print(f"{facts['processor']}, load {facts['load_average'][0]}, {facts['kernel']['reason']}, torch {facts['torch']}")
    report, met = {"shape": SHAPE, "machine": facts, "rounds": options.rounds, "modes": {}}, True
    for mode, claim in CLAIMS.items():
        seconds = measure(mode, inputs, options.rounds)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"\n{mode}")
        for name, value in median.items():
            spread = f"{min(seconds[name]):.4g} to {max(seconds[name]):.4g}"
            print(f"  {name:22} {value:10.4g} s  {value / median['medseq']:8.0f}x  ({spread})")
        ratio = median["recurrence"] / median["medseq"]
        met &= ratio >= claim
        print(f"  claim: at least {claim:.0f}x the recurrence: {ratio:.0f}x, {'met' if ratio >= claim else 'NOT MET'}")
        report["modes"][mode] = {"cpu_seconds": seconds, "median": median, "claim": claim, "ratio": ratio}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
