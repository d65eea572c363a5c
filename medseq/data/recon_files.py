"""Training data for reconstruction from files of raw data: fully sampled slices, undersampled as they are drawn.

Nothing is prepared and nothing is kept: a slice is read when it is asked for, so a data set may be larger than the
memory. What the network gets follows from measured samples alone, coil maps and scale included; only the target sees
all of k-space.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medseq.data.recon import ReconSample
from medseq.data.recon_scale import kspace_scale, sense_scale
from medseq.data.sampling import KINDS, draw_pattern
from medseq.data.seeded import SeededDataset, seeded
from medseq.errors import InputError, ManifestError
from medseq.io.kspace import KSpaceReader, KSpaceSlice
from medseq.io.kspace_fft import centred, modulated
from medseq.io.kspace_open import open_kspace_items
from medseq.io.manifest import Role, read_manifest
from medseq.io.privacy import path_label
from medseq.ops.coils import divide_or_zero, rss, sens_reduce
from medseq.ops.espirit import estimate_maps
from medseq.ops.fourier import Norm, Origin, ifft2

__all__ = ["KSpaceFiles"]

# Readers keep headers and positions, never samples or open files: many cost little, all of them may cost too much.
_OPEN = 32


class KSpaceFiles(SeededDataset[ReconSample]):
    """Slices of the files of a manifest, retrospectively undersampled.

    Training draws a new pattern for every sample, from (seed, epoch, index), and another order of the slices in every
    epoch. Validation and test keep the order, and all slices of a file share one pattern that its name decides.

    Args:
        manifest: File or name, see `medseq.io.manifest`.
        role: Which part of its split.
        patterns: Kinds of patterns to draw from, see `medseq.data.sampling.KINDS`.
        accelerations: Rates to draw from.
        center_fractions: Calibration region of each rate, part of the columns or of the area.
        stored_mask: Dataset of the files that holds their masks, ``masks/poisson_8.0x``, instead of patterns.
        maps: Coil sensitivities: ``given`` by the file, or ``espirit`` or ``acs`` estimated from what the pattern
            left; None for networks that own a `sens_net`.
        target: ``sense``, the combination of all data by the maps, or ``rss``, the magnitude by root sum of squares.
        scale: ``sense`` or ``kspace``, see `medseq.data.recon_scale`; always of the undersampled data.
        skip_slices: Slices left out at both ends of each file (Calgary-Campinas: 50 and 50).
        length: Samples an epoch; None for every slice.
        seed: See `SeededDataset`.
        virtual_coils: Compress to at most this many coils.
        fft_origin: Fourier convention of the samples, see `medseq.ops.fourier`; the network must have the same.
        fft_norm: Same. Images, and so targets, are the same in every convention.
        as_stored: With ``corner``: samples as Calgary-Campinas stores them, the zero frequency in the middle although
            the transform is plain, so that images alternate in sign. For weights that were trained so by others.

    Raises:
        ManifestError: The manifest does not hold up, or has nothing for `role`.
        InputError: Arguments that contradict each other.
        FormatError: A file that cannot be read.
    """

    def __init__(
        self,
        manifest: str,
        role: Role = "train",
        patterns: Sequence[str] = ("equispaced",),
        accelerations: Sequence[float] = (4.0, 8.0),
        center_fractions: Sequence[float] = (0.08, 0.04),
        stored_mask: str | None = None,
        maps: Literal["given", "espirit", "acs"] | None = "espirit",
        target: Literal["sense", "rss"] = "sense",
        scale: Literal["sense", "kspace"] = "sense",
        skip_slices: tuple[int, int] = (0, 0),
        length: int | None = None,
        seed: int = 0,
        virtual_coils: int | None = None,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
        as_stored: bool = False,
    ) -> None:
        _check(patterns, accelerations, center_fractions, skip_slices)
        if maps is None and "sense" in (target, scale):
            raise InputError("target and scale 'sense' need maps", found=(target, scale), wanted="rss and kspace")
        if as_stored and fft_origin != "corner":
            raise InputError("samples as stored follow the plain transform", found=fft_origin, wanted="corner")
        self.files = [file for file in read_manifest(manifest) if file.role == role]
        if not self.files:
            raise ManifestError("the manifest has no files of this role", where=str(manifest), found=role)
        self.role, self.patterns, self.stored_mask = role, list(patterns), stored_mask
        self.rates = list(zip(map(float, accelerations), map(float, center_fractions), strict=True))
        self.maps, self.target, self.scale, self.virtual_coils = maps, target, scale, virtual_coils
        self.fft_origin, self.fft_norm, self.as_stored = fft_origin, fft_norm, as_stored
        self._readers: OrderedDict[tuple[int, bool], list[KSpaceReader]] = OrderedDict()
        self.slices = [place for number in range(len(self.files)) for place in self._slices_of(number, skip_slices)]
        if not self.slices:
            raise ManifestError("no slices are left", where=str(manifest), found=f"skip_slices {tuple(skip_slices)}")
        super().__init__(len(self.slices) if length is None else length, seed)

    def __getitem__(self, index: int) -> ReconSample:
        """Sample `index` of the present epoch."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        number, item, position = self.slices[self._place(index)]
        if self.role == "train":
            return self.sample(number, item, position, self.generator(index))
        name = hashlib.sha256(self.files[number].path.name.encode("utf-8", "surrogateescape")).digest()
        return self.sample(number, item, position, seeded([self.seed, int.from_bytes(name[:8], "little")]))

    def draw(self, generator: torch.Generator) -> ReconSample:
        """A slice drawn at random."""
        number, item, position = self.slices[int(torch.randint(len(self.slices), (), generator=generator))]
        return self.sample(number, item, position, generator)

    def sample(self, number: int, item: int, position: int, generator: torch.Generator) -> ReconSample:
        """A slice of a file, undersampled.

        Args:
            number: The file, counted among those of the role.
            item: Its contrast, phase or repetition.
            position: The slice.
            generator: Source of the pattern.

        Raises:
            InputError: The slice is undersampled already, or holds no signal.
        """
        where = f"{path_label(self.files[number].path)}, slice {position}"
        reader = self._reader(number, full=True)[item]
        part = reader.read(position)
        measured = torch.from_numpy(np.ascontiguousarray(part.mask))
        _require_full(measured, where)
        factor = np.float32(np.prod(part.kspace.shape[-2:]) ** (-0.5 if reader.fft.norm == "backward" else 0.0))
        kspace = torch.from_numpy(np.ascontiguousarray(part.kspace * factor))[None]
        pattern = (self._pattern(number, item, position, reader, part, generator) & measured)[None]
        masked = torch.where(pattern, kspace, 0)
        if not bool((masked != 0).any()):
            raise InputError("the slice holds no signal", where=where, remedy="leave it out: slices, skip_slices")
        maps = self._maps(part, masked, pattern, where)
        target = rss(ifft2(kspace)).to(kspace.dtype) if self.target == "rss" else _combined(kspace, maps)
        if maps is not None and self.scale == "sense":
            scale = float(sense_scale(masked, pattern, maps)[0])
        else:
            scale = float(kspace_scale(masked))
        masked, pattern, target = self._converted(masked / scale, pattern, target / scale)
        return ReconSample(
            masked[0],
            pattern[0],
            None if maps is None else maps[0],
            target[0],
            scale,
            reader.recon_shape,
            where,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes open files of their own."""
        return {**self.__dict__, "_readers": OrderedDict()}

    def _place(self, index: int) -> int:
        """Which slice a sample is: each once before any comes again."""
        total = len(self.slices)
        if self.role != "train":
            # A part of the slices is spread over all files.
            return index * total // self.length if self.length < total else index % total
        turn, rest = divmod(index, total)
        order = torch.randperm(total, generator=seeded([self.seed, self.epoch, turn, total]))
        return int(order[rest])

    def _slices_of(self, number: int, skip: tuple[int, int]) -> list[tuple[int, int, int]]:
        """``(file, item, slice)`` of a file; one whose manifest says the slices is not opened for that."""
        file = self.files[number]
        if file.slices is not None:
            return [(number, 0, position) for position in range(*file.slices)]
        readers = self._reader(number, full=True)
        return [
            (number, item, position)
            for item, reader in enumerate(readers)
            for position in range(skip[0], reader.n - skip[1])
        ]

    def _reader(self, number: int, *, full: bool) -> list[KSpaceReader]:
        """The items of a file, all data or under its stored mask; the least recently used ones are forgotten."""
        key = (number, full)
        if key not in self._readers:
            options: dict[str, Any] = {"virtual_coils": self.virtual_coils}
            if not full:
                options["mask"] = self.stored_mask
            path = self.files[number].path
            self._readers[key] = [centred(reader) for reader in open_kspace_items(path, **options)]
        self._readers.move_to_end(key)
        while len(self._readers) > _OPEN:
            self._readers.popitem(last=False)
        return self._readers[key]

    def _pattern(
        self,
        number: int,
        item: int,
        position: int,
        reader: KSpaceReader,
        part: KSpaceSlice,
        generator: torch.Generator,
    ) -> Tensor:
        """Where the sample is measured, ``(1, row or 1, col)``."""
        if self.stored_mask is not None:
            stored = self._reader(number, full=False)[item].read(position).mask
            return torch.from_numpy(np.ascontiguousarray(stored))
        kind = self.patterns[int(torch.randint(len(self.patterns), (), generator=generator))]
        rate, center = self.rates[int(torch.randint(len(self.rates), (), generator=generator))]
        rows, cols = part.kspace.shape[-2:]
        if reader.phase_axis == 1:
            return draw_pattern(kind, (rows, cols), rate, center, generator)
        turned = draw_pattern(kind, (cols, rows), rate, center, generator).transpose(-1, -2)
        # Lines along the rows: a mask has all its columns.
        return turned.expand(1, rows, cols)

    def _maps(self, part: KSpaceSlice, masked: Tensor, pattern: Tensor, where: str) -> Tensor | None:
        """Maps ``(1, coil, row, col)`` whose root sum of squares is 1 or 0."""
        if self.maps is None:
            return None
        if self.maps == "given":
            if part.sens_maps is None:
                raise InputError("the file holds no sensitivity maps", where=where, remedy="set maps to espirit or acs")
            maps = torch.from_numpy(np.ascontiguousarray(part.sens_maps, dtype=np.complex64))[None]
        elif masked.shape[1] == 1:
            # One coil sees the image as it is.
            return torch.ones_like(masked)
        else:
            maps = estimate_maps(masked, pattern, self.maps)
        return divide_or_zero(maps, rss(maps)[:, None])

    def _converted(self, masked: Tensor, pattern: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centred, unitary samples in the convention asked for; what was not measured stays exactly 0."""
        rows, cols = masked.shape[-2:]
        if self.fft_norm != "ortho":
            masked = masked * float(rows * cols) ** (0.5 if self.fft_norm == "backward" else -0.5)
        if self.fft_origin == "corner":
            masked = torch.from_numpy(modulated(masked.numpy(), inverse=True))
            if self.as_stored:
                sign = torch.from_numpy(_alternating(rows, cols))
                return masked, pattern, target if self.target == "rss" else target * sign
            masked = torch.fft.ifftshift(masked, dim=(-2, -1))
            pattern = torch.fft.ifftshift(pattern, dim=(-2, -1) if pattern.shape[-2] > 1 else (-1,))
        return masked, pattern, target


def _check(
    patterns: Sequence[str], accelerations: Sequence[float], center_fractions: Sequence[float], skip: tuple[int, int]
) -> None:
    unknown = [kind for kind in patterns if kind not in KINDS]
    if unknown or not patterns:
        raise InputError("unknown sampling pattern", found=unknown or "none", wanted=", ".join(KINDS))
    if len(accelerations) != len(center_fractions) or not accelerations:
        raise InputError(
            "every acceleration needs its center fraction",
            found=f"{len(accelerations)} accelerations, {len(center_fractions)} center fractions",
            wanted="as many of both",
        )
    if min(skip) < 0:
        raise InputError("slices to skip are counts", found=tuple(skip), wanted="0 or more at both ends")


def _require_full(mask: Tensor, where: str) -> None:
    """Refuse data with gaps: padding, a partial echo or cut corners leave one piece without any.

    Raises:
        InputError: There are gaps, so that no target can be made.
    """
    plane = mask[0]
    along = [_pieces(plane), _pieces(plane.T)]
    if max(along) > 1:
        raise InputError(
            "the data are undersampled already: they have no target to train on",
            where=where,
            found=f"{float(plane.float().mean()):.3g} of k-space, with gaps",
            wanted="fully sampled data",
            remedy="leave the file out; medseq predict reconstructs it",
        )


def _pieces(plane: Tensor) -> int:
    """The largest number of runs of True along a row."""
    starts = plane.clone()
    starts[:, 1:] &= ~plane[:, :-1]
    return int(starts.sum(dim=1).max())


def _combined(kspace: Tensor, maps: Tensor | None) -> Tensor:
    assert maps is not None
    return sens_reduce(kspace, maps)


def _alternating(rows: int, cols: int) -> np.ndarray:
    """Image of the plain inverse transform of stored samples over the image itself."""
    phases = [np.exp(2j * np.pi * np.arange(n) * (n // 2) / n) for n in (rows, cols)]
    return (phases[0][:, None] * phases[1]).astype(np.complex64)
