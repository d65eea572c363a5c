"""A bag: the patch features of one slide, as multiple-instance learning takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from medseq.errors import FormatError, InputError, ShapeError

__all__ = ["ArrayLike", "Bag", "read_chunks", "require_finite", "require_width"]

_SHOWN = 5


class ArrayLike(Protocol):
    """What `Bag.features` must offer: an array, a memory map or an open h5 data set."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray, /) -> np.ndarray: ...


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


def read_chunks(bag: Bag, rows: int = 16_384, *, where: object = None) -> Iterator[np.ndarray]:
    """The features of a bag in order, as float32 pieces of at most `rows` instances; one piece is in memory at a time.

    Args:
        bag: Read lazily where its features are.
        rows: Instances a piece.
        where: What messages call the bag; default: a bag without a name.

    Raises:
        InputError: `rows` is not positive.
        FormatError: NaN or infinite features, with their rows.
    """
    if rows < 1:
        raise InputError("a piece of a bag holds instances", found=rows, wanted="1 or more")
    # Files that can only be read from their beginning are read once.
    chunks = getattr(bag.features, "chunks", None)
    n, lo = bag.features.shape[0], 0
    pieces = chunks(rows) if chunks else (bag.features[lo : lo + rows] for lo in range(0, n, rows))
    for piece in pieces:
        piece = np.asarray(piece, dtype=np.float32)
        require_finite(piece, "the bag" if where is None else where, first=lo)
        yield piece
        lo += len(piece)


def require_finite(features: np.ndarray, where: object, *, rows: np.ndarray | None = None, first: int = 0) -> None:
    """Refuse NaN and infinite features: one of them makes the score of the whole bag NaN.

    Args:
        features: ``(k, d)``.
        where: What messages call the bag.
        rows: Number of each row in the file; default: they follow each other from `first`.
        first: Number of the first row.

    Raises:
        FormatError: With the rows that hold them.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if not len(bad):
        return
    numbers = bad + first if rows is None else np.sort(np.asarray(rows)[bad])
    shown = ", ".join(str(number) for number in numbers[:_SHOWN]) + (" …" if len(bad) > _SHOWN else "")
    raise FormatError(
        "features are NaN or infinite as float32",
        where=where,
        found=f"{len(bad)} of {len(features)} instances read: rows {shown}",
        wanted="finite numbers",
        remedy="extract the features of this slide again",
    )


def require_width(bag: Bag, width: int, *, encoder: str | None = None, where: object = None) -> None:
    """Refuse a bag of another encoder than the model's.

    Args:
        bag: The bag.
        width: What the model takes.
        encoder: What the model was trained with, if that is known.
        where: What messages call the bag.

    Raises:
        ShapeError: Another width; the message names both, and the encoders as far as they are recorded.
    """
    found = bag.features.shape[1]
    if found != width:
        raise ShapeError(
            "the features have another width than the model takes",
            where=where,
            found=f"{found} of {_encoder(bag.encoder, 'an encoder that the file does not name')}",
            wanted=f"{width} of {_encoder(encoder, 'the encoder that the model was trained with')}",
            remedy="extract the features with the model's encoder",
        )


def _encoder(name: str | None, unknown: str) -> str:
    return unknown if name is None else f"encoder '{name}'"
