"""Shared by the operator tests: fresh inputs with a printed seed, and memory that shows what was never written."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def poison():
    """Fills new tensors with NaN, so that a result which a kernel forgot to write cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def normal(generator: torch.Generator) -> Callable[..., Tensor]:
    """normal(*shape, std=1.0): float32-representable normal numbers as float64."""

    def draw(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul(std).double()

    return draw


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Any]:
    """Triton's interpreter in a process of its own: `interpreter.call(operator, function, *args)`."""
    from benchmarks.triton_worker import Interpreter

    with Interpreter() as worker:
        yield worker
