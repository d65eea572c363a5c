"""Reading golden numbers."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden(NamedTuple):
    tensors: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]
    config: dict[str, Any]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


@pytest.fixture(scope="session")
def golden():
    """What a file of tests/golden holds."""

    def read(name: str) -> Golden:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            config = json.loads(file.metadata()["config"])
        state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        return Golden(tensors, state, config.get("kw", config))

    return read


@pytest.fixture(scope="session")
def close():
    """Largest error in units of the largest reference value: float32 goldens reproduce to about 1e-7 of it."""

    def check(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
        assert found.shape == wanted.shape
        error = (found - wanted).abs().max() / wanted.abs().max()
        assert error <= tolerance, f"error {error:.2e} of the maximum, allowed {tolerance:.0e}"

    return check


@pytest.fixture
def draw(seed):
    """Normal random numbers of any shape, fresh in every run."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator, dtype=dtype)
