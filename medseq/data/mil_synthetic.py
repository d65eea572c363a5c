"""Simulated bags whose answer is known: a patch of witnesses somewhere on a slide decides. For tests and first steps.

Nothing here looks like histology. Numbers that a model reaches on it say that the model learns, and nothing more.
"""

import numpy as np

from medseq.data.mil import BagCase, BagDataset, Part
from medseq.data.mil_files import part_of
from medseq.data.survival_bins import SurvivalBins
from medseq.errors import InputError
from medseq.io.bag_table import Target
from medseq.io.features import Bag

__all__ = ["SyntheticBags", "simulated_slide"]

PATCH = 256


class SyntheticBags(BagDataset):
    """Simulated patients, each with one slide: a connected piece of tissue on a grid, read row by row.

    Features are noise that varies smoothly over the slide, plus white noise. In class k > 0 a connected cluster of
    `witness_share` of the patches is moved by `effect` along direction k, the same in every slide of every seed; class
    0 has none. Of survival, every case has a cluster of its own size, and a larger one means a shorter time; a third of
    the cases are censored at random.

    Args:
        patients: Size of the cohort, before it is divided.
        role, folds, fold, val_share, split_seed: See `medseq.data.mil_files.BagTableCSV`.
        target: ``classification`` or ``survival``.
        classes: Number of classes.
        bins: Time bins of survival.
        instances: Smallest and largest bag.
        dim: Numbers a patch.
        witness_share: Share of the patches that decide; of survival, the largest.
        effect: Length of the move, in standard deviations of a number.
        max_instances, balanced, length, seed: See `BagDataset`; `seed` decides the cohort too.

    Attributes:
        witnesses: For every case which patches decide, ``(n,)`` bool.
    """

    def __init__(
        self,
        patients: int = 60,
        role: Part = "train",
        folds: int = 5,
        fold: int = 0,
        val_share: float = 0.2,
        split_seed: int = 0,
        target: Target = "classification",
        classes: int = 2,
        bins: int = 4,
        instances: tuple[int, int] = (30, 60),
        dim: int = 16,
        witness_share: float = 0.15,
        effect: float = 3.0,
        max_instances: int | None = None,
        balanced: bool = False,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        low, high = instances
        if not 1 <= low <= high or not 0 < witness_share <= 1 or classes < 2 or dim < classes:
            raise InputError(
                "no such synthetic bags",
                found=f"instances {low} to {high}, witness_share {witness_share}, classes {classes}, dim {dim}",
                wanted="1 <= smallest <= largest, a share in (0, 1], at least 2 classes, dim >= classes",
            )
        cases, witnesses = [], []
        for number in range(patients):
            rng = np.random.default_rng([seed, number])
            # Classes in turn: every cohort has equally many.
            kind = number % classes if target == "classification" else 1
            share = witness_share if target == "classification" else witness_share * rng.uniform(0.1, 1.0)
            bag, witness = simulated_slide(
                rng, f"synthetic-{number}", int(rng.integers(low, high + 1)), dim, kind, share, effect
            )
            event, months = _outcome(rng, float(witness.mean()) / witness_share)
            if target == "survival":
                cases.append(BagCase(bag.patient_id, (bag,), event=event, months=months))
            else:
                cases.append(BagCase(bag.patient_id, (bag,), label=kind))
            witnesses.append(witness)
        self.classes = [str(kind) for kind in range(classes)] if target == "classification" else []
        fitted = None
        if target == "survival":
            fitted = _fit(cases, range(patients), bins)
        numbers, training = part_of(BagDataset(cases, "all", bins=fitted), role, folds, fold, val_share, split_seed)
        super().__init__(
            [cases[number] for number in numbers],
            role,
            bins=None if fitted is None else _fit(cases, training, bins),
            max_instances=max_instances,
            balanced=balanced,
            length=length,
            seed=seed,
        )
        self.witnesses = [witnesses[number] for number in numbers]


def simulated_slide(
    rng: np.random.Generator, name: str, n: int, dim: int, kind: int = 1, share: float = 0.15, effect: float = 3.0
) -> tuple[Bag, np.ndarray]:
    """One simulated slide and which of its patches are witnesses.

    Args:
        rng: Source of everything but the directions.
        name: Pseudonym.
        n: Patches.
        dim: Numbers a patch.
        kind: Direction of the witnesses; 0 for none.
        share: Share of the patches that are witnesses, at least one.
        effect: How far they are moved, in standard deviations of a number.

    Returns:
        The bag, with coords, and ``(n,)`` bool.
    """
    side = int(np.ceil(np.sqrt(3 * n)))
    cells = _piece(rng, np.ones((side, side), bool), n)
    grid = np.zeros((side, side), bool)
    grid[cells[:, 0], cells[:, 1]] = True
    cells = np.argwhere(grid)
    witness = np.zeros(n, bool)
    features = rng.normal(size=(n, dim))
    # A few plane waves: neighbouring patches are alike, as tissue is.
    waves = rng.normal(size=(2, 4))
    features += 0.5 * np.sin(cells @ waves + rng.uniform(0, 6, 4)) @ rng.normal(size=(4, dim))
    if kind > 0:
        found = _piece(rng, grid, max(1, round(share * n)))
        number = np.full((side, side), -1)
        number[cells[:, 0], cells[:, 1]] = np.arange(n)
        witness[number[found[:, 0], found[:, 1]]] = True
        features[witness] += effect * _direction(kind, dim)
    coords = cells[:, ::-1] * PATCH + rng.integers(0, 4, 2) * PATCH
    bag = Bag(
        features.astype(np.float32),
        slide_id=name,
        patient_id=name,
        coords=coords.astype(np.int64),
        patch_size_level0=PATCH,
        mpp=0.5,
        encoder="simulated",
    )
    return bag, witness


def _piece(rng: np.random.Generator, allowed: np.ndarray, n: int) -> np.ndarray:
    """`n` cells ``(row, col)`` of the allowed ones, grown from one of them; connected if the allowed ones are."""
    start = np.argwhere(allowed)[rng.integers(allowed.sum())]
    taken, edge = {tuple(start)}, [tuple(start)]
    while len(taken) < n:
        row, col = edge[rng.integers(len(edge))]
        free = [
            (r, c)
            for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1))
            if 0 <= r < allowed.shape[0] and 0 <= c < allowed.shape[1] and allowed[r, c] and (r, c) not in taken
        ]
        if not free:
            edge.remove((row, col))
            continue
        cell = free[rng.integers(len(free))]
        taken.add(cell)
        edge.append(cell)
    return np.array(sorted(taken))


def _direction(kind: int, dim: int) -> np.ndarray:
    """Unit vector of a class: the same for every seed, nearly orthogonal to the others."""
    vector = np.random.default_rng([20240, kind, dim]).normal(size=dim)
    return vector / np.linalg.norm(vector) * np.sqrt(min(dim, 4))


def _outcome(rng: np.random.Generator, burden: float) -> tuple[bool, float]:
    """Event and months: a larger burden, a shorter time."""
    months = float(60 * np.exp(-2.5 * burden + 0.3 * rng.normal()))
    return (True, months) if rng.random() > 1 / 3 else (False, months * float(rng.uniform(0.3, 1.0)))


def _fit(cases: list[BagCase], numbers: "range | np.ndarray", bins: int) -> SurvivalBins:
    chosen = [cases[int(number)] for number in numbers]
    return SurvivalBins.fit([case.months or 0.0 for case in chosen], [bool(case.event) for case in chosen], bins)
