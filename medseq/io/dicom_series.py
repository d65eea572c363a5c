"""Which files may belong together, told from a few bytes of each: so that headers are held of one series at a time."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial

from medseq.errors import MedseqError
from medseq.io.dicom_header import read_header, understood
from medseq.io.privacy import path_label

__all__ = ["by_series"]

_STUDY, _SERIES, _SOP = 0x0020000D, 0x0020000E, 0x00080018


def by_series(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with the same study and series UID, in the order of their first files.

    What cannot be read stands alone: `medseq.io.dicom.group_dicom` says why.
    """
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted({Path(path) for path in paths}):
        groups[_key(path)].append(path)
    return list(groups.values())


def _key(path: Path) -> tuple[str, str]:
    alone = ("", str(path))
    try:
        with understood(path_label(path), "the DICOM header is damaged"), path.open("rb") as file:
            try:
                # Tags ascend: after the series nothing of use follows.
                dataset = read_partial(
                    file, stop_when=lambda tag, vr, length: tag > _SERIES, specific_tags=[_STUDY, _SERIES, _SOP]
                )
            except InvalidDicomError:
                # Without the preamble, or no DICOM at all.
                dataset = read_header(path).dataset
            series = str(dataset.get("SeriesInstanceUID") or dataset.get("SOPInstanceUID") or "")
            return (str(dataset.get("StudyInstanceUID", "")), series) if series else alone
    except MedseqError:
        return alone
