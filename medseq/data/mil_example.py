"""A folder of bags to begin with, in the layout of CLAM: a case table, a split and a file a bag.

Real where the package ``mil`` is installed (UCSB breast: 58 bags of nuclear and texture features of 896 x 768 images,
no coordinates), simulated otherwise; the caller is told which.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from medseq.data.mil_files import mil_table
from medseq.data.mil_synthetic import SyntheticBags
from medseq.errors import InputError
from medseq.io.atomic import clear, fsync, publish, written
from medseq.io.bag_write import BagWriter
from medseq.io.features import Bag
from medseq.io.features_table import read_bag_csv
from medseq.io.folds import stratified_folds
from medseq.io.splits import Split, write_split_csv

__all__ = ["MILExample", "write_mil_example"]


class MILExample(NamedTuple):
    """What was written.

    Attributes:
        folder: Holds ``cases.csv``, ``splits_0.csv`` and ``bags/``.
        bags: Their number.
        positive: Bags of class 1.
        simulated: The bags are not real.
        what: One sentence for people.
    """

    folder: Path
    bags: int
    positive: int
    simulated: bool
    what: str


def write_mil_example(folder: str | Path, *, simulated: bool | None = None) -> MILExample:
    """Write bags, a case table and the first of ten folds.

    Args:
        folder: Made if it is not there; files of these names are replaced.
        simulated: True for simulated bags, False for real ones; default: real ones if they are installed.

    Raises:
        InputError: Real bags are asked for and the package is not installed.
        OutputError: The folder cannot be written.
    """
    folder = Path(folder)
    try:
        path = None if simulated else mil_table("ucsb")
    except InputError:
        if simulated is False:
            raise
        path = None
    if path is None:
        cohort = SyntheticBags(60, role="all")
        bags = [slide for case in cohort.cases for slide in case.slides if isinstance(slide, Bag)]
        labels, what = cohort.labels, "60 simulated slides with a planted cluster in every second one"
    else:
        bags, labels = read_bag_csv(path)
        what = f"{len(bags)} real bags of the UCSB breast data set (features only, no coordinates)"
    names = [f"{'simulated' if path is None else 'ucsb'}-{number + 1:02d}" for number in range(len(bags))]
    for name, bag in zip(names, bags, strict=True):
        _write(folder / "bags", name, bag)
    rows = ["case_id,slide_id,label", *(f"{name},{name},{label}" for name, label in zip(names, labels, strict=True))]
    _write_text(folder / "cases.csv", "\n".join(rows) + "\n")
    fold = stratified_folds(labels, 10, np.random.default_rng(0))[0]
    parts = [tuple(names[number] for number in part) for part in (fold.train, fold.val, fold.test)]
    write_split_csv(folder / "splits_0.csv", Split(*parts))
    return MILExample(folder, len(bags), int((labels == 1).sum()), path is None, what)


def _write(folder: Path, name: str, bag: Bag) -> None:
    features = np.asarray(bag.features[:])
    if bag.coords is not None and bag.patch_size_level0 is not None:
        writer = BagWriter(
            folder / f"{name}.h5",
            features.shape[1],
            encoder=bag.encoder or "unknown",
            mpp=bag.mpp,
            patch_size_level0=bag.patch_size_level0,
            slide_id=name,
            patient_id=name,
        )
        # What an earlier, killed call left.
        if writer.done == 0:
            writer.append(features, bag.coords)
        writer.commit()
        return
    target = folder / f"{name}.npz"
    partial = clear(target)
    with written("the bag"):
        with partial.open("wb") as file:
            np.savez(file, features=features)
        fsync(partial)
    publish(partial, target)


def _write_text(target: Path, text: str) -> None:
    partial = clear(target)
    with written("the table"):
        partial.write_text(text, encoding="utf-8")
        fsync(partial)
    publish(partial, target)
