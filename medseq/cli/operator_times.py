"""`medseq doctor --benchmark`: how long every implementation of every operator takes here, on the user's own sizes."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from medseq.errors import InputError

__all__ = ["Sizes", "operator_times", "parse_shape"]

_ROUNDS = 5
_KERNEL_WIDTH = 4  # of the causal convolution, as in Mamba


class Sizes(NamedTuple):
    """batch, channels, tokens and numbers of state; images have the nearest square number of tokens."""

    batch: int
    channels: int
    length: int
    state: int


def parse_shape(text: str) -> Sizes:
    """Sizes from "batch,channels,length,state".

    Raises:
        InputError: These are not four whole numbers above 0.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError("not a shape", where="--shape", found=text, wanted="batch,channels,length,state")
    return Sizes(*map(int, parts))


def operator_times(device: str, sizes: Sizes) -> list[dict[str, Any]]:
    """One entry per operator and implementation: seconds forward, and forward and backward, median of five.

    The definitions (naive) are left out: nobody runs them by choice.

    Args:
        device: Where to run, as torch names it.
        sizes: What to run.

    Returns:
        Entries with operator, implementation, forward_seconds, training_seconds, auto (whether it runs unless told
        otherwise) and fastest; or, in place of the seconds, a failure.
    """
    from medseq.ops.backend import candidates, choose

    kind, entries = device.partition(":")[0], []
    for operator, (run, shapes) in _calls(sizes).items():
        tensors = _inputs(shapes, device)
        with _forced(None):
            auto = choose(operator, kind).name
        rows: list[dict[str, Any]] = []
        for name in candidates(operator, kind):
            if name != "naive":
                with _forced(name):
                    rows.append({"operator": operator, "implementation": name, "auto": name == auto})
                    rows[-1] |= _times(run, tensors)
        fastest = min((row["training_seconds"] for row in rows if "training_seconds" in row), default=math.nan)
        for row in rows:
            row["fastest"] = row.get("training_seconds") == fastest
        entries += rows
    return entries


def _calls(sizes: Sizes) -> dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]]:
    """For every operator a call and the shapes of its arguments; the third argument of a scan is made negative."""
    from medseq.ops import bi_wkv, causal_conv1d, cross_selective_scan, selective_scan

    batch, channels, length, state = sizes
    side = max(1, round(math.sqrt(length)))
    tokens, image = (batch, channels, length), (batch, 4, state, side, side)
    one, each = (batch, channels, side, side), (batch, 4, channels, side, side)
    return {
        "selective_scan": (
            lambda u, delta, A, B, C, D: selective_scan(u, delta, -A.exp(), B, C, D, delta_softplus=True),
            [tokens, tokens, (channels, state), *[(batch, state, length)] * 2, (channels,)],
        ),
        "cross_selective_scan": (
            lambda x, delta, A, B, C, D: cross_selective_scan(x, delta, -A.exp(), B, C, D, delta_softplus=True),
            [one, each, (4 * channels, state), image, image, (4 * channels,)],
        ),
        "bi_wkv": (
            lambda w, u, k, v: bi_wkv(w / length, u / length, k, v),
            [(channels,), (channels,), *[(batch, length, channels)] * 2],
        ),
        "causal_conv1d": (
            lambda x, weight, bias: causal_conv1d(x, weight, bias, activation="silu"),
            [tokens, (channels, _KERNEL_WIDTH), (channels,)],
        ),
    }


def _inputs(shapes: list[tuple[int, ...]], device: str) -> list[Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def _times(run: Callable[..., Any], tensors: list[Any]) -> dict[str, Any]:
    import torch

    def forward() -> None:
        with torch.no_grad():
            run(*tensors)

    def training() -> None:
        torch.autograd.grad(run(*tensors).sum(), tensors)

    try:
        return {"forward_seconds": _median(forward, tensors[0]), "training_seconds": _median(training, tensors[0])}
    except (RuntimeError, InputError) as error:  # out of memory, a kernel that does not compile, a dtype it lacks
        return {"failure": str(error).partition("\n")[0]}


def _median(run: Callable[[], None], like: Any) -> float:
    import torch

    seconds = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        run()
        if like.is_cuda:
            torch.cuda.synchronize(like.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first call compiles


@contextmanager
def _forced(name: str | None) -> Iterator[None]:
    """MEDSEQ_BACKEND set to `name`, or absent, and put back afterwards."""
    before = os.environ.pop("MEDSEQ_BACKEND", None)
    if name is not None:
        os.environ["MEDSEQ_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("MEDSEQ_BACKEND", None)
        if before is not None:
            os.environ["MEDSEQ_BACKEND"] = before
