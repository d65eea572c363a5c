"""A folder without identifiers: every file is cleaned, refused or left out with a reason, and nothing else is written.

    OUT/P-…/S-…/R-…/….dcm      DICOM: patient, study, series, image
    OUT/file-….nii.gz, .h5 …   everything else
    OUT/deidentify.json        what became of every file, without names

The same salt gives the same names and bytes, so that running again completes a run that was stopped.
"""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseq import __version__
from medseq.errors import InputError, MedseqError
from medseq.inference.discover import input_root, walk
from medseq.inference.found import relative
from medseq.inference.run_folder import prepared, require_apart
from medseq.io.atomic import clear, publish_bytes
from medseq.io.deidentify import Cleaned, Options, Pseudonyms, Refused
from medseq.io.privacy import path_label

__all__ = ["REPORT", "DeidentifySummary", "deidentify_folder"]

logger = logging.getLogger(__name__)

REPORT = "deidentify.json"
_TIFF = (".svs", ".tif", ".tiff", ".btf")
_HDF5 = (".h5", ".hdf5", ".mrd")
_PROPRIETARY = (
    ".ndpi",
    ".mrxs",
    ".scn",
    ".vms",
    ".vmu",
    ".bif",
    ".czi",
    ".dat",
    ".par",
    ".rec",
    ".mnc",
    ".mha",
    ".mhd",
)


@dataclass
class DeidentifySummary:
    """What became of the files.

    Attributes:
        counts: Files by state: ``done``, ``refused`` (cannot be cleaned), ``failed`` (damaged), ``skipped`` (no input).
        files: One entry a file: state, reason, notes, output below the output folder; no source names.
        exit_code: 0 all done, 3 some refused or failed.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("done", "refused", "failed", "skipped"), 0))
    files: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """As the command line returns it."""
        return 3 if self.counts["refused"] or self.counts["failed"] else 0


def deidentify_folder(
    input: str | Path,
    output: str | Path,
    *,
    dates: str = "shift",
    keep: Iterable[str] = (),
    burned_in: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> DeidentifySummary:
    """Write what is in `input` to `output` without identifiers; see `medseq.io.deidentify` for what replaces them.

    Args:
        input: A file or a folder: DICOM, NIfTI, raw MR data, tiled TIFF slides.
        output: Folder for the result; never inside `input`.
        dates: ``shift`` by the patient's own number of days, or ``remove``.
        keep: Of ``characteristics``, ``device``, ``uids``.
        burned_in: Take images whose pixels may show text, too.
        progress: Called with (files done, files, text without identifiers).

    Raises:
        InputError: No input, no secret salt in ``MEDSEQ_SALT``, or an option that does not exist.
        OutputError: `output` lies inside `input` or cannot be written.
    """
    source, out = Path(input), Path(output)
    names, options = Pseudonyms.from_environment(), Options(dates, frozenset(keep), burned_in)
    root = input_root(source)
    require_apart(source, out)
    entries = list(walk(root) if source.is_dir() else [(source.resolve(), None)])
    if not entries:
        raise InputError("there is nothing to read in the input")
    summary = DeidentifySummary()
    companions = {path.with_suffix(".hdr") for path, _ in entries if path.suffix.lower() == ".cfl"}
    with prepared(out):
        for done, (path, left_out) in enumerate(entries, start=1):
            if path in companions:
                continue
            row = (
                {"state": left_out[0], "reason": left_out[2]}
                if left_out
                else _one(path, relative(root, path), out, names, options)
            )
            summary.counts[row["state"]] += 1
            summary.files.append({"file": path_label(path, root), **row})
            if progress:
                progress(done, len(entries), "")
        report = {
            "schema": 1,
            "version": __version__,
            "options": {"dates": dates, "keep": sorted(options.keep), "burned_in": burned_in},
            "counts": summary.counts,
            "files": summary.files,
        }
        text = json.dumps(report, indent=2).encode()
        publish_bytes(clear(out / REPORT), out / REPORT, text)
    return summary


def _one(path: Path, name: str, out: Path, names: Pseudonyms, options: Options) -> dict[str, Any]:
    try:
        cleaned = _clean(path, name, out, names, options)
    except Refused as error:
        return {"state": "refused" if error.wanted != _NO_FORMAT else "skipped", "reason": str(error)}
    except MedseqError as error:
        logger.warning("%s", error)
        return {"state": "failed", "reason": str(error)}
    return {"state": "done", "output": cleaned.path.relative_to(out).as_posix(), "notes": list(cleaned.notes)}


_NO_FORMAT = "DICOM, NIfTI, raw MR data or a tiled TIFF"


def _clean(path: Path, name: str, out: Path, names: Pseudonyms, options: Options) -> Cleaned:
    from medseq.io import deidentify_kspace as kspace

    suffix = path.suffix.lower()
    if path.name.lower().endswith((".nii", ".nii.gz")):
        from medseq.io.deidentify_nifti import deidentify_nifti

        return deidentify_nifti(path, name, out, names)
    if suffix in _HDF5:
        return kspace.deidentify_hdf5(path, name, out, names, options)
    if suffix == ".npy":
        return kspace.deidentify_array(path, name, out, names)
    if suffix == ".cfl":
        return kspace.deidentify_bart(path, name, out, names)
    if suffix in _TIFF:
        from medseq.io.deidentify_tiff import deidentify_tiff

        return deidentify_tiff(path, name, out, names)
    if suffix in _PROPRIETARY:
        raise Refused(
            "a maker's own format, whose texts and pictures are not all known",
            where=path_label(path),
            found=suffix,
            remedy="convert it to DICOM, NIfTI or a tiled TIFF first",
        )
    from medseq.io.dicom import require_pydicom

    require_pydicom()
    from medseq.io.deidentify_dicom import deidentify_dicom, is_dicom

    if not is_dicom(path):
        raise Refused("not an image", where=path_label(path), wanted=_NO_FORMAT)
    return deidentify_dicom(path, out, names, options)
