"""Training of restoration models: the Lightning module and its thin data module.

The task knows no architecture: network and transforms are passed in built. Losses and metrics are computed in native
units (HU for CT), after `Transform.invert`, so that they mean the same for every preprocessing.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from medseq.data.restore import CroppedDataset, RestoreBatch, collate
from medseq.data.transforms import Identity, Transform, apply_chain, invert_chain
from medseq.tasks.averaged import AveragedTask
from medseq.tasks.data_module import TaskDataModule
from medseq.tasks.restore_loss import RestoreLoss

__all__ = ["RestoreDataModule", "RestoreTask"]


class RestoreTask(AveragedTask):
    """Supervised restoration: L1 or another loss, Adam, linear warm-up, cosine decay and averaged weights.

    Args:
        net: Network under the restoration contract: ``forward(image, condition=None)``.
        preprocess: Transforms between native units and the network, in order; travels in the bundle.
        lr: Peak learning rate.
        min_lr: Learning rate at the end.
        betas: Adam's decay rates.
        warmup_steps: Optimizer steps of linear warm-up.
        loss_unit: Native units that count as 1 in the loss (100 HU for CT, 1 for scaled data).
        loss_window: Limits in native units within which errors count fully; None for no window.
        wide_weight: Weight of errors over the whole range, beside those in the window.
        ema_decay: Decay of the averaged weights, which are the ones that are validated and shipped.
        clip_norm: Gradients are scaled down to this norm.
        data_range: Range of PSNR and SSIM in validation, native units; None takes the window's width.
        bundle: What `medseq bundle` writes into bundle.yaml beside model and preprocess.
        criterion: Which terms the loss has; None is L1.
        by_task: Also tell the validation metrics of every `case_id`, which are the tasks of `MixedTasks`.

    Reference:
        Yang et al., arXiv:2407.11087: L1 loss, Adam, cosine decay to 1e-6.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocess: list[Transform] | None = None,
        lr: float = 2e-4,
        min_lr: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        loss_unit: float = 1.0,
        loss_window: tuple[float, float] | None = None,
        wide_weight: float = 0.25,
        ema_decay: float = 0.999,
        clip_norm: float = 1.0,
        data_range: float | None = None,
        bundle: dict[str, Any] | None = None,
        criterion: RestoreLoss | None = None,
        by_task: bool = False,
    ) -> None:
        super().__init__(
            net,
            lr=lr,
            min_lr=min_lr,
            betas=betas,
            warmup_steps=warmup_steps,
            ema_decay=ema_decay,
            clip_norm=clip_norm,
        )
        self.preprocess = preprocess or [Identity()]
        self.loss_unit, self.loss_window, self.wide_weight = loss_unit, loss_window, wide_weight
        if data_range is None:
            data_range = loss_window[1] - loss_window[0] if loss_window else 1.0
        self.data_range, self.bundle = data_range, bundle or {}
        self.criterion, self.by_task = criterion or RestoreLoss(), by_task

    def restore(self, net: nn.Module, batch: RestoreBatch) -> Tensor:
        """Restored images in native units, ``(batch, 1, row, col)``; samples are taken to have pixels of 1 mm."""
        params: list[dict[str, float | Tensor]] = [{"scale": batch.scale.view(-1, 1, 1, 1), "pixel_cm2": 0.01}]
        params *= len(self.preprocess)
        stages = apply_chain(self.preprocess, batch.image, params)
        return invert_chain(self.preprocess, net(stages[-1], batch.condition), stages, params)

    def loss(self, restored: Tensor, target: Tensor) -> Tensor:
        """The criterion in the window, plus `wide_weight` times that over the whole range; in units of `loss_unit`."""
        wide = self.criterion(restored, target, self.loss_unit)
        if self.loss_window is None:
            return wide
        inside = self.criterion(restored.clamp(*self.loss_window), target.clamp(*self.loss_window), self.loss_unit)
        return inside + self.wide_weight * wide

    def training_step(self, batch: RestoreBatch, batch_idx: int) -> Tensor:
        """One step; a loss that is not finite stops the run."""
        return self.finite(self.loss(self.restore(self.net, batch), batch.target))

    def evaluation_step(self, batch: RestoreBatch, batch_idx: int, stage: str) -> None:
        """PSNR, SSIM and RMSE of the averaged weights, and of the input; in the window if there is one."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        restored = self.restore(self.ema, batch)
        window = self.loss_window or (-math.inf, math.inf)
        target = batch.target.clamp(*window)
        size = len(batch.target)
        for name, image in (("input", batch.image), (stage, restored)):
            error = (image.clamp(*window) - target).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
            psnr = 10 * torch.log10(self.data_range**2 / error)
            if self.by_task:
                self._log_by_task(name, psnr, batch.case_id)
            structure = ssim(image.clamp(*window), target, data_range=self.data_range)
            self.log_scores({f"{name}/psnr": psnr.mean()}, size, prog_bar=name != "input")
            self.log_scores({f"{name}/rmse": error.sqrt().mean(), f"{name}/ssim": structure}, size)
        self.log_scores({f"{stage}/loss": self.loss(restored, batch.target)}, size)
        if batch_idx == 0:
            self._log_picture(batch, restored, stage)

    def _log_by_task(self, name: str, psnr: Tensor, tasks: list[str]) -> None:
        # Of this process's own cases: another one may have none of a task, and would wait for ever.
        for task in sorted(set(tasks)):
            own = [value for value, of in zip(psnr, tasks, strict=True) if of == task]
            self.log(f"{name}/psnr/{task}", torch.stack(own).mean(), batch_size=len(own))

    def _log_picture(self, batch: RestoreBatch, restored: Tensor, stage: str) -> None:
        """Input, result and target side by side, in the window, to every logger that takes images."""
        low, high = self.loss_window or (0.0, float(batch.target[0].max()) or 1.0)
        row = torch.cat([batch.image[0], restored[0], batch.target[0]], dim=-1)
        self.log_picture(f"{stage}/input_result_target", (row - low) / (high - low))


class RestoreDataModule(TaskDataModule):
    """Loaders over data sets of `medseq.data.restore.Sample`.

    Args:
        train: Training set.
        val: Validation set.
        test: Test set, for ``medseq test``; None if there is none.
        batch_size: Samples a step and process.
        num_workers: Loader processes; 0 loads in the training process.
        crops: ``[[epoch, side], …]``: from that epoch on the training samples have this side (`CroppedDataset` only).
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        train: Dataset,
        val: Dataset,
        test: Dataset | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        crops: list[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(train, val, test, batch_size=batch_size, num_workers=num_workers)
        self.crops = crops or []

    def begin_epoch(self, epoch: int) -> None:
        """Larger crops, when it is their time."""
        super().begin_epoch(epoch)
        if isinstance(self.train, CroppedDataset):
            self.train.crop = current_crop(self.crops, epoch, self.train.crop)


def current_crop(crops: Sequence[tuple[int, int]], epoch: int, default: int) -> int:
    """The side that holds at `epoch`."""
    side = default
    for start, value in sorted(crops):
        if epoch >= start:
            side = value
    return side
