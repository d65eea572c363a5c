"""Labels that stand for people, series and files wherever a person can read them.

Messages, logs and reports never hold a patient name, a patient id, a UID or a path: they hold a short salted hash, the
same for the same thing within one process (within one site, if the environment variable ``MEDSEQ_SALT`` is set).
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

__all__ = ["label", "path_label", "salt", "show_identifiers"]

# Suffixes that say what a file is. Any other may be part of a name ("scan.SMITH_JOHN") and is dropped.
_KNOWN_SUFFIXES = (
    *(".nii.gz", ".nii", ".dcm", ".dicom", ".ima", ".h5", ".hdf5", ".mrd", ".cfl", ".hdr", ".img", ".mha"),
    *(
        ".svs",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".tiff",
        ".tif",
        ".npy",
        ".npz",
        ".pt",
        ".zarr",
        ".csv",
        ".tsv",
        ".json",
        ".yaml",
    ),
    *(".txt", ".md", ".pdf", ".png", ".jpg", ".jpeg", ".zip", ".gz", ".tar", ".xml", ".html", ".log"),
)

_random_salt = secrets.token_hex(16)
_shown = False


def show_identifiers(flag: bool) -> None:
    """Let `label` and `path_label` return the identifiers themselves (True) or their hashes (False, the default)."""
    global _shown
    _shown = flag


def salt() -> str:
    """The salt of this process, for one that must agree with it on labels."""
    return os.environ.get("MEDSEQ_SALT") or _random_salt


def label(identifier: str) -> str:
    """A short stand-in for an identifier: ``id-`` and ten hex digits of a salted hash.

    The salt is drawn once a process unless the environment variable ``MEDSEQ_SALT`` gives one; processes that must
    agree on labels have to share it.

    Args:
        identifier: A UID, a patient id, a name: anything that may lead to a person.

    Returns:
        The stand-in, or `identifier` itself after ``show_identifiers(True)``.
    """
    return identifier if _shown else f"id-{_digest(identifier)}"


def path_label(path: str | os.PathLike, root: str | os.PathLike | None = None) -> str:
    """A stand-in for a file: ``file-ab12cd34ef.dcm``; folder and file names often hold patient names.

    Args:
        path: The file.
        root: What the label is relative to, so that it survives a move of the whole folder; default: the parent.

    Returns:
        The stand-in with a known suffix kept, or the relative path itself after ``show_identifiers(True)``.
    """
    path = Path(path)
    try:
        relative = path.relative_to(path.parent if root is None else root).as_posix()
    except ValueError:
        relative = path.name
    if _shown:
        return relative
    name = path.name.lower()
    suffix = next((known for known in _KNOWN_SUFFIXES if name.endswith(known)), "")
    return f"file-{_digest(relative)}{suffix}"


def _digest(text: str) -> str:
    return hmac.new(salt().encode(), text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:10]
