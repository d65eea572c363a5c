"""Least recently used things in memory, bounded in bytes. No torch."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["ByteCache"]

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Keeps values until together they take more than `max_bytes`; threads may share it.

    Args:
        max_bytes: What all values may take. A single larger value is made anew every time.
        size_of: Bytes of a value.
        on_drop: Called with a value that is let go.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[T], int], on_drop: Callable[[T], None] | None = None) -> None:
        self.max_bytes, self._size_of, self._on_drop = max_bytes, size_of, on_drop
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock, self._making = threading.RLock(), dict[Hashable, threading.Lock]()
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made once however many threads ask for it at the same time."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._values:
                    return self._values[key][0]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            self._keep(key, value)
        return value

    def drop(self, wanted: Callable[[Hashable], bool]) -> None:
        """Let go of the keys that `wanted` picks."""
        with self._lock:
            for key in [key for key in self._values if wanted(key)]:
                self._forget(key)

    def _keep(self, key: Hashable, value: T) -> None:
        size = self._size_of(value)
        with self._lock:
            if size > self.max_bytes:
                return
            self._values[key] = (value, size)
            self.bytes += size
            while self.bytes > self.max_bytes:
                self._forget(next(iter(self._values)))

    def _forget(self, key: Hashable) -> None:
        value, size = self._values.pop(key)
        self.bytes -= size
        if self._on_drop is not None:
            self._on_drop(value)
