"""What a data manifest says of a set beside its files: licence, access, citation, layout, reader. No torch.

Unknown keys are refused. ``files`` and ``folders`` are read by `medseq.io.manifest`, which also finds them on the disk.
"""

import os
import re
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medseq.errors import ManifestError
from medseq.io.manifest import Role, find_manifest

__all__ = ["DataManifest", "FileEntry", "FolderEntry", "load_manifest"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """One file; `sha256` is what the publisher's package holds."""

    path: str
    subject: str = Field(min_length=1)
    role: Role
    slices: tuple[int, int] | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


class FolderEntry(_Strict):
    """The files of a folder; `subject` finds the pseudonym, `role` is one or shares of subjects."""

    path: str
    pattern: str = "*.h5"
    subject: str
    role: Role | dict[Role, float]
    slices: tuple[int, int] | None = None

    @field_validator("subject")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return value


class DataManifest(_Strict):
    """A data set in words and files.

    Attributes:
        title: What it is, and whether it is real or simulated.
        licence: Of the package and, where known, of the images; ``unverified`` where not.
        get: How to come by it, in words or as a command.
        cite: Whom to cite.
        what: Sizes, modality, how many.
        use: A command that trains on it.
        reader: Import path of the class or function that reads its files.
        tree: The folders and files that are expected below MEDSEQ_DATA, one line each, for people.
        files, folders: See `medseq.io.manifest`.
    """

    title: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    get: str = Field(min_length=1)
    cite: str = Field(min_length=1)
    what: str = Field(min_length=1)
    use: str | None = None
    reader: str | None = Field(None, pattern=r"^medseq(\.\w+)+$")
    tree: list[str] = []
    files: list[FileEntry] = []
    folders: list[FolderEntry] = []


def load_manifest(name: str | os.PathLike[str]) -> DataManifest:
    """A manifest, checked against the schema.

    Args:
        name: See `medseq.io.manifest.find_manifest`.

    Raises:
        ManifestError: No such manifest, or keys that are missing, unknown or of the wrong kind; each is named.
    """
    path = find_manifest(name)
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ManifestError("not YAML", where=path.name) from None
    try:
        return DataManifest.model_validate(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'top level'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ManifestError("the manifest does not fit: " + "; ".join(faults[:5]), where=path.name) from None
