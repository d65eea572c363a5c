"""What all trainings share: Adam with warm-up and cosine decay, averaged weights, clipped and logged gradients."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from medseq.errors import InputError

__all__ = ["AveragedTask"]


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
        """Log the training loss; one that is not finite stops the run."""
        if not torch.isfinite(loss):
            raise InputError("training loss is not finite", where=f"step {self.global_step}", found=loss.item())
        self.log("train/loss", loss, on_step=True, prog_bar=True, batch_size=1)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average the weights; the decay starts low, so that early weights are forgotten."""
        decay = min(self.ema_decay, (1 + self.global_step) / (10 + self.global_step))
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
        """A picture ``(1, row, col)`` in 0..1 to every logger that takes images."""
        for logger in self.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(name, picture.clamp(0, 1), self.global_step)
