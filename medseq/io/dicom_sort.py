"""From files to stacks: which frames form one volume.

Frames of one series that share the pixel grid, the orientation and the image type are candidates for one volume. If
they lie evenly spaced, they are one. If not, an acquisition attribute (echo, time point, b-value …) that turns them
into even stacks separates them. What stays duplicated or incomplete is refused, with the reason.
"""

import filecmp
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseq.errors import FormatError, MedseqError
from medseq.io.dicom_classify import modality, skip_reason
from medseq.io.dicom_frames import SPLIT_KEYWORDS, flatten, frames_of, is_enhanced
from medseq.io.dicom_geometry import Layout, layout
from medseq.io.dicom_header import Header, NotDicomError, read_header, understood
from medseq.io.dicom_types import Broken, DicomSource, DicomStack, Frame, Skipped
from medseq.io.privacy import label, path_label
from medseq.io.source import SourceWarning
from medseq.io.volume import Modality, SourceRef, Units, VolumeHeader

__all__ = ["group"]

# Orientation cosines and millimetres closer than this are one orientation, one spacing: strings are rounded.
_SAME_GRID = 1e-4
# Without duplicates, a series is only taken apart into few stacks of some length: a lost slice in a scanner that
# numbers every rotation must stay a lost slice.
_MAX_PARTS, _MIN_PART = 4, 3


@dataclass(frozen=True)
class _Image:
    """One image object: its frames, or why it has none."""

    path: Path
    series: str
    sop_uid: str
    identity: tuple[str, ...]
    modality: Modality
    units: str
    frame_of_reference: str | None
    lossy: bool
    frames: tuple[Frame, ...] = ()
    error: MedseqError | None = field(default=None)


def group(paths: Iterable[Path]) -> tuple[list[DicomStack], list[Skipped], list[Broken]]:
    """See `medseq.io.dicom.group_dicom`."""
    skipped: list[Skipped] = []
    broken: list[Broken] = []
    series: dict[tuple[str, ...], list[_Image]] = defaultdict(list)
    for path in sorted({Path(path) for path in paths}):
        found: _Image | Skipped | Broken
        try:
            found = _read(path)
        except NotDicomError:
            found = Skipped(path, "not-dicom", "not a DICOM file")
        except MedseqError as error:
            found = Broken((path,), path_label(path), error)
        if isinstance(found, Skipped):
            skipped.append(found)
        elif isinstance(found, Broken):
            broken.append(found)
        else:
            series[found.identity[:2]].append(found)
    stacks: list[DicomStack] = []
    for images in series.values():
        for result in _series(images):
            {DicomStack: stacks, Skipped: skipped, Broken: broken}[type(result)].append(result)  # type: ignore
    return stacks, skipped, broken


def _read(path: Path) -> _Image | Skipped:
    header = read_header(path)
    with understood(path_label(path), "an attribute of the DICOM header makes no sense"):
        reason = skip_reason(header.dataset, header.has_pixels)
        return Skipped(path, *reason) if reason else _image(path, header)


def _image(path: Path, header: Header) -> _Image:
    dataset = header.dataset
    frames: tuple[Frame, ...] = ()
    error: MedseqError | None = header.problem
    try:
        frames = tuple(frames_of(path, header))
    except FormatError as found:
        # Without pixels the missing size or geometry is the smaller trouble.
        error = error or found
    sop_uid = frames[0].sop_uid if frames else str(dataset.get("SOPInstanceUID") or path)
    series = str(dataset.get("SeriesInstanceUID") or sop_uid)
    study, kind = str(dataset.get("StudyInstanceUID", "")), modality(dataset)
    frame_of_reference = str(dataset.get("FrameOfReferenceUID") or "") or None
    # Enhanced PET says its units among the attributes of its frames.
    said = flatten(dataset, 0) if kind == "PT" and frames and is_enhanced(dataset) else dataset
    return _Image(
        path=path,
        series=series,
        sop_uid=sop_uid,
        identity=(study, series, kind, frame_of_reference or ""),
        modality=kind,
        units=_units(kind, str(said.get("Units", "")), str(said.get("SUVType", "BW"))),
        frame_of_reference=frame_of_reference,
        lossy=str(dataset.get("LossyImageCompression", "")) == "01",
        frames=frames,
        error=error,
    )


def _units(kind: Modality, units: str, suv_type: str) -> Units:
    """Units of the rescaled values. PET in g/ml is SUV by body weight unless it says otherwise (PS3.3 C.8.9.1)."""
    if kind == "CT":
        return "HU"
    if kind == "PT" and units == "BQML":
        return "Bq/ml"
    return "SUVbw" if kind == "PT" and units == "GML" and suv_type == "BW" else "1"


def _series(images: list[_Image]) -> list[DicomStack | Skipped | Broken]:
    """All stacks of one series."""
    copies: list[Skipped] = []
    unique: dict[str, _Image] = {}
    clash: MedseqError | None = None
    for image in images:
        first = unique.setdefault(image.sop_uid, image)
        if first is image:
            continue
        if filecmp.cmp(first.path, image.path, shallow=False):
            copies.append(Skipped(image.path, "copy", f"a copy of {path_label(first.path)}"))
        else:
            clash = FormatError(
                "two different files have the same SOP instance UID",
                where=f"series {label(image.series)}",
                found=f"{path_label(first.path)} and {path_label(image.path)}",
                remedy="remove the wrong one",
            )
    members = list(unique.values())
    errors = [image.error for image in members if image.error and not image.frames]
    if clash or errors:
        copied = {copy.path for copy in copies}
        paths = tuple(image.path for image in images if image.path not in copied)
        return [*copies, Broken(paths, label(images[0].series), clash or errors[0])]
    results: list[DicomStack | Skipped | Broken] = [*copies]
    groups = _by_grid(members)
    for frames in groups:
        results += _stacks(frames, {image.sop_uid: image for image in members}, len(groups))
    return results


def _by_grid(images: list[_Image]) -> list[list[Frame]]:
    """Frames that share object class, image type, pixel grid and orientation."""
    groups: list[tuple[tuple, np.ndarray, list[Frame]]] = []
    for image in images:
        for frame in image.frames:
            pixels = frame.pixels
            key = (*image.identity, image.units, frame.sop_class, pixels.rows, pixels.columns, pixels.photometric)
            key += (frame.key("ImageType"), frame.key("RescaleType"), frame.lut)
            grid = np.array([*frame.orientation, *frame.spacing])
            for other, other_grid, frames in groups:
                if other == key and np.abs(grid - other_grid).max() < _SAME_GRID:
                    frames.append(frame)
                    break
            else:
                groups.append((key, grid, [frame]))
    return [frames for _, _, frames in groups]


def _stacks(frames: list[Frame], images: dict[str, _Image], groups: int) -> list[DicomStack | Broken]:
    results: list[DicomStack | Broken] = []
    parts, words = _split(frames)
    for part, places in parts:
        ordered = [part[i] for i in places.order]
        series = images[part[0].sop_uid].series
        error = next((e for frame in ordered if (e := images[frame.sop_uid].error)), None) or _refusal(places, series)
        if error:
            files = tuple(dict.fromkeys(frame.path for frame in ordered))
            results.append(Broken(files, label(series), error))
            continue
        split = [f"one of {groups} image grids of its series"] if groups > 1 else []
        split += [f"one of {len(parts)} stacks of its series, told apart by {' and '.join(words)}"] if words else []
        results.append(_stack(ordered, places, images, split))
    return results


def _split(frames: list[Frame]) -> tuple[list[tuple[list[Frame], Layout]], tuple[str, ...]]:
    """The frames as one stack, or as the even stacks that the fewest acquisition attributes make of them."""
    whole = layout(frames)
    if whole.regular:
        return [(frames, whole)], ()
    places = np.array([frames[i].position for i in whole.order])
    runs = itertools.accumulate([0] + [(i, i + 1) not in set(whole.duplicates) for i in range(len(places) - 1)])
    copies = max(Counter(runs).values())
    varying = [word for word in SPLIT_KEYWORDS if len({frame.key(word) for frame in frames}) > 1]
    best: tuple[tuple, list[tuple[list[Frame], Layout]], tuple[str, ...]] | None = None
    for size in (1, 2, 3):
        for words in itertools.combinations(varying, size):
            parts: dict[tuple, list[Frame]] = defaultdict(list)
            for frame in frames:
                parts[tuple(frame.key(word) for word in words)].append(frame)
            if not _plausible(list(parts.values()), copies):
                continue
            stacks = [(part, layout(part)) for part in parts.values()]
            uneven = sum(not places.regular for _, places in stacks)
            if any(places.duplicates for _, places in stacks) or (copies == 1 and uneven):
                continue
            score = (uneven, len(stacks))
            if best is None or score < best[0]:
                best = (score, stacks, words)
        if best and best[0][0] == 0:
            break
    return (best[1], best[2]) if best else ([(frames, whole)], ())


def _plausible(parts: Sequence[Sequence[Frame]], copies: int) -> bool:
    """Could these be the stacks of a series in which some position occurs `copies` times?"""
    sizes = [len(part) for part in parts]
    if copies == 1:
        return len(parts) <= _MAX_PARTS and min(sizes) >= _MIN_PART
    return len(parts) == copies or min(sizes) >= 2


def _refusal(places: Layout, series: str) -> MedseqError | None:
    where = f"series {label(series)}"
    if places.duplicates:
        first, second = places.duplicates[0]
        return FormatError(
            "several slices have the same position",
            where=where,
            found=f"{len(places.duplicates)} repeated positions, the first at slices {first + 1} and {second + 1}",
            wanted="one slice a position",
            remedy="remove the repeated images or export the series again",
        )
    if places.gaps:
        place, missing = places.gaps[0]
        total = sum(count for _, count in places.gaps)
        return FormatError(
            "slices are missing",
            where=where,
            found=f"{total} missing, the first gap of {places.step_mm * (missing + 1):.4g} mm after slice {place + 1}",
            wanted=f"a slice every {places.step_mm:.4g} mm",
            remedy="export the whole series again",
        )
    return None


def _stack(frames: list[Frame], places: Layout, images: dict[str, _Image], split: list[str]) -> DicomStack:
    first = images[frames[0].sop_uid]
    used = Counter(frame.sop_uid for frame in frames)
    names = tuple(
        f.sop_uid if used[f.sop_uid] == len(images[f.sop_uid].frames) else f"{f.sop_uid}#{(f.index or 0) + 1}"
        for f in frames
    )
    lossy = any(images[uid].lossy for uid in used)
    source = DicomSource(first.series, tuple(frames), label(first.series), _warnings(places, split, lossy))
    files = tuple(dict.fromkeys(frame.path for frame in frames))
    pixels = frames[0].pixels
    # A CT without a rescale may hold HU + 1024 as well: what it holds is not guessed.
    unscaled = not frames[0].lut and not frames[0].key("RescaleIntercept")
    unspecified = frames[0].key("RescaleType") not in ("", "HU") or unscaled
    units: Units = "1" if first.units == "HU" and unspecified else first.units  # type: ignore[assignment]
    header = VolumeHeader(
        shape=(len(frames), pixels.rows, pixels.columns),
        dtype=np.result_type(*{frame.pixels.dtype for frame in frames}),
        affine=places.affine,
        slice_affines=places.slice_affines,
        modality=first.modality,
        units=units,
        frame_of_reference=first.frame_of_reference,
        source=SourceRef("dicom", files, source),
    )
    return DicomStack(first.series, tuple(dict.fromkeys(names)), files, header)


def _warnings(places: Layout, split: list[str], lossy: bool) -> tuple[SourceWarning, ...]:
    found = [SourceWarning("series-split", text) for text in split]
    if places.tilt_degrees:
        text = f"the slices are sheared by {places.tilt_degrees:.2f} degrees (gantry tilt)"
        found.append(SourceWarning("gantry-tilt", f"{text}; the affine is exact and not orthogonal"))
    if places.affine is None:
        text = "the slices are unevenly spaced; no single affine describes them"
        found.append(SourceWarning("uneven-spacing", text))
    if not places.step_known:
        found.append(SourceWarning("single-slice-step", "a single slice of unknown thickness; 1 mm is assumed"))
    if lossy:
        found.append(SourceWarning("lossy-source", "the source was compressed with loss before"))
    return tuple(found)
