"""What bench_ops.py measures with: interleaved timing, peak memory, the machine's own limits, and claims."""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medseq.ops.backend import compiled_kernels, cpu_isa

__all__ = ["Claim", "agree", "exponent", "interleaved", "limit_contestants", "peak_bytes"]

Contestants = dict[str, Callable[[], object]]
_SHORTEST = 0.02  # seconds a timing lasts at least: shorter calls are repeated


@dataclass(frozen=True)
class Claim:
    """A figure and the goal it is held to; `stretch` is what would be better still."""

    what: str
    value: float
    goal: float
    at_least: bool = True
    stretch: float | None = None
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def row(self) -> str:
        sign, verdict = (">=" if self.at_least else "<="), "met" if self.met else "NOT MET"
        stretch = "" if self.stretch is None else f", stretch {self.stretch:g}"
        return f"  {self.what:66} {self.value:8.3g} {self.unit:3} (goal {sign} {self.goal:g}{stretch}) {verdict}"


def interleaved(contestants: Contestants, rounds: int, clock: Callable[[], float] = time.process_time) -> dict:
    """Median, least and largest seconds of every contestant; all run once in every round, in turn.

    The CPU time of the process by default, which neighbours on the machine disturb least; several threads need the
    wall clock.
    """
    repeats = {}
    for name, run in contestants.items():
        once = _seconds(run, 1, clock)  # the first call pays for start-up
        once = min(once, _seconds(run, 1, clock)) if once < 1 else once
        repeats[name] = max(1, round(_SHORTEST / max(once, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(_seconds(run, repeats[name], clock))
    return {
        name: {"median": statistics.median(x), "least": min(x), "most": max(x), "rounds": rounds}
        for name, x in seconds.items()
    }


def _seconds(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def limit_contestants() -> tuple[Contestants, dict[str, float]]:
    """Loops that reach the machine's limits, and how much work one call of each is.

    exp2: the kernels' own exponential on numbers in cache, and torch's. fma: torch's matrix product.
    triad: a = b + s c in memory.
    """
    kernels = compiled_kernels()
    assert kernels is not None  # bench_ops.py stops without them
    x = torch.linspace(-100, 0, 1 << 13)
    y, square, big = torch.empty_like(x), torch.randn(512, 512), torch.ones(3, 1 << 24)
    isa, product = cpu_isa(), torch.empty(512, 512)
    runs: Contestants = {
        "torch.exp2": lambda: torch.exp2(x, out=y),
        "exp2": lambda: kernels.exp2(isa, False, x.numel(), x.data_ptr(), y.data_ptr()),
        "fma": lambda: torch.mm(square, square, out=product),
        "triad": lambda: torch.add(big[1], big[2], alpha=3.0, out=big[0]),
    }
    return runs, {"torch.exp2": float(x.numel()), "exp2": float(x.numel()), "fma": 512.0**3, "triad": 12.0 * (1 << 24)}


def peak_bytes(run: Callable[[], object]) -> int:
    """Memory that one call needs on top of what the process holds before it (Linux).

    What earlier calls freed without giving it back serves the call unseen: measure in a process that did little before.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    reset.write_text("5")  # starts the high-water mark anew
    before = _kilobytes(status, "VmRSS")
    run()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def exponent(sizes: list[int], values: list[float]) -> float:
    """Power k of the best fit value ~ size^k."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).clamp(min=1e-12).log()
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def agree(ours: Tensor, theirs: Tensor) -> None:
    """Stops the benchmark where contestants compute different things."""
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not error < 1e-4:
        sys.exit(f"results differ by {error:.1e}: nothing was compared")
