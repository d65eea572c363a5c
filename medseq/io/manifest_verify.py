"""Whether the files of a data set are all there, whole, each once, and every person in one part of the split.

Checksums come from the manifest where the publisher's package has them, else from a lock file that an earlier
verification wrote. What is found is listed, with the file's place below its folder; that may name a person, so the list
is for the screen of whoever owns the data and goes into no log.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from medseq.errors import ManifestError, MedseqError
from medseq.io.manifest import ManifestFile, find_manifest, located, read_manifest
from medseq.io.manifest_schema import load_manifest

__all__ = ["Fault", "Verification", "verify_manifest"]


class Fault(NamedTuple):
    """One thing that is wrong: `kind` is missing, empty, corrupt, duplicate, changed or split."""

    kind: str
    file: str
    detail: str


class Verification(NamedTuple):
    """What `verify_manifest` found."""

    files: int
    subjects: int
    faults: list[Fault]


def verify_manifest(name: str, *, lock: Path | None = None, open_files: bool = True) -> Verification:
    """Check every file of a manifest.

    Args:
        name: See `medseq.io.manifest.find_manifest`.
        lock: JSON of sha256 by file: compared with if it exists, else written if nothing is wrong.
        open_files: Open each file with its reader too, which finds files that were cut short before they were hashed.

    Raises:
        ManifestError: No such manifest, a folder that is not there at all, or a lock file that cannot be read.
    """
    manifest = load_manifest(name)
    faults = [Fault("missing", entry.path, "not found") for entry in manifest.files if not _is_there(name, entry.path)]
    if faults:
        return Verification(len(manifest.files), len({entry.subject for entry in manifest.files}), faults)
    files = read_manifest(name, split=False)
    wanted = _locked(lock)
    published = {Path(entry.path).name: entry.sha256 for entry in manifest.files if entry.sha256}
    digests: dict[str, str] = {}
    for file in files:
        label = _label(file)
        faults += _faults_of(file, label, digests, open_files)
        known = wanted.get(label) or published.get(file.path.name)
        if known and label in digests and digests[label] != known:
            faults.append(Fault("changed", label, f"sha256 {digests[label][:12]}, recorded {known[:12]}"))
    faults += [Fault("missing", label, "in the lock file, not on the disk") for label in wanted.keys() - digests.keys()]
    faults += _split_faults(files)
    faults += _duplicates(digests)
    if lock is not None and not lock.exists() and not faults:
        lock.write_text(json.dumps(dict(sorted(digests.items())), indent=1) + "\n", encoding="utf-8")
    return Verification(len(files), len({file.subject for file in files}), faults)


def _is_there(name: str, path: str) -> bool:
    beside = find_manifest(name).parent / path
    return beside.is_file() or beside.with_name(f"{beside.name}.cfl").is_file() or located(path) is not None


def _label(file: ManifestFile) -> str:
    """The last folder and the name: tells files apart without the place of the data."""
    return f"{file.path.parent.name}/{file.path.name}"


def _locked(lock: Path | None) -> dict[str, str]:
    if lock is None or not lock.exists():
        return {}
    try:
        content = json.loads(lock.read_text("utf-8"))
    except (OSError, ValueError):
        raise ManifestError("the lock file cannot be read", where=lock.name, wanted="JSON of sha256 by file") from None
    if not isinstance(content, dict):
        raise ManifestError("the lock file holds no mapping", where=lock.name, wanted="JSON of sha256 by file")
    return {str(key): str(value) for key, value in content.items()}


def _faults_of(file: ManifestFile, label: str, digests: dict[str, str], open_files: bool) -> Iterator[Fault]:
    path = file.path
    if not path.is_file():
        # BART's arrays are named without their suffix.
        path = path.with_name(f"{path.name}.cfl")
    if path.stat().st_size == 0:
        yield Fault("empty", label, "0 bytes")
        return
    with path.open("rb") as stream:
        digests[label] = hashlib.file_digest(stream, "sha256").hexdigest()
    if open_files and (reason := _unreadable(path)):
        yield Fault("corrupt", label, reason)


def _unreadable(path: Path) -> str | None:
    """Why a file cannot be read as what its name says; None if it can, or if its name says nothing."""
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            from medseq.io.nifti import open_nifti

            reader = open_nifti(path)
            # The last plane: a compressed file that was cut short fails there.
            reader.read(reader.header.planes - 1, reader.header.planes)
        elif name.endswith((".h5", ".hdf5")):
            from medseq.io.kspace_open import open_kspace

            open_kspace(path)
        elif name.endswith((".dcm", ".ima")):
            from medseq.io.dicom import group_dicom

            broken = group_dicom([path])[2]
            return broken[0].error.what if broken else None
        elif name.endswith((".svs", ".tif", ".tiff", ".ndpi", ".mrxs")):
            from medseq.io.slide_open import open_slide

            open_slide(path)
    except (MedseqError, OSError, EOFError) as error:
        return getattr(error, "what", None) or type(error).__name__
    return None


def _split_faults(files: list[ManifestFile]) -> Iterator[Fault]:
    roles: dict[str, set[str]] = {}
    for file in files:
        roles.setdefault(file.subject, set()).add(file.role)
    for subject, found in sorted(roles.items()):
        if len(found) > 1:
            yield Fault("split", f"subject {subject}", f"in {' and '.join(sorted(found))}")


def _duplicates(digests: dict[str, str]) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for label, digest in digests.items():
        if first.setdefault(digest, label) != label:
            yield Fault("duplicate", label, f"the bytes of {first[digest]}")
