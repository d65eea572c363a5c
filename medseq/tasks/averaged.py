"""What all trainings share: Adam with warm-up and cosine decay, averaged weights, clipped and logged gradients."""

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from medseq.errors import InputError

__all__ = ["AveragedTask", "save_batch"]


class AveragedTask(pl.LightningModule):
    """A network, its averaged weights, and how they are trained.

    Args:
        net: The network.
        lr: Peak learning rate.
        min_lr: Learning rate at the end.
        betas: Adam's decay rates.
        warmup_steps: Optimizer steps of linear warm-up.
        weight_decay: Weight decay; 0 is Adam.
        decoupled: Weight decay beside the gradient (AdamW), not as part of it (Adam with an L2 penalty).
        scalar_lr: Factor on the learning rate of parameters that are single numbers.
        ema_decay: Decay of the averaged weights, which are the ones that are validated and shipped; 0 takes the last.
        clip_norm: Gradients are scaled down to this norm.
        drop_every: Multiply the learning rate by `drop_factor` every so many optimizer steps, instead of cosine decay.
        drop_factor: See `drop_every`.

    Raises:
        InputError: A schedule that cannot be.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        lr: float,
        min_lr: float,
        betas: Sequence[float],
        warmup_steps: int,
        ema_decay: float,
        clip_norm: float,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        scalar_lr: float = 1.0,
        drop_every: int | None = None,
        drop_factor: float = 0.2,
    ) -> None:
        super().__init__()
        self._batch: Any = None
        self.net = net
        self.ema = copy.deepcopy(net).requires_grad_(False)
        self.lr, self.min_lr, self.betas, self.warmup_steps = lr, min_lr, betas, warmup_steps
        self.weight_decay, self.decoupled, self.scalar_lr = weight_decay, decoupled, scalar_lr
        self.ema_decay, self.clip_norm = ema_decay, clip_norm
        if drop_every is not None and (drop_every < 1 or not 0 < drop_factor <= 1):
            raise InputError(
                "not a schedule", found=(drop_every, drop_factor), wanted="drop_every >= 1, 0 < factor <= 1"
            )
        self.drop_every, self.drop_factor = drop_every, drop_factor

    def finite(self, loss: Tensor) -> Tensor:
        """Log the training loss; one that is not finite stops the run, with its batch saved for inspection."""
        if not torch.isfinite(loss):
            saved = save_batch(self._batch, self._run_folder()) if self._batch is not None else None
            raise InputError(
                "training loss is not finite",
                where=f"step {self.global_step}",
                found=loss.item(),
                remedy=f"look at its batch, {saved}; lower the learning rate" if saved else None,
            )
        self.log("train/loss", loss, on_step=True, prog_bar=True, batch_size=1)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep the batch at hand, should its loss not be finite."""
        self._batch = batch

    def _run_folder(self) -> Path:
        # Not trainer.log_dir: all processes must ask for that together.
        trainer = self._trainer
        folders = [logger.log_dir for logger in trainer.loggers] if trainer else []
        return Path(next(filter(None, folders), trainer.default_root_dir if trainer else "."))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Scores of the averaged weights, as ``val/…``."""
        self.evaluation_step(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The same scores of test cases, as ``test/…``."""
        self.evaluation_step(batch, batch_idx, "test")

    @abstractmethod
    def evaluation_step(self, batch: Any, batch_idx: int, stage: str) -> None:
        """Log the scores of one batch as ``stage/…``."""

    def log_scores(self, scores: Mapping[str, Tensor], cases: int, *, prog_bar: bool = False) -> None:
        """Log means over cases, of all processes together."""
        # A float: Lightning (2.6) averages the processes' numbers of cases, and whole numbers it rounds down.
        weight: Any = float(cases)
        self.log_dict(dict(scores), batch_size=weight, prog_bar=prog_bar, on_step=False, on_epoch=True, sync_dist=True)

    def optimizer_step(self, *args: Any, **keywords: Any) -> None:
        """Step, then average the weights; the decay starts low, so that early weights are forgotten.

        Here and not at the end of the batch, which callbacks see first: a checkpoint would hold the average of the step
        before.
        """
        super().optimizer_step(*args, **keywords)
        steps = self.global_step + 1
        decay = min(self.ema_decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - decay)

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam; linear warm-up, then cosine decay over the steps of the run, or drops."""
        parameters = list(self.net.parameters())
        groups = [{"params": [p for p in parameters if p.dim()], "lr": self.lr}]
        if any(not p.dim() for p in parameters):
            single = [p for p in parameters if not p.dim()]
            groups.append({"params": single, "lr": self.lr * self.scalar_lr, "weight_decay": 0.0})
        kind = torch.optim.AdamW if self.weight_decay and self.decoupled else torch.optim.Adam
        first, second = self.betas
        optimizer = kind(groups, lr=self.lr, betas=(first, second), weight_decay=self.weight_decay, fused=True)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        floor = self.min_lr / self.lr

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.drop_every is not None:
                return max(floor, self.drop_factor ** (step // self.drop_every))
            progress = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip to `clip_norm` and log the norm."""
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        self.log("train/grad_norm", norm)

    def log_picture(self, name: str, picture: Tensor) -> None:
        """A picture ``(1, row, col)`` in 0..1, as a file in the run's folder and to every logger that takes images."""
        if not self.trainer.is_global_zero or self.trainer.sanity_checking:
            return
        if self.loggers:
            from PIL import Image

            folder = self._run_folder() / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (picture.detach()[0].float().nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
            Image.fromarray(pixels).save(folder / f"{name.replace('/', '_')}_{self.global_step:06d}.png")
        for logger in self.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(name, picture.clamp(0, 1), self.global_step)


def save_batch(batch: Any, folder: Path) -> Path:
    """Write the tensors of a batch (a NamedTuple) as ``nonfinite_batch.safetensors``; identifiers stay out."""
    from safetensors.torch import save_file

    tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nonfinite_batch.safetensors"
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    return path
