"""Training of multiple-instance models: the Lightning module and its thin data module.

The task knows no architecture: every network of `medseq.models` that fulfils the contract of `medseq.nn.mil` is trained
alike, for classes, ordered classes or survival. Scores are per patient, whose bags' probabilities are averaged first.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medseq.data.mil import MILBatch
from medseq.errors import InputError
from medseq.models.mil_fitted import FittedMIL
from medseq.nn.mil import MILOutput
from medseq.ops.calibration import fit_temperature, fit_threshold
from medseq.tasks.averaged import AveragedTask
from medseq.tasks.mil_loss import MILLoss, class_probabilities
from medseq.tasks.mil_predictions import Predictions, balanced_weights, operating_point, scores

__all__ = ["MILDataModule", "MILTask"]


class MILTask(AveragedTask):
    """Supervised learning from bags: `MILLoss`, Adam, a constant or falling learning rate.

    The defaults of the optimizer are those of MambaMIL's scripts: Adam with an L2 penalty, no schedule, no clipping, the
    last weights. `FittedMIL` networks get their features' scale before the first step; with every checkpoint go
    temperature, threshold and, of such a network, the spread of the embeddings, from validation cases and training bags.

    Args:
        net: Network under the contract of `medseq.nn.mil`.
        loss: What the labels are and what is minimised; None for cross-entropy of classes.
        class_weight: ``balanced`` gives each class the same total weight, by the training labels; or one factor a class.
        lr: Learning rate, at its peak if there is a schedule.
        min_lr: Learning rate at the end of a cosine; None stays at `lr`.
        betas: Adam's decay rates.
        warmup_steps: Optimizer steps of linear warm-up.
        weight_decay: See `decoupled`.
        decoupled: AdamW; the original's Adam adds the decay to the gradient.
        ema_decay: Decay of the averaged weights, which are the ones that are validated and shipped; 0 takes the last.
        clip_norm: Gradients are scaled down to this norm; infinite leaves them.
        bundle: What `medseq bundle` writes into bundle.yaml beside the model.

    Reference:
        Yang et al., MambaMIL, arXiv:2403.06800, section 4.1; the authors' scripts.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: MILLoss | None = None,
        class_weight: Literal["balanced"] | list[float] | None = None,
        lr: float = 2e-4,
        min_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        weight_decay: float = 1e-5,
        decoupled: bool = False,
        ema_decay: float = 0.0,
        clip_norm: float = float("inf"),
        bundle: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            net,
            lr=lr,
            min_lr=lr if min_lr is None else min_lr,
            betas=betas,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            decoupled=decoupled,
            ema_decay=ema_decay,
            clip_norm=clip_norm,
        )
        self.criterion = loss or MILLoss()
        self.class_weight, self.bundle = class_weight, bundle or {}
        self._weights: Tensor | None = None
        self._seen: list[Predictions] = []

    def on_fit_start(self) -> None:
        """Weights of the classes and scale of the features, from the training bags."""
        data = self.trainer.datamodule
        if isinstance(self.class_weight, list):
            self._weights = torch.tensor(self.class_weight)
        elif self.class_weight == "balanced":
            self._weights = balanced_weights(data.train_labels)
        if isinstance(self.net, FittedMIL) and not self.net.knows_features:
            for net in (self.net, self.ema):
                net.fit_features(bag for batch in data.each_bag("train") for bag in batch.features)

    def training_step(self, batch: MILBatch, batch_idx: int) -> Tensor:
        """One step; a loss that is not finite stops the run.

        Where gradients are accumulated, Lightning divides every loss by the number of steps it gathers, and steps at the
        end of an epoch with what is there. The last group is made up here for having fewer, so every bag weighs the same.
        """
        out = self.net(batch.features, batch.coords, batch.lengths)
        loss = self.finite(self.criterion(out, batch, self._weights))
        group, total = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        rest = total % group
        return loss * group / rest if rest and batch_idx >= total - rest else loss

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of the epoch before."""
        self._seen = []

    def validation_step(self, batch: MILBatch, batch_idx: int) -> None:
        """Loss of the averaged weights, and their predictions for the end of the epoch."""
        out = self.ema(batch.features, batch.coords, batch.lengths)
        self.log("val/loss", self.criterion(out, batch, self._weights), batch_size=len(batch.label), prog_bar=True)
        self._seen.append(self.predictions(out, batch))

    def on_validation_epoch_end(self) -> None:
        """Scores of the patients; those that are not defined (one class only) are left out."""
        scores = validation_scores(Predictions.joined(self._seen).by_patient())
        self.log_dict({f"val/{name}": value for name, value in scores.items() if np.isfinite(value)}, prog_bar=True)

    def predictions(self, out: MILOutput, batch: MILBatch) -> Predictions:
        """What the model says of each bag, beside its label."""
        return Predictions.of(out.logits.detach().float(), batch, self.criterion.target)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fit what is fitted to validation cases, and put it beside the weights."""
        if not self._seen:
            return
        seen = Predictions.joined(self._seen).by_patient()
        checkpoint["output"] = operating_point(seen)
        checkpoint["validation"] = {"n": len(seen.patient), **validation_scores(seen)}
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(self.ema, FittedMIL) and data is not None:
            self.ema.fit_embeddings(*(self._embeddings(data.each_bag(part)) for part in ("train", "val")))
            for name, value in self.ema.named_buffers():
                checkpoint["state_dict"][f"ema.{name}"] = value.detach().clone()

    def _embeddings(self, batches: Iterator[MILBatch]) -> np.ndarray:
        """Pooled embeddings of bags by the averaged weights, ``(bag, width)``."""
        was_training, found = self.ema.training, []
        self.ema.eval()
        with torch.no_grad():
            for batch in batches:
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                found.append(self.ema(batch.features, batch.coords, batch.lengths).embedding.double().cpu())
        self.ema.train(was_training)
        return torch.cat(found).numpy()
