"""Training data of one model for many tasks: batches mixed over modalities and degradations, none of which is told."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseq.data.restore import CroppedDataset, Sample
from medseq.data.transforms import Transform
from medseq.errors import InputError

__all__ = ["MixedTasks", "TaskSource"]


@dataclass
class TaskSource:
    """One of the tasks.

    Attributes:
        name: Under which its metrics are told: letters, digits and hyphens.
        data: Draws its samples, in native units.
        transform: Brings them to the range that the network sees.
        weight: How often it is drawn, beside the others.
    """

    name: str
    data: CroppedDataset
    transform: Transform
    weight: float = 1.0


class MixedTasks(CroppedDataset):
    """Samples of several tasks, in the units of the network; training draws the task, validation takes turns.

    Args:
        tasks: Which.
        length, crop, seed: See `CroppedDataset`; the crop becomes that of every task.
        in_turns: Sample i is of task ``i mod n``: for validation.

    Raises:
        InputError: No tasks, a name twice, a weight that is not positive.
    """

    def __init__(
        self, tasks: Sequence[TaskSource], length: int = 4000, crop: int = 64, seed: int = 0, in_turns: bool = False
    ) -> None:
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names) or min(task.weight for task in tasks) <= 0:
            raise InputError("tasks need names of their own and positive weights", found=", ".join(names) or "none")
        self.tasks, self.in_turns = list(tasks), in_turns
        super().__init__(length, crop, seed)

    @property
    def crop(self) -> int:
        """Side of the samples of every task."""
        return self._crop

    @crop.setter
    def crop(self, side: int) -> None:
        self._crop = side
        for task in self.tasks:
            task.data.crop = side

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` of the present epoch."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        generator = self.generator(index)
        if not self.in_turns:
            return self.draw(generator)
        return self._of(self.tasks[index % len(self.tasks)], generator)

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        weights = np.cumsum([task.weight for task in self.tasks])
        at = float(torch.rand((), generator=generator)) * weights[-1]
        return self._of(self.tasks[min(int(np.searchsorted(weights, at, side="right")), len(weights) - 1)], generator)

    def _of(self, task: TaskSource, generator: torch.Generator) -> Sample:
        sample = task.data.draw(generator)
        image, target = (
            task.transform.apply(picture[None], {"scale": sample.scale})[0] for picture in (sample.image, sample.target)
        )
        return Sample(image, target, 1.0, task.name)
