"""Tensors of more than 2^31 elements in a few megabytes: `expand` by the page table, for kernels that want them dense.

All but the end of such a tensor is one piece of memory, mapped again and again; the end is memory of its own. A kernel
that computes an offset in 32 bits leaves the mapping or misses the end.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

__all__ = ["LongArrays", "long_arrays"]

_PIECE = 1 << 25  # bytes
_READ_WRITE, _SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NO_RESERVE = 3, 0x01, 0x02, 0x10, 0x20, 0x4000


class LongArrays:
    """Makes tensors of float32 that outlive no `with` block."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._mapped: list[tuple[int, int]] = []

    def make(self, *shape: int, fill: float = 0.0) -> Tensor:
        """A contiguous tensor full of `fill`, whose last 32 MB to 64 MB share their memory with nothing."""
        count = torch.Size(shape).numel()
        pieces = -(-4 * count // _PIECE)
        base = self._map(None, pieces * _PIECE, _PRIVATE | _ANONYMOUS | _NO_RESERVE, -1)
        self._mapped.append((base, pieces * _PIECE))
        shared, own = (self._memory(size) for size in (_PIECE, 2 * _PIECE))
        for piece in range(pieces - 2):
            self._map(base + piece * _PIECE, _PIECE, _SHARED | _FIXED, shared)
        self._map(base + (pieces - 2) * _PIECE, 2 * _PIECE, _SHARED | _FIXED, own)
        os.close(shared)
        os.close(own)
        buffer = (ctypes.c_byte * (4 * count)).from_address(base)
        tensor = torch.frombuffer(buffer, dtype=torch.float32)
        tensor[: _PIECE // 4] = fill
        tensor[(pieces - 2) * _PIECE // 4 :] = fill
        return tensor.view(shape)

    def free(self) -> None:
        """Unmap everything: the process counts each mapping of a page as memory of its own."""
        for base, size in self._mapped:
            self._libc.munmap(base, size)

    def _memory(self, size: int) -> int:
        file = os.memfd_create("long array")
        os.ftruncate(file, size)
        return file

    def _map(self, place: int | None, size: int, flags: int, file: int) -> int:
        found = self._libc.mmap(place, size, _READ_WRITE, flags, file, 0)
        if found == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap failed")
        return int(found)


@contextmanager
def long_arrays() -> Iterator[LongArrays]:
    """`LongArrays`, from which torch too takes what is larger than 1 GB, so that results cost no memory either."""
    arrays, large = LongArrays(), 1 << 28
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def new(tensor: Tensor, *size: int | tuple[int, ...], **options: object) -> Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        return arrays.make(*shape) if shape.numel() > large else new_empty(tensor, shape, **options)

    def like(tensor: Tensor, **options: object) -> Tensor:
        return arrays.make(*tensor.shape) if tensor.numel() > large else empty_like(tensor, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "new_empty", new)
        patch.setattr(torch, "empty_like", like)
        try:
            yield arrays
        finally:
            arrays.free()
