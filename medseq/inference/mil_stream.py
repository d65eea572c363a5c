"""Scores of a bag that is larger than memory: chunk by chunk, with the state of the scan carried along.

What a scan needs of the past is its state, so a bag of a million patches takes as much memory as one chunk:

* projections and attention treat each instance alone; softmax, mean and maximum over the bag are accumulated;
* Mamba passes through all layers at once, one chunk after the other;
* BiMamba and SRMamba need two passes a layer, the second direction first. Between the passes the tokens lie in an
  unnamed file, which the system removes whatever happens to the process.

The numbers are those of the model's own `forward`, in another order of summation. A scratch file in bfloat16 halves the
space and rounds the tokens between layers; `benchmarks/bench_mil.py` states what that does to the logits.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import InputError
from medseq.models.mil_abmil import ABMIL
from medseq.models.mil_clam import CLAM
from medseq.models.mil_mamba import MambaMIL
from medseq.models.mil_pooling import LinearProbe, PoolingMIL
from medseq.nn.mamba import BiMamba, Branch, Mamba
from medseq.nn.mil import MILOutput
from medseq.nn.srmamba import SRMamba
from medseq.ops import selective_scan

__all__ = ["Read", "Scratch", "can_stream", "stream_bag"]

# Rows lo to hi of the features, float32 (hi - lo, d).
Read = Callable[[int, int], np.ndarray]
# First row and tokens (1, rows, dim) of each chunk of a bag.
Chunks = Iterator[tuple[int, Tensor]]
ScratchDtype = Literal["float32", "bfloat16"]


def can_stream(model: nn.Module) -> bool:
    """Whether `stream_bag` takes this model; mixers on the slide's grid and landmark attention need the whole bag."""
    if isinstance(model, MambaMIL):
        return all(type(layer.mixer) in (Mamba, BiMamba, SRMamba) for layer in model.layers)
    return isinstance(model, ABMIL | CLAM | PoolingMIL | LinearProbe)


@torch.inference_mode()
def stream_bag(
    model: nn.Module,
    read: Read,
    n: int,
    *,
    chunk: int = 8192,
    scratch: Path | None = None,
    scratch_dtype: ScratchDtype = "float32",
    should_stop: Callable[[], bool] = lambda: False,
) -> MILOutput | None:
    """Scores and attention of one bag.

    Args:
        model: A model that `can_stream`, in eval mode.
        read: Gives rows ``lo`` to ``hi`` of the features.
        n: Instances in the bag.
        chunk: Instances at a time.
        scratch: Folder for the tokens of two-directional models, ``2 n d_model`` numbers; None for the system's.
        scratch_dtype: How tokens are stored there.
        should_stop: Asked before every chunk.

    Returns:
        What `forward` returns for a batch of one, without `instance_logits`; None if it was stopped.

    Raises:
        InputError: An empty bag, or a model that needs the whole bag at once.
        OSError: No space for the scratch file.
    """
    if n < 1:
        raise InputError("an empty bag", found="0 instances", wanted="at least 1")
    if not can_stream(model):
        raise InputError("this model needs the whole bag at once", found=type(model).__name__)
    network: Any = model
    device = network.classifier.weight.device

    def embedded() -> Chunks:
        for lo in range(0, n, chunk):
            if should_stop():
                raise _StopAsked
            rows = torch.from_numpy(np.ascontiguousarray(read(lo, min(lo + chunk, n)), np.float32))
            yield lo, (network.embed if hasattr(network, "embed") else nn.Identity())(rows.to(device)[None])

    pool = _Statistics(network) if isinstance(model, PoolingMIL | LinearProbe) else _Pooling(network)
    try:
        if not isinstance(model, MambaMIL):
            mixed = embedded()
        elif isinstance(model.layers[0].mixer, BiMamba):
            mixed = _in_two_passes(network, embedded(), n, _Room(scratch, scratch_dtype, chunk, should_stop))
        else:
            mixed = _in_one_pass(network, embedded())
        for _, h in mixed:
            pool.add(h)
    except _StopAsked:
        return None
    return pool.result()


def _in_one_pass(model: Any, embedded: Chunks) -> Chunks:
    """Normalised tokens of a causal model: every chunk goes through all layers."""
    states = [layer.mixer.initial_state(1) for layer in model.layers]
    for lo, h in embedded:
        for number, layer in enumerate(model.layers):
            change, states[number] = layer.mixer.stream(layer.norm(h), states[number])
            h = h + change
        yield lo, model.norm(h)


def _in_two_passes(model: Any, embedded: Chunks, n: int, room: "_Room") -> Chunks:
    """Normalised tokens of a two-directional model: the tokens between its layers lie in a file."""
    width = model.classifier.in_features
    with Scratch(room.folder, n, width, room.dtype) as tokens, Scratch(room.folder, n, width, room.dtype) as part:
        for lo, h in embedded:
            tokens.write(h[0], lo, lo + h.shape[1])
        *inner, last = model.layers
        for layer in inner:
            for lo, h in _layer(layer, tokens, part, n, room):
                tokens.write(h[0], lo, lo + h.shape[1])
        for lo, h in _layer(last, tokens, part, n, room):
            yield lo, model.norm(h)


class Scratch:
    """Rows of numbers in a file without a name.

    Mapped for the time of one access only, so that no more than a chunk of it counts as the process's memory.

    Args:
        folder: Where; None for the system's folder of temporary files.
        n: Rows.
        width: Numbers a row.
        dtype: How they are stored.
    """

    def __init__(self, folder: Path | None, n: int, width: int, dtype: ScratchDtype = "float32") -> None:
        self._file = tempfile.TemporaryFile(dir=folder)
        self._shape, self._dtype = (n, width), dtype
        size = n * width * (4 if dtype == "float32" else 2)
        # Reserved now: a full disk is an error here, and not a bus error in the middle of a pass.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, size)
        else:
            self._file.truncate(size)

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _map(self, lo: int, hi: int) -> np.memmap:
        kind = np.dtype(np.float32 if self._dtype == "float32" else np.int16)
        width = self._shape[1]
        return np.memmap(self._file, kind, "r+", offset=lo * width * kind.itemsize, shape=(hi - lo, width))

    def read(self, lo: int, hi: int, step: int = 1) -> Float[Tensor, "rows width"]:
        """Rows ``lo:hi:step``, float32."""
        rows = torch.from_numpy(np.array(self._map(lo, hi)[::step]))
        return rows if self._dtype == "float32" else rows.view(torch.bfloat16).float()

    def write(self, rows: Float[Tensor, "rows width"], lo: int, hi: int, step: int = 1) -> None:
        """Replace rows ``lo:hi:step``."""
        stored = rows.cpu() if self._dtype == "float32" else rows.cpu().to(torch.bfloat16).view(torch.int16)
        self._map(lo, hi)[::step] = stored.numpy()


class _Pooling:
    """Attention pooling over chunks: scores are kept, the weighted sum is rescaled when a higher score comes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._scores: list[Tensor] = []
        self._sum: Tensor | None = None
        self._weight, self._highest = 0.0, -torch.inf

    def add(self, h: Float[Tensor, "1 n dim"]) -> None:
        scores = self._model.attention.scores(h)
        highest = max(self._highest, float(scores.max()))
        weights = torch.exp(scores.double() - highest)
        fade = float(np.exp(self._highest - highest)) if self._sum is not None else 0.0
        own = (weights[:, None] @ h.double())[:, 0]
        self._sum = own if self._sum is None else self._sum * fade + own
        self._weight = self._weight * fade + float(weights.sum())
        self._highest = highest
        self._scores.append(scores)

    def result(self) -> MILOutput:
        assert self._sum is not None
        embedding = (self._sum / self._weight).to(self._scores[0].dtype)
        attention = torch.cat(self._scores, 1).softmax(1)
        return MILOutput(self._model.classifier(embedding), attention, embedding=embedding)


class _Statistics:
    """Mean and maximum over chunks, and which instance gave each maximum."""

    def __init__(self, model: Any) -> None:
        self._model, self._n = model, 0
        self._sum: Any = 0.0
        self._highest = self._where = torch.zeros(0)

    def add(self, h: Float[Tensor, "1 n dim"]) -> None:
        self._sum = self._sum + h[0].double().sum(0)
        highest, where = h[0].max(0)
        where = where + self._n
        if self._n:
            # Of equal ones the first, as in one pass over the whole bag.
            is_new = highest > self._highest
            highest, where = torch.where(is_new, highest, self._highest), torch.where(is_new, where, self._where)
        self._highest, self._where, self._n = highest, where, self._n + h.shape[1]

    def result(self) -> MILOutput:
        mean = (self._sum / self._n).to(self._highest.dtype)[None]
        shares = self._highest.new_full((1, self._n), 1 / self._n)
        won = torch.zeros_like(shares)
        won[0].scatter_add_(0, self._where, torch.ones_like(self._highest))
        won = won / len(self._highest)
        embedding, attention = {
            "mean": (mean, shares),
            "max": (self._highest[None], won),
            "mean+max": (torch.cat([mean, self._highest[None]], 1), (shares + won) / 2),
        }[self._model.pool]
        return MILOutput(self._model.classifier(embedding), attention, embedding=embedding)


class _Scan:
    """One direction of a layer, with the state of its convolution and of its scan."""

    def __init__(self, mixer: Mamba, suffix: str) -> None:
        self._branch: Branch = mixer._branch(suffix)
        self._conv, self._ssm = mixer.initial_state(1)

    def __call__(self, x: Float[Tensor, "1 inner length"]) -> Float[Tensor, "1 inner length"]:
        branch = self._branch
        u, self._conv = branch.convolve(x, self._conv)
        delta, B, C = branch.project(u)
        y, self._ssm = selective_scan(
            u,
            delta,
            branch.A,
            B,
            C,
            branch.D,
            None,
            branch.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
            initial_state=self._ssm,
        )
        return y


def _layer(layer: Any, tokens: Scratch, part: Scratch, n: int, room: "_Room") -> Chunks:
    """Tokens behind a two-directional layer, in the order of the bag; those before it stay in `tokens`."""
    mixer, weight = layer.mixer, layer.mixer.out_proj.weight
    scan = _Scan(mixer, "_b")
    order = _strided(n, mixer.rate, room.chunk) if isinstance(mixer, SRMamba) else _reversed(n, room.chunk)
    for rows in order:
        room.ask()
        if rows.lo == rows.hi:
            scan(weight.new_zeros(1, mixer.d_inner, rows.padding))
            continue
        h = rows.turned(tokens.read(rows.lo, rows.hi, rows.step).to(weight.device))
        x, z = mixer._project_in(layer.norm(h[None]))
        y = scan(F.pad(x, (0, rows.padding)))[..., : x.shape[2]] * F.silu(z)
        part.write(rows.turned((y.mT @ weight.T)[0]), rows.lo, rows.hi, rows.step)
    scan = _Scan(mixer, "")
    for lo in range(0, n, room.chunk):
        room.ask()
        hi = min(lo + room.chunk, n)
        h = tokens.read(lo, hi).to(weight.device)[None]
        x, z = mixer._project_in(layer.norm(h))
        yield lo, h + mixer.out_proj((scan(x) * F.silu(z)).mT) + part.read(lo, hi).to(weight.device)


class _Rows(NamedTuple):
    """Rows ``lo:hi:step`` of the bag, read from the end where `backwards`, and the zeros that follow them."""

    lo: int
    hi: int
    step: int = 1
    backwards: bool = False
    padding: int = 0

    def turned(self, rows: Tensor) -> Tensor:
        return rows.flip(0) if self.backwards else rows


def _reversed(n: int, chunk: int) -> Iterator[_Rows]:
    """Chunks from the end of the bag to its start."""
    for hi in range(n, 0, -chunk):
        yield _Rows(max(hi - chunk, 0), hi, backwards=True)


def _strided(n: int, rate: int, chunk: int) -> Iterator[_Rows]:
    """Chunks in the order of `medseq.nn.reorder.stride`, its padding behind the runs that are one short."""
    longest = -(-n // rate)
    for start in range(rate):
        count = max(-(-(n - start) // rate), 0)
        if count == 0:
            yield _Rows(0, 0, padding=longest)
        for first in range(0, count, chunk):
            last = min(first + chunk, count)
            padding = longest - count if last == count else 0
            yield _Rows(start + first * rate, start + (last - 1) * rate + 1, rate, padding=padding)


class _Room(NamedTuple):
    """Where tokens may lie, how many are in memory at a time, and whether to go on."""

    folder: Path | None
    dtype: ScratchDtype
    chunk: int
    should_stop: Callable[[], bool]

    def ask(self) -> None:
        if self.should_stop():
            raise _StopAsked


class _StopAsked(Exception):
    """Someone asked to stop; never leaves this module."""
