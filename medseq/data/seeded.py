"""Data sets that draw their samples: each is a function of its own seed, so that runs can be repeated and resumed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

__all__ = ["SeededDataset", "seeded"]

Sample = TypeVar("Sample")


class SeededDataset(Dataset, ABC, Generic[Sample]):
    """`length` samples an epoch.

    A resumed run sees what an uninterrupted one would have seen, whatever the number of workers.

    Args:
        length: Samples an epoch.
        seed: Every sample is drawn from a generator seeded with (seed, epoch, index).
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.draw(self.generator(index))

    def generator(self, index: int) -> torch.Generator:
        """The randomness of a sample of the present epoch."""
        return seeded([self.seed, self.epoch, index])

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Sample:
        """One sample."""


def seeded(numbers: Sequence[int]) -> torch.Generator:
    """A generator that these numbers decide, the same on every platform."""
    mixed = np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> 1))
