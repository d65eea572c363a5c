"""What the axes of a stored k-space array mean, and the one reader that all array formats share."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from medseq.errors import ShapeError
from medseq.io.kspace import FFTConvention, KSpaceSlice
from medseq.io.kspace_fft import modulated
from medseq.io.kspace_stored import StoredArray
from medseq.io.kspace_values import (
    as_complex64,
    as_mask,
    derived_mask,
    reconciled,
    require_finite,
    zero_coils,
)
from medseq.io.source import SourceWarning
from medseq.io.volume import SourceRef

__all__ = ["AXES", "ITEM_AXES", "ArrayKSpace", "Axes", "Placed"]

# Every axis of these becomes items of their own: they are different images, not slices of one volume.
ITEM_AXES = ("contrast", "phase", "repetition", "average", "set")
# `channel`: coils as interleaved real and imaginary parts. `parts`: real and imaginary, two numbers.
AXES = ("slice", "coil", "row", "col", "channel", "parts", "map", "one", *ITEM_AXES)
Axes = tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """A stored array whose axes are named.

    Attributes:
        array: The numbers.
        axes: One name an axis, of `AXES`; ``one`` must have length 1 and is dropped, ``map`` is read at 0.
        where: What messages call the file.
    """

    array: StoredArray
    axes: Axes
    where: str

    def __post_init__(self) -> None:
        found = dict(zip(self.axes, self.array.shape, strict=False))
        named = [name for name in self.axes if name != "one"]
        if len(self.axes) != len(self.array.shape) or len(set(named)) != len(named) or not set(named) <= set(AXES):
            raise ShapeError(
                "the axes named and the array disagree",
                where=self.where,
                found=f"{list(self.axes)} for {self.array.shape}",
                wanted=f"one name an axis, each once, of {', '.join(AXES)}",
                remedy="correct 'axes' in the sidecar",
            )
        odd = "channel" in found and found["channel"] % 2
        if odd or found.get("parts", 2) != 2 or found.get("one", 1) != 1 or 0 in self.array.shape:
            raise ShapeError(
                "an axis has a length that its name does not allow",
                where=self.where,
                found=f"{list(self.axes)} for {self.array.shape}",
                wanted="channel even, parts 2, one 1, none empty",
            )

    def size(self, name: str) -> int:
        """Length of an axis; 1 if there is none of that name."""
        return self.array.shape[self.axes.index(name)] if name in self.axes else 1

    @property
    def coils(self) -> int:
        """Number of coils."""
        return self.size("channel") // 2 if "channel" in self.axes else self.size("coil")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(coil, row, col)``."""
        return self.coils, self.size("row"), self.size("col")

    def read(self, i: int, item: dict[str, int]) -> np.ndarray:
        """Slice `i` of an item as ``(coil, row, col)`` complex64; an array without slices serves every slice."""
        # One slice of maps serves all slices of k-space.
        i = i if self.size("slice") > 1 else 0
        at: dict[str, int | None] = {"slice": i, "one": 0, "map": 0, **{name: item.get(name, 0) for name in ITEM_AXES}}
        raw = self.array.take([at.get(name) for name in self.axes])
        names = [name for name in self.axes if name not in at]
        if "parts" in names or "channel" in names:
            axis = names.index("parts" if "parts" in names else "channel")
            raw = np.moveaxis(raw, axis, -1)
            names.append(names.pop(axis))
            with np.errstate(over="ignore"):
                raw = raw[..., ::2].astype(np.float32) + 1j * raw[..., 1::2].astype(np.float32)
            names[-1] = "coil" if names[-1] == "channel" else "one"
            if names[-1] == "one":
                raw = raw[..., 0]
                names.pop()
        if "coil" not in names:
            raw, names = raw[None], ["coil", *names]
        return as_complex64(np.transpose(raw, [names.index(name) for name in ("coil", "row", "col")]), self.where)


@dataclass
class ArrayKSpace:
    """A `KSpaceReader` over a stored array.

    Attributes:
        kspace: Samples.
        fft: See `KSpaceReader`.
        recon_shape: See `KSpaceReader`.
        fov_mm: See `KSpaceReader`.
        affine: See `KSpaceReader`.
        source: See `KSpaceReader`.
        item: Index of each of `ITEM_AXES` that the array has.
        label: Name of the item within its file, empty if there is only one: ``contrast-1_average-0``.
        mask: Function of the slice number that gives the stored mask in any form of `as_mask`, or None.
        maps: Coil sensitivities, or None.
        noise_cov: ``(coil, coil)``, or None.
        padding: Columns ``[0, first)`` and ``[last, cols)`` hold nothing that was measured.
        modulate: Multiply by the checkerboard of Calgary's convention, see `kspace_fft.modulated`.
        tidy: Called with k-space and slice number after reading, for what a format must repair.
        phase_axis: See `KSpaceReader`.
        notices: Remarks, in the order they came up; reading may add some, each code once.
    """

    kspace: Placed
    fft: FFTConvention
    recon_shape: tuple[int, int]
    source: SourceRef
    fov_mm: tuple[float, float] | None = None
    affine: np.ndarray | None = None
    item: dict[str, int] = field(default_factory=dict)
    label: str = ""
    mask: Callable[[int], np.ndarray] | None = None
    maps: Placed | None = None
    noise_cov: np.ndarray | None = None
    padding: tuple[int, int] | None = None
    modulate: bool = False
    tidy: Callable[[np.ndarray], np.ndarray] | None = None
    phase_axis: Literal[0, 1] = 1
    notices: list[SourceWarning] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n = self.kspace.size("slice")
        if self.maps is not None:
            self._check_maps(self.maps)
        if self.noise_cov is not None and self.noise_cov.shape != (self.kspace.coils, self.kspace.coils):
            raise ShapeError(
                "the noise covariance has the wrong shape",
                where=self.kspace.where,
                found=self.noise_cov.shape,
                wanted=(self.kspace.coils, self.kspace.coils),
            )

    def read(self, i: int) -> KSpaceSlice:
        """See `KSpaceReader.read`.

        Raises:
            ShapeError: No such slice; a mask of another size.
            FormatError: Damage, NaN, a mask that excludes all samples.
        """
        if not 0 <= i < self.n:
            raise ShapeError("no such slice", where=self.kspace.where, found=i, wanted=f"0 <= i < {self.n}")
        where = f"{self.kspace.where}: slice {i}"
        kspace = self.kspace.read(i, self.item)
        require_finite(kspace, where)
        if self.tidy is not None:
            kspace = self.tidy(kspace)
        kspace, mask = self._sampling(kspace, i, where)
        self._remark(kspace, mask, i)
        maps = None
        if self.maps is not None:
            maps = self.maps.read(i, self.item)
            require_finite(maps, f"{where}, sensitivity maps")
        return KSpaceSlice(modulated(kspace) if self.modulate else kspace, mask, maps, self.noise_cov)

    def _sampling(self, kspace: np.ndarray, i: int, where: str) -> tuple[np.ndarray, np.ndarray]:
        allowed = np.ones((1, 1, kspace.shape[2]), bool)
        if self.padding is not None:
            allowed[..., : self.padding[0]] = allowed[..., self.padding[1] :] = False
            if (kspace.any(axis=(0, 1)) & ~allowed[0, 0]).any():
                text = "the header calls columns padding that hold samples; they are ignored"
                self.note(SourceWarning("padding-not-empty", text))
            kspace = np.where(allowed, kspace, np.complex64(0))
        if self.mask is not None:
            stored = as_mask(self.mask(i), (kspace.shape[1], kspace.shape[2]), where) & allowed
            kspace, mask, notices = reconciled(kspace, stored, where)
            self.note(*notices)
            return kspace, mask
        mask = derived_mask(kspace)
        missing = allowed & ~mask
        if missing.any() and mask.any():
            share = float((mask & allowed).sum() / np.broadcast_to(allowed, mask.shape).sum())
            text = f"no sampling mask in the file: taken from the zeros of k-space ({share:.3g} of it is sampled)"
            self.note(SourceWarning("mask-derived", text))
        return kspace, mask

    def _remark(self, kspace: np.ndarray, mask: np.ndarray, i: int) -> None:
        dead = zero_coils(kspace)
        if len(dead) == len(kspace):
            self.note(SourceWarning("empty-slice", f"slice {i} holds only zeros"))
            return
        if len(dead):
            text = f"{len(dead)} of {len(kspace)} coils hold only zeros (first: coil {dead[0]}, slice {i})"
            self.note(SourceWarning("zero-coils", text))
        rows, cols = mask.shape[1:]
        middle = (rows // 2, cols // 2) if self.fft.origin == "centre" else (0, 0)
        if not mask[0][middle]:
            text = f"the centre of k-space was not sampled (slice {i}): coil sensitivities cannot be estimated from it"
            self.note(SourceWarning("no-centre", text))

    def note(self, *notices: SourceWarning) -> None:
        """Add remarks whose code is new."""
        known = {notice.code for notice in self.notices}
        self.notices.extend(notice for notice in notices if notice.code not in known)

    def with_item(self, item: dict[str, int]) -> "ArrayKSpace":
        """The same file, another item."""
        label = "_".join(f"{name}-{number}" for name, number in item.items())
        return replace(self, item=item, label=label, notices=list(self.notices))

    def items(self) -> list["ArrayKSpace"]:
        """One reader for each combination of the axes in `ITEM_AXES`; the reader itself if there is only one."""
        names = [name for name in ITEM_AXES if self.kspace.size(name) > 1]
        if not names:
            return [self]
        sizes = [self.kspace.size(name) for name in names]
        return [self.with_item(dict(zip(names, at, strict=True))) for at in np.ndindex(*sizes)]

    def _check_maps(self, maps: Placed) -> None:
        slices = maps.size("slice")
        if maps.shape != self.kspace.shape or slices not in (1, self.n):
            raise ShapeError(
                "k-space and sensitivity maps disagree",
                where=self.kspace.where,
                found=f"maps of {slices} slices, (coil, row, col) = {maps.shape}",
                wanted=f"{self.n} or 1 slices, {self.kspace.shape}",
                remedy="re-estimate the maps from this data, or leave them out",
            )
        if maps.size("map") > 1:
            text = f"{maps.size('map')} sets of sensitivity maps; the first is used"
            self.note(SourceWarning("map-sets", text))
