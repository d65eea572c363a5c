"""What the data modules of all tasks share: loaders for training, validation and test, on one process or on many."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from medseq.data.loaders import ResumableLoader, ShareSampler
from medseq.data.seeded import SeededDataset
from medseq.errors import InputError

__all__ = ["TaskDataModule"]


class TaskDataModule(pl.LightningDataModule):
    """Loaders over a training set, a validation set and, if there is one, a test set.

    With several processes each gets its share: in training the same number for all, in validation and test every case
    exactly once.

    Args:
        train: Training set.
        val: Validation set.
        test: Test set, for ``medseq test``; None if there is none.
        batch_size: Training samples a step and process.
        num_workers: Loader processes for each training process; 0 loads in the training process.

    Raises:
        InputError: A patient in two of the sets.
    """

    collate: ClassVar[Callable[..., Any]]
    eval_batch_size: ClassVar[int | None] = None

    def __init__(
        self, train: Dataset, val: Dataset, test: Dataset | None = None, *, batch_size: int, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = train, val, test
        self.batch_size, self.num_workers = batch_size, num_workers
        _require_separate({"train": train, "val": val, "test": test})

    def begin_epoch(self, epoch: int) -> None:
        """Called before every training epoch: what depends on it."""
        if isinstance(self.train, SeededDataset):
            self.train.epoch = epoch

    def train_dataloader(self) -> DataLoader:
        """The samples of the present epoch; data sets that do not order themselves are shuffled."""
        shuffle = not isinstance(self.train, SeededDataset)
        sampler = ShareSampler(self.train, *self._share(), shuffle=shuffle, on_epoch=self.begin_epoch)
        sampler.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        return self._loader(sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """The validation samples, the same every time."""
        return self._once(self.val)

    def test_dataloader(self) -> DataLoader:
        """The test samples.

        Raises:
            InputError: There are none.
        """
        if self.test is None:
            raise InputError("there is no test set", where="data.test", remedy="name one in the configuration")
        return self._once(self.test)

    def _once(self, dataset: Dataset) -> DataLoader:
        sampler = ShareSampler(dataset, *self._share(), repeat=False)
        return self._loader(sampler, self.eval_batch_size or self.batch_size)

    def _loader(self, sampler: ShareSampler, batch_size: int) -> DataLoader:
        return ResumableLoader(sampler, batch_size, num_workers=self.num_workers, collate_fn=type(self).collate)

    def _share(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


def _require_separate(parts: dict[str, Dataset | None]) -> None:
    """Refuse sets that share a patient; sets that know no patients cannot be judged."""
    owners: dict[str, str] = {}
    for part, dataset in parts.items():
        for patient in set(getattr(dataset, "patient_ids", None) or ()):
            if owners.setdefault(patient, part) != part:
                both = len(set(getattr(parts[owners[patient]], "patient_ids", ())) & set(dataset.patient_ids))  # type: ignore[union-attr]
                raise InputError(
                    f"patients are in {owners[patient]} and in {part}",
                    where="data",
                    found=f"{both} in both",
                    wanted="a split by patient",
                    remedy="medseq.io.folds makes one",
                )
