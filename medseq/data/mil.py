"""Bags for multiple-instance learning: the typed batch, and data sets of patients with all their slides.

A patient's bag is the bags of the slides behind each other, in the order of the table. Where all have coordinates they
are laid side by side on one grid, so that no two slides overlap (`medseq.data.slide_layout`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from medseq.data.seeded import SeededDataset, seeded
from medseq.data.slide_layout import side_by_side
from medseq.data.survival_bins import SurvivalBins
from medseq.errors import InputError, ShapeError
from medseq.io.features import Bag, require_finite, require_width
from medseq.io.features_open import open_bag
from medseq.io.folds import Fold, stratified_folds, survival_strata
from medseq.io.manifest import Role
from medseq.io.privacy import label as pseudonym

__all__ = ["BagCase", "BagDataset", "BagFile", "BagSample", "MILBatch", "Part", "collate"]

Part = Role | Literal["all"]


class MILBatch(NamedTuple):
    """Bags of one training or validation step, padded at their end.

    features: Patch features.
    lengths: Real instances of each bag.
    coords: Level-0 pixels (x, y) of each patch, or None; 0 on padding.
    label: Class index; of survival, the time bin.
    event: True where the event was seen, False where the case is censored; None unless survival.
    time: Follow-up in months; None unless survival.
    patient_id: Pseudonyms.
    """

    features: Float[Tensor, "batch n d"]
    lengths: Int[Tensor, " batch"]
    coords: Int[Tensor, "batch n 2"] | None
    label: Int[Tensor, " batch"]
    event: Tensor | None
    time: Tensor | None
    patient_id: list[str]


class BagSample(NamedTuple):
    """One bag of a `MILBatch`: features ``(n, d)`` float32, coords ``(n, 2)`` int64 or None."""

    features: Tensor
    coords: Tensor | None
    label: int
    event: bool | None
    time: float | None
    patient_id: str


class BagFile(NamedTuple):
    """A bag that is opened when it is needed."""

    path: Path
    slide_id: str
    patient_id: str


class BagCase(NamedTuple):
    """A patient, or one slide of a patient.

    Attributes:
        patient_id: Pseudonym; splits are by patient.
        slides: Bags, or files of bags.
        label: Class index; None for survival.
        event: Whether the event was seen; None unless survival.
        months: Follow-up; None unless survival.
    """

    patient_id: str
    slides: tuple[Bag | BagFile, ...]
    label: int | None = None
    event: bool | None = None
    months: float | None = None


class BagDataset(SeededDataset[BagSample]):
    """Cases whose bags are read as they are asked for.

    Training has another order in every epoch; the other parts keep theirs and all their instances. An epoch of
    `balanced` training draws every class equally often, with replacement; of survival a class is a time bin with or
    without the event.

    Args:
        cases: At least one; all with a class, or all with a time and an event.
        role: ``train`` shuffles, balances and takes `max_instances`; ``val``, ``test`` and ``all`` do not.
        bins: Time bins of survival, from the training part.
        max_instances: Largest training bag; of a larger one as many instances are drawn without replacement and keep
            their order. None takes all.
        balanced: See above.
        need_coords: Refuse bags without coordinates.
        length: Samples a training epoch; default: every case once.
        seed: See `SeededDataset`.

    Attributes:
        labels: ``(cases,)`` int64, class or time bin.
        width: Numbers an instance.
        encoder: Patch encoder that the first bag names, or None.

    Raises:
        InputError: No cases, or arguments that contradict each other.
        FormatError: The first bag cannot be read.
    """

    def __init__(
        self,
        cases: Sequence[BagCase],
        role: Part = "train",
        *,
        bins: SurvivalBins | None = None,
        max_instances: int | None = None,
        balanced: bool = False,
        need_coords: bool = False,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        if not cases:
            raise InputError("no cases in this part", where=f"role {role}", remedy="look at the split")
        if max_instances is not None and max_instances < 1:
            raise InputError("a bag has instances", where="max_instances", found=max_instances, wanted="1 or more")
        self.cases, self.role, self.bins = list(cases), role, bins
        self.max_instances, self.balanced, self.need_coords = max_instances, balanced, need_coords
        self.labels = _labels(self.cases, bins)
        super().__init__(len(self.cases) if length is None or role != "train" else length, seed)
        first = self._open(self.cases[0].slides[0])
        self.width, self.encoder = first.features.shape[1], first.encoder

    @property
    def is_survival(self) -> bool:
        """Whether cases have times instead of classes."""
        return self.cases[0].event is not None

    @property
    def events(self) -> np.ndarray | None:
        """``(cases,)`` whether the event was seen; None unless survival."""
        return np.array([case.event for case in self.cases], bool) if self.is_survival else None

    @property
    def times(self) -> np.ndarray | None:
        """``(cases,)`` months; None unless survival."""
        return np.array([case.months for case in self.cases], np.float64) if self.is_survival else None

    @property
    def patient_ids(self) -> list[str]:
        """Pseudonym of each case."""
        return [case.patient_id for case in self.cases]

    def __getitem__(self, index: int) -> BagSample:
        """Sample `index` of the present epoch.

        Raises:
            FormatError: A bag that cannot be read, or holds NaN.
            ShapeError: A bag of another width than the first.
            InputError: A bag of another encoder than the first, or without coords where they are needed.
        """
        if not 0 <= index < self.length:
            raise IndexError(index)
        if self.role != "train":
            return self.sample(index)
        return self.sample(self._place(index), self.generator(index))

    def draw(self, generator: torch.Generator) -> BagSample:
        """A case drawn at random."""
        return self.sample(int(torch.randint(len(self.cases), (), generator=generator)), generator)

    def sample(self, number: int, generator: torch.Generator | None = None) -> BagSample:
        """The bag of a case.

        Args:
            number: The case.
            generator: Draws `max_instances` of them; None takes all.
        """
        case = self.cases[number]
        bags = [self._open(slide) for slide in case.slides]
        for bag in bags:
            self._require_alike(bag)
        coords = side_by_side(bags)
        total = sum(bag.features.shape[0] for bag in bags)
        rows = np.arange(total)
        if generator is not None and self.max_instances is not None and total > self.max_instances:
            rows = torch.randperm(total, generator=generator)[: self.max_instances].sort().values.numpy()
        features, lo = [], 0
        for bag in bags:
            n = bag.features.shape[0]
            own = rows[(rows >= lo) & (rows < lo + n)] - lo
            read = np.asarray(bag.features[:] if len(own) == n else bag.features[own], dtype=np.float32)
            require_finite(read, f"slide {pseudonym(bag.slide_id)}", rows=own)
            # A bag in memory stays as it is, whatever happens to the sample.
            features.append(torch.from_numpy(read.copy() if isinstance(bag.features, np.ndarray) else read))
            lo += n
        return BagSample(
            torch.cat(features) if len(features) > 1 else features[0],
            None if coords is None else torch.from_numpy(coords[rows]),
            int(self.labels[number]),
            case.event,
            case.months,
            case.patient_id,
        )

    def subset(
        self, numbers: Sequence[int] | np.ndarray, role: Part, *, bins: SurvivalBins | None = None
    ) -> "BagDataset":
        """Some of the cases, for another part, with the settings of this one.

        Args:
            numbers: Cases.
            role: Their part.
            bins: Their time bins; default: those of this data set.
        """
        return BagDataset(
            [self.cases[number] for number in numbers],
            role,
            bins=self.bins if bins is None else bins,
            max_instances=self.max_instances,
            balanced=self.balanced,
            need_coords=self.need_coords,
            seed=self.seed,
        )

    def folds(
        self, folds: int, generator: np.random.Generator, *, repeats: int = 1, val_share: float = 0.2
    ) -> list[Fold]:
        """Nested folds of case numbers, by patient: see `medseq.io.folds.stratified_folds`.

        Raises:
            InputError: A class is too rare, or there are too few events.
        """
        names = {patient: number for number, patient in enumerate(dict.fromkeys(self.patient_ids))}
        owner = np.array([names[patient] for patient in self.patient_ids])
        if self.events is not None and self.times is not None:
            first = np.unique(owner, return_index=True)[1]
            strata = survival_strata(self.events[first], self.times[first], folds)
        else:
            # Slides of a patient may differ in class, if every slide is a case: the highest counts.
            strata = np.array([self.labels[owner == patient].max() for patient in range(len(names))])
        found = stratified_folds(
            strata, folds, generator, repeats=repeats, val_share=val_share, allow_rare=self.is_survival
        )
        return [
            Fold(fold.repeat, fold.fold, *(np.flatnonzero(np.isin(owner, part)) for part in fold[2:])) for fold in found
        ]

    def divided(self, fold: Fold) -> tuple["BagDataset", "BagDataset", "BagDataset"]:
        """Training, validation and test part of a fold; time bins come from the training part."""
        bins = self.bins
        if self.events is not None and self.times is not None and bins is not None:
            bins = SurvivalBins.fit(self.times[fold.train], self.events[fold.train], bins.count)
        return (
            self.subset(fold.train, "train", bins=bins),
            self.subset(fold.val, "val", bins=bins),
            self.subset(fold.test, "test", bins=bins),
        )

    def _place(self, index: int) -> int:
        """Which case a training sample is: each once before any comes again, or each class equally often."""
        total = len(self.cases)
        turn, rest = divmod(index, total)
        generator = seeded([self.seed, self.epoch, turn, total])
        if not self.balanced:
            return int(torch.randperm(total, generator=generator)[rest])
        classes = self.labels if self.events is None else 2 * self.labels + ~self.events
        _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
        weights = torch.from_numpy(1.0 / counts[inverse])
        return int(torch.multinomial(weights, total, replacement=True, generator=generator)[rest])

    def _open(self, slide: Bag | BagFile) -> Bag:
        if isinstance(slide, Bag):
            return slide
        return open_bag(slide.path, slide_id=slide.slide_id, patient_id=slide.patient_id)

    def _require_alike(self, bag: Bag) -> None:
        where = f"slide {pseudonym(bag.slide_id)}"
        require_width(bag, self.width, encoder=self.encoder, where=where)
        if bag.encoder is not None and self.encoder is not None and bag.encoder != self.encoder:
            raise InputError("the bags are of different encoders", where=where, found=bag.encoder, wanted=self.encoder)
        if self.need_coords and bag.coords is None:
            raise InputError(
                "the bag has no coordinates",
                where=where,
                found="no coords",
                wanted="the corner of every patch",
                remedy="read the HDF5 files instead of the .pt files, or use a model without a grid",
            )


def collate(samples: Sequence[BagSample]) -> MILBatch:
    """Bags of one batch, padded with zeros at their end to the longest; coords only if all have them.

    Raises:
        ShapeError: Bags of different widths.
    """
    widths = {sample.features.shape[1] for sample in samples}
    if len(widths) > 1:
        raise ShapeError("the bags of a batch have different widths", found=sorted(widths), wanted="one width")
    coords = [sample.coords for sample in samples if sample.coords is not None]
    events = [sample.event for sample in samples if sample.event is not None]
    times = [sample.time for sample in samples if sample.time is not None]
    return MILBatch(
        torch.nn.utils.rnn.pad_sequence([sample.features for sample in samples], batch_first=True),
        torch.tensor([len(sample.features) for sample in samples]),
        torch.nn.utils.rnn.pad_sequence(coords, batch_first=True) if len(coords) == len(samples) else None,
        torch.tensor([sample.label for sample in samples]),
        torch.tensor(events) if len(events) == len(samples) else None,
        torch.tensor(times, dtype=torch.float32) if len(times) == len(samples) else None,
        [sample.patient_id for sample in samples],
    )


def _labels(cases: Sequence[BagCase], bins: SurvivalBins | None) -> np.ndarray:
    """Class or time bin of each case."""
    kinds = {(case.label is not None, case.event is not None and case.months is not None) for case in cases}
    if kinds not in ({(True, False)}, {(False, True)}):
        raise InputError(
            "cases have a class, or a time and an event, all alike", found=f"{len(kinds)} kinds of cases", wanted="one"
        )
    if kinds == {(True, False)}:
        return np.array([case.label for case in cases], np.int64)
    if bins is None:
        raise InputError("survival needs time bins", remedy="fit SurvivalBins to the training part")
    return bins.index(np.array([case.months for case in cases], np.float64)).astype(np.int64)
