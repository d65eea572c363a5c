"""From the output of a model of bags to what is written and shown: probabilities, call, distance, flags."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medseq.inference.bundle_schema import BundleConfig
from medseq.inference.predictor import Flag
from medseq.io.features import Bag
from medseq.models.mil_fitted import FittedMIL
from medseq.nn.mil import MILOutput, class_probabilities
from medseq.ops.calibration import at_temperature
from medseq.ops.survival import risk, survival_curve

__all__ = ["Scores", "score_of", "scores_of", "source_flags"]

# Another resolution than the model's by more than this share is remarked on.
_MPP_TOLERANCE = 0.1
# Attention over so few patches says little.
_FEW = 8


@dataclass(frozen=True)
class Scores:
    """What is said of one bag.

    Attributes:
        target: ``class``, ``ordinal`` or ``survival``.
        classes: Names of the classes, or of the time bins and ``later``.
        probabilities: One a class, at the bundle's temperature.
        call: Name of the class that is called; None of survival.
        threshold: Probability of the second of two classes from which it is called, or None: the most probable one.
        temperature: That the logits were divided by, or None.
        risk: Of survival: ``-sum S``.
        survival: Of survival: probability to come through each time bin.
        instances: Patches in the bag.
        distance: Mahalanobis distance of the pooled embedding from the training bags, or None if the model knows none.
        distance_limit: Above it a bag is unlike the training bags.
    """

    target: str
    classes: list[str]
    probabilities: list[float]
    call: str | None
    threshold: float | None
    temperature: float | None
    risk: float | None
    survival: list[float] | None
    instances: int
    distance: float | None
    distance_limit: float | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers of the ledger; probabilities by the number of their class."""
        found = {f"probability_{number}": value for number, value in enumerate(self.probabilities)}
        if self.call is not None:
            found["call"] = float(self.classes.index(self.call))
        more = {"risk": self.risk, "distance": self.distance, "distance_limit": self.distance_limit}
        found |= {name: value for name, value in more.items() if value is not None}
        return found | {"instances": float(self.instances)}

    def measured(self) -> dict[str, float]:
        """The numbers of a structured report, by names for people."""
        found = {f"P({name})": value for name, value in zip(self.classes, self.probabilities, strict=True)}
        more = {"risk": self.risk, "distance from training bags": self.distance}
        return found | {name: value for name, value in more.items() if value is not None}

    def flags(self) -> list[Flag]:
        """What a reader must know of these scores."""
        found = []
        if self.distance is not None and self.distance_limit is not None and self.distance > self.distance_limit:
            text = (
                f"this bag is unlike those the model was trained on (distance {self.distance:.3g}, "
                f"limit {self.distance_limit:.3g}): do not rely on its scores"
            )
            found.append(Flag("out-of-distribution", text))
        if self.instances < _FEW:
            text = f"{self.instances} patches: the score rests on very little tissue"
            found.append(Flag("few-patches", text))
        return found


def scores_of(config: BundleConfig, model: nn.Module, out: MILOutput, instances: int) -> Scores:
    """Scores of one bag from the model's output.

    Args:
        config: The bundle's: target, classes, temperature, threshold.
        model: Tells the distance, if it is a `FittedMIL` that knows its training bags.
        out: Of a batch of one.
        instances: Patches in the bag.
    """
    output = config.output
    logits = out.logits.float().cpu()
    probabilities = class_probabilities(logits, output.target).double().numpy()
    is_survival = output.target == "survival"
    if output.temperature is not None and not is_survival:
        probabilities = at_temperature(probabilities, output.temperature)
    p = probabilities[0]
    names = list(output.classes) or [f"class {number}" for number in range(len(p) - is_survival)]
    names += ["later"] * (is_survival and len(names) < len(p))
    call = None
    if not is_survival:
        binary = output.threshold is not None and len(p) == 2
        call = names[int(p[1] >= output.threshold) if binary else int(p.argmax())]
    distance = limit = None
    if isinstance(model, FittedMIL) and model.knows_embeddings and out.embedding is not None:
        distance, limit = float(model.distance(out.embedding)[0]), float(model.distance_limit)
    return Scores(
        output.target,
        names,
        [float(value) for value in p],
        call,
        output.threshold,
        output.temperature,
        float(risk(logits)[0]) if is_survival else None,
        survival_curve(logits)[0].tolist() if is_survival else None,
        instances,
        distance,
        limit,
    )


def score_of(config: BundleConfig, out: MILOutput) -> torch.Tensor:
    """The number that patches are held accountable for: risk, or the log-odds of the called class or grade."""
    if config.output.target == "survival":
        return risk(out.logits)[0]
    p = class_probabilities(out.logits, config.output.target)[0].double()
    index = 1 if len(p) == 2 else int(p.argmax())
    return torch.log(p[index].clamp_min(1e-12)) - torch.log((1 - p[index]).clamp_min(1e-12))


def source_flags(config: BundleConfig, bag: Bag) -> list[Flag]:
    """Where features are not known to be what the model was trained on."""
    found = []
    wanted = config.input
    if wanted.encoder and bag.encoder is None:
        text = f"the file does not say which encoder made its features; the model takes those of '{wanted.encoder}'"
        found.append(Flag("encoder-unknown", text))
    if wanted.mpp and bag.mpp and abs(np.log(bag.mpp / wanted.mpp)) > np.log1p(_MPP_TOLERANCE):
        text = f"patches at {bag.mpp:g} um/px, the model was trained at {wanted.mpp:g}"
        found.append(Flag("resolution", text))
    if bag.coords is None:
        found.append(Flag("no-coordinates", "the bag does not say where its patches are: no heat map", "info"))
    return found
