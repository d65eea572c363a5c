"""What models of bags are trained with, and how their logits become probabilities.

    class      K logits, softmax; one logit stands for two classes
    ordinal    K - 1 logits for K ordered classes: the k-th says whether a case that is not below k stops there
    survival   K logits for K time bins, hazards (`medseq.ops.survival`)

The ordinal head is the discrete hazard of survival, read over grades instead of time bins: a case of the highest grade
has passed every bin, as a censored one has. Its class probabilities are never negative and need no ordering of biases.

Reference:
    Fienberg, The analysis of cross-classified categorical data, 1980 (continuation ratios); Shi et al.,
    arXiv:2111.08851.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.data.mil import MILBatch
from medseq.errors import InputError, ShapeError
from medseq.nn.mil import MILOutput, Target, both_logits, class_probabilities
from medseq.ops.survival import nll_survival

__all__ = ["MILLoss", "Target", "class_probabilities", "instance_loss"]


class MILLoss(nn.Module):
    """Loss of a batch of bags.

    Args:
        target: What the labels are.
        label_smoothing: Share of the target that is spread over all classes; of `class` only.
        alpha: Share of the weight that is taken from censored cases; of `survival` only.
        instance_weight: Share of CLAM's instance loss, 0.3 in the original; needs a model with instance logits.
        instance_samples: Instances with the most and with the least attention that the instance loss looks at.

    Raises:
        InputError: Shares outside 0..1, or what does not belong to the target.
    """

    def __init__(
        self,
        target: Target = "class",
        label_smoothing: float = 0.0,
        alpha: float = 0.0,
        instance_weight: float = 0.0,
        instance_samples: int = 8,
    ) -> None:
        super().__init__()
        for name, share in (
            ("label_smoothing", label_smoothing),
            ("alpha", alpha),
            ("instance_weight", instance_weight),
        ):
            if not 0 <= share < 1:
                raise InputError(f"{name} is no share", found=share, wanted="0 <= share < 1")
        wrong = {"label_smoothing": label_smoothing and target != "class", "alpha": alpha and target != "survival"}
        wrong["instance_weight"] = instance_weight and target != "class"
        if any(wrong.values()):
            found = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
            raise InputError("the loss has no such part for this target", where=target, found=found)
        if instance_samples < 1:
            raise InputError("instance_samples must be positive", found=instance_samples)
        self.target, self.label_smoothing, self.alpha = target, label_smoothing, alpha
        self.instance_weight, self.instance_samples = instance_weight, instance_samples

    def classes(self, logits: Float[Tensor, "batch logits"]) -> int:
        """How many classes, or time bins, so many logits stand for."""
        return logits.shape[1] + (self.target == "ordinal" or (self.target == "class" and logits.shape[1] == 1))

    def forward(self, out: MILOutput, batch: MILBatch, class_weight: Float[Tensor, " class"] | None = None) -> Tensor:
        """Mean over the bags.

        Args:
            out: Of the model.
            batch: With labels; with events where the target is survival.
            class_weight: Factor on the loss of the cases of each class. The mean is over cases, not over weights, so
                that it means the same for one bag a step.

        Raises:
            InputError: Labels that the model has no logit for.
        """
        label = batch.label.long()
        if self.target == "survival":
            if batch.event is None:
                raise InputError("survival needs events", remedy="give the data set times and events")
            each = nll_survival(out.logits, label, batch.event, self.alpha)
        else:
            classes = self.classes(out.logits)
            if int(label.min()) < 0 or int(label.max()) >= classes:
                found = f"{int(label.min())} to {int(label.max())}"
                raise InputError("labels do not fit the model", found=found, wanted=f"0 to {classes - 1}")
            each = self._of_classes(out.logits, label)
        if class_weight is not None:
            each = each * class_weight.to(each)[label]
        loss = each.mean()
        if self.instance_weight:
            instances = instance_loss(out, label, batch.lengths, self.instance_samples)
            loss = (1 - self.instance_weight) * loss + self.instance_weight * instances
        return loss

    def _of_classes(self, logits: Tensor, label: Tensor) -> Float[Tensor, " batch"]:
        if self.target == "ordinal":
            last = logits.shape[1] - 1
            return nll_survival(logits, label.clamp(max=last), label <= last)
        return F.cross_entropy(both_logits(logits), label, reduction="none", label_smoothing=self.label_smoothing)


def instance_loss(out: MILOutput, label: Int[Tensor, " batch"], lengths: Int[Tensor, " batch"], samples: int) -> Tensor:
    """CLAM's: the instances with the most attention are evidence of the bag's class, those with the least are not.

    The classifiers of the other classes learn that the instances with the most attention are no evidence of them. Means
    over classes and bags; a bag with fewer than twice `samples` instances gives half of them to either side, and one
    with a single instance gives nothing.

    Raises:
        ShapeError: The model has no instance logits ``(batch, n, class, 2)``.

    Reference:
        Lu et al., Data-efficient and weakly supervised computational pathology on whole-slide images, Nature Biomedical
        Engineering 5, 2021; cross-entropy is the default of the authors' code.
    """
    logits = out.instance_logits
    if logits is None or logits.dim() != 4 or logits.shape[-1] != 2:
        raise ShapeError(
            "the instance loss needs logits of instances",
            found=None if logits is None else tuple(logits.shape),
            wanted="(batch, n, class, 2)",
            remedy="use medseq.models.mil_clam.CLAM, or instance_weight: 0",
        )
    losses = []
    for instances, attention, y, n in zip(logits, out.attention, label.tolist(), lengths.tolist(), strict=True):
        k = min(samples, n // 2)
        if not k:
            losses.append(instances.sum() * 0)
            continue
        order = attention[:n].argsort(descending=True)
        top, bottom = instances[order[:k]], instances[order[n - k : n]]
        target = torch.zeros(k, dtype=torch.long, device=logits.device)
        parts = []
        for c in range(logits.shape[2]):
            if c == y:
                both = torch.cat([top[:, c], bottom[:, c]])
                parts.append(F.cross_entropy(both, torch.cat([target + 1, target])))
            else:
                parts.append(F.cross_entropy(top[:, c], target))
        losses.append(torch.stack(parts).mean())
    return torch.stack(losses).mean()
