"""Data sets that draw their samples: each is a function of its own seed, so that runs can be repeated and resumed."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

__all__ = ["SeededDataset"]

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
        mixed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1, np.uint64)[0]
        return self.draw(torch.Generator().manual_seed(int(mixed >> 1)))

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Sample:
        """One sample."""
