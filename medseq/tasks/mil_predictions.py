"""What a model said of cases whose truth is known: predictions of bags, patients and folds, and their scores."""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medseq.data.mil import MILBatch
from medseq.errors import InputError
from medseq.ops.calibration import at_temperature, fit_temperature, fit_threshold
from medseq.ops.case_scores import (
    auroc,
    balanced_accuracy,
    brier,
    concordance_index,
    expected_calibration_error,
    f1,
    mean_by_case,
    reliability,
)
from medseq.ops.survival import risk
from medseq.tasks.mil_loss import Target, class_probabilities

__all__ = ["Predictions", "balanced_weights", "calibration_points", "operating_point", "scores"]


class Predictions(NamedTuple):
    """Predictions of bags, or of patients, one a row.

    patient: Pseudonyms.
    label: Class, or time bin.
    probability: ``(row, class)``; of survival, of the event in each bin and, last, after all of them.
    risk: Of survival; else None.
    event: Of survival; else None.
    time: Of survival; else None.
    """

    patient: list[str]
    label: np.ndarray
    probability: np.ndarray
    risk: np.ndarray | None = None
    event: np.ndarray | None = None
    time: np.ndarray | None = None

    @classmethod
    def of(cls, logits: Tensor, batch: MILBatch, target: Target) -> "Predictions":
        """From the logits of a batch, detached."""
        probability = class_probabilities(logits, target).double().cpu().numpy()
        label, patient = batch.label.cpu().numpy(), list(batch.patient_id)
        if target != "survival":
            return cls(patient, label, probability)
        if batch.event is None or batch.time is None:
            raise InputError("survival needs events and times", remedy="give the data set both")
        event, time = batch.event.bool().cpu().numpy(), batch.time.double().cpu().numpy()
        return cls(patient, label, probability, risk(logits).double().cpu().numpy(), event, time)

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """All rows of several."""
        if not parts:
            raise InputError("there are no predictions", remedy="give at least one case to predict")
        names = [name for name in cls._fields if name != "patient" and getattr(parts[0], name) is not None]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return parts[0]._replace(patient=[patient for part in parts for patient in part.patient], **columns)

    def gathered(self, all_gather: Callable[[Tensor], Tensor], processes: int) -> "Predictions":
        """All rows of all processes, which call this together.

        Args:
            all_gather: Tensor of one shape on every process -> all of them, stacked.
            processes: How many there are.
        """
        if processes == 1:
            return self
        rows = {name: value for name, value in self._asdict().items() if value is not None}
        text = json.dumps({name: np.asarray(value).tolist() for name, value in rows.items()}).encode()
        # Shares differ in length; a tensor of bytes needs the longest.
        sizes = all_gather(torch.tensor([len(text)])).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        parts = []
        for size, share in zip(sizes, all_gather(padded), strict=True):
            columns = json.loads(bytes(share[:size].tolist()))
            patient = columns.pop("patient")
            parts.append(type(self)(patient, **{name: np.array(value) for name, value in columns.items()}))
        return type(self).joined(parts)

    def by_patient(self) -> "Predictions":
        """One row a patient: means of probability and risk over their bags.

        Raises:
            InputError: Bags of one patient with different labels.
        """
        truth = [value for value in (self.label, self.event, self.time) if value is not None]
        for value in truth:
            _, (mean, square) = mean_by_case(self.patient, value.astype(float), np.square(value.astype(float)))
            if not np.allclose(square, np.square(mean)):
                # Which patient it is stays out of messages.
                raise InputError("bags of one patient have different labels", remedy="label patients, not slides")
        names, (probability, *rest) = mean_by_case(
            self.patient, self.probability, *([] if self.risk is None else [self.risk])
        )
        first = [self.patient.index(name) for name in names]
        event, time = (None if value is None else value[first] for value in (self.event, self.time))
        return Predictions(names, self.label[first], probability, rest[0] if rest else None, event, time)

    def calibrated(self, temperature: float | None) -> "Predictions":
        """With the probabilities at a temperature; None leaves them."""
        if temperature is None:
            return self
        return self._replace(probability=at_temperature(self.probability, temperature))

    def calls(self, threshold: float | None = None) -> np.ndarray:
        """Class of each row: the most probable, or, of two classes, class 1 from the threshold on."""
        if threshold is not None and self.probability.shape[1] == 2:
            return (self.probability[:, 1] >= threshold).astype(int)
        return self.probability.argmax(1)


def scores(predictions: Predictions, threshold: float | None = None) -> dict[str, float]:
    """Scores of patients: of survival the concordance index, else five of classes; nan where they are not defined."""
    p = predictions
    if p.risk is not None and p.event is not None and p.time is not None:
        return {"c_index": concordance_index(p.event, p.time, p.risk)}
    calls = p.calls(threshold)
    return {
        "auroc": auroc(p.label, p.probability),
        "balanced_accuracy": balanced_accuracy(p.label, calls),
        "f1": f1(p.label, calls, p.probability.shape[1]),
        "brier": brier(p.label, p.probability),
        "ece": expected_calibration_error(p.label, p.probability),
    }


def operating_point(predictions: Predictions) -> dict[str, float]:
    """Temperature and, of two classes, threshold on the probability at that temperature, from validation patients.

    Survival has neither, and validation patients of one class alone have no threshold.
    """
    if predictions.risk is not None:
        return {}
    temperature = fit_temperature(predictions.label, predictions.probability)
    found = {"temperature": round(temperature, 4)}
    if predictions.probability.shape[1] == 2 and len(np.unique(predictions.label)) == 2:
        calibrated = predictions.calibrated(found["temperature"])
        found["threshold"] = round(fit_threshold(calibrated.label, calibrated.probability[:, 1]), 6)
    return found


def calibration_points(predictions: Predictions) -> list[dict[str, float]]:
    """Points of a calibration plot of classes, as a report draws them (`medseq.ops.case_scores.reliability`)."""
    points = reliability(predictions.label, predictions.probability)
    return [{"probability": said, "observed": true, "cases": cases} for said, true, cases in points]


def balanced_weights(label: np.ndarray) -> Tensor:
    """``n / (K n_k)``: every class has the same total weight, and the mean weight of a case is 1.

    Raises:
        InputError: A class without a case.
    """
    counts = np.bincount(np.asarray(label, int))
    if not counts.all():
        raise InputError(
            "classes cannot be balanced", found=f"training cases a class: {counts.tolist()}", wanted="some of each"
        )
    return torch.tensor(len(label) / (len(counts) * counts), dtype=torch.float32)
