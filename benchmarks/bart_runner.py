"""Calls the BART toolbox on numpy arrays: every call in a folder of its own, without a shell, with a time limit.

BART is the Debian package `bart` (`make system-test-deps`). Arrays are ``(coil, row, col)`` here and ``(1, row, col,
coil)`` there: rows and columns are both phase-encoding directions, as two-dimensional masks need it.
"""

import os
import resource
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from medseq.errors import BackendError, InputError
from medseq.io.kspace_bart import write_cfl

__all__ = ["bart", "bart_timed", "from_bart", "pics_sign", "to_bart"]


def bart(command: str, *inputs: np.ndarray) -> np.ndarray:
    """Result of one BART command with one output, in BART's axis order; see `bart_timed`."""
    return bart_timed(command, *inputs)[0][0]


def bart_timed(
    command: str, *inputs: np.ndarray, outputs: int = 1, timeout: float = 300.0
) -> tuple[list[np.ndarray], float]:
    """Run ``bart COMMAND INPUTS OUTPUTS``.

    Args:
        command: Tool and options, as on the command line, without file names.
        inputs: Arrays in BART's axis order.
        outputs: Number of results.
        timeout: Seconds.

    Returns:
        Results as complex64 in BART's axis order, and the CPU seconds of the call.

    Raises:
        BackendError: BART is not installed, fails or takes too long.
    """
    program = shutil.which("bart")
    if program is None:
        raise BackendError("BART is not installed", wanted="the program bart", remedy="make system-test-deps (as root)")
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with tempfile.TemporaryDirectory(prefix="bart-") as name:
        folder = Path(name)
        for i, array in enumerate(inputs):
            write_cfl(folder / f"in{i}", array)
        names = [f"in{i}" for i in range(len(inputs))] + [f"out{i}" for i in range(outputs)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            done = subprocess.run(
                [program, *shlex.split(command), *names],
                cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise BackendError("BART takes too long", where=command, wanted=f"at most {timeout:g} s") from None
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise BackendError("BART failed", where=command, found=(done.stderr or done.stdout).strip()[-300:])
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return [_read_cfl(folder / f"out{i}") for i in range(outputs)], seconds


def to_bart(array: np.ndarray) -> np.ndarray:
    """``(coil, row, col)`` or ``(row, col)`` -> ``(1, row, col, coil)``."""
    return np.moveaxis(array[None] if array.ndim == 2 else array, 0, -1)[None]


def from_bart(array: np.ndarray) -> np.ndarray:
    """``(1, row, col, coil)`` -> ``(coil, row, col)``, or ``(row, col)`` where there is one coil or none."""
    array = array.reshape(array.shape[1], array.shape[2], -1)
    return np.ascontiguousarray(np.moveaxis(array, -1, 0) if array.shape[-1] > 1 else array[..., 0])


def pics_sign(*sizes: int) -> int:
    """What the image of ``bart pics`` has to be multiplied with to be ours; sizes must be even.

    `pics` modulates with ``(-1)^i`` instead of shifting and leaves out the constant, -1 for every axis whose half size
    is odd; with odd sizes it is another transform altogether. ``bart fft`` agrees with ours at every size.

    Raises:
        InputError: An odd size.
    """
    if any(n % 2 for n in sizes):
        raise InputError("pics transforms images of even sizes only", found=sizes)
    return (-1) ** sum(n // 2 % 2 for n in sizes)


def _read_cfl(path: Path) -> np.ndarray:
    lines = path.with_suffix(".hdr").read_text().splitlines()
    shape = [int(n) for n in lines[1].split()]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")
