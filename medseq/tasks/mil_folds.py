"""Nested cross-validation of multiple-instance models, fold by fold, resumable.

Every fold has three parts, by patient: training; validation, where training stops and temperature and threshold are
fitted; and test, which is predicted once, by the best weights. So no reported number comes from cases that chose
anything. The original MambaMIL scores survival on the very fold whose best concordance index picked the epoch; its
numbers are not to be compared with those of this module.

    OUT/plan.json                      what is being done; another plan is refused
    OUT/repeat_0/fold_3/               configuration and checkpoint of that training
    OUT/repeat_0/fold_3/predictions.csv    appears last: a fold that has it is not done again
    OUT/predictions.csv                all of them
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from medseq.data.mil import BagDataset
from medseq.errors import InputError
from medseq.io.atomic import clear, discard, fsync, publish, written
from medseq.io.case_predictions import CasePredictions, joined, read_predictions, write_predictions
from medseq.io.folds import Fold
from medseq.tasks.mil import MILDataModule, MILTask

__all__ = ["Build", "cross_validate"]

# Folder and seed of a training -> a fresh task and the trainer that keeps its checkpoint there.
Build = Callable[[Path, int], tuple[MILTask, pl.Trainer]]


def cross_validate(
    build: Build,
    data: MILDataModule,
    out: Path,
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> CasePredictions:
    """Train and test every fold that is not done yet, and gather the predictions.

    Args:
        build: Makes task and trainer of one training.
        data: Its cohort is divided.
        out: Folder of the results; made if it is not there.
        folds: Test folds.
        repeats: How often patients are divided anew.
        seed: Of the division, and of the first training.
        settings: What decides the numbers besides; a folder that was begun with others is refused.
        report: Told of every fold that is done.

    Returns:
        The predictions of all folds.

    Raises:
        InputError: A class, or events, too rare for so many folds; another plan in this folder; or a trainer that keeps
            no checkpoint.
    """
    cohort = data.cohort
    # Reproducible by the plan alone, on every platform.
    parts = cohort.folds(folds, np.random.default_rng(seed), repeats=repeats)
    plan = {"folds": folds, "repeats": repeats, "seed": seed, "cases": len(cohort.cases), **(settings or {})}
    _keep_plan(out / "plan.json", plan)
    found = []
    for number, fold in enumerate(parts):
        folder = out / f"repeat_{fold.repeat}" / f"fold_{fold.fold}"
        path = folder / "predictions.csv"
        if path.is_file():
            found.append(read_predictions(path))
            report(f"repeat {fold.repeat} fold {fold.fold}: kept")
            continue
        with written("the folder of a fold"):
            # What an interrupted attempt left: the fold begins anew.
            discard(folder)
        made = _fold(build, data, cohort, fold, folder, seed + number)
        write_predictions(path, made)
        found.append(made)
        report(f"repeat {fold.repeat} fold {fold.fold}: {len(made.patient)} patients predicted")
    whole = joined(found)
    write_predictions(out / "predictions.csv", whole)
    return whole


def _fold(
    build: Build, data: MILDataModule, cohort: BagDataset, fold: Fold, folder: Path, seed: int
) -> CasePredictions:
    """Train one fold and predict its test part."""
    train, val, test = cohort.divided(fold)
    task, trainer = build(folder, seed)
    own = MILDataModule(train, val, batch_size=data.batch_size, num_workers=data.num_workers)
    try:
        trainer.fit(task, datamodule=own)
    except SystemExit:
        # Lightning exits after an interrupt; here more folds would follow.
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    point = _best_weights(task, trainer)
    seen = task.predict(test).calibrated(point.get("temperature"))
    repeat, number = (np.full(len(seen.patient), value) for value in (fold.repeat, fold.fold))
    if seen.risk is not None:
        return CasePredictions(repeat, number, seen.patient, seen.label, None, None, seen.risk, seen.event, seen.time)
    return CasePredictions(
        repeat, number, seen.patient, seen.label, seen.probability, seen.calls(point.get("threshold"))
    )


def _best_weights(task: MILTask, trainer: pl.Trainer) -> dict[str, Any]:
    """Load the weights that validation liked best; returns the operating point that lies beside them."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path:
        raise InputError(
            "the training of a fold left no checkpoint",
            where="trainer",
            remedy="let ModelCheckpoint monitor a metric of val/, and train at least one epoch",
        )
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    task.load_state_dict(checkpoint["state_dict"])
    return checkpoint.get("output", {})


def _keep_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan, or compare it with the one that is there."""
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        if known != json.loads(json.dumps(plan)):
            differ = sorted(key for key in known.keys() | plan.keys() if known.get(key) != plan.get(key))
            raise InputError(
                "another cross-validation lies in this folder",
                where="--out",
                found=f"another {', '.join(differ)}",
                remedy="give another folder, or the same settings as before",
            )
        return
    partial = clear(path)
    with written("the plan"):
        partial.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        fsync(partial)
    publish(partial, path)
