"""Data loaders that say where they are: epochs, shares of several processes, and a position that can be resumed.

A checkpoint in the middle of an epoch must go on with the next sample, not with the first. Lightning keeps the position
of loaders that have `state_dict` and `load_state_dict`; torch's own has neither.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from medseq.data.seeded import seeded
from medseq.errors import InputError

__all__ = ["ResumableLoader", "ShareSampler"]


class ShareSampler(DistributedSampler):
    """The samples of one process out of `num_replicas`: every `num_replicas`-th one, from `rank` on.

    Together the processes see in step k what a single process with their summed batch size sees in step k.

    Args:
        dataset: With a length.
        num_replicas: Processes.
        rank: This process.
        repeat: Give every process equally many by starting again from the first (training: gradients are exchanged at
            every step); else nobody repeats anything (validation: every case counts once).
        shuffle: In another order every epoch, for data sets that do not shuffle by themselves.
        seed: Of the order.
        on_epoch: Called with the number of every epoch that begins.

    Raises:
        InputError: Fewer samples than processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_replicas: int = 1,
        rank: int = 0,
        *,
        repeat: bool = True,
        shuffle: bool = False,
        seed: int = 0,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=shuffle, seed=seed)
        total = len(dataset)  # type: ignore[arg-type]
        if total < num_replicas:
            raise InputError(
                "fewer samples than processes",
                found=f"{total} samples, {num_replicas} processes",
                remedy="use fewer devices, or more data",
            )
        self.total, self.repeat, self.on_epoch, self.start = total, repeat, on_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler and whoever wants to know which epoch begins."""
        super().set_epoch(epoch)
        if self.on_epoch is not None:
            self.on_epoch(epoch)

    def __len__(self) -> int:
        if self.repeat:
            return -(-self.total // self.num_replicas)
        return len(range(self.rank, self.total, self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.total))
        if self.shuffle:
            order = torch.randperm(self.total, generator=seeded([self.seed, self.epoch])).tolist()
        if self.repeat:
            order += order[: len(self) * self.num_replicas - self.total]
        # `start` samples of this process were already used before the run was resumed.
        return iter(order[self.rank :: self.num_replicas][self.start :])


class ResumableLoader(DataLoader):
    """A loader whose position within the epoch goes into checkpoints.

    Its worker processes draw nothing from the global generator, so the number of workers does not decide what dropout
    draws. A worker computes with one thread, as torch sets it.

    Args:
        sampler: Whose samples are handed out.
        batch_size: Samples a batch.
        num_workers: Loader processes; 0 loads in the training process.
        collate_fn: Samples -> batch.
    """

    def __init__(
        self, sampler: ShareSampler, batch_size: int, *, num_workers: int, collate_fn: Callable[..., Any]
    ) -> None:
        self._position, self._skip = 0, 0
        super().__init__(
            sampler.dataset,
            batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            generator=seeded([sampler.seed, sampler.rank]),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.sampler, ShareSampler)
        self._position, self._skip = self._skip, 0
        self.sampler.start = self._position * (self.batch_size or 1)
        for batch in super().__iter__():
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches handed out in this epoch, and how large they were."""
        return {"position": self._position, "batch_size": self.batch_size or 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch after the batches that a checkpoint had seen.

        Raises:
            InputError: Another batch size: the position would mean other samples.
        """
        if state["batch_size"] != self.batch_size:
            raise InputError(
                "a run that stopped within an epoch goes on with its own batch size",
                where="data.batch_size",
                found=self.batch_size,
                wanted=state["batch_size"],
            )
        # After the last batch comes a new epoch.
        self._skip = state["position"] % len(self)
