"""A data manifest as Croissant JSON-LD, the form in which data sets are described to machines. No torch.

What the manifest says goes in as it stands; nothing is looked up. Files that the publisher does not hand out singly are
file sets below one folder of the user's.

Reference:
    Akhtar et al., Croissant: a metadata format for ML-ready datasets, arXiv:2403.19546; format version 1.0.
"""

from pathlib import PurePosixPath
from typing import Any

from medseq.io.manifest_schema import DataManifest, FolderEntry

__all__ = ["croissant"]

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "excludes": "cr:excludes",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "includes": "cr:includes",
    "recordSet": "cr:recordSet",
    "sc": "https://schema.org/",
}
_UNKNOWN = "not published"
_FORMATS = {
    ".h5": "application/x-hdf5",
    ".nii": "application/x-nifti",
    ".gz": "application/x-nifti",
    ".dcm": "application/dicom",
    ".ima": "application/dicom",
    ".svs": "image/tiff",
    ".tif": "image/tiff",
    ".csv": "text/csv",
}


def croissant(name: str, manifest: DataManifest) -> dict[str, Any]:
    """The description of a set.

    Args:
        name: Of the manifest.
        manifest: Its content.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "description": f"{manifest.title}. {manifest.what}. How to get it: {manifest.get}",
        "license": manifest.licence,
        "citeAs": manifest.cite,
        # The set's place in words stands in the description; a description needs an address of its own.
        "url": f"urn:medseq:data:{name}",
        "version": "1.0.0",
        "datePublished": "2026-11-26",
        "distribution": [*_objects(manifest), *_sets(name, manifest.folders)],
    }


def _objects(manifest: DataManifest) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject",
            "@id": f"file-{number}",
            "name": PurePosixPath(entry.path).name,
            "description": f"subject {entry.subject}, role {entry.role}",
            "contentUrl": entry.path,
            "encodingFormat": _format(entry.path),
            # A file that nobody published a checksum of: the format asks for one, and takes this word for none.
            "sha256": entry.sha256 or _UNKNOWN,
        }
        for number, entry in enumerate(manifest.files)
    ]


def _sets(name: str, folders: list[FolderEntry]) -> list[dict[str, Any]]:
    if not folders:
        return []
    root = {
        "@type": "cr:FileObject",
        "@id": "root",
        "name": "root",
        "description": "the folder that MEDSEQ_DATA names",
        "contentUrl": f"{name}/",
        "encodingFormat": "application/x-directory",
        "sha256": _UNKNOWN,
    }
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": f"files-{number}",
            "name": f"files-{number}",
            "description": f"role {entry.role}; the subject is {entry.subject} of the path",
            "containedIn": {"@id": "root"},
            "encodingFormat": _format(entry.pattern),
            "includes": f"{entry.path}/{entry.pattern}",
        }
        for number, entry in enumerate(folders)
    ]
    return [root, *sets]


def _format(path: str) -> str:
    return _FORMATS.get(PurePosixPath(path.lower()).suffix, "application/octet-stream")
