"""Scores of a model case by case, under the protocol of the task's own validation."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseq.errors import InputError

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from medseq.tasks.averaged import AveragedTask

__all__ = ["CaseScores", "score_cases"]


@dataclass(frozen=True)
class CaseScores:
    """What one network reached.

    Attributes:
        cases: ``[(case, patient, metric -> value), …]`` in the order of the data set.
        baseline: The same of the input itself, where the task scores it.
        seconds: Median time of a case, scoring included.
        peak_mb: Memory that the process took on top of what it had, MB; nan where the system does not tell.
    """

    cases: list[tuple[str, str, dict[str, float]]]
    baseline: list[tuple[str, str, dict[str, float]]]
    seconds: float
    peak_mb: float


def score_cases(task: "AveragedTask", dataset: "Dataset", collate: Callable[[list[Any]], Any]) -> CaseScores:
    """Score every case alone.

    Args:
        task: Its averaged weights are scored.
        dataset: Cases; `patient_ids` names their patients, ``independent = True`` makes each its own.
        collate: Samples -> batch.

    Raises:
        InputError: No cases, or a task that scores nothing case by case.
    """
    import torch

    seen: dict[str, float] = {}
    # What validation would log is what a case has reached.
    task.log_scores = lambda scores, cases, *, prog_bar=False: seen.update(  # type: ignore[method-assign]
        {name: float(value) for name, value in scores.items()}
    )
    task.log_picture = lambda name, picture: None  # type: ignore[method-assign]
    task.eval()
    cases, baseline, seconds = [], [], []
    with _Peak() as peak, torch.no_grad():
        for number, (case, patient, sample) in enumerate(_each(dataset)):
            seen.clear()
            started = time.perf_counter()
            batch = collate([sample])
            task.evaluation_step(batch, -1, "case")
            seconds.append(time.perf_counter() - started)
            values = {name.removeprefix("case/"): value for name, value in seen.items() if name.startswith("case/")}
            values |= _of_bag(task, batch)
            cases.append((f"{number}:{case}", patient, values))
            before = {name.removeprefix("input/"): value for name, value in seen.items() if name.startswith("input/")}
            if before:
                # One table: the loss of the input is not defined.
                cases[-1] = (f"{number}:{case}", patient, {name: values[name] for name in before})
                baseline.append((f"{number}:{case}", patient, before))
    if not cases:
        raise InputError("there are no cases to score", where="--data")
    return CaseScores(cases, baseline, statistics.median(seconds), peak.mb)


def _of_bag(task: "AveragedTask", batch: Any) -> dict[str, float]:
    """For bags: whether the class was found, and the Brier score; ranks of a cohort have no value for one case."""
    found = getattr(task, "_seen", None)
    if not found:
        return {}
    last = found.pop()
    if last.risk is not None:
        return {}
    probability, label = last.probability[0], int(last.label[0])
    wanted = [float(number == label) for number in range(len(probability))]
    brier = sum((p - w) ** 2 for p, w in zip(probability, wanted, strict=True))
    return {"accuracy": float(probability.argmax() == label), "brier": float(brier)}


def _each(dataset: Any) -> Iterator[tuple[str, str, Any]]:
    patients = getattr(dataset, "patient_ids", None)
    for number in range(len(dataset)):
        sample = dataset[number]
        case = str(getattr(sample, "case_id", None) or getattr(sample, "patient_id", None) or number)
        if patients is not None:
            yield case, str(patients[number]), sample
        else:
            yield case, str(number) if getattr(dataset, "independent", False) else case, sample


class _Peak:
    """The highest resident memory within the block, above that at its start; Linux tells, others do not."""

    mb = math.nan

    def __enter__(self) -> "_Peak":
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            self._before = self._status("VmRSS")
        except OSError:
            self._before = math.nan
        return self

    def __exit__(self, *_: object) -> None:
        if not math.isnan(self._before):
            self.mb = max(0.0, self._status("VmHWM") - self._before)

    @staticmethod
    def _status(name: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1]) / 1024
        return math.nan
