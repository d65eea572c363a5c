"""Which DICOM objects are images that a volume can be made of, and why the others are not."""

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medseq.io.volume import Modality

__all__ = ["modality", "skip_reason", "sop_class"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SECONDARY_CAPTURE = f"{_STORAGE}7"
_DICOMDIR = "1.2.840.10008.1.3.10"

# First match wins; prefixes of the storage SOP class UIDs of DICOM PS3.6 table A-1.
_NOT_IMAGES = (
    ("88.59", "ko", "a key object selection, not an image"),
    ("88", "sr", "a structured report, not an image"),
    ("11", "pr", "a presentation state, not an image"),
    ("66.4", "seg", "a segmentation, not an acquired image"),
    ("66.5", "seg", "a surface segmentation, not an acquired image"),
    ("66.7", "seg", "a label map, not an acquired image"),
    ("481", "rt", "a radiotherapy object, not an acquired image"),
    ("30", "non-image", "a parametric map, not an acquired image"),
    ("66", "non-image", "raw data or a registration, not an image"),
    ("67", "non-image", "a real-world value mapping, not an image"),
    ("9", "non-image", "a waveform, not an image"),
    ("104", "non-image", "an encapsulated document, not an image"),
    ("4.2", "non-image", "spectroscopy, not an image"),
    ("4.3", "non-image", "an enhanced colour image"),
)
# CT, MR, PET and their enhanced multi-frame forms: what a volume is made of.
_VOLUMES = ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130")
_SCREEN_WORDS = ("SCREEN SAVE", "SCREENSAVE", "DOSE_INFO", "DOSE INFO", "REPORT")
_MODALITIES: dict[str, Modality] = {"CT": "CT", "MR": "MR", "PT": "PT", "NM": "NM", "ST": "NM"}
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def sop_class(dataset: Dataset) -> UID:
    """SOP class from the data set, or from the file meta header of a damaged one; empty if neither has it."""
    meta = getattr(dataset, "file_meta", None)
    return UID(dataset.get("SOPClassUID") or (meta.get("MediaStorageSOPClassUID") if meta else None) or "")


def modality(dataset: Dataset) -> Modality:
    """CT, MR, PT or NM, and OT for every other."""
    return _MODALITIES.get(str(dataset.get("Modality", "")), "OT")


def skip_reason(dataset: Dataset, has_pixels: bool) -> tuple[str, str] | None:
    """Why an object is not an input, as ``(code, sentence)``, or None for an image to read.

    A CT, MR or PET image without geometry or pixels is not skipped here: it is an input that cannot be read.
    """
    uid = sop_class(dataset)
    if uid.startswith(_DICOMDIR) or "DirectoryRecordSequence" in dataset:
        return "dicomdir", "a DICOMDIR, the index of a medium"
    kind = uid.removeprefix(_STORAGE) if uid.startswith(_STORAGE) else ""
    for prefix, code, reason in _NOT_IMAGES:
        if kind == prefix or kind.startswith(f"{prefix}."):
            return code, reason
    if not has_pixels and (not uid or kind in _VOLUMES):
        return None  # cut off in its header: an input that cannot be read
    if not kind and not has_pixels:
        return "non-image", "not an image storage object"
    return _skip_image(dataset, uid, has_pixels)


def _skip_image(dataset: Dataset, uid: UID, has_pixels: bool) -> tuple[str, str] | None:
    words = [str(word).upper() for word in _values(dataset.get("ImageType"))]
    if "LOCALIZER" in words or "SCOUT" in words:
        return "scout", "a scout (localizer), not part of the volume"
    if any(screen in word for word in words for screen in _SCREEN_WORDS):
        return "report-screen", "a saved screen, not an acquired image"
    placed = "PerFrameFunctionalGroupsSequence" in dataset or all(word in dataset for word in _GEOMETRY)
    if not placed and (uid.startswith(_SECONDARY_CAPTURE) or "SECONDARY" in words):
        return "report-screen", "a secondary capture without patient geometry"
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or "PALETTE" in str(dataset.get("PhotometricInterpretation")):
        code = "no-geometry" if modality(dataset) == "OT" else "report-screen"
        return code, "a colour image, not a grey-scale volume"
    if not placed and modality(dataset) in ("OT", "NM"):
        if not has_pixels and uid.startswith(_STORAGE):
            return "no-geometry", "no patient geometry and no pixels"
        return "no-geometry", "no patient geometry (projection, ultrasound or planar image)"
    return None


def _values(value: object) -> list:
    if value is None or isinstance(value, str):
        return [] if not value else [value]
    return list(value)  # type: ignore[call-overload]
