"""How many worker processes, with how many threads each, and how much memory an item may take. No torch, no processes.

Images are independent, so that as many processes as cores, with one thread each, get most out of a machine; threads
inside an operator pay off only where there are fewer images than cores.
"""

import os
import re
import sys
from dataclasses import dataclass

from medseq.errors import InputError
from medseq.inference.engine import Room

__all__ = ["Staff", "available_cores", "parse_bytes", "plan_staff"]

# Below this many items, starting processes (some seconds each) takes longer than it saves.
_FEW_ITEMS = 16
# Resident memory of a worker with torch and the readers loaded, without weights and items: measured 0.35 GB.
_WORKER_BYTES = 450 << 20
# What is left to an item in a worker that `auto` may start.
_LEAST_ROOM = 600 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Staff:
    """Who computes.

    Attributes:
        workers: Processes; 0 means this one.
        threads: Of an operator in each of them.
        room: Memory for an item.
    """

    workers: int
    threads: int
    room: Room


def plan_staff(
    requested: int | None,
    *,
    device: str,
    queued: int,
    isolated: bool,
    max_memory: int | None,
    weights: int,
    cores: int | None = None,
    available: int | None = None,
) -> Staff:
    """Decide who computes.

    Args:
        requested: What the caller said: processes, 0 for this one, None for a sensible number.
        device: Where the model runs; one process an accelerator.
        queued: Items to compute.
        isolated: Processes are needed: to end an item that takes too long or too much, or one that killed a run.
        max_memory: Bytes for all processes, None for what is available.
        weights: Bytes of the model's weights.
        cores: Default: those that this process may use.
        available: Bytes of free memory; default: what the system says.

    Raises:
        InputError: Fewer than 0 workers, or not enough memory for one.
    """
    cores = available_cores() if cores is None else cores
    if requested is not None and requested < 0:
        raise InputError("workers is out of range", found=requested, wanted="0 (this process) or more")
    if requested is None:
        requested = _sensible(device, queued, isolated, cores, _memory(max_memory, available), weights)
    if isolated and requested == 0:
        raise InputError(
            "limits of time and memory need worker processes", found="workers 0", wanted="1 or more workers"
        )
    if max_memory is not None and max_memory < requested * _WORKER_BYTES + weights:
        raise InputError(
            "the memory is not enough for the workers",
            found=f"{max_memory / 1e9:.2f} GB for {requested}",
            wanted=f"{(requested * _WORKER_BYTES + weights) / 1e9:.2f} GB and room for items",
            remedy="raise --max-memory or lower --workers",
        )
    threads = min(max(1, cores // max(1, requested)), _thread_limit())
    if max_memory is None or requested == 0:
        return Staff(requested, threads, Room())
    left = max_memory - requested * _WORKER_BYTES - weights
    return Staff(requested, threads, Room(left // requested, left))


def available_cores() -> int:
    """Cores that this process may use, which a batch system or a container may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _thread_limit() -> int:
    """What ``OMP_NUM_THREADS`` allows an operator, as everywhere else; no limit if it is not set or not a number."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdecimal() and int(text) > 0 else sys.maxsize


def parse_bytes(text: str | int | None) -> int | None:
    """A size such as ``8G`` or ``512M`` in bytes; a bare number is bytes.

    Raises:
        InputError: Not a size.
    """
    if text is None or isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise InputError("not a size", found=text, wanted="a number with K, M, G or T, such as 8G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _sensible(device: str, queued: int, isolated: bool, cores: int, memory: int, weights: int) -> int:
    if queued < _FEW_ITEMS or cores == 1:
        return int(isolated)
    if not device.startswith("cpu"):
        return 1
    affordable = (memory - weights) // (_WORKER_BYTES + _LEAST_ROOM)
    return max(1, min(cores, queued // 2, affordable))


def _memory(limit: int | None, available: int | None) -> int:
    import psutil

    free = int(psutil.virtual_memory().available) if available is None else available
    return free if limit is None else min(free, limit)
