"""Bags in HDF5 as CLAM and TRIDENT store them.

    features (n, d)   TRIDENT: attributes name, savetodir ("…/features_<encoder>"); ours: encoder
    coords   (n, 2)   level-0 (x, y). TRIDENT: patch_size, patch_size_level0, level0_magnification, target_magnification
                      CLAM: patch_size, patch_level, downsample; nothing at all in its feature files

A leading axis of 1 on either is dropped. Magnification is taken as 10 / mpp, as TRIDENT does.
"""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import FormatError
from medseq.io.features import Bag
from medseq.io.features_stored import H5Features
from medseq.io.kspace_stored import h5_opened
from medseq.io.privacy import path_label

__all__ = ["COORD_KEYS", "FEATURE_KEYS", "as_coords", "attribute_facts", "checked_shape", "open_h5_bag", "require_key"]

FEATURE_KEYS = ("features", "feats", "feature")
COORD_KEYS = ("coords", "coordinates")
_ENCODERS = ("encoder", "patch_encoder", "encoder_name", "enc_name", "model_name")
_MPP = ("mpp", "target_mpp", "patch_mpp")


def open_h5_bag(path: Path, *, slide_id: str | None = None, patient_id: str | None = None) -> Bag:
    """The bag of an HDF5 file; its features stay there.

    Args:
        path: The file.
        slide_id: Pseudonym; default: what the file says, else its name.
        patient_id: Pseudonym; default: what the file says, else the slide's.

    Raises:
        FormatError: No features (the message lists the keys found), no instances, coords of another length, a type or
            a layout that is not read, damage.
    """
    where = path_label(path)
    with h5_opened(path) as file:
        contents = {str(key): file.get(key, getlink=True) for key in file}
        _require_own(file, contents, where)
        key = require_key(contents, where)
        dataset = file[key]
        leading = len(dataset.shape) == 3 and dataset.shape[0] == 1
        shape = checked_shape(dataset.shape[leading:], where)
        coords_key = next((name for name in COORD_KEYS if name in contents), None)
        coords = None if coords_key is None else as_coords(file[coords_key], shape[0], where)
        sources: list[Mapping[str, Any]] = [dict(file.attrs), dict(dataset.attrs)]
        sources += [] if coords_key is None else [dict(file[coords_key].attrs)]
        stored = dataset.dtype
    facts = attribute_facts(sources)
    slide = slide_id or facts.pop("slide_id", None) or path.stem
    patient = patient_id or facts.pop("patient_id", None) or slide
    for name in ("slide_id", "patient_id"):
        facts.pop(name, None)
    return Bag(H5Features(path, key, shape, stored, leading), slide, patient, coords, **facts)


def require_key(contents: Mapping[str, Any], where: str) -> str:
    """The name under which the features are.

    Raises:
        FormatError: Under none of the known ones.
    """
    key = next((name for name in FEATURE_KEYS if name in contents), None)
    if key is None:
        found = ", ".join(sorted(contents)[:12]) or "none"
        remedy = "extract features first: this file holds the corners of patches" if "coords" in contents else None
        raise FormatError(
            "no 'features' in this file", where=where, found=f"keys: {found}", wanted="features (n, d)", remedy=remedy
        )
    return key


def checked_shape(shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """``(n, d)`` of the features.

    Raises:
        FormatError: Not two axes, or no instances.
    """
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 1:
        raise FormatError("features have the wrong form", where=where, found=tuple(shape), wanted="(n, d)")
    if shape[0] == 0:
        raise FormatError(
            "the bag holds no instances",
            where=where,
            found="0 instances",
            wanted="at least 1",
            remedy="look at the tissue mask of the slide, or leave it out",
        )
    return int(shape[0]), int(shape[1])


def as_coords(stored: Any, n: int, where: str) -> np.ndarray:
    """Stored corners as ``(n, 2)`` int64; an array of a file is read only if it has the right size.

    Raises:
        FormatError: Another number than there are instances, another form, or parts of pixels.
    """
    shape, dtype = tuple(getattr(stored, "shape", ())), np.dtype(getattr(stored, "dtype", "O"))
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(shape) != 2 or shape[1] != 2 or dtype.kind not in "iuf":
        raise FormatError("coords have the wrong form", where=where, found=f"{dtype} {shape}", wanted="numbers (n, 2)")
    if shape[0] != n:
        raise FormatError(
            "features and coords disagree",
            where=where,
            found=f"{n} features, {shape[0]} coords",
            wanted="one corner an instance",
            remedy="extract the features of this slide again",
        )
    coords = np.asarray(stored[...]).reshape(shape)
    whole = coords.dtype.kind != "f" or (np.isfinite(coords).all() and (coords == np.rint(coords)).all())
    if not whole or np.abs(coords.astype(np.float64)).max(initial=0) > 2**40:
        raise FormatError(
            "coords are no pixels of level 0",
            where=where,
            found="fractions, NaN or huge numbers",
            wanted="whole pixels",
        )
    return coords.astype(np.int64)


def attribute_facts(sources: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What attributes say of a bag: encoder, mpp, patch_size_level0, slide_id and patient_id, as far as they do.

    Args:
        sources: Attributes of the file, of its features, of its coords; the first that knows decides.
    """
    texts = {name: _text(sources, names) for name, names in (("slide_id", ("slide_id",)), ("encoder", _ENCODERS))}
    texts["patient_id"] = _text(sources, ("patient_id",))
    folder = (_text(sources, ("savetodir",)) or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    if texts["encoder"] is None and folder.startswith("features_"):
        texts["encoder"] = folder.removeprefix("features_")
    target = _number(sources, ("target_magnification",))
    mpp = _number(sources, _MPP)
    size = _number(sources, ("patch_size_level0",)) or _size_of_level0(sources, target)
    facts = {
        **texts,
        "mpp": mpp or (10 / target if target else None),
        "patch_size_level0": None if size is None else max(1, round(size)),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _size_of_level0(sources: list[Mapping[str, Any]], target: float | None) -> float | None:
    """Side of a patch in pixels of level 0 where only its side at the level read is stored."""
    size, level0 = _number(sources, ("patch_size",)), _number(sources, ("level0_magnification",))
    if size is None:
        return None
    if target and level0:
        return size * level0 / target
    downsample, custom = _number(sources, ("downsample",)), _number(sources, ("custom_downsample",)) or 1.0
    if downsample is None:
        # Without the downsampling of its level the size says nothing, but level 0 has none.
        values = [source["patch_level"] for source in sources if "patch_level" in source]
        downsample = 1.0 if values and np.all(np.asarray(values[0]) == 0) else None
    return None if downsample is None else size * downsample * custom


def _number(sources: list[Mapping[str, Any]], names: tuple[str, ...]) -> float | None:
    """The first positive number under one of the names; of a pair (x, y), x."""
    for name in names:
        for source in sources:
            try:
                value = float(np.asarray(source[name]).reshape(-1)[0])
            except (KeyError, IndexError, ValueError, TypeError):
                continue
            if isfinite(value) and value > 0:
                return value
    return None


def _text(sources: list[Mapping[str, Any]], names: tuple[str, ...]) -> str | None:
    for name in names:
        for source in sources:
            value = source.get(name)
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str) and text.strip():
                return text.strip()
    return None


def _require_own(file: Any, contents: Mapping[str, Any], where: str) -> None:
    """Refuse data that lie in other files: a file from outside must not decide which ones are read."""
    import h5py

    for name in (*FEATURE_KEYS, *COORD_KEYS):
        if name not in contents:
            continue
        elsewhere = isinstance(contents[name], h5py.ExternalLink)
        if not elsewhere:
            found = file[name]
            if not isinstance(found, h5py.Dataset):
                raise FormatError(f"'{name}' is no dataset", where=where, found="a group", wanted="numbers")
            elsewhere = bool(found.external) or found.is_virtual
        if elsewhere:
            raise FormatError(
                f"'{name}' lies in another file",
                where=where,
                found="an external link",
                wanted="one file with all its data",
                remedy="copy the data into one file (h5repack)",
            )
