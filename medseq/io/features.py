"""A bag: the patch features of one slide, as multiple-instance learning takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from medseq.errors import ShapeError

__all__ = ["ArrayLike", "Bag"]


class ArrayLike(Protocol):
    """What `Bag.features` must offer: an array, a memory map or an open h5 data set."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: int | slice | Sequence[int], /) -> np.ndarray: ...


@dataclass(frozen=True)
class Bag:
    """Patch features of one slide.

    Attributes:
        features: ``(n, d)`` float16 or float32; may be read lazily.
        coords: ``(n, 2)`` int64, top-left corner ``(x, y)`` of each patch in pixels of level 0, or None.
        patch_size_level0: Side of a patch in pixels of level 0, or None.
        mpp: Microns per pixel at which the patches were encoded, or None.
        encoder: Name of the patch encoder, or None.
        slide_id: Pseudonym of the slide.
        patient_id: Pseudonym of the patient; splits are by patient.
    """

    features: ArrayLike = field(repr=False)
    slide_id: str
    patient_id: str
    coords: np.ndarray | None = field(default=None, repr=False)
    patch_size_level0: int | None = None
    mpp: float | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        if len(self.features.shape) != 2 or np.dtype(self.features.dtype) not in (np.float16, np.float32):
            raise ShapeError(
                "features have the wrong form",
                found=f"{self.features.dtype} {self.features.shape}",
                wanted="float16 or float32 (n, d)",
            )
        n = self.features.shape[0]
        if self.coords is not None and (self.coords.shape != (n, 2) or self.coords.dtype != np.int64):
            raise ShapeError(
                "features and coordinates disagree",
                found=f"{self.coords.dtype} {self.coords.shape}",
                wanted=f"int64 ({n}, 2)",
            )
