"""Training of multiple-instance models: the Lightning module and its thin data module.

The task knows no architecture: every network of `medseq.models` that fulfils the contract of `medseq.nn.mil` is trained
alike, for classes, ordered classes or survival. Scores are per patient, whose bags' probabilities are averaged first.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medseq.data.mil import BagDataset, MILBatch, collate
from medseq.errors import InputError
from medseq.models.mil_fitted import FittedMIL
from medseq.nn.mil import MILOutput
from medseq.tasks.averaged import AveragedTask
from medseq.tasks.data_module import TaskDataModule
from medseq.tasks.mil_loss import MILLoss
from medseq.tasks.mil_predictions import (
    Predictions,
    balanced_weights,
    calibration_points,
    operating_point,
    scores,
)

__all__ = ["MILDataModule", "MILTask"]


class MILTask(AveragedTask):
    """Supervised learning from bags: `MILLoss`, Adam, a constant or falling learning rate.

    The defaults of the optimizer are those of MambaMIL's scripts: Adam with an L2 penalty, no schedule, no clipping,
    the last weights. `FittedMIL` networks get their features' scale before the first step. With every checkpoint go
    temperature and threshold, fitted to the validation cases, and the embeddings' spread where the network keeps it.

    Args:
        net: Network under the contract of `medseq.nn.mil`.
        loss: What the labels are and what is minimised; None for cross-entropy of classes.
        class_weight: ``balanced`` gives each class the same total weight, by the training labels; or a factor for each.
        lr: Learning rate, at its peak if there is a schedule.
        min_lr: Learning rate at the end of a cosine; None stays at `lr`.
        betas: Adam's decay rates.
        warmup_steps: Optimizer steps of linear warm-up.
        weight_decay: See `decoupled`.
        decoupled: AdamW; the original's Adam adds the decay to the gradient.
        ema_decay: Decay of the averaged weights, which are the ones that are validated and shipped; 0 takes the last.
        clip_norm: Gradients are scaled down to this norm; None leaves them.
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
        clip_norm: float | None = None,
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
            clip_norm=float("inf") if clip_norm is None else clip_norm,
        )
        self.criterion = loss or MILLoss()
        self.class_weight, self.bundle = class_weight, bundle or {}
        self._weights: Tensor | None = None
        self._seen: list[Predictions] = []

    def on_fit_start(self) -> None:
        """Weights of the classes and scale of the features, from the training bags."""
        data = self.trainer.datamodule
        if self.class_weight == "balanced":
            self._weights = balanced_weights(data.train.labels)
        elif self.class_weight is not None:
            self._weights = torch.tensor(self.class_weight)
        if isinstance(self.net, FittedMIL) and self.net.standardise and not self.net.knows_features:
            self.net.fit_features(features for batch in each_bag(data.train) for features in batch.features)
            assert isinstance(self.ema, FittedMIL)
            self.ema.load_state_dict(self.net.state_dict())

    def training_step(self, batch: MILBatch, batch_idx: int) -> Tensor:
        """One step; a loss that is not finite stops the run.

        Where gradients are accumulated, Lightning divides every loss by the number of steps it gathers, and at the end
        of an epoch steps with what it has, so nothing is carried over into the next. The last group is made up for
        having fewer, so that every bag weighs the same.
        """
        out = self.net(batch.features, batch.coords, batch.lengths)
        loss = self.finite(self.criterion(out, batch, self._weights))
        group, total = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        rest = int(total) % group
        return loss * (group / rest) if rest and batch_idx >= total - rest else loss

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of the epoch before."""
        self._seen = []

    def on_test_epoch_start(self) -> None:
        """Same."""
        self._seen = []

    def evaluation_step(self, batch: MILBatch, batch_idx: int, stage: str) -> None:
        """Loss of the averaged weights, and their predictions for the end of the epoch."""
        out = self.ema(batch.features, batch.coords, batch.lengths)
        loss = self.criterion(out, batch, self._weights)
        self.log_scores({f"{stage}/loss": loss}, len(batch.label), prog_bar=True)
        self._seen.append(self.predictions(out, batch))

    def on_validation_epoch_end(self) -> None:
        """Scores of the patients; those that are not defined (one class only) are left out."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Same."""
        self._score("test")

    def _score(self, stage: str) -> None:
        # Each process has seen its share of the cases.
        self._seen = [Predictions.joined(self._seen).gathered(self.all_gather, self.trainer.world_size)]
        found = scores(self._seen[0].by_patient())
        self.log_dict({f"{stage}/{name}": value for name, value in found.items() if np.isfinite(value)}, prog_bar=True)

    def predictions(self, out: MILOutput, batch: MILBatch) -> Predictions:
        """What the model says of each bag, beside its label."""
        return Predictions.of(out.logits.detach().float(), batch, self.criterion.target)

    def predict(self, cases: BagDataset) -> Predictions:
        """What the averaged weights say of patients, bag by bag, without their operating point."""
        found = [self.predictions(out, batch) for batch, out in self._outputs(cases)]
        return Predictions.joined(found).by_patient()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fit to validation cases what is fitted to them, and put it beside the weights."""
        if not self._seen:
            return
        seen = Predictions.joined(self._seen).by_patient()
        point = operating_point(seen)
        checkpoint["output"] = {"target": self.criterion.target, **point}
        seen = seen.calibrated(point.get("temperature"))
        found = scores(seen, point.get("threshold"))
        known = {name: value for name, value in found.items() if np.isfinite(value)}
        checkpoint["validation"] = {"patients": len(seen.patient), **known}
        if seen.risk is None:
            checkpoint["validation"]["calibration"] = calibration_points(seen)
        if isinstance(self.ema, FittedMIL):
            data = self.trainer.datamodule
            self.ema.fit_embeddings(self._embeddings(data.train), self._embeddings(data.val))
            for name, value in self.ema.named_buffers():
                checkpoint["state_dict"][f"ema.{name}"] = value.detach().clone()

    def _embeddings(self, cases: BagDataset) -> np.ndarray:
        """Pooled embeddings by the averaged weights, ``(bag, width)``."""
        found = []
        for _, out in self._outputs(cases):
            if out.embedding is None:
                raise InputError("the network returns no embedding", where=type(self.net).__name__)
            found.append(out.embedding.double().cpu())
        return torch.cat(found).numpy()

    def _outputs(self, cases: BagDataset) -> Iterator[tuple[MILBatch, MILOutput]]:
        was_training = self.ema.training
        self.ema.eval()
        for batch in each_bag(cases):
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with torch.no_grad():
                yield batch, self.ema(batch.features, batch.coords, batch.lengths)
        self.ema.train(was_training)


class MILDataModule(TaskDataModule):
    """Loaders over `BagDataset`s: training, validation and test, and the cohort that `--folds` divides anew.

    Args:
        train: Training cases.
        val: Validation cases: where training stops, and what temperature and threshold are fitted to.
        cohort: All cases, for cross-validation; None takes those of training and validation together.
        test: Test cases, for ``medseq test``; None if there are none.
        batch_size: Bags a step, padded to the longest; 1 as in the original, with gradients accumulated if wanted.
        num_workers: Loader processes; 0 loads in the training process.

    Raises:
        InputError: A patient in two of the parts.
    """

    collate = staticmethod(collate)
    # Whole bags, one a step: padding would cost more than it saves.
    eval_batch_size = 1
    train: BagDataset
    val: BagDataset

    def __init__(
        self,
        train: BagDataset,
        val: BagDataset,
        cohort: BagDataset | None = None,
        test: BagDataset | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__(train, val, test, batch_size=batch_size, num_workers=num_workers)
        self.own_cohort = cohort

    @property
    def cohort(self) -> BagDataset:
        """All cases that cross-validation divides, with the settings of the training cases."""
        cases = self.own_cohort.cases if self.own_cohort is not None else [*self.train.cases, *self.val.cases]
        like = self.train
        return BagDataset(
            cases,
            "all",
            bins=like.bins,
            max_instances=like.max_instances,
            balanced=like.balanced,
            need_coords=like.need_coords,
            seed=like.seed,
        )


def each_bag(cases: BagDataset) -> Iterator[MILBatch]:
    """Every case once, whole and in order, whatever part it is of."""
    for number in range(len(cases.cases)):
        yield collate([cases.sample(number)])
