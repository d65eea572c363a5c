"""A process that runs medseq's Triton kernels in Triton's interpreter, on the CPU, and counts their traffic.

The interpreter is chosen by an environment variable when triton is imported, so it needs a process of its own; the
report (triton_report.py) and the tests talk to it through `Interpreter`.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Interpreter", "Traffic"]

Traffic = dict[str, tuple[int, int, int]]
"""By argument: bytes that all programs load or store; an address counted once per program; and once in all."""


class Interpreter:
    """Calls functions of `medseq.ops.<operator>.triton` in the worker; use as a context manager."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start)

    def __enter__(self) -> "Interpreter":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def call(self, operator: str, function: str, *args: Any, settings: dict[str, Any] | None = None) -> Any:
        """The result of the function; `settings` replaces module constants."""
        return self._pool.submit(_call, operator, function, args, settings or {}).result()

    def traffic(
        self, operator: str, function: str, *args: Any, settings: dict[str, Any] | None = None
    ) -> dict[str, Traffic]:
        """What every kernel of the function moves, by kernel and argument; `settings` replaces module constants."""
        return self._pool.submit(_traffic, operator, function, args, settings or {}).result()


def _start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # torch.empty is filled with NaN: what a kernel forgets to write shows
    from triton.runtime import interpreter

    interpreter.ScanOps.generic_scan = _scan_by_slices


def _call(operator: str, function: str, args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    module = import_module(f"medseq.ops.{operator}.triton")
    before = {name: getattr(module, name) for name in settings}
    try:
        vars(module).update(settings)
        return getattr(module, function)(*args)
    finally:
        vars(module).update(before)


def _scan_by_slices(scan: Any, inputs: list[Any]) -> list[Any]:
    """The interpreter's associative scan, a slice at a time instead of an element: hundreds of times faster."""
    columns = [np.moveaxis(x.handle.data, scan.axis, 0) for x in inputs]
    sums = [column.copy() for column in columns]
    for i in range(1, len(columns[0])):
        before = [scan.to_tensor(np.ascontiguousarray(s[i - 1]), x.dtype) for s, x in zip(sums, inputs, strict=True)]
        here = [scan.to_tensor(np.ascontiguousarray(c[i]), x.dtype) for c, x in zip(columns, inputs, strict=True)]
        for s, value in zip(sums, scan.combine_fn.fn(*before, *here), strict=True):
            s[i] = value.handle.data
    results = (np.ascontiguousarray(np.moveaxis(s, 0, scan.axis)) for s in sums)
    return [scan.to_tensor(result, x.dtype) for result, x in zip(results, inputs, strict=True)]


def _traffic(operator: str, function: str, args: tuple[Any, ...], settings: dict[str, Any]) -> dict[str, Traffic]:
    counter = _Counter()
    with counter.installed():
        _call(operator, function, args, settings)
    return counter.result()


class _Counter:
    """Notes every element that a mask lets through, and the different addresses that each program touches."""

    def __init__(self) -> None:
        self.kernel = ""
        self.names: list[str] = []
        self.begins = self.ends = np.zeros(0, np.int64)
        self.issued: Counter[tuple[str, str]] = Counter()
        self.touched: dict[tuple[str, str, tuple[int, ...]], list[np.ndarray]] = defaultdict(list)
        self.sizes: dict[tuple[str, str], int] = {}

    def begin(self, kernel: str, names: list[str], args: Any) -> None:
        """A launch: where its tensors lie."""
        tensors = [(name, x) for name, x in zip(names, args, strict=False) if isinstance(x, Tensor) and x.numel()]
        tensors.sort(key=lambda pair: pair[1].data_ptr())
        self.kernel, self.names = kernel, [name for name, _ in tensors]
        self.begins = np.array([x.data_ptr() for _, x in tensors], np.int64)
        self.ends = self.begins + np.array([x.numel() * x.element_size() for _, x in tensors], np.int64)

    def note(self, pointers: Any, mask: Any, program: tuple[int, ...]) -> None:
        addresses = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)].astype(np.int64).ravel()
        if not addresses.size:
            return
        which = np.searchsorted(self.begins, addresses, "right") - 1
        inside = (which >= 0) & (addresses < self.ends[which])
        assert inside.all(), f"{self.kernel} leaves its tensors"
        for i in np.unique(which):
            key = (self.kernel, self.names[i])
            self.sizes[key] = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            self.issued[key] += int((which == i).sum()) * self.sizes[key]
            self.touched[(*key, program)].append(addresses[which == i])

    def result(self) -> dict[str, Traffic]:
        programs: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        for (kernel, name, _), parts in self.touched.items():
            programs[kernel, name].append(np.unique(np.concatenate(parts)))
        counted: dict[str, Traffic] = defaultdict(dict)
        for (kernel, name), parts in programs.items():
            once = sum(map(len, parts)) * self.sizes[kernel, name]
            in_all = len(np.unique(np.concatenate(parts))) * self.sizes[kernel, name]
            counted[kernel][name] = (self.issued[kernel, name], once, in_all)
        return dict(counted)

    @contextmanager
    def installed(self) -> Iterator[None]:
        from triton.runtime import interpreter

        builder, executor, scans = interpreter.interpreter_builder, interpreter.GridExecutor, interpreter.ScanOps
        load, store = builder.create_masked_load, builder.create_masked_store
        arguments, scan = executor._init_args_hst, scans.generic_scan

        def counting_load(pointers: Any, mask: Any, *rest: Any) -> Any:
            self.note(pointers, mask, builder.grid_idx)
            return load(pointers, mask, *rest)

        def counting_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.note(pointers, mask, builder.grid_idx)
            return store(pointers, value, mask, *rest)

        def noted_arguments(self_: Any, args: Any, kwargs: Any) -> Any:
            hosted = arguments(self_, args, kwargs)
            self.begin(self_.fn.__name__, self_.arg_names, hosted[0])
            return hosted

        builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
        executor._init_args_hst, scans.generic_scan = noted_arguments, lambda scan, inputs: inputs
        try:
            yield
        finally:
            builder.create_masked_load, builder.create_masked_store = load, store
            executor._init_args_hst, scans.generic_scan = arguments, scan
