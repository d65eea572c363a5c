"""What a run would do, how long it would take and how much memory it needs, before it does anything.

Time is extrapolated from one item that is computed for the purpose and thrown away; memory is the predictor's own
estimate for the largest items seen. Both are guesses, and said to be.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseq.inference.attempt import attempt
from medseq.inference.discover import open_input
from medseq.inference.discover_kspace import open_kspace_item
from medseq.inference.found import Found
from medseq.inference.gated import Gate
from medseq.inference.ledger import Ledger
from medseq.inference.predictor import Predictor
from medseq.inference.worker import ItemTask

__all__ = ["RunPlan", "estimate", "survey"]

_SAMPLE = 32


@dataclass
class RunPlan:
    """What was found, and what it will cost.

    Attributes:
        items: Inputs to compute.
        files: Their files.
        bytes: Size of their files.
        kinds: Inputs by kind.
        done: Inputs that an earlier run in this output folder has finished.
        refused: What is left out or broken, by reason code.
        workers: Processes that would compute.
        threads: Threads of each.
        seconds: Guess for what is not done yet; None if no item could be computed.
        peak_bytes: Guess for the largest of a few items, beyond the loaded model; None likewise.
        timed: Why there is no guess of time, or how it was made.
    """

    items: int = 0
    files: int = 0
    bytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    done: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    workers: int = 0
    threads: int = 1
    seconds: float | None = None
    peak_bytes: int | None = None
    timed: str = ""

    def lines(self) -> list[str]:
        """The plan as text."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items())) or "none"
        who = f"{self.workers} processes of {self.threads} threads" if self.workers else "this process"
        lines = [
            f"to compute   {self.items} items ({kinds}), {self.files} files, {self.bytes / 1e9:.3g} GB",
            f"done before  {self.done}",
            f"left out     {', '.join(f'{count} {code}' for code, count in sorted(self.refused.items())) or 'nothing'}",
            f"computed by  {who}",
        ]
        if self.seconds is not None:
            lines.append(f"time         about {_duration(self.seconds)} ({self.timed})")
        else:
            lines.append(f"time         unknown: {self.timed}")
        if self.peak_bytes is not None:
            lines.append(
                f"memory       up to {self.peak_bytes / 1e9:.2f} GB an item, besides the model (an upper guess)"
            )
        return lines


def survey(found: Iterable[Found], ledger: Ledger | None) -> tuple[RunPlan, list[Found]]:
    """Count what was found, in one pass; returns the plan and a sample of its items.

    Args:
        found: See `medseq.inference.discover.discover`.
        ledger: Of an earlier run in the output folder, or None.
    """
    plan = RunPlan()
    sample: list[Found] = []
    largest: Found | None = None
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    # Not for anything that is kept: which items are looked at may differ every time.
    draw = random.Random()
    for item in found:
        if item.state != "queued":
            refused[item.reason_code or "other"] += 1
            continue
        known = ledger.item(item.item_id) if ledger is not None else None
        if known is not None and known.state == "done":
            plan.done += 1
            continue
        plan.items += 1
        plan.files += len(item.files)
        plan.bytes += _size(item)
        kinds[item.kind] += 1
        largest = item if largest is None or _size(item) > _size(largest) else largest
        if len(sample) < _SAMPLE:
            sample.append(item)
        elif (place := draw.randrange(plan.items)) < _SAMPLE:
            sample[place] = item
    if largest is not None and largest not in sample:
        sample.append(largest)
    plan.kinds, plan.refused = dict(kinds), dict(refused)
    return plan, sorted(sample, key=_size)


def estimate(
    plan: RunPlan, sample: list[Found], predictor: Predictor, task_of: Callable[[Found, Path], ItemTask]
) -> None:
    """Fill in time and memory.

    Args:
        plan: From `survey`.
        sample: From `survey`, by size.
        predictor: The loaded model.
        task_of: Makes the task of an item for an output folder.
    """
    with tempfile.TemporaryDirectory(prefix="medseq-") as folder:
        task = task_of(sample[len(sample) // 2], Path(folder))
        report = attempt(task, predictor, Gate(), lambda: False, "dry-run")
        plan.peak_bytes = _peak(predictor, task_of(sample[-1], Path(folder)))
    if report.result is None:
        plan.timed = f"the item that was tried failed ({report.code})"
        return
    size = max(1, _size(sample[len(sample) // 2]))
    plan.seconds = report.result.seconds * plan.bytes / size / max(1, plan.workers)
    plan.timed = f"from one item of {size / 1e6:.3g} MB that took {report.result.seconds:.2f} s"


def _peak(predictor: Predictor, task: ItemTask) -> int | None:
    """The estimate for one item; None if it cannot be opened, which the run itself will tell."""
    from medseq.errors import MedseqError

    params: Any = task.params
    try:
        if task.kind == "kspace":
            header: Any = open_kspace_item(task.root, task.item_id, task.files, fft=params.get("fft"))
        elif task.kind in ("dicom", "nifti"):
            reader = open_input(
                task.root, task.item_id, task.kind, task.files, modality=params.get("modality"), units=task.units
            )
            header = reader.header
        else:
            return None
        return predictor.estimate(header).peak_bytes
    except (MedseqError, OSError):
        return None


def _size(item: Found) -> int:
    return sum(file.size for file in item.files)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
